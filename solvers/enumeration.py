"""All loads that there are, where they are few: then any oracle and any objective can be solved to the end."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import product

import numpy as np

from loraplan.problem import GPULoad
from loraplan.workload import Floats, Ints
from solvers.base import Search, Solution, Status
from solvers.best_fit import BestFit, BestFitParams
from solvers.classes import Items
from solvers.construction import Kind, kinds_of_units, with_room
from solvers.master import Pattern

AT_ONCE = 4096
FEW_SLOTS = 8
"""So many are listed even for fewer adapters: the published solvers take no fewer."""
EQUAL = 1e-9


@dataclass(frozen=True, eq=False)
class Loads:
    """Every load that keeps the constraints, as counts of interchangeable units, with its cheapest number of slots.

    Attributes:
        units: of each kind, the units.
        counts: shape (loads, kinds).
        gpu_type, slots: shape (loads,).
        costs: shape (loads,).
        exactly: whether a choice has to have every unit once; otherwise more than there are of them is as good.
    """

    units: tuple[tuple[tuple[int, ...], ...], ...]
    counts: Ints
    gpu_type: Ints
    slots: Ints
    costs: Floats
    exactly: bool = True

    @property
    def wanted(self) -> Ints:
        """Units of each kind that there are, shape (kinds,)."""
        return np.array([len(units) for units in self.units])

    def placed(self, times: Sequence[int]) -> tuple[GPULoad, ...]:
        """GPUs with each load so many times."""
        pools = [list(units) for units in self.units]
        found = []
        for row, count in enumerate(times):
            for _ in range(count):
                adapters = [
                    i for kind, take in enumerate(self.counts[row]) for _ in range(take) for i in pools[kind].pop()
                ]
                found.append(GPULoad(int(self.gpu_type[row]), tuple(sorted(adapters)), int(self.slots[row])))
        return tuple(found)


def enumerate_loads(search: Search, most: int) -> Loads | None:
    """All loads of a problem; None if more than ``most`` would have to be judged."""
    problem = search.problem
    if len(problem.units) * len(problem.fleet.types) * len(problem.adapters) > most:
        return None  # there are at least as many combinations as units
    kinds: dict[Kind, list[tuple[int, ...]]] = {}
    for unit, kind in zip(problem.units, kinds_of_units(problem), strict=True):
        kinds.setdefault(kind, []).append(unit)
    units = tuple(map(tuple, kinds.values()))
    sizes = [len(mine[0]) for mine in units]
    total = len(problem.adapters)
    combinations = math.prod(len(mine) + 1 for mine in units) - 1
    slots_listed = max(total, FEW_SLOTS)
    if combinations * len(problem.fleet.types) * slots_listed > most:
        return None
    rows: list[tuple[tuple[int, ...], int, int, float]] = []
    waiting: list[tuple[tuple[int, ...], GPULoad]] = []

    def judge() -> None:
        loads = [load for _, load in waiting]
        kept, predicted = search.judge(loads)
        costs = search.costs(loads, predicted)
        for n in np.flatnonzero(kept):
            rows.append((waiting[n][0], loads[n].gpu_type, loads[n].slots, float(costs[n])))
        waiting.clear()

    for counts in product(*(range(len(mine) + 1) for mine in units)):
        adapters = tuple(sorted(i for kind, take in enumerate(counts) for unit in units[kind][:take] for i in unit))
        if not adapters or sum(c * s for c, s in zip(counts, sizes, strict=True)) > (
            problem.constraints.max_adapters or total
        ):
            continue
        # more slots than adapters, too: not every oracle rules out that they help
        for t in range(len(problem.fleet.types)):
            waiting += [(counts, GPULoad(t, adapters, slots)) for slots in range(1, slots_listed + 1)]
        if len(waiting) >= AT_ONCE:
            judge()
    if waiting:
        judge()
    cheapest: dict[tuple[tuple[int, ...], int], tuple[float, int]] = {}
    for counts, t, slots, cost in rows:
        if (counts, t) not in cheapest or (cost, slots) < cheapest[counts, t]:
            cheapest[counts, t] = cost, slots
    return Loads(
        units,
        np.array([counts for counts, _ in cheapest], dtype=np.int64).reshape(-1, len(units)),
        np.array([t for _, t in cheapest], dtype=np.int64),
        np.array([slots for _, slots in cheapest.values()], dtype=np.int64),
        np.array([cost for cost, _ in cheapest.values()], dtype=np.float64),
    )


@dataclass(frozen=True, eq=False)
class Chosen:
    """What an integer programming solver says of a choice among loads.

    Attributes:
        times: how often each load is used; None if it found no choice.
        bound: no choice costs less; inf if it proved that there is none.
    """

    times: Sequence[int] | None
    bound: float


Choose = Callable[[Search, Loads, float], Chosen]
"""Makes a choice among loads in so many seconds."""


def choice_of_patterns(
    search: Search, items: Items, patterns: Sequence[Pattern], choose: Choose, seconds: float
) -> Floats | None:
    """How often to use each pattern, by ``choose``, shape (patterns,); None if it found nothing in time."""
    whole = [pattern for pattern in patterns if pattern.whole]
    loads = Loads(
        units=tuple(tuple((i,) for i in members) for members in items.members),
        counts=np.array([pattern.counts for pattern in whole]).astype(np.int64),
        gpu_type=np.array([pattern.load.gpu_type for pattern in whole]),
        slots=np.array([pattern.load.slots for pattern in whole]),
        costs=np.array([pattern.cost for pattern in whole]),
        exactly=False,
    )
    times = choose(search, loads, seconds).times
    if times is None:
        return None
    found = np.zeros(len(patterns))
    found[[place for place, pattern in enumerate(patterns) if pattern.whole]] = times
    return found


def conclude_choice(search: Search, loads: Loads, chosen: Chosen, solver: str) -> Solution:
    """The solution that a choice among all loads is."""
    if chosen.times is None:
        if math.isfinite(chosen.bound) or chosen.bound < 0:
            return Solution("unknown", reason=f"{solver}: no plan was found in time")
        known = BestFit(BestFitParams()).solve(search)  # which says what fits nowhere, if anything
        why = known.reason or f"no choice among all {loads.costs.size} loads that keep the limits places every adapter"
        return Solution("infeasible", known.loads, reason=why)
    found = with_room(search, loads.placed(chosen.times))
    value = float(loads.costs @ np.asarray(chosen.times, dtype=np.float64))
    status: Status = "optimal" if chosen.bound >= value - EQUAL * max(1.0, abs(value)) else "feasible"
    search.publish(found, value)
    bound = min(chosen.bound, value)
    search.prove(bound)
    return Solution(status, found, bound, certificate={"kind": "listing", "bound": bound})
