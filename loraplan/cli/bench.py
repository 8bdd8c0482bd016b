"""``loraplan bench``: solvers on suites of workloads."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Annotated, Any

import pandas as pd
import typer
from rich.markup import escape

from benchmarks.best_known import PATH, read_best_known, updated
from benchmarks.cells import Limits, default_solvers, make_cells
from benchmarks.check import Checked, check, ok, ratio
from benchmarks.harness import bench as run_bench
from benchmarks.paired import pairs
from benchmarks.results import improvements, read_table, summary
from benchmarks.suites import select
from loraplan.cli import INTERRUPTED, terminal
from loraplan.cli.options import JSONOption
from loraplan.cli.terminal import new_table, number, out, percent
from loraplan.errors import BadInputError
from loraplan.oracle import DEFAULT_ORACLE
from surrogate.executors import ExecutorName

MOST_FAILURES = 10
"""Of which each has a line below the table."""


SuitesArgument = Annotated[
    list[str],
    typer.Argument(
        metavar="SUITE...", help="See `loraplan list suites`; a part: `tiny/9-*`; a file of your own: `mine.yaml`."
    ),
]
SolversOption = Annotated[
    str | None, typer.Option("--solvers", metavar="A,B", help="Those that are compared, the first with all others.")
]
ObjectivesOption = Annotated[
    str | None, typer.Option("--objectives", metavar="A,B", help="Instead of the suites' own.")
]
OraclesOption = Annotated[str, typer.Option("--oracle", metavar="A,B", help="Who judges the plans.")]
RepeatsOption = Annotated[int, typer.Option("--seeds", min=1, help="How many seeds of every solver.")]
SecondsOption = Annotated[float, typer.Option("--time-limit", min=0, metavar="S", help="Seconds of every cell.")]
MemoryOption = Annotated[
    float, typer.Option("--memory-limit", min=0.1, metavar="GB", help="Memory of every cell, above which it ends.")
]
TwinSeedsOption = Annotated[
    int, typer.Option("--twin-seeds", min=0, help="Fresh seeds on which every plan is replayed in the twin.")
]
ExecutorOption = Annotated[ExecutorName, typer.Option("--executor", help="Work on this machine, or on a Ray cluster.")]
WorkersOption = Annotated[
    int | None, typer.Option("--workers", min=1, metavar="N", help="Cells at a time; all cores if not given.")
]
AddressOption = Annotated[
    str | None,
    typer.Option(
        "--ray-address", metavar="A", help="Of the cluster's head; else RAY_ADDRESS, else Ray on this machine."
    ),
]
FolderOption = Annotated[
    Path | None, typer.Option("-o", "--output", metavar="DIR", help="Folder of the results; else bench-results.")
]
CheckOption = Annotated[
    Path | None,
    typer.Option("--check", metavar="RESULTS.csv", help="Exit with 1 if quality or time is worse than there."),
]
UpdateOption = Annotated[
    bool, typer.Option("--update-best-known", help="Put what is proven or better into the file of what is known.")
]
KnownOption = Annotated[Path, typer.Option("--best-known", metavar="FILE", help="That file.", show_default=False)]


def bench(
    suites: SuitesArgument,
    solvers: SolversOption = None,
    objectives: ObjectivesOption = None,
    oracle: OraclesOption = DEFAULT_ORACLE,
    seeds: RepeatsOption = 1,
    time_limit: SecondsOption = 60,
    memory_limit: MemoryOption = 4,
    twin_seeds: TwinSeedsOption = 3,
    executor: ExecutorOption = ExecutorName.local,
    workers: WorkersOption = None,
    ray_address: AddressOption = None,
    output: FolderOption = None,
    against: CheckOption = None,
    update: UpdateOption = False,
    best_known: KnownOption = PATH,
    as_json: JSONOption = False,
) -> None:
    """Solve the workloads of suites with several solvers, and compare plans, proofs and times.

    Every solver works on every instance in a process of its own, with a time and a memory limit: one that crashes,
    hangs or returns a wrong plan is a row, and not the end. Every plan is replayed in the twin on fresh seeds. Whatever
    ends the command, the same command goes on where it was. `loraplan report DIR` makes a page of the results.
    """
    if ray_address is not None and executor is not ExecutorName.ray:
        raise BadInputError("--ray-address makes no sense without --executor ray")
    before = None if against is None else read_table(against)
    limits = Limits(time_limit, max(10.0, time_limit / 2), memory_limit, twin_seeds)
    chosen = _names(solvers) or default_solvers()
    with terminal.progress("reading the suites"):
        cells = [*make_cells(select(suites), chosen, _names(objectives), _names(oracle), seeds, limits)]
    with tempfile.TemporaryDirectory() as temporary:
        kept = output or (Path("bench-results") if against is None else Path(temporary) / "results")
        try:
            with terminal.progress("solving") as advance:
                table = run_bench(cells, limits, kept, executor, workers, ray_address, advance, best_known)
        except KeyboardInterrupt:
            terminal.error(f"interrupted; what is done is kept in {kept}, and the same command goes on with the rest")
            raise typer.Exit(INTERRUPTED) from None
    changed = _update(table, best_known) if update else None
    checked = None if before is None else check(table, before)
    if as_json:
        _print_json(table, checked, changed)
    else:
        _print(table, checked, changed)
        if kept.exists():
            terminal.note(f"results written to {kept}; next: loraplan report {kept} -o report.html")
    if checked is not None and not ok(checked):
        raise typer.Exit(1)


def _names(text: str | None) -> list[str]:
    return [*dict.fromkeys(name.strip() for name in (text or "").split(",") if name.strip())]


def _update(table: pd.DataFrame, path: Path) -> int:
    known, changed = updated(read_best_known(path), improvements(table))
    if changed:
        known.save(path)
    return changed


def _print_json(table: pd.DataFrame, checked: list[Checked] | None, changed: int | None) -> None:
    terminal.print_json(
        {
            "results": table.to_dict("records"),
            "summary": summary(table).to_dict("records"),
            "pairs": pairs(table),
            "check": checked,
            "best_known_changed": changed,
        }
    )


def _print(table: pd.DataFrame, checked: list[Checked] | None, changed: int | None) -> None:
    found = summary(table)
    several = {name: found[name].nunique() > 1 for name in ("objective", "oracle")}
    shown = new_table(
        "suite", "solver", *(name for name, more in several.items() if more), "plans", "optimal", "value", "above best",
        "x best", "gap", "starved", "seconds", "longest",
    )  # fmt: skip
    row: Any
    for row in found.itertuples():
        shown.add_row(
            escape(str(row.suite)),
            escape(str(row.solver)),
            *(escape(str(getattr(row, name))) for name, more in several.items() if more),
            f"{row.plans} of {row.cells}",
            str(row.optimal),
            number(row.value, 0),
            number(row.above_best, 0),
            number(row.vs_best, 3),
            percent(row.gap),
            str(row.starved),
            number(row.solver_s, 2),
            number(row.solver_s_max, 2),
        )
    out(shown)
    out("[dim]value: of all plans together; optimal: no plan is better by the oracle; starved: plans, in the twin[/]")
    _print_pairs(table)
    _print_failures(table)
    if changed is not None:
        out(f"{changed} best-known entries changed")
    for one in checked or ():
        _print_check(one)


def _print_pairs(table: pd.DataFrame) -> None:
    found = pairs(table)
    first = table["solver"].iloc[0] if len(table) else ""
    for pair in found:
        if pair.a == first or len(found) <= 3:
            spread = pair.ratio
            out(
                f"{escape(pair.a)} costs [bold]{spread.mean:.3f}[/] times what {escape(pair.b)} does "
                f"({spread.low:.3f} to {spread.high:.3f}; {pair.objective}, {pair.oracle}): better on {pair.wins}, "
                f"equal on {pair.ties}, worse on {pair.losses} of {pair.n} instances"
            )


def _print_failures(table: pd.DataFrame) -> None:
    failed = table[~table["status"].isin(("optimal", "feasible", "infeasible"))]
    for row in failed.head(MOST_FAILURES).itertuples():
        terminal.note(f"{row.solver} on {row.suite}/{row.instance}: {row.status}: {str(row.reason)[:160]}")
    if len(failed) > MOST_FAILURES:
        terminal.note(f"... and {len(failed) - MOST_FAILURES} more without a plan")


def _print_check(one: Checked) -> None:
    quality, low, high = ratio(one.quality)
    time = "" if one.time is None else f", {one.time.mean:.2f} times the time"
    words = f"{number(quality, 3)} times the cost ({number(low, 3)} to {number(high, 3)}){time}"
    if one.complaints:
        out(f"[red]worse[/] {escape(one.solver)}: {escape('; '.join(one.complaints))}")
    else:
        out(f"[green]ok[/] {escape(one.solver)}: {one.n} cells, {words}")
