"""`loraplan compare`."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Any

import typer

from loraplan.cli import INTERRUPTED, options, show, terminal
from loraplan.cli.group import interrupts
from loraplan.cli.options import (
    ConfigArgument,
    JSONOption,
    ObjectiveOption,
    OracleOption,
    SeedOption,
    SeedsOption,
    SetOption,
    TimeLimitOption,
)
from loraplan.config import Config, PluginSpec, build
from loraplan.errors import BadInputError
from loraplan.measured import measured_values
from loraplan.oracle import Predictions
from loraplan.plan import Plan
from loraplan.registry import Registry, choose
from loraplan.validation import Validation
from loraplan.validation import validate as validate_plan
from objectives import OBJECTIVES, Objective
from solvers import SOLVERS


@dataclass(frozen=True)
class Compared:
    """A plan, what the twin says of it, and what each objective is worth there."""

    config: Config
    plan: Plan
    validation: Validation | None
    values: dict[str, float]


def compare(
    config: ConfigArgument,
    solvers: Annotated[
        str | None,
        typer.Option("--solvers", "--solver", metavar="A,B", help="Instead of the config's, one after another."),
    ] = None,
    objectives: Annotated[
        str | None, typer.Option("--objectives", metavar="A,B", help="Instead of the config's, one after another.")
    ] = None,
    objective: ObjectiveOption = None,
    oracle: OracleOption = None,
    time_limit: TimeLimitOption = None,
    seed: SeedOption = None,
    seeds: SeedsOption = 3,
    changes: SetOption = None,
    as_json: JSONOption = False,
) -> None:
    """Solve one config with several solvers or objectives, validate every plan in the twin, print them side by side.

    `loraplan list solvers` and `list objectives` have the names. With `--objectives` every plan is also told by what
    each of them is worth as the twin measured it. Ctrl-C ends the comparison with what has been compared so far.
    """
    if solvers is None and objectives is None:
        raise BadInputError("expected --solvers or --objectives: names with commas between")
    if objective is not None and objectives is not None:
        raise BadInputError("give --objective or --objectives, not both")
    chosen_solvers: Sequence[str | None] = [None] if solvers is None else _names(solvers, "--solvers", SOLVERS)
    goals: Sequence[str | None] = [None] if objectives is None else _names(objectives, "--objectives", OBJECTIVES)
    configs = [
        _aiming_at(options.read(config, solver, objective, oracle, time_limit, seed, changes), goal)
        for goal in goals
        for solver in chosen_solvers
    ]
    told = _objectives(configs) if objectives is not None else {}
    if told:
        problem = build(configs[0]).problem
        for one in told.values():  # what an objective lacks is said before the work
            one.gpu_costs(problem, (), Predictions.none())
    rows, interrupted = _compare(configs, seeds, told)
    if as_json:
        terminal.print_json(
            [
                {"plan": json.loads(row.plan.to_json()), "validation": row.validation, "measured": row.values}
                for row in rows
            ]
        )
    elif rows:
        show.comparison([(row.plan, row.validation) for row in rows])
        if told:
            show.values([(row.plan, row.values) for row in rows], told)
    if interrupted:
        left = [_title(one, objectives) for one in configs[len(rows) :]]
        terminal.error("the comparison was interrupted" + (f"; left out: {', '.join(left)}" if left else ""))
        raise typer.Exit(INTERRUPTED)
    if not any(row.plan.complete for row in rows):
        terminal.error(f"no feasible plan: {rows[0].plan.reason}")
        raise typer.Exit(1)


def _names(text: str, option: str, registry: Registry[Any]) -> list[str]:
    names = list(dict.fromkeys(name.strip() for name in text.split(",") if name.strip()))
    for name in names:
        registry.entry(name)
    if not names:
        raise BadInputError(f"{option}: expected at least one name")
    return names


def _aiming_at(config: Config, goal: str | None) -> Config:
    """The config with this objective; its settings are those of the config, where that has the same one."""
    if goal is None or goal == config.objective.name:
        return config
    return config.model_copy(update={"objective": PluginSpec(name=goal)})


def _title(config: Config, objectives: str | None) -> str:
    return config.solver.name if objectives is None else f"{config.objective.name} by {config.solver.name}"


def _objectives(configs: Sequence[Config]) -> dict[str, Objective]:
    """The objectives of all configs, by name."""
    specs = {config.objective.name: config.objective for config in configs}
    chosen = {name: choose(OBJECTIVES, {"name": name, **spec.params}) for name, spec in specs.items()}
    return {name: one.kind(one.params) for name, one in chosen.items()}


def _compare(configs: Sequence[Config], seeds: int, told: dict[str, Objective]) -> tuple[list[Compared], bool]:
    """Solve and validate one by one; also whether Ctrl-C ended that early."""
    rows: list[Compared] = []
    for config in configs:
        try:
            with interrupts() as pressed:
                plan = options.solve(config)
        except KeyboardInterrupt:  # before or after the search, which itself ends with a plan
            return rows, True
        interrupted = pressed.is_set() or plan.reason.startswith("the search was interrupted")
        validation, values = None, dict[str, float]()
        if plan.complete and not interrupted:
            try:
                with terminal.progress(f"{config.solver.name}: replaying in the twin") as advance:
                    validation = validate_plan(plan, None, seeds, on_progress=advance)
                    values = measured_values(plan, validation, told, config) if told else {}
            except KeyboardInterrupt:
                interrupted = True
        rows.append(Compared(config, plan, validation, values))
        if interrupted:
            return rows, True
    return rows, False
