"""Adapters spread over GPUs of bin types, in parts: a linear program that knows what every adapter is worth.

A load is a point of a bin type, so that a plan costs no less than the best way to spread all adapters over bin types,
each used as often as its fullest row says. Unlike loads, a handful of bin types that cannot be split say all of it:
their adapters' prices are right from the first few on, however many different adapters there are. Which other bin types
would pay at these prices is what pricing tells (`solvers.pricing`).
"""

from __future__ import annotations

import time

import highspy
import numpy as np

from loraplan.bin_types import BinType
from loraplan.workload import Floats, Ints
from solvers.base import Search, SearchStoppedError
from solvers.master import Prices, quiet, stock_of

MOST_LIMITS = 400
"""Limits on an item in a bin type that are added at a time."""
CLOSE = 1e-6


class Spread:
    """The linear program over the bin types known so far; solved by HiGHS, each time from the last solution on.

    Attributes:
        bins: the bin types.
    """

    def __init__(self, search: Search, counts: Floats, dearest: float) -> None:
        """Begin without bin types; ``counts`` of the items, and at what price missing ones are bought."""
        self.bins: list[BinType] = []
        self._search, self._counts = search, counts
        self._costs: list[float] = []
        self._known: set[tuple[int, bytes]] = set()
        self._limited: set[tuple[int, int]] = set()
        self._gpus_at: list[int] = []
        self._parts_at: list[tuple[int, Ints]] = []
        self._model = quiet()
        add_rows(self._model, counts, np.full(counts.size, highspy.kHighsInf))
        stock = stock_of(search.problem)
        add_rows(self._model, np.full(stock.size, -highspy.kHighsInf), stock)
        n = counts.size
        self._values = np.zeros(n)
        self._prices = Prices(np.inf, np.zeros(n), np.zeros(stock.size - 1), 0.0, np.zeros(0), np.inf)
        place, size = np.arange(n, dtype=np.int32), np.full(n, dearest)
        self._model.addCols(n, size, np.zeros(n), np.full(n, highspy.kHighsInf), n, place, place, np.ones(n))

    @property
    def used(self) -> Floats:
        """How often each bin type is used in the last solution, shape (bins,)."""
        return self._prices.used

    def add(self, one: BinType, rows: Floats, cost: float, of_item: Floats) -> bool:
        """Add a bin type; False if it is there.

        Args:
            one: the bin type.
            rows: its rows, with what constraints add to them, shape (rows, items).
            cost: of a GPU.
            of_item: what each item on it costs beside that, shape (items,).
        """
        key = one.gpu_type, rows.tobytes()
        if key in self._known:
            return False
        self._known.add(key)
        model, n = self._model, self._counts.size
        types = len(self._search.problem.fleet.types)
        first = model.getNumRow()
        add_rows(model, np.full(len(rows), -highspy.kHighsInf), np.zeros(len(rows)))
        own = np.arange(first, first + len(rows), dtype=np.int32)
        index = np.concatenate(([n + one.gpu_type, n + types], own)).astype(np.int32)
        self._gpus_at.append(model.getNumCol())
        model.addCol(cost, 0.0, highspy.kHighsInf, index.size, index, np.append(np.ones(2), np.full(len(rows), -1.0)))
        self._parts_at.append(add_parts(model, rows, first, of_item, np.full(n, highspy.kHighsInf)))
        self.bins.append(one)
        self._costs.append(cost)
        return True

    def solve(self) -> Prices:
        """Prices of the items, and how often the bin types are used; infinitely much is missing where nothing will do.

        Raises:
            SearchStoppedError: the time is up.
        """
        values, duals = solved(self._search, self._model)
        n, types = self._counts.size, len(self._search.problem.fleet.types)
        if not values.size:
            return Prices(np.inf, np.zeros(n), np.zeros(types), 0.0, np.zeros(len(self.bins)), np.inf)
        asked, scarce = np.maximum(duals[:n], 0.0), np.maximum(-duals[n : n + types + 1], 0.0)
        value, missing = float(self._model.getInfo().objective_function_value), float(values[:n].sum())
        self._values = values
        self._prices = Prices(value, asked, scarce[:-1], float(scarce[-1]), values[self._gpus_at], missing)
        return self._prices

    def tighten(self) -> int:
        """Forbid what the last solution does and no GPU can: more of an item per GPU than there is. Says how often."""
        found: list[tuple[float, int, int]] = []
        worth, used = self._prices.items, self.used
        for b, (start, items) in enumerate(self._parts_at):
            if CLOSE < used[b] < 1.0:
                over = self._values[start : start + items.size] - used[b] * self._counts[items]
                found += [
                    (float(over[j] * worth[items[j]]), b, int(j))
                    for j in np.flatnonzero(over > CLOSE)
                    if (b, int(j)) not in self._limited
                ]
        found.sort(reverse=True)
        for _, b, j in found[:MOST_LIMITS]:
            start, items = self._parts_at[b]
            index = np.array([start + j, self._gpus_at[b]], dtype=np.int32)
            self._model.addRow(-highspy.kHighsInf, 0.0, 2, index, np.array([1.0, -self._counts[items[j]]]))
            self._limited.add((b, j))
        return len(found[:MOST_LIMITS])

    def cost_of(self, used: Floats) -> float:
        """What it costs to use the bin types so often, no less than in the last solution; inf beyond the stock."""
        problem = self._search.problem
        types = np.array([one.gpu_type for one in self.bins], dtype=np.int64)
        taken = np.bincount(types, used, len(problem.fleet.types))
        if (np.append(taken, taken.sum()) > stock_of(problem) + CLOSE).any():
            return np.inf
        return self._prices.value + float(np.array(self._costs) @ (used - self.used))

    def at_least(self, b: int, least: float, most: float = np.inf) -> None:
        """Use bin type ``b`` so often."""
        self._model.changeColBounds(self._gpus_at[b], least, most)

    def affords(self, most: float) -> bool:
        """Whether all adapters can be placed for ``most`` or less; if not, the solver goes back to the basis before."""
        basis = self._model.getBasis()
        self._model.setOptionValue("objective_bound", most)
        try:
            prices = self.solve()
        finally:
            self._model.setOptionValue("objective_bound", np.inf)
        if prices.missing <= CLOSE and prices.value <= most:
            return True
        self._model.setBasis(basis)
        return False


