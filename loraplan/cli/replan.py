"""`loraplan replan`."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Annotated

import typer
from rich.markup import escape

from loraplan.api import spec
from loraplan.cli import show, terminal
from loraplan.cli.options import JSONOption, ObjectiveOption, OracleOption, PlanArgument, SetOption
from loraplan.cli.terminal import new_table
from loraplan.config import Config, PluginSpec, build_workload, parse_config
from loraplan.errors import BadInputError
from loraplan.files import read_yaml, require_writable, write_text
from loraplan.oracle import ORACLES
from loraplan.plan import Plan, read_plan
from loraplan.registry import choose
from loraplan.replan import Replanned, in_the_twin
from loraplan.replan import replan as find_plan
from loraplan.run import Run
from objectives import OBJECTIVES
from solvers import SOLVERS

MOST_STEPS = 30
"""Steps that the table shows."""


def replan(
    plan: PlanArgument,
    workload: Annotated[
        Path,
        typer.Option(
            "--workload", metavar="NEW.yaml", help="The new workload: a config, or only what differs from the plan's."
        ),
    ],
    max_moves: Annotated[int, typer.Option("--max-moves", min=0, metavar="N", help="Adapters that may move.")],
    objective: ObjectiveOption = None,
    oracle: OracleOption = None,
    seeds: Annotated[
        int, typer.Option("--seeds", min=0, help="Seeds on which the twin checks each move; 0: only the oracle.")
    ] = 1,
    changes: SetOption = None,
    output: Annotated[Path | None, typer.Option("-o", "--output", metavar="PLAN.json", help="Save the plan.")] = None,
    steps: Annotated[
        Path | None, typer.Option("--steps", metavar="STEPS.json", help="Save the steps that lead there.")
    ] = None,
    as_json: JSONOption = False,
) -> None:
    """A plan for a new workload close to the one in force, and the steps that lead there.

    Servers keep their slots and max rank, adapters move: at most N of them, beside those that are new. Each step keeps
    the limits with all that is still there, by the oracle and in the twin. Exit code 1 means that N moves are too few
    for every server to keep them; the plan that comes closest is printed and saved all the same.
    """
    for path in (output, steps):
        if path is not None:
            require_writable(path)
    made = read_plan(plan)
    config = _config(made, workload, changes or [])
    run = Run(
        solver=choose(SOLVERS, spec(config.solver)),  # which plays no part
        objective=choose(OBJECTIVES, spec(config.objective) if objective is None else objective),
        oracle=choose(ORACLES, spec(config.oracle) if oracle is None else oracle),
        seed=config.seed,
    )
    config = config.model_copy(
        update={
            "objective": PluginSpec(name=run.objective.name, params=run.objective.settings),
            "oracle": PluginSpec(name=run.oracle.name, params=run.oracle.settings),
        }
    )
    fits = in_the_twin(build_workload(config), config.constraints.served_fraction, seeds) if seeds else None
    with terminal.progress("replan: moves") as advance:
        found = find_plan(made, config, run, max_moves, fits, on_progress=advance)
    if steps is not None:
        write_text(steps, terminal.as_json(found.steps))
    if output is not None:
        found.plan.save(output)
        terminal.note(f"plan written to {output}; next: loraplan validate {output}")
    if as_json:
        terminal.print_json(found)
    else:
        _show(found)
    if found.plan.reason:
        terminal.error(found.plan.reason)
        raise typer.Exit(1)


def _config(plan: Plan, path: Path, changes: list[str]) -> Config:
    """The config of the plan, with what the file at ``path`` has instead."""
    data = read_yaml(path, f"config {path}")
    if not isinstance(data, dict):
        raise BadInputError(f"config {path}: expected a mapping with the new workload")
    if "workload" not in data:
        raise BadInputError(f"config {path}: workload is missing; give the new one as in a config")
    base = plan.provenance.config
    if base is None and "fleet" not in data:
        raise BadInputError(f"the plan records no config, so {path} must be a whole one")
    return parse_config({**(base or {}), **data}, changes, path.resolve().parent, f"config {path}")


def _show(found: Replanned) -> None:
    table = new_table("", "step", "server", "adapter", numbers=False)
    for number, step in enumerate(found.steps[:MOST_STEPS], start=1):
        table.add_row(str(number), step.action, escape(step.gpu), escape(step.adapter))
    if found.steps:
        terminal.out(table)
    if len(found.steps) > MOST_STEPS:
        terminal.out(f"... and {len(found.steps) - MOST_STEPS} more; --json or --steps have all")
    show.plan(found.plan)
    counts = Counter(step.action for step in found.steps)
    servers = f"{counts['start']} servers started, {counts['stop']} stopped"
    overloaded = (
        f"; without a move {', '.join(map(escape, found.overloaded))} would be overloaded" if found.overloaded else ""
    )
    terminal.out(f"[bold]{len(found.moved)} adapters move[/], {servers}{overloaded}")
