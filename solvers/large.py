"""Problems of many adapters: plans by filling GPUs in order, and a bound from prices that are found by cutting planes.

A knapsack of hundreds of small items is worth about what its linear relaxation is. So pricing here is by relaxations
only: bin types are split, the most promising first, until none is worth more than its limit. Now and then the search
plunges into one (splits it and goes on with the better part) down to where it cannot be split any more: the fractional
load found there is a column of the master problem, whether or not the oracle would accept it. That makes the master's
prices those of the relaxation, and what they prove is valid whatever the columns are (`solvers.bounds`).
"""

from __future__ import annotations

import heapq
import time
from contextlib import suppress
from dataclasses import dataclass, replace

import highspy
import numpy as np

from loraplan.bin_types import EXCLUDED, BinType, BinTypes
from loraplan.problem import GPULoad, Problem
from loraplan.workload import Floats
from objectives.base import CostFloor
from solvers.base import Search, SearchStoppedError, Solution
from solvers.best_fit import BestFit, BestFitParams
from solvers.bounds import Bound
from solvers.classes import Items, make_items
from solvers.construction import with_room
from solvers.knapsack import relax
from solvers.master import Prices, exchanges
from solvers.striping import cost_of, poured

ROUNDS = 60
"""Rounds of pricing at most."""
LOOKS, EVERY = 3000, 100
"""Bin types that a round splits to find columns; between two plunges."""
MOST_OPEN = 30_000
"""Bin types that are kept open at most, which is a matter of memory: some 10 kB each."""
ENOUGH = 1e-3
"""A round that finds no load worth more than this beyond its limit is followed by a proof."""
SETTLE, SMOOTH = 30, 0.5
"""Solutions of the master between rounds; how far prices are drawn to those of the best bound."""
EQUAL = 1e-6


def suits(search: Search, floor: CostFloor) -> bool:
    """Whether this is for the problem: bin types, costs by GPU types, and nothing that says what may be where."""
    free = not search.problem.restricted and len(search.problem.units) == len(search.problem.adapters)
    if not (floor.exact and free and bool((floor.of_type > 0).all())):
        return False
    return search.oracle.bin_types(np.zeros(len(search.problem.adapters), dtype=np.int64)) is not None


def solve_large(search: Search, floor: CostFloor) -> Solution:
    """A plan and a bound; of a problem that ``suits`` and an oracle that has bin types."""
    plans = poured(search, floor.of_type)
    if not plans:
        first = BestFit(BestFitParams()).solve(search)
        if first.status != "feasible":
            return first
        plans = [list(first.loads)]
    items = make_items(search.problem)
    union = search.oracle.bin_types(items.group_of)
    assert union is not None  # noqa: S101
    proof = Proof(search, floor, items, union, plans)
    with suppress(SearchStoppedError, KeyboardInterrupt):
        proof.run()
    return proof.conclude()


class Outer:
    """A master problem over fractional loads; its prices rise with sizes.

    For that there is a column for each exchange: an adapter may always make way for a smaller one of its family.
    """

    def __init__(self, problem: Problem, items: Items, dearest: float) -> None:
        """Without loads; ``dearest`` is more than any adapter is worth."""
        self._items, self._types = items, len(problem.fleet.types)
        self._solver = highspy.Highs()
        self._solver.setOptionValue("output_flag", False)
        self._solver.setOptionValue("threads", 1)
        none = np.array([], dtype=np.int32), np.array([], dtype=np.float64)
        for total in items.totals:
            self._solver.addRow(float(total), highspy.kHighsInf, 0, *none)
        for most in (*(gpu_type.count for gpu_type in problem.fleet.types), problem.gpus):
            self._solver.addRow(-highspy.kHighsInf, float(most), 0, *none)
        self._rows = items.totals.size
        for row in range(self._rows):
            self._add(dearest, [row], np.ones(1))
        for larger, smaller in exchanges(problem, items):
            self._add(0.0, [larger, smaller], np.array([-1.0, 1.0]))

    def add(self, gpu_type: int, counts: Floats, cost: float) -> None:
        """Add a load by how much of each item it has, shape (items,)."""
        cover = self._items.basis @ counts
        rows = np.flatnonzero(cover)
        self._add(
            cost, [*rows.tolist(), self._rows + gpu_type, self._rows + self._types], np.append(cover[rows], [1, 1])
        )

    def _add(self, cost: float, rows: list[int], weights: Floats) -> None:
        self._solver.addCol(cost, 0.0, highspy.kHighsInf, len(rows), np.array(rows, dtype=np.int32), weights)

    def solve(self) -> Prices:
        """Solve it."""
        self._solver.run()
        solution = self._solver.getSolution()
        duals, used = np.array(solution.row_dual), np.array(solution.col_value)
        scarce = np.maximum(-duals[self._rows :], 0.0)
        items = self._items.basis.T @ np.maximum(duals[: self._rows], 0.0)
        value = float(self._solver.getInfo().objective_function_value)
        return Prices(value, items, scarce[:-1], float(scarce[-1]), used, float(used[: self._rows].sum()))


@dataclass(eq=False)
class _Open:
    """A bin type that may have loads worth more than its limit, with the prices of its rows and its best load."""

    one: BinType
    prices: Floats
    x: Floats


