"""Pricing: the load that is worth most at given prices, over all bin types, and a bound on what any is worth."""

from __future__ import annotations

import heapq
from dataclasses import dataclass
from typing import Literal

import numpy as np

from loraplan.bin_types import EXCLUDED, BinType, BinTypes
from loraplan.problem import GPULoad
from loraplan.workload import Floats
from solvers.base import Search
from solvers.classes import Items
from solvers.knapsack import pack, relax, relax_all
from solvers.master import Pattern

STEPS, DEEP = 3000, 300_000
"""Of the search for a whole solution in one bin type; and in one that cannot be made finer."""
SLOTS_TRIED = 3
DROPS = (1, 2)
"""Adapters that are left out where a coarse bin type let in too many."""
SURE = 1.15
"""Ratio of slots up to which a bin type is fine enough for the oracle to be asked."""
HOPELESS = 0.97
"""Part of the limit on the served fraction below which none are left out."""
CLOSE = 1e-7


@dataclass(frozen=True, eq=False)
class Priced:
    """What pricing found.

    Attributes:
        upper: shape (types,), no load of the type is worth more (less its least cost beyond that of the type).
        patterns: loads that are worth more than the limit; and parts of adapters, where no more is known.
        done: whether there are no others, as far as bin types can tell.
    """

    upper: Floats
    patterns: list[Pattern]
    done: bool


