"""Plans by filling: GPUs of bin types that adapters in parts would just do with, and whole adapters on them.

First, which bin types: those of the spread (`solvers.spread`), one after the other, used a whole number of times.
Then which adapters: a linear program tears no more of them than there are full rows; the largest that is torn is put on
one of its GPUs, the rest is solved again, and so on. What is torn at last is small, and there are many such.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import highspy
import numpy as np
from numpy.typing import NDArray

from loraplan.workload import Floats, Ints
from solvers.base import Search
from solvers.master import quiet
from solvers.spread import Spread, add_parts, add_rows, solved

TRIED = 3
"""Bin types, of those that are used in part, that are tried in turn before the search is given up."""
FULL = 1.0 - 5e-5
"""Up to which rows are filled: those of bin types may be lighter than loads are, by 2e-5 (`surrogate.bin_types`)."""
CLOSE = 1e-6


def whole_gpus(spread: Spread, most: float) -> list[int] | None:
    """How often to use each bin type, whole numbers, so that all adapters, in parts, cost ``most`` or less.

    None if no such numbers were found.

    Raises:
        SearchStoppedError: the time is up.
    """
    least: dict[int, float] = {}
    try:
        found = spread.affords(most)
        while found:
            used = spread.used
            low = np.floor(used + CLOSE)
            torn = [b for b in np.argsort(low - used, kind="stable").tolist() if used[b] - low[b] > CLOSE][:TRIED]
            if not torn or spread.cost_of(np.ceil(used - CLOSE)) <= most:
                return [math.ceil(times - CLOSE) for times in used]
            ups = [(b, low[b] + 1.0, np.inf) for b in torn]  # once more rather than in part
            downs = [(b, least.get(b, 0.0), low[b]) for b in torn]  # or else not even in part
            for b, fewest, highest in (*ups, *downs):
                spread.at_least(b, fewest, highest)
                found = spread.affords(most)
                if found:
                    least[b] = fewest
                    break
                spread.at_least(b, least.get(b, 0.0))
    finally:
        for b in range(len(spread.bins)):
            spread.at_least(b, 0.0)
    return None


def whole_adapters(
    search: Search, bins: Sequence[Floats], counts: Floats, worth: Floats, careful: bool
) -> list[Floats] | None:
    """What to put on each GPU, shape (items,) each; adapters that stay torn are left out. None if it is too much.

    Args:
        search: says when the time is up.
        bins: of each GPU the rows of its bin type, shape (rows, items).
        counts: shape (items,).
        worth: shape (items,): the largest is put in its place first.
        careful: whether to look at all GPUs that have a part of an item before it is put on one.

    Raises:
        SearchStoppedError: the time is up.
    """
    model, n, height = quiet(), counts.size, len(bins[0])
    add_rows(model, counts, counts)
    add_rows(model, np.full(height * len(bins), -highspy.kHighsInf), np.zeros(height * len(bins)))
    parts = [add_parts(model, rows, n + height * g, np.zeros(n), counts) for g, rows in enumerate(bins)]
    fullest = np.arange(n, n + height * len(bins), dtype=np.int32)
    model.addCol(1.0, 0.0, highspy.kHighsInf, fullest.size, fullest, np.full(fullest.size, -1.0))
    model.setOptionValue("objective_bound", FULL)
    item = np.concatenate([items for _, items in parts])
    numbers = _Rounding(search, model, item, counts, worth, careful).run()
    if numbers is None:
        return None
    ends = np.cumsum([items.size for _, items in parts])[:-1]
    mine = zip(np.split(item, ends), np.split(numbers, ends), strict=True)
    return [np.bincount(items, often, n).astype(np.float64) for items, often in mine]


class _Rounding:
    """Whole numbers for the variables of a linear program, whose last one says how full the fullest row is.

    Attributes:
        item: shape (variables,), which item each is a part of.
    """

    def __init__(
        self, search: Search, model: highspy.Highs, item: Ints, counts: Floats, worth: Floats, careful: bool
    ) -> None:
        self.search, self.model, self.item, self.worth, self.careful = search, model, item, worth, careful
        self.low, self.high = np.zeros(item.size), counts[item]

    def run(self) -> Floats | None:
        """Numbers as whole as they were made, rounded down; None if there is not enough room for parts."""
        values = self._solve()
        while values is not None:
            torn = np.zeros(self.worth.size, dtype=np.bool_)
            torn[self.item[np.abs(values - np.round(values)) > CLOSE]] = True
            if not torn.any():
                break
            largest = int(np.argmax(np.where(torn, self.worth, -1.0)))
            self._keep(values, ~torn[self.item] & (self.worth[self.item] >= self.worth[largest]))
            better = self._place(largest, values)
            if better is None:
                break
            values = better
        return None if values is None else np.floor(values + CLOSE)

    def _keep(self, values: Floats, which: NDArray[np.bool_]) -> None:
        """Let these variables be what they are."""
        places = np.flatnonzero(which & (self.low < self.high))
        self.low[places] = self.high[places] = np.round(values[places])
        bounds = self.low[places], self.high[places]
        self.model.changeColsBounds(places.size, places.astype(np.int32), *bounds)

    def _place(self, item: int, values: Floats) -> Floats | None:
        """One more of an item where a part of one is, or else no part there; None if neither will do."""
        mine = np.flatnonzero((self.item == item) & (self.low < self.high))
        whole = np.floor(values + CLOSE)
        part = values[mine] - whole[mine]
        places = mine[np.argsort(-part, kind="stable")].tolist()[: int((part > CLOSE).sum()) if self.careful else 1]
        best = self._best([(place, whole[place] + 1.0, self.high[place]) for place in places])
        if best is None:
            best = self._best([(places[0], self.low[places[0]], whole[places[0]])])
        if best is None:
            return None
        (place, low, high), values = best
        self.low[place], self.high[place] = low, high
        self.model.changeColBounds(place, float(low), float(high))
        return values

    def _best(self, choices: Sequence[tuple[int, float, float]]) -> tuple[tuple[int, float, float], Floats] | None:
        """The choice of bounds of a variable that leaves most room, and the solution; None if all are too much."""
        best, fullest = None, np.inf
        for place, low, high in choices:
            basis = self.model.getBasis()
            self.model.changeColBounds(place, float(low), float(high))
            found = self._solve()
            if found is not None and self.model.getObjectiveValue() < fullest:
                best, fullest = ((place, low, high), found), self.model.getObjectiveValue()
            self.model.changeColBounds(place, float(self.low[place]), float(self.high[place]))
            if found is None:
                self.model.setBasis(basis)
        return best

    def _solve(self) -> Floats | None:
        values, _ = solved(self.search, self.model)
        return values[:-1] if values.size and values[-1] <= FULL else None