class Proof:
    """Prices in rounds, and what they prove of all plans."""

    def __init__(
        self, search: Search, floor: CostFloor, items: Items, union: BinTypes, plans: list[list[GPULoad]]
    ) -> None:
        """Begin with the loads of plans, the best first."""
        self.search, self.floor, self.items, self.best = search, floor, items, plans[0]
        self.bound = Bound(search.problem, items, floor)
        self.value = cost_of(self.best, floor.of_type)
        self.master = Outer(search.problem, items, 10.0 * float(floor.of_type.max()))
        self._union = union
        self._warm: list[_Open] = []
        for load in (load for plan in plans for load in plan):
            counts = np.bincount(items.group_of[list(load.adapters)], minlength=items.counts.size).astype(np.float64)
            self._add(load.gpu_type, counts)

    @property
    def closed(self) -> bool:
        """Whether the bound has met the plan."""
        return bool(self.bound.rounded() >= self.value * (1 - EQUAL))

    def run(self) -> None:
        """Rounds that look for columns, then one that proves as much as it can."""
        for _ in range(ROUNDS):
            prices = self._settled()
            found = self._price(self._smoothed(prices), LOOKS)
            if self.closed or not found:
                break
        prices = self._settled()
        if not self.closed:
            self._price(prices, 10**9)

    def _settled(self) -> Prices:
        """Prices at which no load of the bin types in which some were found is worth more than it costs."""
        for _ in range(SETTLE):
            prices = self.master.solve()
            paid, fresh = self._paid(prices), 0
            for entry in self._warm:
                rows, y, x = entry.one.rows.astype(np.float64), entry.prices.copy(), np.empty(self.items.counts.size)
                rows[0, ~self.items.allowed[entry.one.gpu_type]] = EXCLUDED
                value = relax(rows, prices.items, self.items.counts, y, x)
                if value > paid[entry.one.gpu_type] * (1.0 + ENOUGH):
                    entry.x = x.astype(np.float32)
                    fresh += self._column(entry)
            self.search.check()
            if not fresh:
                break
        return prices

    def _paid(self, prices: Prices) -> Floats:
        return np.asarray(self.floor.of_type + prices.types + prices.gpus)

    def _smoothed(self, prices: Prices) -> Prices:
        """Prices halfway to those of the best bound (Wentges, 1997)."""
        centre = self.bound.worth
        if centre is None or prices.missing > EQUAL or self.bound.rents is None:
            return prices
        scale = float(prices.items @ self.items.counts) / float(centre @ self.items.counts)
        items = SMOOTH * scale * centre + (1.0 - SMOOTH) * prices.items
        rents = SMOOTH * scale * self.bound.rents + (1.0 - SMOOTH) * prices.types
        rent = SMOOTH * scale * self.bound.rent + (1.0 - SMOOTH) * prices.gpus
        return Prices(prices.value, items, rents, rent, prices.used, prices.missing)

    def _price(self, prices: Prices, looks: int) -> int:
        """Split bin types, the most promising first, and plunge now and then; how many columns that gave."""
        paid = self._paid(prices)
        wide = [self._opened(one, prices.items, None) for one in self._union.roots()]
        heap: list[tuple[float, int, _Open]] = []
        found, number, least = 0, 0, 1.0
        for ratio, entry in wide:
            heapq.heappush(heap, (-ratio / paid[entry.one.gpu_type], number, entry))
            number += 1
        while heap and looks > 0 and len(heap) < MOST_OPEN:
            if self._late():
                break
            worst, _, entry = heapq.heappop(heap)
            plunging = looks % EVERY == 0
            while True:
                looks -= 1
                parts = self._union.split(entry.one, entry.x.astype(np.float64))
                if len(parts) == 1 and parts[0] is entry.one:
                    least = max(least, -worst)
                    if -worst > 1.0 + ENOUGH:
                        found += self._column(entry)
                        self._warm.append(entry)
                    break
                made = []
                for part in parts:
                    value, opened = self._opened(part, prices.items, entry.prices)
                    key = max(-value / paid[part.gpu_type], worst)
                    if -key > least * (1.0 + EQUAL):
                        made.append((key, opened))
                made.sort(key=lambda pair: -pair[0])
                keep = made.pop() if plunging and made else None
                for key, opened in made:
                    heapq.heappush(heap, (key, number, opened))
                    number += 1
                if keep is None:
                    break
                worst, entry = keep
        upper = max(least, -heap[0][0]) if heap else least
        if not prices.missing > EQUAL:
            self.bound.priced(prices, upper * paid)
            if np.isfinite(self.bound.rounded()):
                self.search.prove(min(self.bound.rounded(), self.value))
        if self._late():
            self.search.check()
        return found

    def _late(self) -> bool:
        return self.search.deadline is not None and time.monotonic() >= self.search.deadline

    def _opened(self, one: BinType, worth: Floats, known: Floats | None) -> tuple[float, _Open]:
        """The bin type with its relaxation solved, and the worth of that."""
        rows = one.rows.copy()
        rows[0, ~self.items.allowed[one.gpu_type]] = EXCLUDED
        prices, x = np.zeros(rows.shape[0]) if known is None else known.copy(), np.empty(worth.size)
        value = float(relax(rows, worth, self.items.counts, prices, x))
        return value, _Open(replace(one, rows=one.rows.astype(np.float32)), prices, x.astype(np.float32))

    def _column(self, entry: _Open) -> int:
        self._add(entry.one.gpu_type, entry.x.astype(np.float64))
        return 1

    def _add(self, gpu_type: int, counts: Floats) -> None:
        self.master.add(gpu_type, counts, float(self.floor.of_type[gpu_type]))

    def conclude(self) -> Solution:
        """What there is to say."""
        lower = self.bound.rounded()
        bound = max(min(lower, self.value), 0.0) if np.isfinite(lower) else None
        loads = tuple(self.best)
        with suppress(SearchStoppedError):
            loads = with_room(self.search, loads)
        self.search.publish(loads, self.value)
        status = "optimal" if self.closed else "feasible"
        return Solution(status, loads, bound, certificate=self.bound.certificate())  # type: ignore[arg-type]
