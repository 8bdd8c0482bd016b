"""``loraplan calibrate``: a profile from measurements, or from a server that is asked for them."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import typer
import yaml

from loraplan.cli import live, terminal
from loraplan.errors import BadInputError
from loraplan.files import require_writable, write_text
from loraplan.live.calibration import Check, Launching, LiveCalibration, Place, Running, Setting, calibrate_live
from loraplan.live.facts import adapters_in
from loraplan.live.launch import Launcher
from loraplan.live.notebook import Notebook
from loraplan.profiles import Profile, load_profile
from twin.calibrate import Calibration
from twin.calibrate import calibrate as calibrate_from

RunsOption = Annotated[
    Path | None,
    typer.Option(
        "--from-runs",
        metavar="DIR|CSV",
        help="Measured runs (CSV), or a folder with them and with micro-benchmarks; columns: docs/calibrate.md.",
    ),
]
URLOption = Annotated[
    str | None, typer.Option("--url", metavar="URL", help="A running vLLM with LoRA adapters, to be probed.")
]
OutputOption = Annotated[
    Path, typer.Option("-o", "--output", metavar="PROFILE.yaml", help="Where to write the profile.")
]
LikeOption = Annotated[
    str, typer.Option("--like", metavar="PROFILE", help="Gives names, limits, rules and whatever was not measured.")
]
ModelOption = Annotated[
    str | None, typer.Option("--model", help="With --from-runs: whose rows to use, if there are several models.")
]
NameOption = Annotated[str | None, typer.Option("--name", help="The new profile's name; as --like if not given.")]
SeedOption = Annotated[int, typer.Option("--seed", min=0, help="With --from-runs: of the simulated arrivals.")]
JSONOption = Annotated[bool, typer.Option("--json", help="Print JSON instead of tables.")]
StateOption = Annotated[
    Path | None,
    typer.Option("--state", metavar="DIR", help="Keeps what is measured, to go on from; PROFILE.probes if not given."),
]
SlotsOption = Annotated[
    str | None,
    typer.Option("--slots", metavar="N,...", help="--max-loras: of the server at --url; or each to be started."),
]
RankOption = Annotated[
    int | None, typer.Option("--max-rank", min=1, help="--max-lora-rank; the adapters' own with --launch.")
]
SeqsOption = Annotated[
    int | None, typer.Option("--max-num-seqs", min=1, help="The server's; as --like if not given. So are the next two.")
]
TokensOption = Annotated[int | None, typer.Option("--max-num-batched-tokens", min=1, help="The server's.")]
LengthOption = Annotated[int | None, typer.Option("--max-model-len", min=1, help="With --launch: the server's.")]


@dataclass(frozen=True)
class Servers:
    """What the options say of the servers to probe."""

    url: str | None
    launch: str | None
    loras: Path | None
    slots: str | None
    max_rank: int | None


def calibrate(
    output: OutputOption,
    from_runs: RunsOption = None,
    url: URLOption = None,
    launch: live.LaunchOption = None,
    budget: live.BudgetOption = "10m",
    state: StateOption = None,
    slots: SlotsOption = None,
    max_rank: RankOption = None,
    loras: live.LorasOption = None,
    vllm: live.VLLMOption = "vllm",
    vllm_args: live.ArgumentsOption = "",
    env: live.EnvironmentOption = None,
    cpu: live.CPUOption = False,
    max_num_seqs: SeqsOption = None,
    max_num_batched_tokens: TokensOption = None,
    max_model_len: LengthOption = None,
    like: LikeOption = "h100-64gb/llama-3.1-8b",
    model: ModelOption = None,
    name: NameOption = None,
    seed: SeedOption = 0,
    as_json: JSONOption = False,
) -> None:
    """Fit a profile to measurements of one server, or to what a running vLLM answers.

    With --from-runs: KV law and load times come from micro-benchmarks where there are any; the step law from hours of
    real load, each simulated in the twin until its steps contain what the measured ones did. With --url or --launch:
    the server is probed for as long as --budget says, and the profile is checked on runs that it was not fitted to.
    What has been measured is kept in --state: the same command goes on from there.
    """
    if sum(source is not None for source in (from_runs, url, launch)) != 1:
        raise BadInputError("expected one of --from-runs, --url and --launch")
    require_writable(output)
    start = load_profile(like)
    if name is not None:
        if not name:
            raise BadInputError("--name must not be empty")
        start = start.model_copy(update={"name": name})
    if from_runs is not None:
        with terminal.progress("simulating the measured runs") as advance:
            found = calibrate_from(from_runs, model, start, seed, advance)
        _write(output, found.profile)
        terminal.print_json(found) if as_json else _print(found)
    else:
        limits = live.limited(start.limits, max_num_seqs, max_num_batched_tokens, max_model_len)
        start = Profile.model_validate(start.model_copy(update={"limits": limits}).model_dump())
        folder = state or output.with_name(f"{output.name}.probes")
        place = _place(
            Servers(url, launch, loras, slots, max_rank), start, live.launcher(vllm, folder, vllm_args, env, cpu)
        )
        probed = _probe(place, start, folder, live.seconds(budget, "--budget"), cpu)
        _write(output, probed.fit.calibration.profile)
        terminal.print_json(probed) if as_json else _print_live(probed)
    terminal.note(f"profile written to {output}; name this file in a fleet")


def _write(output: Path, profile: Profile) -> None:
    write_text(output, yaml.safe_dump(profile.model_dump(mode="json"), sort_keys=False, width=110))


def _place(servers: Servers, like: Profile, launcher: Launcher) -> Place:
    try:
        slots = [int(part) for part in (servers.slots or "").split(",") if part.strip()]
    except ValueError:
        slots = [0]
    if any(one < 1 for one in slots):
        raise BadInputError(f"--slots: expected whole numbers above 0 with commas between (got {servers.slots!r})")
    if servers.url is not None:
        if len(slots) != 1 or servers.max_rank is None:
            raise BadInputError("--url needs --slots, one number, and --max-rank: the server does not say them")
        return Running(servers.url.rstrip("/"), Setting(slots[0], None, servers.max_rank))
    if servers.loras is None or not slots:
        raise BadInputError("--launch needs --loras, the folder of the adapters, and --slots, such as 4,8")
    adapters = adapters_in(servers.loras)
    rank = servers.max_rank or like.server_rank(max(adapter.rank for adapter in adapters))
    fitting = [adapter for adapter in adapters if adapter.rank <= rank]
    if not fitting:
        raise BadInputError(f"--max-rank: no adapter has a rank of {rank} or less")
    return Launching(servers.launch or "", fitting, slots, rank, like, launcher)


def _probe(place: Place, like: Profile, folder: Path, budget_s: float, cpu: bool) -> LiveCalibration:
    live.end_by_sighup()
    subject = {
        "server": place.url if isinstance(place, Running) else vars(place)["model"],
        "settings": [vars(setting) for setting in place.settings],
        "limits": like.limits.model_dump(mode="json"),
        "arguments": list(place.launcher.arguments) if isinstance(place, Launching) else [],
    }
    notebook = Notebook(folder, subject)
    try:
        with terminal.progress("probing") as advance:
            return calibrate_live(place, like, notebook, budget_s, cpu, lambda n, probe: advance(n, None, probe))
    except BaseException:
        count = sum(1 for _ in notebook.items())
        terminal.note(f"{count} measurements are kept in {folder}; the same command goes on from there")
        raise


def _print(found: Calibration) -> None:
    table = terminal.new_table("constant", "value", "standard error", "from")
    for constant in found.constants:
        table.add_row(
            constant.name,
            f"{constant.value:.4g}",
            f"{constant.error:.2g}" if math.isfinite(constant.error) else "-",
            constant.source,
        )
    terminal.out(table)
    table = terminal.new_table("regime", "runs", "MAPE %", "bias %")
    for regime in found.regimes:
        table.add_row(regime.name, str(regime.runs), f"{regime.mape:.2f}", f"{regime.bias:+.2f}")
    terminal.out(table)
    for line in found.unidentified:
        terminal.out(f"not identified: {line}")
    for run, residual in found.outliers:
        terminal.out(f"outlier: {run} ({residual:+.1f} %)")


def _print_live(found: LiveCalibration) -> None:
    _print(found.fit.calibration)
    terminal.out(f"a first token is {found.fit.on_the_way_ms:.1f} ms on its way, beside its step")
    table = terminal.new_table("held out", "requests", "served", "tokens/s", "twin", "ITL ms", "twin", "TTFT s", "twin")
    for check in found.checks:
        table.add_row(check.name, str(check.requests), terminal.percent(check.served_fraction), *_pairs(check))
    terminal.out(table)
    if not found.complete:
        terminal.note("the budget ended before all was probed once: give more, and the same command goes on")


def _pairs(check: Check) -> tuple[str, ...]:
    return (
        terminal.number(check.throughput_tok_s, 0),
        terminal.number(check.twin_throughput_tok_s, 0),
        terminal.number(check.itl_ms, 1),
        terminal.number(check.twin_itl_ms, 1),
        terminal.number(check.ttft_s, 3),
        terminal.number(check.twin_ttft_s, 3),
    )
