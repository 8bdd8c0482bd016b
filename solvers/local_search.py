"""Local search: a complete plan, improved step by step, for any objective and any oracle."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import numpy as np

from loraplan.errors import BadInputError
from loraplan.oracle import Predictions
from loraplan.problem import Fleet, GPULoad, Problem
from loraplan.workload import Floats
from objectives import Objective
from solvers.base import Search, SearchStoppedError, Solution, Solver
from solvers.best_fit import BestFit, BestFitParams, OpenGPU, decreasing, fill
from solvers.construction import SlotChoices, Stock, kinds_of_units
from solvers.neighbourhood import CLOSE, Move, Neighbours, Placement

BATCH, BATCHES = 32, 8
"""Moves that are judged at once; and how often, before all numbers of slots are tried again."""
COOLING, WARMTH = 0.97, 0.02
"""How quickly, and from where, the permission to even the GPUs out again falls at equal cost; then it rises again."""


@dataclass(frozen=True)
class LocalSearchParams:
    """Settings of local search.

    Attributes:
        patience: batches of 32 moves without a lower cost after which the search ends.
    """

    patience: int = 150

    def __post_init__(self) -> None:
        """Check the patience."""
        if self.patience < 1:
            raise BadInputError(f"local_search: patience must be at least 1 (got {self.patience})")


class LocalSearch(Solver):
    """Begins with best-fit, or with the plan that is given; moves, swaps, merges, splits and refits GPUs.

    Where the objective does not tell two plans apart (the number of GPUs mostly does not), the less even one is
    better: a GPU that gets ever emptier is one less in the end.
    """

    Params: ClassVar[type[Any]] = LocalSearchParams

    def __init__(self, params: LocalSearchParams) -> None:
        """Take the settings."""
        self._patience = params.patience

    def solve(self, search: Search) -> Solution:
        """Improve until patience or time is at its end."""
        first = _begin(search)
        if isinstance(first, Solution):
            return first
        neighbours = Neighbours(search.problem, np.random.default_rng(search.seed))
        at = Placement(search, self._packed(search, first, neighbours))
        try:
            self._improve(at, neighbours, self._patience)
        except SearchStoppedError:
            if at.excess():
                raise
        if at.excess():
            return BestFit(BestFitParams()).solve(search)  # which says what is left
        search.publish(at.loads, at.cost)
        return Solution("feasible", tuple(at.loads))

    def _packed(self, search: Search, loads: list[GPULoad], neighbours: Neighbours) -> list[GPULoad]:
        """The loads, or a placement of less fixed costs (what a GPU costs however little is on it) if that is cheaper.

        Small changes of the other costs would keep GPUs from being emptied.
        """
        floor = search.objective.floor(search.problem)
        if floor is None or floor.exact or not floor.of_type.any():
            return loads
        fixed = Placement(replace(search, objective=FixedCosts(floor.of_type), on_progress=None), loads)
        with suppress(SearchStoppedError):
            self._improve(fixed, neighbours, self._patience // 2)
        before, after = Placement(search, loads), Placement(search, fixed.loads)
        return fixed.loads if (after.excess(), after.cost) < (before.excess(), before.cost) else loads

    @staticmethod
    def _improve(at: Placement, neighbours: Neighbours, patience: int) -> None:
        """No move ever makes the placement dearer."""
        quiet, slack = 0, 0.0
        while quiet < patience:
            before = at.excess(), at.cost
            for row in range(len(at.loads)):
                at.best([Move({row: load}) for load in neighbours.refits(at.loads[row])])
            for _ in range(BATCHES):
                at.best(neighbours.draw(at, BATCH), slack)
                slack = slack * COOLING if slack > 1e-6 else WARMTH
            if at.excess() < before[0] or at.cost < before[1] * (1.0 - CLOSE):
                quiet = 0
                if not at.excess():
                    at.search.publish(at.loads, at.cost)
            else:
                quiet += BATCHES


class FixedCosts(Objective):
    """What a GPU costs because of its type."""

    Params: ClassVar[type[Any]] = type(None)
    unit = ""

    def __init__(self, params: Floats) -> None:
        """``params``: shape (types,)."""
        self._of_type = params

    def gpu_costs(self, problem: Problem, loads: Sequence[GPULoad], predicted: Predictions) -> Floats:
        """Shape (loads,)."""
        return np.asarray(self._of_type[[load.gpu_type for load in loads]], dtype=np.float64)


def _begin(search: Search) -> list[GPULoad] | Solution:
    """A complete placement to begin with, maybe on more GPUs than there are; or why there is none."""
    given = _repaired(search)
    if given is not None:
        return given
    first = BestFit(BestFitParams()).solve(search)
    if first.status == "feasible":
        return _cheapest(search, list(first.loads))
    if first.status == "infeasible":
        return first
    more = replace(search, problem=_plentiful(search.problem), on_progress=None)
    generous = BestFit(BestFitParams()).solve(more)
    return list(generous.loads) if generous.status == "feasible" else first


def _cheapest(search: Search, known: list[GPULoad]) -> list[GPULoad]:
    """The cheapest of best-fit's placements, one for each GPU type that is used before the others."""
    problem = search.problem
    kinds = dict(zip(problem.units, kinds_of_units(problem), strict=True))
    found = [known]
    for first in range(1, len(problem.fleet.types)):
        used: list[OpenGPU] = []
        if not fill(search, decreasing(problem), kinds, used, SlotChoices(problem), Stock(problem, first)):
            found.append([gpu.load for gpu in used])
    return min(found, key=lambda loads: float(search.costs(loads, search.oracle.predict(loads)).sum()))