def add_rows(model: highspy.Highs, least: Floats, most: Floats) -> None:
    """Add rows that are empty yet."""
    none = np.array([], dtype=np.int32), np.array([], dtype=np.float64)
    model.addRows(least.size, least, most, 0, np.zeros(least.size, dtype=np.int32), *none)


def add_parts(model: highspy.Highs, rows: Floats, first: int, costs: Floats, most: Floats) -> tuple[int, Ints]:
    """Add a variable for every item that rows take: how much of it is there; its row is that of the item's number.

    Args:
        model: item i has row i.
        rows: shape (rows, items), rows of the model from ``first`` on.
        first: see there.
        costs, most: shape (items,).

    Returns:
        The first variable, and which items they are of.
    """
    items = np.flatnonzero((rows <= 1.0).all(axis=0))
    n, start = items.size, model.getNumCol()
    index = np.empty((n, len(rows) + 1), dtype=np.int32)
    weights = np.ones(index.shape)
    index[:, 0], index[:, 1:] = items, np.arange(first, first + len(rows))
    weights[:, 1:] = rows[:, items].T
    starts = np.arange(n, dtype=np.int32) * index.shape[1]
    model.addCols(n, costs[items], np.zeros(n), most[items], index.size, starts, index.ravel(), weights.ravel())
    return start, items


def solved(search: Search, model: highspy.Highs) -> tuple[Floats, Floats]:
    """Values of the variables and duals of the rows; no values if there are none.

    Raises:
        SearchStoppedError: the time is up.
    """
    search.check()
    if search.deadline is not None:
        model.setOptionValue("time_limit", model.getRunTime() + max(0.01, search.deadline - time.monotonic()))
    model.run()
    status = model.getModelStatus()
    if status == highspy.HighsModelStatus.kTimeLimit:
        raise SearchStoppedError("the time limit was reached")
    if status != highspy.HighsModelStatus.kOptimal:
        return np.zeros(0), np.zeros(0)
    solution = model.getSolution()
    return np.array(solution.col_value), np.array(solution.row_dual)
