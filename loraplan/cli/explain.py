"""``loraplan explain``: what holds the GPUs of a plan back and what its adapters cost, or why there is no plan."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.markup import escape

from loraplan.api import solve, spec
from loraplan.cli import options, terminal
from loraplan.cli.options import JSONOption, SetOption
from loraplan.cli.terminal import new_table, number, out, percent
from loraplan.config import Config, build, load_config, parse_config
from loraplan.conflict import MOST_SOLVES, Ask
from loraplan.errors import BadInputError
from loraplan.explain import Explanation, GPUExplained, explain, planned_problem
from loraplan.plan import Plan, read_plan
from loraplan.problem import Problem
from loraplan.remedies import Impasse, explain_conflict
from loraplan.resources import RESOURCES
from loraplan.run import INTERRUPTED

MOST_ADAPTERS = 10
"""Adapters listed: the most expensive."""
MOST_NAMED = 10
"""Adapters of a conflict that are named."""
MOST_SENTENCES = 8
"""GPUs of which a sentence says what binds; the table has all."""


@dataclass(frozen=True)
class _Asked:
    """What the command was given.

    Attributes:
        plan: the plan that was read, or made from a config.
        problem: what it is a plan of; needed only if it is none.
        config: how to solve parts of the problem.
        workload: another config whose workload the plan is to carry.
    """

    plan: Plan
    problem: Problem | None
    config: Config | None
    workload: Config | None


def explain_file(
    file: Annotated[
        Path, typer.Argument(metavar="PLAN.json|CONFIG.yaml", help="A plan, or a config, which is solved first.")
    ],
    config: Annotated[
        Path | None,
        typer.Option("--config", metavar="CONFIG.yaml", help="Of a plan: carry this config's workload, not its own."),
    ] = None,
    oracle: Annotated[
        str | None, typer.Option("--oracle", metavar="NAME", help="Who judges; of a plan its own oracle by default.")
    ] = None,
    time_limit: Annotated[
        float | None, typer.Option("--time-limit", min=0, metavar="S", help="Seconds for each problem that is solved.")
    ] = None,
    solves: Annotated[
        int, typer.Option("--solves", min=1, help="Most problems to solve in search of the smallest conflict.")
    ] = MOST_SOLVES,
    changes: SetOption = None,
    as_json: JSONOption = False,
) -> None:
    """Say why a plan is as it is, or why there is none.

    Of a plan: how far every GPU is from its limits, which resource holds it back, and what each adapter costs. Where
    there is no plan: the smallest conflict between limits and adapters, and what would resolve it; the exit code is 1
    then. docs/explain.md explains the figures.
    """
    asked = _read(file, config, oracle, time_limit, changes)
    if asked.plan.complete:
        with terminal.progress(f"asking the {oracle or asked.plan.oracle.name} oracle") as advance:
            found = explain(asked.plan, asked.workload, oracle, advance)
        if as_json:
            terminal.print_json({"status": asked.plan.status, "explanation": found, "impasse": None})
        else:
            _print(found)
        return
    if asked.plan.reason.startswith(INTERRUPTED):
        raise KeyboardInterrupt
    if asked.problem is None or asked.config is None:
        raise TypeError("made by _read, which gives both where there is no plan")
    with terminal.progress(f"{asked.config.solver.name}: looking for the smallest conflict") as advance:
        impasse = explain_conflict(asked.problem, _asks(asked.config), solves, advance)
    if as_json:
        terminal.print_json({"status": asked.plan.status, "explanation": None, "impasse": _figures(asked, impasse)})
    else:
        _print_impasse(asked, impasse)
    raise typer.Exit(1)


def _read(
    file: Path, config: Path | None, oracle: str | None, time_limit: float | None, changes: list[str] | None
) -> _Asked:
    suffix = file.suffix.lower()
    if suffix == ".json":
        if changes:
            raise BadInputError("--set is for a config; a plan says its own settings")
        plan = read_plan(file)
        if plan.complete:
            return _Asked(plan, None, None, None if config is None else load_config(config))
        if config is not None:
            raise BadInputError(f"{file} is no complete plan: explain {config} itself")
        problem = planned_problem(plan)
        recorded = parse_config(plan.provenance.config, source="the config that the plan records")
        how: dict[str, Any] = {
            "solver": {"name": plan.solver.name, "params": plan.solver.params},
            "objective": {"name": plan.objective.name, "params": plan.objective.params},
            "oracle": {"name": plan.oracle.name, "params": plan.oracle.params} if oracle is None else oracle,
            "seed": plan.solver.seed,
            "time_limit_s": recorded.time_limit_s if time_limit is None else time_limit,
        }
        return _Asked(plan, problem, parse_config(recorded.model_dump(mode="json") | how), None)
    if suffix not in (".yaml", ".yml"):
        raise BadInputError(f"{file}: expected a plan (PLAN.json) or a config (CONFIG.yaml or .yml)")
    if config is not None:
        raise BadInputError("--config is for a plan; a config has a workload of its own")
    read = options.read(file, None, None, oracle, time_limit, None, changes)
    plan = options.solve(read)
    return _Asked(plan, None if plan.complete else build(read).problem, read, None)


def _asks(config: Config) -> Ask:
    """Solves problems as the config says."""

    def ask(problem: Problem) -> Plan:
        return solve(
            problem,
            solver=spec(config.solver),
            objective=spec(config.objective),
            oracle=spec(config.oracle),
            seed=config.seed,
            time_limit_s=config.time_limit_s,
        )

    return ask


def _print(found: Explanation) -> None:
    table = new_table("GPU", "slots", "max rank", "adapters", "headroom", "use", "binding", *RESOURCES)
    for gpu in found.gpus:
        gains = {gain.resource: _headroom(gain.headroom) for gain in gpu.gains}
        table.add_row(
            escape(gpu.id),
            str(gpu.slots),
            str(gpu.max_rank),
            str(gpu.adapters),
            ("over " if gpu.at_least else "") + _headroom(gpu.headroom),
            percent(gpu.use) if gpu.headroom > 0 else "-",
            gpu.binding,
            *(gains.get(resource, "-") for resource in RESOURCES),
        )
    out(table)
    out(f"headroom by the {found.oracle} oracle; from {next(iter(RESOURCES))} on, with 10 % more of each resource")
    for gpu in found.gpus[:MOST_SENTENCES]:
        out(f"{escape(gpu.id)}: {escape(_sentence(gpu))}")
    _print_adapters(found)


def _sentence(gpu: GPUExplained) -> str:
    gain = next((gain for gain in gpu.gains if gain.resource == gpu.binding), None)
    if gain is None:
        return "nothing binds: more of no resource gives headroom"
    return f"{gpu.binding} binds; {gain.change}: headroom {_headroom(gpu.headroom)} -> {_headroom(gain.headroom)}"


def _headroom(factor: float) -> str:
    return number(factor, 3)


def _print_adapters(found: Explanation) -> None:
    table = new_table("adapter", "GPU", "rank", "req/s", "part of GPU", "use", escape(found.unit))
    for one in found.adapters[:MOST_ADAPTERS]:
        table.add_row(
            escape(one.name),
            escape(one.gpu),
            str(one.rank),
            f"{one.rate:.3g}",
            percent(one.part),
            percent(one.use),
            "-" if one.cost is None else f"{one.cost:.3g}",
        )
    out(table)
    if len(found.adapters) > MOST_ADAPTERS:
        out(f"the {MOST_ADAPTERS} most expensive of {len(found.adapters)} adapters; --json has all")


def _print_impasse(asked: _Asked, found: Impasse) -> None:
    conflict, solver = found.conflict, asked.plan.solver.name
    out(f"[bold]{asked.plan.status}[/]: {escape(asked.plan.reason)}")
    kind = "proven" if conflict.proven else f"by solver {solver}, which has not proven it"
    size = "the smallest conflict" if conflict.minimal else "a conflict"
    out(f"{size} ({kind}; {conflict.solves} problems solved):")
    for limit in conflict.limits:
        out(f"  {escape(limit.text)}")
    total = asked.problem.adapters if asked.problem else ()
    out(
        f"  {len(conflict.adapters)} of {len(total)} adapters, {conflict.requests_per_s:.4g} req/s: "
        f"{escape(_names(conflict.adapters))}"
    )
    if conflict.minimal:
        out(f"without any one of these {solver} finds a plan for the rest")
    else:
        out(f"perhaps not the smallest: the search ended after {conflict.solves} problems; --solves allows more")
    if not found.remedies:
        out("no single change was found that resolves it")
        return
    out("each of these alone gives a plan:")
    for remedy in found.remedies:
        out(f"  {escape(remedy.text)}")


def _names(names: Sequence[str]) -> str:
    more = len(names) - MOST_NAMED
    return ", ".join(names[:MOST_NAMED]) + (f" and {more:,} more" if more > 0 else "")


def _figures(asked: _Asked, found: Impasse) -> dict[str, Any]:
    conflict = found.conflict
    return {
        "reason": asked.plan.reason,
        "solver": asked.plan.solver.name,
        "proven": conflict.proven,
        "minimal": conflict.minimal,
        "solves": conflict.solves,
        "limits": [{"name": limit.name, "text": limit.text} for limit in conflict.limits],
        "adapters": list(conflict.adapters),
        "requests_per_s": conflict.requests_per_s,
        "remedies": list(found.remedies),
    }