def _plentiful(problem: Problem) -> Problem:
    """The same with a GPU of every type for every adapter."""
    types = tuple(replace(gpu_type, count=gpu_type.count + len(problem.units)) for gpu_type in problem.fleet.types)
    return replace(problem, fleet=Fleet(types), constraints=replace(problem.constraints, max_gpus=None))


def _repaired(search: Search) -> list[GPULoad] | None:
    """The plan that was given, with what it lacks put on GPUs of their own; None if that does not do."""
    if not search.start:
        return None
    problem = search.problem
    loads, placed = [], set[int]()
    for load in search.start:
        members = set(load.adapters)
        units = [unit for unit in problem.units if members.issuperset(unit)]
        adapters = tuple(sorted(i for unit in units for i in unit))
        placed.update(adapters)
        if adapters:
            loads.append(replace(load, adapters=adapters))
    kept, _ = search.judge(loads)
    fine: list[GPULoad] = []
    for load, okay in zip(loads, kept, strict=True):
        halves = [load] if okay else _halved(search, load)
        if halves is None:
            return None
        fine += halves
    for unit in problem.units:
        if not placed.issuperset(unit):
            alone = _alone(search, unit)
            if alone is None:
                return None
            fine.append(alone)
    return fine


def _halved(search: Search, load: GPULoad) -> list[GPULoad] | None:
    """An overloaded GPU as several that keep the constraints."""
    members = set(load.adapters)
    units = [unit for unit in search.problem.units if members.issuperset(unit)]
    if len(units) == 1:
        alone = _alone(search, units[0])
        return None if alone is None else [alone]
    parts = [replace(load, adapters=tuple(sorted(i for unit in units[k::2] for i in unit))) for k in (0, 1)]
    found: list[GPULoad] = []
    for part, okay in zip(parts, search.judge(parts)[0], strict=True):
        smaller = [part] if okay else _halved(search, part)
        if smaller is None:
            return None
        found += smaller
    return found


def _alone(search: Search, unit: Sequence[int]) -> GPULoad | None:
    """A GPU for one unit, of the first type and with the first number of slots that do."""
    problem, choices = search.problem, SlotChoices(search.problem)
    rank = int(problem.ranks[list(unit)].max())
    loads = [
        GPULoad(t, tuple(unit), slots)
        for t in problem.types_of(unit)
        for slots in reversed(choices.on(t, rank, len(unit)))
    ]
    kept = search.judge(loads)[0] if loads else np.zeros(0, np.bool_)
    return loads[int(kept.argmax())] if kept.any() else None
