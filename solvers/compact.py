"""What integer programming works on where loads are too many to list: classes of adapters, GPUs, and bin types.

Every load that the oracle accepts satisfies a bin type (`loraplan.bin_types`), so the best assignment of adapters to
GPUs of bin types costs no more than the best plan. Prices of a linear relaxation say which bin types a plan that is
better than the best one known could use at all; mostly few. Where the oracle refuses a load that its bin type lets in,
the bin type is split, and the assignment is solved again.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass

import numpy as np

from loraplan.bin_types import BinType
from loraplan.problem import GPULoad
from loraplan.workload import Floats, Ints
from solvers.base import Search, SearchStoppedError, Solution, Status
from solvers.column_generation import ColumnGenerationParams, Generation
from solvers.construction import with_room
from solvers.enumeration import Choose
from solvers.knapsack import relax
from solvers.local_search import LocalSearch, LocalSearchParams
from solvers.pricing import slots_to_try

EQUAL = 1e-6
SPLITS = 60
"""Assignments solved at most."""
ROOT_PART = 0.7
"""Part of the time for column generation, where an assignment comes after it."""
MOST_VARIABLES = 20_000
"""Of an assignment: with more, none is tried."""


@dataclass(frozen=True, eq=False)
class Compact:
    """An assignment to be made.

    Attributes:
        counts: shape (items,), adapters of each class.
        bins: of each bin type its rows, shape (rows, items): with weights of its adapters that add up to 1 at most.
        types: shape (bins,), GPU type of each.
        of_bin: shape (bins,), what a GPU of it costs.
        of_item: shape (bins, items), what each adapter on it costs beside that.
        stock: shape (types,), GPUs of each type.
        gpus: GPUs at most.
        shares: shape (items,), proven of every load: shares of its adapters add up to 1 at most; None if nothing is.
        dearest: a cost above that of any assignment.
        seconds: time for it.
    """

    counts: Floats
    bins: Sequence[Floats]
    types: Ints
    of_bin: Floats
    of_item: Floats
    stock: Ints
    gpus: int
    shares: Floats | None
    dearest: float
    seconds: float

    def most(self, bin_type: int, item: int) -> int:
        """Adapters of a class that one GPU of a bin type takes at most."""
        heaviest = float(self.bins[bin_type][:, item].max())
        return int(min(self.counts[item], math.floor(1.0 / heaviest + 1e-9) if heaviest > 0 else np.inf))


@dataclass(frozen=True, eq=False)
class Answer:
    """An assignment: for each GPU its bin type and its counts, shape (items,); None if none was found.

    ``bound``: no assignment costs less; inf if it is proven that there is none.
    """

    gpus: Sequence[tuple[int, Floats]] | None
    bound: float


Assign = Callable[[Search, Compact], Answer]


def solve_compact(search: Search, solver: str, choose: Choose, assign: Assign) -> Solution:
    """Solve by choices among generated loads, then by assignments.

    Without bin types or a floor of the cost it is a local search that proves nothing.
    """
    floor = search.objective.floor(search.problem)
    if floor is None or search.oracle.bin_types(np.zeros(len(search.problem.adapters), dtype=np.int64)) is None:
        return LocalSearch(LocalSearchParams()).solve(search)
    return _Assignments(search, solver, Generation(search, ColumnGenerationParams(), choose)).solve(assign)


class _Assignments:
    """One search."""

    def __init__(self, search: Search, solver: str, generation: Generation) -> None:
        self.search, self.solver, self.generation = search, solver, generation
        self.items, self.floor = generation.items, generation.floor
        self.pricing, self.bound = generation.pricing, generation.bound
        self.per_ms = np.array([self.floor.per_ms[list(mine)].min() for mine in self.items.members])
        self.best: tuple[GPULoad, ...] = ()
        self.value, self.lower = math.inf, -math.inf
        self.torn = any(len(unit) > 1 for unit in search.problem.units)

    def solve(self, assign: Assign) -> Solution:
        """Column generation, then assignments until bound and value meet or time is up; then more of the former."""
        first = self._generate()
        if first.status == "infeasible":
            return first
        self.best = first.loads if first.status == "feasible" or first.status == "optimal" else ()
        self.value = self._cost(self.best) if self.best else math.inf
        self.lower = -math.inf if first.lower_bound is None else first.lower_bound
        try:
            if not self._closed() and not self.torn:
                self._assignments(assign)
            if not self._closed():
                self._resume()
        except SearchStoppedError:
            if not self.best:
                raise
        lower = None if self.lower == -math.inf else max(0.0, min(self.lower, self.value))
        if not self.best:
            if math.isinf(self.lower) and self.lower > 0:
                why = f"{self.solver}: no assignment to the GPUs there are places every adapter ({first.reason})"
                return Solution("infeasible" if self.search.hereditary else "unknown", first.loads, reason=why)
            return Solution("unknown", first.loads, lower, first.reason)
        with suppress(SearchStoppedError):
            self.best = with_room(self.search, self.best)
        self.search.publish(self.best, self.value)
        status: Status = "optimal" if self._closed() else "feasible"
        return Solution(status, self.best, lower, certificate=self.bound.certificate())

    def _generate(self) -> Solution:
        """Column generation, in a part of the time: a bound, prices, and plans."""
        search = self.search
        deadline = search.deadline
        if deadline is not None:
            search.deadline = time.monotonic() + ROOT_PART * max(0.0, deadline - time.monotonic())
        try:
            return self.generation.solve()
        finally:
            search.deadline = deadline

    def _resume(self) -> None:
        """More of column generation, for what is left of the time."""
        self.generation.resume(self.best)
        self.lower = max(self.lower, self.bound.rounded())
        if self.generation.best:
            self._take(list(self.generation.best))

    def _closed(self) -> bool:
        return self.lower >= self.value - EQUAL * max(abs(self.value), 1e-12)

    def _cost(self, loads: Sequence[GPULoad]) -> float:
        return float(self.search.costs(loads, self.search.oracle.predict(loads)).sum())

    def _seconds(self, part: float) -> float:
        deadline = self.search.deadline
        return math.inf if deadline is None else part * max(0.0, deadline - time.monotonic())

    def _assignments(self, assign: Assign) -> None:
        """Solve assignments; every one that the oracle refuses makes bin types finer."""
        for _ in range(SPLITS):
            self.search.check()
            bins = self._useful()
            if not bins:
                self.lower = self.value
                return
            compact = self._compact(bins)
            if compact.gpus * len(bins) * compact.counts.size > MOST_VARIABLES:
                return
            answer = assign(self.search, compact)
            self._raise(answer.bound)
            if answer.gpus is None or self._closed():
                return
            pools = [list(members) for members in self.items.members]
            loads = [self._real(bins[k][1], counts, pools) for k, counts in answer.gpus]
            if all(load is not None for load in loads):
                self._take([load for load in loads if load is not None])
                if self._closed():
                    return
            if not self._refine([(bins[k][0], counts) for k, counts in answer.gpus], loads):
                return

    def _raise(self, bound: float) -> None:
        """A bound on all assignments better than the plan known."""
        if math.isinf(bound) and bound > 0:
            self.lower = self.value
            return
        if bound > self.lower and math.isfinite(bound):
            self.lower = min(self._next(bound), self.value)
            self.search.prove(max(0.0, self.lower))

    def _next(self, bound: float) -> float:
        self.bound.value, kept = bound, self.bound.value
        rounded = self.bound.rounded()
        self.bound.value = kept
        return rounded

    def _take(self, loads: list[GPULoad]) -> None:
        cost = self._cost(loads)
        if cost < self.value * (1 - 1e-12):
            self.value, self.best = cost, tuple(loads)
            self.search.publish(self.best, self.value)

    def _target(self) -> float:
        """What a better plan costs at most."""
        costs = np.unique(self.floor.of_type)
        if self.floor.exact and costs.size == 1 and math.isfinite(self.value):
            return self.value - float(costs[0])
        return self.value

    def _useful(self) -> list[tuple[int, BinType]]:
        """The bin types, by place, that a plan better than the best known could use, by the prices of the bound."""
        found = []
        target = self._target()
        for place, one in enumerate(self.pricing.bins):
            rows = self.pricing.rows_at(place)
            if (rows > 1.0).any(axis=0).all():
                continue
            if self.bound.worth is not None and self.bound.rents is not None and math.isfinite(target):
                own = self.bound.worth - one.floor_ms * self.per_ms
                x, prices = np.empty(own.size), np.empty(rows.shape[0])
                most = float(relax(rows, own, self.items.counts, prices, x))
                paid = float(self.floor.of_type[one.gpu_type] + self.bound.rents[one.gpu_type] + self.bound.rent)
                if paid - most > target - self.bound.value + EQUAL * max(1.0, abs(target)):
                    continue
            found.append((place, one))
        return found

    def _compact(self, bins: Sequence[tuple[int, BinType]]) -> Compact:
        problem, floor = self.search.problem, self.floor
        target = self._target()
        groups = [self.items.group_of[list(group)] for group in problem.separate]
        apart = np.zeros((len(groups), self.items.counts.size))
        for row, mine in enumerate(groups):
            apart[row, mine] = 1.0
        cheapest = float(floor.of_type.min())
        gpus = min(problem.gpus, len(problem.adapters))
        if cheapest > 0 and math.isfinite(target):
            gpus = min(gpus, math.floor(target / cheapest + EQUAL))
        floors = np.array([one.floor_ms for _, one in bins])
        of_bin = np.array([floor.of_type[one.gpu_type] for _, one in bins])
        of_item = floors[:, None] * self.per_ms
        dearest = float(of_bin.max()) * gpus + float((of_item.max(axis=0) * self.items.counts).sum())
        return Compact(
            counts=self.items.counts,
            bins=[np.concatenate((self.pricing.rows_at(place), apart)) for place, _ in bins],
            types=np.array([one.gpu_type for _, one in bins], dtype=np.int64),
            of_bin=of_bin,
            of_item=of_item,
            stock=np.array([gpu_type.count for gpu_type in problem.fleet.types], dtype=np.int64),
            gpus=max(gpus, 0),
            shares=self._shares(),
            dearest=max(dearest, 1e-9),
            seconds=self._seconds(0.7),
        )

    def _shares(self) -> Floats | None:
        """Worth of each item in the bound, where it is proven that no load's is above 1 (GPUs that cost 1 each)."""
        costs = np.unique(self.floor.of_type)
        bound = self.bound
        if not self.floor.exact or costs.size > 1 or bound.worth is None or bound.rents is None:
            return None
        return None if bound.rents.any() or bound.rent else bound.worth / max(float(costs[0]), 1e-300)

    def _real(self, one: BinType, counts: Floats, pools: list[list[int]]) -> GPULoad | None:
        """A load of these counts that the oracle accepts, the cheapest of those tried; None if it accepts none.

        Its adapters are taken out of ``pools``, those of each item from the smallest on.
        """
        adapters = tuple(sorted(pools[item].pop() for item in np.flatnonzero(counts) for _ in range(int(counts[item]))))
        options = [GPULoad(one.gpu_type, adapters, slots) for slots in slots_to_try(one, len(adapters))]
        options = [load for load in options if self.search.problem.starts(load)]
        if not options:
            return None
        kept, predicted = self.search.judge(options)
        costs = np.where(kept, self.search.costs(options, predicted), np.inf)
        return options[int(costs.argmin())] if kept.any() else None

    def _refine(self, gpus: Sequence[tuple[int, Floats]], loads: Sequence[GPULoad | None]) -> bool:
        """Split the bin types of loads that were refused or cost more than was said; false if none can be split."""
        refined = False
        for place in {
            place for (place, _), load in zip(gpus, loads, strict=True) if load is None or not self.floor.exact
        }:
            counts = next(counts for other, counts in gpus if other == place)
            finer = self.pricing.union.split(self.pricing.bins[place], counts)
            if len(finer) == 1 and finer[0] is self.pricing.bins[place]:
                continue
            self.pricing.replace(place, finer)
            refined = True
        return refined
