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
from dataclasses import dataclass, replace

import numpy as np

from loraplan.bin_types import EXCLUDED, BinType, BinTypes
from loraplan.problem import GPULoad
from loraplan.workload import Floats
from objectives.base import CostFloor
from solvers.base import Search, SearchStoppedError, Solution
from solvers.best_fit import BestFit, BestFitParams
from solvers.bounds import Bound
from solvers.classes import Items, make_items
from solvers.construction import with_room
from solvers.knapsack import relax
from solvers.master import Master, Pattern, Prices
from solvers.striping import poured

ROUNDS = 60
"""Rounds of pricing at most."""
LOOKS, EVERY = 3000, 100
"""Bin types that a round splits to find columns; between two plunges."""
MOST_OPEN = 40_000
"""Bin types that are kept open at most, which is a matter of memory: some 10 kB each."""
ENOUGH = 1e-3
"""A round that finds no load worth more than this beyond its limit is followed by a proof."""
EQUAL = 1e-6


def suits(search: Search, floor: CostFloor | None) -> bool:
    """Whether this is for the problem: costs are those of GPU types, and nothing says what may be where."""
    free = not search.problem.restricted and len(search.problem.units) == len(search.problem.adapters)
    return floor is not None and floor.exact and free and bool((floor.of_type > 0).all())


def solve_large(search: Search, floor: CostFloor, union_of: BinTypes | None = None) -> Solution:
    """A plan and a bound.

    Args:
        search: whose problem ``suits``.
        floor: of its objective.
        union_of: bin types of the problem's items, if they are known.
    """
    best = poured(search, floor.of_type)
    if not best:
        first = BestFit(BestFitParams()).solve(search)
        if first.status != "feasible":
            return first
        best = list(first.loads)
    items = make_items(search.problem)
    union = union_of or search.oracle.bin_types(items.group_of)
    assert union is not None  # noqa: S101
    proof = Proof(search, floor, items, union, best)
    try:
        proof.run()
    except (SearchStoppedError, KeyboardInterrupt):
        pass
    return proof.conclude()


@dataclass(eq=False)
class _Open:
    """A bin type that may have loads worth more than its limit, with the prices of its rows and its best load."""

    one: BinType
    prices: Floats
    x: Floats


class Proof:
    """Prices in rounds, and what they prove of all plans."""

    def __init__(
        self, search: Search, floor: CostFloor, items: Items, union: BinTypes, best: list[GPULoad]
    ) -> None:
        """Begin with the loads of a plan."""
        self.search, self.floor, self.items, self.best = search, floor, items, best
        self.bound = Bound(search.problem, items, floor)
        self.value = float(floor.of_type[[load.gpu_type for load in best]].sum())
        self.master = Master(search.problem, items, 10.0 * float(floor.of_type.max()))
        self._union = union
        for load in best:
            counts = np.bincount(items.group_of[list(load.adapters)], minlength=items.counts.size).astype(np.float64)
            self.master.add(Pattern(load, counts, float(floor.of_type[load.gpu_type])))

    @property
    def closed(self) -> bool:
        """Whether the bound has met the plan."""
        return bool(self.bound.rounded() >= self.value * (1 - EQUAL))

    def run(self) -> None:
        """Rounds that look for columns, then one that proves as much as it can."""
        for _ in range(ROUNDS):
            prices = self.master.solve()
            found = self._price(prices, LOOKS)
            if self.closed or not found:
                break
        if not self.closed:
            self._price(self.master.solve(), 10**9)

    def _price(self, prices: Prices, looks: int) -> int:
        """Split bin types, the most promising first, and plunge now and then; how many columns that gave."""
        paid = self.floor.of_type + prices.types + prices.gpus
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
        t = entry.one.gpu_type
        load = GPULoad(t, (), entry.one.slots[0])
        return int(self.master.add(Pattern(load, entry.x.astype(np.float64), float(self.floor.of_type[t]))))

    def conclude(self) -> Solution:
        """What there is to say."""
        lower = self.bound.rounded()
        bound = max(min(lower, self.value), 0.0) if np.isfinite(lower) else None
        loads = tuple(self.best)
        try:
            loads = with_room(self.search, loads)
        except SearchStoppedError:
            pass
        self.search.publish(loads, self.value)
        status = "optimal" if self.closed else "feasible"
        return Solution(status, loads, bound, certificate=self.bound.certificate())  # type: ignore[arg-type]
