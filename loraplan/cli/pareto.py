"""`loraplan pareto`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from loraplan.cli import options, plots, terminal
from loraplan.cli.group import interrupts
from loraplan.cli.options import (
    ConfigArgument,
    JSONOption,
    OracleOption,
    SeedOption,
    SetOption,
    SolverOption,
    TimeLimitOption,
)
from loraplan.cli.terminal import new_table, number, percent
from loraplan.files import require_writable, write_text
from loraplan.pareto import Front
from loraplan.pareto import pareto as find_front
from objectives import OBJECTIVES

IMPROVES = "local_search"
"""The solver unless one is given: one that heeds the objective."""


def pareto(
    config: ConfigArgument,
    x: Annotated[str, typer.Option("--x", metavar="OBJECTIVE", help="One of the two objectives.")] = "gpu_count",
    y: Annotated[str, typer.Option("--y", metavar="OBJECTIVE", help="The other.")] = "latency",
    points: Annotated[int, typer.Option("--points", min=2, help="Plans at most.")] = 12,
    seeds: Annotated[int, typer.Option("--seeds", min=0, help="Replay every plan in the twin, on so many seeds.")] = 0,
    solver: SolverOption = IMPROVES,
    oracle: OracleOption = None,
    time_limit: TimeLimitOption = None,
    seed: SeedOption = None,
    changes: SetOption = None,
    plot: Annotated[Path | None, typer.Option("--plot", metavar="PAGE.html", help="Save a plot.")] = None,
    as_json: JSONOption = False,
) -> None:
    """What does less of one objective cost in another? The plans that are best in one for what they are in the other.

    With `gpu_count` as one of them there is a plan for each number of GPUs; with other objectives the plans are the
    corners of the front's hull, found by weighted sums. The time limit is each plan's.
    """
    for name in (x, y):
        OBJECTIVES.entry(name)
    if plot is not None:
        require_writable(plot)
    read = options.read(config, solver, None, oracle, time_limit, seed, changes)
    with interrupts() as pressed, terminal.progress(f"{read.solver.name}: plans") as advance:

        def tell(done: int, total: int) -> None:
            if pressed.is_set():  # a search that Ctrl-C ended has returned its best plan so far
                raise KeyboardInterrupt
            advance(done, total)

        found = find_front(read, x, y, points, seeds, on_progress=tell)
    if plot is not None:
        write_text(plot, plots.front(found))
        terminal.note(f"plot written to {plot}")
    if as_json:
        terminal.print_json(
            {
                "x": {"objective": found.x, "unit": found.x_unit},
                "y": {"objective": found.y, "unit": found.y_unit},
                "points": [
                    {
                        "x": point.x,
                        "y": point.y,
                        "best": point.best,
                        "twin_x": point.twin_x,
                        "twin_y": point.twin_y,
                        "validation": point.validation,
                        "plan": json.loads(point.plan.to_json()),
                    }
                    for point in found.points
                ],
            }
        )
    else:
        _show(found)


def _show(found: Front) -> None:
    replayed = any(point.validation is not None for point in found.points)
    titles = ["best", f"{found.x}, {found.x_unit}", f"{found.y}, {found.y_unit}", "GPUs", "slots"]
    if replayed:
        titles += [f"{found.x} in the twin", f"{found.y} in the twin", "starved", "worst served"]
    table = new_table(*titles)
    for point in found.points:
        slots = [gpu.slots for gpu in point.plan.gpus]
        cells = ["*" if point.best else "", f"{point.x:,.6g}", f"{point.y:,.6g}", str(len(slots)), str(sum(slots))]
        if point.validation is not None:
            gpus = point.validation.gpus
            worst = min(gpu.served_fraction.mean for gpu in gpus)
            cells += [number(point.twin_x, 2), number(point.twin_y, 2)]
            cells += [str(point.validation.starved_gpus), percent(worst)]
        table.add_row(*cells)
    terminal.out(table)
    best = [point for point in found.points if point.best]
    terminal.out(f"{len(best)} of {len(found.points)} plans are on the front of {found.x} and {found.y}")
