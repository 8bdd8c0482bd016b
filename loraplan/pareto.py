"""Two objectives against each other: the plans that are best in one for what they are in the other."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from loraplan.api import solve_config
from loraplan.config import Config, PluginSpec
from loraplan.errors import BadInputError, NoPlanError
from loraplan.headroom import Headroom
from loraplan.measured import measured_values
from loraplan.oracle import ORACLES, Oracle
from loraplan.plan import Plan
from loraplan.recorded import Recorded, recorded
from loraplan.registry import Chosen, choose
from loraplan.validation import Validation, validate
from objectives import OBJECTIVES, Objective
from solvers import Search

SAME = 1e-6
"""Values that differ by less than this part are the same."""


@dataclass(frozen=True)
class Point:
    """A plan, and what it is worth.

    Attributes:
        plan: complete.
        x, y: by the oracle.
        best: no other plan found is better in one and as good in the other.
        validation: of the twin, if it was asked.
        twin_x, twin_y: what it measured; nan otherwise.
    """

    plan: Plan
    x: float
    y: float
    best: bool
    validation: Validation | None = None
    twin_x: float = float("nan")
    twin_y: float = float("nan")


@dataclass(frozen=True)
class Front:
    """The plans found, by ascending x.

    Attributes:
        x, y: names of the objectives.
        x_unit, y_unit: theirs.
        points: the front, and what is behind it.
    """

    x: str
    y: str
    x_unit: str
    y_unit: str
    points: tuple[Point, ...]


def pareto(
    config: Config,
    x: str,
    y: str,
    points: int = 12,
    seeds: int = 0,
    on_progress: Callable[[int, int], None] | None = None,
) -> Front:
    """Solve the config again and again for ``y``, at every value of ``x`` that is worth a try.

    If one of the two is ``gpu_count``: for the other with each number of GPUs from the least that does on (at most
    ``points`` numbers). Else
    for weighted sums of both: each weight is such that the two plans that are next to each other so far are worth the
    same, so that anything better lies between them; this finds the corners of the front's hull.

    Args:
        config: what is planned, and by which solver and oracle; one that improves plans should be chosen.
        x, y: names of objectives; settings as in the config where it names the same one.
        points: plans at most.
        seeds: of replays of every plan in the twin; 0 for none.
        on_progress: called with (plans found, plans at most).

    Raises:
        BadInputError: an objective is unknown, or both are the same.
        NoPlanError: there is no plan to begin with.
    """
    if x == y:
        raise BadInputError(f"pareto: x and y are both {x!r}; name two objectives")
    goals = {name: _chosen(config, name) for name in (x, y)}
    judged: dict[str, Point] = {}
    if "gpu_count" in goals:
        plans = _by_count(config, goals[y if x == "gpu_count" else x], points)
    else:
        plans = _by_weight(config, goals[x], goals[y], points)
    objectives: dict[str, Objective] = {name: goal.kind(goal.params) for name, goal in goals.items()}
    for plan in plans:
        at = _values(plan, config, objectives)
        validation, seen = None, {x: float("nan"), y: float("nan")}
        if seeds:
            validation = validate(plan, None, seeds)
            seen = measured_values(plan, validation, objectives, config)
        judged[f"{at[x]:.9g} {at[y]:.9g}"] = Point(plan, at[x], at[y], False, validation, seen[x], seen[y])
        if on_progress is not None:
            on_progress(len(judged), points)
    found = sorted(judged.values(), key=lambda point: (point.x, point.y))
    marked = tuple(_marked(point, found) for point in found)
    return Front(x, y, objectives[x].unit, objectives[y].unit, marked)


def _marked(point: Point, points: Sequence[Point]) -> Point:
    beaten = any(
        other.x <= point.x * (1 + SAME)
        and other.y <= point.y * (1 + SAME)
        and (other.x < point.x * (1 - SAME) or other.y < point.y * (1 - SAME))
        for other in points
    )
    return Point(point.plan, point.x, point.y, not beaten, point.validation, point.twin_x, point.twin_y)


def _chosen(config: Config, name: str) -> Chosen:
    params = config.objective.params if config.objective.name == name else {}
    return choose(OBJECTIVES, {"name": name, **params})


def _solved(config: Config, objective: dict[str, Any], start: Plan | None = None, **limits: Any) -> Plan:
    constraints = config.constraints.model_copy(update=limits)
    spec = PluginSpec(name=objective["name"], params=objective["params"])
    return solve_config(config.model_copy(update={"objective": spec, "constraints": constraints}), start=start)


def _by_count(config: Config, y: Chosen, points: int) -> Iterator[Plan]:
    """The best plan for ``y`` with every number of GPUs."""
    first = _solved(config, {"name": "gpu_count", "params": {}})
    if not first.complete:
        raise NoPlanError(f"no feasible plan to begin with: {first.reason}")
    most = min(sum(item.count for item in config.fleet), config.constraints.max_gpus or len(first.gpus) + points)
    goal = {"name": y.name, "params": y.settings}
    plan = first
    for gpus in range(len(first.gpus), min(most, len(first.gpus) + points - 1) + 1):
        better = _solved(config, goal, plan, max_gpus=gpus)
        plan = better if better.complete else plan
        yield plan


def _by_weight(config: Config, x: Chosen, y: Chosen, points: int) -> Iterator[Plan]:
    """The best plans for each of the objectives, then for sums of both."""
    goals = [{"name": goal.name, "params": goal.settings} for goal in (x, y)]
    objectives: dict[str, Objective] = {goal.name: goal.kind(goal.params) for goal in (x, y)}
    ends = []
    for goal in goals:
        plan = _solved(config, goal)
        if not plan.complete:
            raise NoPlanError(f"no feasible plan to begin with: {plan.reason}")
        at = _values(plan, config, objectives)
        ends.append(((at[x.name], at[y.name]), plan))
        yield plan
    gaps, left = [(ends[0], ends[1])], points - 2
    while gaps and left > 0:
        ((ax, ay), start), ((bx, by), end) = gaps.pop(0)
        if bx - ax <= SAME * abs(bx) or ay - by <= SAME * abs(ay):
            continue
        weights = (1.0 / (bx - ax), 1.0 / (ay - by))
        terms = [{"objective": goal, "weight": weight} for goal, weight in zip(goals, weights, strict=True)]
        plan = _solved(config, {"name": "weighted", "params": {"terms": terms}}, start)
        if not plan.complete:  # no time for it
            return
        at = _values(plan, config, objectives)
        new = at[x.name], at[y.name]
        left -= 1
        yield plan
        if new[0] * weights[0] + new[1] * weights[1] < (ax * weights[0] + ay * weights[1]) * (1 - SAME):
            gaps += [(((ax, ay), start), (new, plan)), ((new, plan), ((bx, by), end))]


def _values(plan: Plan, config: Config, objectives: dict[str, Objective]) -> dict[str, float]:
    """What each objective is worth by the plan's oracle."""
    made: Recorded = recorded(plan, config)
    chosen = choose(ORACLES, {"name": plan.oracle.name, **plan.oracle.params})
    oracle: Oracle = chosen.kind(made.problem, chosen.params)
    predicted = oracle.predict(made.loads)
    headroom = Headroom(made.problem, chosen.kind, chosen.params).of
    return {
        name: float(Search(made.problem, one, oracle, 0, headroom=headroom).costs(made.loads, predicted).sum())
        for name, one in objectives.items()
    }