class Pricing:
    """Keeps the bin types, finer where it mattered, from one pricing to the next."""

    def __init__(self, search: Search, union: BinTypes, items: Items, of_type: Floats, per_ms: Floats) -> None:
        """What a load costs at least: shape (types,), and for each ms of its ITL, shape (items,)."""
        self._search, self._union, self._items, self._of_type, self.per_ms = search, union, items, of_type, per_ms
        most = search.problem.constraints.max_adapters
        self._extra = None if most is None else np.full((1, items.counts.size), 1.0 / most)
        self._height = union.rows + (most is not None)
        self._bins: list[BinType] = []
        self._rows = np.empty((0, self._height, items.counts.size))
        self._floors, self._types = np.empty(0), np.empty(0, dtype=np.int64)
        self._prices = np.empty((0, self._height))
        self._xs = np.empty((0, items.counts.size), dtype=np.float32)
        self._warm: dict[int, None] = {}
        self.left: Floats | None = None
        """Shape (items,): how many there are still, if they are fewer than at first."""
        for root in union.roots():
            self._append(root)

    @property
    def _counts(self) -> Floats:
        return self._items.counts if self.left is None else self.left

    @property
    def size(self) -> int:
        """Bin types in use."""
        return len(self._bins)

    @property
    def union(self) -> BinTypes:
        """Whose bin types these are."""
        return self._union

    @property
    def bins(self) -> list[BinType]:
        """The bin types in use."""
        return self._bins

    def rows_at(self, place: int) -> Floats:
        """Rows of the bin type at this place, with what constraints add to them."""
        return np.asarray(self._rows[place])

    def rows_of(self, one: BinType) -> Floats:
        """The same of any bin type of the union."""
        rows = one.rows if self._extra is None else np.concatenate((one.rows, self._extra))
        rows = rows.copy()
        rows[0, ~self._items.allowed[one.gpu_type]] = EXCLUDED
        return rows

    def finest(self, pattern: Pattern) -> BinType | None:
        """The bin type, of those that cannot be split, that has most room for a load; None if none has.

        Only for unions that are exact.
        """
        load, counts = pattern.load, pattern.counts
        if pattern.bin_type is not None:
            return self._down(pattern.bin_type, counts)
        inside = (
            one
            for one in self._bins
            if one.gpu_type == load.gpu_type
            and one.slots[0] <= load.slots <= one.slots[1]
            and _full(one, counts) <= 1.0
        )
        return min((self._down(one, counts) for one in inside), key=lambda one: _full(one, counts), default=None)

    def _down(self, one: BinType, counts: Floats) -> BinType:
        """The finest bin type that comes of one by going to where most room is."""
        while True:
            finer = self._union.split(one, counts)
            if not finer or finer[0] is one:
                return one
            one = min(finer, key=lambda part: _full(part, counts))

    def replace(self, place: int, finer: list[BinType]) -> None:
        """Put finer bin types in the place of one; none if no load satisfies it."""
        if not finer:
            self._rows[place] = EXCLUDED
            return
        self._append(finer[0], place)
        for one in finer[1:]:
            self._append(one)

    def _append(self, bin_type: BinType, place: int | None = None, prices: Floats | None = None) -> int:
        """Add a bin type, or put it in the place of another; ``prices`` of its rows may be known."""
        if place is None:
            place = len(self._bins)
            self._bins.append(bin_type)
            if place == len(self._rows):
                room = max(64, place)
                self._rows = np.concatenate((self._rows, np.zeros((room, *self._rows.shape[1:]))))
                self._prices = np.concatenate((self._prices, np.zeros((room, self._height))))
                self._xs = np.concatenate((self._xs, np.zeros((room, self._xs.shape[1]), dtype=np.float32)))
                self._floors = np.append(self._floors, np.zeros(room))
                self._types = np.append(self._types, np.zeros(room, dtype=np.int64))
        self._bins[place] = bin_type
        self._prices[place] = 0.0 if prices is None else prices
        self._rows[place] = self.rows_of(bin_type)
        self._floors[place], self._types[place] = bin_type.floor_ms, bin_type.gpu_type
        return place

    def price(self, worth: Floats, limits: Floats, most: int, looks: int) -> Priced:
        """Look for loads that are worth more than the limit of their type.

        Args:
            worth: shape (items,).
            limits: shape (types,).
            most: patterns after which to stop.
            looks: at bin types, after which to stop.
        """
        n = len(self._bins)
        # dives want a few loads, and no bound: relaxations are solved of those only whose turn comes
        guessed = set(range(n)) if self.left is not None else set()
        limit_of, bounds = limits[self._types[:n]] + CLOSE, np.empty(n)
        relax_all(
            self._rows[:n],
            worth,
            self._floors[:n],
            self.per_ms,
            self._counts,
            np.full(n, np.inf) if guessed else limit_of,
            self._prices[:n],
            self._xs[:n],
            bounds,
        )
        heap = [(limit_of[k] - bounds[k], int(k)) for k in np.flatnonzero(bounds > limit_of)]
        heapq.heapify(heap)
        closed: list[tuple[float, int]] = []
        found: list[Pattern] = []
        while heap and len(found) < most and looks > 0:
            self._search.check()
            gap, k = heapq.heappop(heap)
            limit = float(limits[self._types[k]]) + CLOSE
            if k in guessed:
                guessed.remove(k)
                bound = self._bound(k, worth, limit)
                if bound > limit:
                    heapq.heappush(heap, (limit - bound, k))
                continue
            finer = self._look(k, worth, limit, found)
            looks -= finer is not None
            if finer is None:
                closed.append((gap, k))
                continue
            for place in finer:
                bound = self._bound(place, worth, limit)
                if bound > limit:
                    heapq.heappush(heap, (limit - bound, place))
        upper = limits + CLOSE
        for gap, k in heap + closed:
            t = self._types[k]
            upper[t] = max(upper[t], limits[t] + CLOSE - gap)
        return Priced(upper, found, not heap)

    def again(self, worth: Floats, limits: Floats, most: int) -> list[Pattern]:
        """Loads that are worth more than the limit in the bin types in which others were found before."""
        found: list[Pattern] = []
        for k in list(self._warm):
            self._search.check()
            limit = float(limits[self._types[k]]) + CLOSE
            own = worth - self._floors[k] * self.per_ms
            x, best, prices = np.empty(own.size), np.zeros(own.size), np.empty(self._height)
            if relax(self._rows[k], own, self._items.counts, prices, x) <= limit:
                continue
            value, _ = pack(self._rows[k], own, self._items.counts, prices, limit, STEPS, best)
            pattern = self._judged(self._bins[k], best, own, limit) if value > limit else None
            if pattern is not None:
                found.append(pattern)
            if len(found) >= most:
                break
        return found

    def _bound(self, k: int, worth: Floats, limit: float) -> float:
        bound = np.empty(1)
        one = slice(k, k + 1)
        relax_all(
            self._rows[one],
            worth,
            self._floors[one],
            self.per_ms,
            self._counts,
            np.array([limit]),
            self._prices[one],
            self._xs[one],
            bound,
        )
        return float(bound[0])

    def _look(self, k: int, worth: Floats, limit: float, found: list[Pattern]) -> list[int] | None:
        """Look for a load in one bin type, or make it finer.

        Returns:
            The bin types to look at instead, none if there is no load of more than the limit in it; None if all that is
            known is its bound.
        """
        one, x = self._bins[k], self._xs[k].astype(np.float64)
        if one.slots[1] <= SURE * one.slots[0] + 1:
            best = np.zeros(x.size)
            outcome = self._pack(k, worth, limit, STEPS, best, found)
            if outcome != "open":
                return [] if outcome == "none" else None
            if best.any():
                x = best
        finer = self._union.split(one, x)
        if len(finer) == 1 and finer[0] is one:
            outcome = self._pack(k, worth, limit, DEEP, x, found)
            if outcome == "open":
                found.append(self._parts(k))
            return [] if outcome == "none" else None
        if not finer:
            self._rows[k] = EXCLUDED
            self._prices[k] = 0.0
            return []
        prices = self._prices[k].copy()
        return [self._append(part, None if place else k, prices) for place, part in enumerate(finer)]

    def _pack(
        self, k: int, worth: Floats, limit: float, steps: int, best: Floats, found: list[Pattern]
    ) -> Literal["none", "found", "open"]:
        """Look for a load of more than the limit in one bin type; ``best`` is filled in with what it lets in, if any.

        ``open``: there may be one.
        """
        own = worth - self._floors[k] * self.per_ms
        value, done = pack(self._rows[k], own, self._counts, self._prices[k], limit, steps, best)
        if value <= limit:
            return "none" if done else "open"
        pattern = self._judged(self._bins[k], best, own, limit)
        if pattern is None:
            return "open"
        found.append(pattern)
        self._warm[k] = None
        return "found"

    def _parts(self, k: int) -> Pattern:
        """The best that a bin type takes of parts of adapters."""
        one, counts = self._bins[k], self._xs[k].astype(np.float64)
        cost = float(self._of_type[one.gpu_type] + one.floor_ms * (self.per_ms @ counts))
        return Pattern(GPULoad(one.gpu_type, (), one.slots[0]), counts, cost, whole=False, bin_type=one)

    def _judged(self, one: BinType, counts: Floats, own: Floats, limit: float) -> Pattern | None:
        """These items as a load that the oracle accepts, if need be without the least of them; None if it does not."""
        for drop in (0, *DROPS):
            if drop:
                counts = _without(counts, own, drop)
                if float(own @ counts) <= limit:
                    return None
            adapters = adapters_of(self._items, counts)
            loads = [GPULoad(one.gpu_type, adapters, slots) for slots in slots_to_try(one, len(adapters))]
            loads = [load for load in loads if self._search.problem.starts(load)]
            if not adapters or not loads:
                return None
            kept, predicted = self._search.judge(loads)
            if kept.any():
                costs = np.where(kept, self._search.costs(loads, predicted), np.inf)
                best = int(costs.argmin())
                return Pattern(loads[best], counts, float(costs[best]), bin_type=one)
            if predicted.served_fraction.max() < HOPELESS * self._search.problem.constraints.served_fraction:
                return None
        return None


def _full(one: BinType, counts: Floats) -> float:
    """How full the fullest row is, of 1; inf if an item is excluded."""
    if (one.rows[:, counts > 0] > 1.0).any():
        return np.inf
    return float((one.rows @ counts).max())


def adapters_of(items: Items, counts: Floats) -> tuple[int, ...]:
    """The smallest adapters of each item, so many of them: it is those that bin types speak of."""
    return tuple(sorted(i for item in np.flatnonzero(counts) for i in items.members[item][-int(counts[item]) :]))


def slots_to_try(one: BinType, adapters: int) -> list[int]:
    """A few numbers of slots of the bin type, no more than adapters."""
    low, high = one.slots
    high = max(min(high, adapters), low)
    return sorted({round(s) for s in np.geomspace(low, high, SLOTS_TRIED)})


def _without(counts: Floats, own: Floats, drop: int) -> Floats:
    """Without ``drop`` adapters of the items that are worth least."""
    counts = counts.copy()
    for item in sorted(np.flatnonzero(counts), key=lambda item: own[item]):
        less = min(drop, int(counts[item]))
        counts[item] -= less
        drop -= less
    return counts
