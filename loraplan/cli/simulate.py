"""``loraplan simulate``: the twin run once, to look at what happens on a GPU."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from loraplan.cli import plots, show, terminal
from loraplan.config import load_config
from loraplan.errors import BadInputError
from loraplan.files import require_writable, write_text
from loraplan.plan import read_plan
from loraplan.simulation import GPUReport, simulate_config, simulate_plan
from twin.recording import Recording, chrome_trace


def simulate(
    file: Annotated[
        Path, typer.Argument(metavar="PLAN.json|CONFIG.yaml", help="A plan, or a config for a single GPU.")
    ],
    gpu: Annotated[
        str | None, typer.Option("--gpu", metavar="ID", help="Of a plan: this GPU only, adapter by adapter.")
    ] = None,
    slots: Annotated[int | None, typer.Option("--slots", min=1, help="Of a single GPU: --max-loras.")] = None,
    cpu_slots: Annotated[
        int | None, typer.Option("--cpu-slots", min=1, help="Adapters in CPU memory (--max-cpu-loras); all by default.")
    ] = None,
    seed: Annotated[
        int, typer.Option("--seed", min=0, help="Of arrivals, lengths and routing; `validate` counts from 1000000.")
    ] = 1,
    changes: Annotated[
        list[str] | None,
        typer.Option(
            "--set", metavar="KEY=VALUE", help="Change a setting of the config: `--set workload.rate_scale=2`."
        ),
    ] = None,
    series: Annotated[
        Path | None, typer.Option("--series", metavar="OUT.csv", help="Write time series: queue, KV, tokens, loads.")
    ] = None,
    plot: Annotated[
        Path | None, typer.Option("--plot", metavar="OUT.html", help="Draw the time series: a page of its own.")
    ] = None,
    every: Annotated[
        float, typer.Option("--every", metavar="S", help="Seconds in an interval of the time series.")
    ] = 10.0,
    trace: Annotated[
        Path | None,
        typer.Option("--trace", metavar="OUT.json", help="Write single steps, for chrome://tracing or Perfetto."),
    ] = None,
    window: Annotated[
        tuple[float, float], typer.Option("--window", metavar="FROM TO", help="The seconds whose steps are traced.")
    ] = (0.0, 60.0),
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON instead of tables.")] = False,
) -> None:
    """Run the digital twin once: the GPUs of a plan, or one GPU that gets the whole workload of a config.

    With a config the single GPU is the fleet's first, with `--slots` slots and all adapters of the workload on it. The
    suffix tells what the file is: .json a plan, .yaml or .yml a config. A GPU of a plan whose server would not start
    shows up with a memory error. Of one GPU, `--series`, `--plot` and `--trace` write what happened in the course of
    the run; docs/simulate.md explains the figures.
    """
    outputs = [path for path in (series, plot, trace) if path is not None]
    for path in outputs:
        require_writable(path)
    if len(set(outputs)) < len(outputs):
        raise BadInputError("--series, --plot and --trace need a file each")
    recording = None
    if outputs:
        recording = Recording(every if series or plot else None, window if trace else None)
    with terminal.progress("simulating") as advance:
        reports = _run(file, gpu, slots, cpu_slots, seed, changes, advance, recording)
    if as_json:
        terminal.print_json({"seed": seed, "gpus": [_figures(report) for report in reports]})
    else:
        show.simulation(reports, detailed=gpu is not None or len(reports) == 1)
    if recording is not None:
        _write(reports[0], series, plot, trace)


def _run(
    file: Path,
    gpu: str | None,
    slots: int | None,
    cpu_slots: int | None,
    seed: int,
    changes: list[str] | None,
    advance: terminal.Advance,
    recording: Recording | None,
) -> list[GPUReport]:
    suffix = file.suffix.lower()
    if suffix not in (".json", ".yaml", ".yml"):
        raise BadInputError(f"{file}: expected a plan (PLAN.json) or a config (CONFIG.yaml or .yml)")
    if suffix == ".json":
        if slots is not None or changes:
            raise BadInputError("--slots and --set are for a single GPU of a config; a plan says its own")
        plan = read_plan(file)
        if recording is not None and gpu is None and len(plan.gpus) != 1:
            raise BadInputError("--series, --plot and --trace look at one GPU of a plan: say which with --gpu")
        return simulate_plan(plan, gpu, seed, cpu_slots, advance, recording)
    if gpu is not None:
        raise BadInputError("--gpu picks a GPU of a plan; a config has none yet")
    if slots is None:
        raise BadInputError("a config says nothing of slots: give --slots N")
    return [simulate_config(load_config(file, changes or []), slots, seed, cpu_slots, recording)]


def _figures(report: GPUReport) -> dict[str, Any]:
    """The report without the run itself."""
    return {name: value for name, value in vars(report).items() if name != "run"}


def _write(report: GPUReport, series: Path | None, plot: Path | None, trace: Path | None) -> None:
    run = report.run
    if run is None:
        raise BadInputError(f"GPU {report.id}: its server does not start (memory error), there is nothing to write")
    if series is not None and run.series is not None:
        write_text(series, run.series.to_csv(index=False, lineterminator="\n", float_format="%.10g"))
        terminal.note(f"{len(run.series):,} intervals written to {series}")
    if plot is not None and run.series is not None:
        write_text(plot, plots.course(run.series, run.kv_capacity_tokens, f"{report.id}: {report.profile}"))
        terminal.note(f"plot written to {plot}; open it in a browser")
    if trace is not None and run.steps_log is not None:
        name = f"{report.id}: {report.profile}"
        write_text(trace, chrome_trace(run.steps_log, name, run.kv_capacity_tokens))
        terminal.note(f"{len(run.steps_log):,} steps written to {trace}; open it in https://ui.perfetto.dev")
