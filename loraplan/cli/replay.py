"""``loraplan replay``: a plan's workload on real servers."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Annotated

import typer
from rich.markup import escape

from loraplan.cli import live, terminal
from loraplan.cli.export import AdapterPathOption, CPUSlotsOption, split_urls
from loraplan.cli.options import JSONOption, PlanArgument
from loraplan.config import build, load_config
from loraplan.errors import BadInputError, ServerError
from loraplan.export import Server, Settings, servers_of
from loraplan.files import require_writable, write_text
from loraplan.live.launch import Launcher
from loraplan.live.replay import GPUReplay, Proxy, Replay, Side, first_seconds, replay
from loraplan.plan import Plan, read_plan
from loraplan.validation import recorded_workload

URLsOption = Annotated[
    str | None, typer.Option("--urls", metavar="URL,...", help="The servers, in the order of the plan's GPUs.")
]
ProxyOption = Annotated[
    str | None, typer.Option("--proxy", metavar="URL", help="Send to this LiteLLM proxy, which chooses the server.")
]
KeyOption = Annotated[
    str | None, typer.Option("--proxy-key", envvar="LITELLM_MASTER_KEY", metavar="KEY", help="The proxy's key.")
]
DurationOption = Annotated[
    str | None,
    typer.Option("--duration", metavar="TIME", help="Only the first part of the workload, at its own rates."),
]
WorkloadOption = Annotated[
    Path | None, typer.Option("--config", metavar="CONFIG.yaml", help="Replay this config's workload, not the plan's.")
]
OutputOption = Annotated[
    Path | None, typer.Option("-o", "--output", metavar="REPLAY.json", help="Save the results, complete or not.")
]
SeedOption = Annotated[int, typer.Option("--seed", min=0, help="Of the requests.")]

MOST_ROWS = 20
"""Adapters of a GPU that are printed: those that were served worst; JSON has all."""


def replay_plan(
    plan: PlanArgument,
    urls: URLsOption = None,
    launch: live.LaunchOption = None,
    proxy: ProxyOption = None,
    proxy_key: KeyOption = None,
    duration: DurationOption = None,
    config: WorkloadOption = None,
    output: OutputOption = None,
    adapter_path: AdapterPathOption = "/adapters/{name}",
    cpu_slots: CPUSlotsOption = None,
    vllm: live.VLLMOption = "vllm",
    vllm_args: live.ArgumentsOption = "",
    env: live.EnvironmentOption = None,
    cpu: live.CPUOption = False,
    seed: SeedOption = 1,
    as_json: JSONOption = False,
) -> None:
    """Replay a plan's workload on real vLLM servers, one per GPU, and compare with oracle and twin.

    Requests go to the server that the plan names for their adapter, or to a proxy. Figures are defined as in vLLM's
    benchmark, times count from when a request was due. Exit code 3: a server failed; what was measured until then is
    printed and saved.
    """
    if (urls is None) == (launch is None):
        raise BadInputError("expected one of --urls and --launch")
    if output is not None:
        require_writable(output)
    made = read_plan(plan)
    workload = build(load_config(config)).replay if config is not None else recorded_workload(made)
    workload = first_seconds(workload, None if duration is None else live.seconds(duration, "--duration"))
    settings = Settings(adapter_path=adapter_path, model=launch, cpu_slots=cpu_slots, urls=split_urls(urls))
    gateway = None if proxy is None else Proxy(proxy.rstrip("/"), proxy_key)
    live.end_by_sighup()
    with (
        TemporaryDirectory(prefix="loraplan-") as folder,
        _servers(made, settings, launch, live.launcher(vllm, Path(folder), vllm_args, env, cpu)) as servers,
        terminal.progress("replaying") as advance,
    ):
        total = round(workload.horizon_s)
        found = replay(made, workload, servers, seed, gateway, cpu_slots, None, lambda s: advance(round(s), total))
    if output is not None:
        write_text(output, terminal.as_json(found))
        terminal.note(f"results written to {output}")
    terminal.print_json(found) if as_json else _print(found)
    if found.error:
        raise ServerError(f"{found.error}; what came before, {found.seconds:.0f} s, is shown")


@contextmanager
def _servers(plan: Plan, settings: Settings, launch: str | None, launcher: Launcher) -> Iterator[list[Server]]:
    servers = list(servers_of(plan, settings))
    if launch is None:
        yield servers
        return
    serve = [
        [server.model, *server.options, "--lora-modules", *(module.argument for module in server.modules)]
        for server in servers
    ]
    terminal.note(f"starting {len(servers)} servers")
    with launcher.start(serve, [server.name for server in servers]) as started:
        yield [replace(server, url=process.url) for server, process in zip(servers, started, strict=True)]


def _print(found: Replay) -> None:
    table = terminal.new_table("GPU", "", "served", "tokens/s", "ITL ms", "TTFT s", "TTFT p95 s", numbers=True)
    for gpu in found.gpus:
        for name, side in (("predicted", gpu.predicted), ("simulated", gpu.simulated), ("measured", gpu.measured)):
            table.add_row(gpu.id if name == "predicted" else "", name, *_cells(side))
    terminal.out(table)
    for gpu in found.gpus:
        terminal.out(_adapters(gpu))
    sent, done, failed = (sum(getattr(g.figures, name) for g in found.gpus) for name in ("sent", "completed", "failed"))
    elsewhere = sum(gpu.elsewhere for gpu in found.gpus)
    late = max((gpu.figures.late_s for gpu in found.gpus), default=0.0)
    terminal.out(
        f"{sent} requests sent in {found.seconds:.0f} s, {done} answered, {failed} failed, {elsewhere} by a server "
        f"that the plan does not name; {found.too_long} too long to send; the client was {1e3 * late:.0f} ms late (p95)"
    )


def _cells(side: Side) -> tuple[str, ...]:
    return (
        terminal.percent(side.served_fraction),
        terminal.number(side.throughput_tok_s, 0),
        terminal.number(side.itl_ms, 1),
        terminal.number(side.ttft_s, 3),
        terminal.number(side.ttft_p95_s, 3),
    )


def _adapters(gpu: GPUReplay) -> terminal.Table:
    table = terminal.new_table(f"on {gpu.id}", "sent", "answered", "served", "twin", "ITL ms", "TTFT s", "twin")
    worst = sorted(gpu.adapters, key=lambda adapter: adapter.measured.served_fraction)[:MOST_ROWS]
    for adapter in worst:
        seen = adapter.measured
        table.add_row(
            escape(adapter.name),
            str(seen.sent),
            str(seen.completed),
            terminal.percent(seen.served_fraction),
            terminal.percent(adapter.simulated_served),
            terminal.number(seen.itl_ms, 1),
            terminal.number(seen.ttft_s, 3),
            terminal.number(adapter.simulated_ttft_s, 3),
        )
    return table
