"""The restricted master of column generation: which of the loads known so far to use how often; solved by HiGHS."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise

import highspy
import numpy as np

from loraplan.bin_types import BinType
from loraplan.problem import GPULoad, Problem
from loraplan.workload import Floats
from solvers.classes import Items


@dataclass(frozen=True, eq=False)
class Pattern:
    """A load that the oracle accepts, by items; or parts of adapters that a bin type takes.

    Attributes:
        load: with some adapters of these items; of parts of adapters, only its GPU type is meant.
        counts: shape (items,).
        cost: of the load.
        whole: whether it is a load, and not made of parts.
        bin_type: in which it was found, by pricing.
    """

    load: GPULoad
    counts: Floats
    cost: float
    whole: bool = True
    bin_type: BinType | None = None


@dataclass(frozen=True, eq=False)
class Prices:
    """What the master pays and asks for.

    Attributes:
        value: of the linear relaxation with the columns known, what is missing bought at a high price.
        items: shape (items,), what an adapter of each item is worth.
        types: shape (types,), what a GPU of each type costs for being scarce.
        gpus: what any GPU costs for that.
        used: shape (patterns,), how often.
        missing: what had to be bought.
    """

    value: float
    items: Floats
    types: Floats
    gpus: float
    used: Floats
    missing: float


class Master:
    """Covers all items by patterns within the stock of GPUs, at least cost."""

    def __init__(self, problem: Problem, items: Items, dearest: float) -> None:
        """Begin without patterns; ``dearest`` is more than any adapter is worth."""
        self.items = items
        self.patterns: list[Pattern] = []
        self._seen: set[tuple[int, bytes]] = set()
        self._types = len(problem.fleet.types)
        self._solver = quiet()
        none = np.array([], dtype=np.int32), np.array([], dtype=np.float64)
        totals = items.totals
        for total in totals:
            self._solver.addRow(float(total), highspy.kHighsInf, 0, *none)
        self._stock = stock_of(problem)
        for stock in self._stock:
            self._solver.addRow(-highspy.kHighsInf, float(stock), 0, *none)
        self._prices = totals.size
        for row in range(totals.size):
            self._solver.addCol(dearest, 0.0, highspy.kHighsInf, 1, np.array([row], dtype=np.int32), np.ones(1))
        pairs = exchanges(problem, items)
        for pair in pairs:
            self._solver.addCol(0.0, 0.0, highspy.kHighsInf, 2, np.array(pair, dtype=np.int32), np.array([-1.0, 1.0]))
        self._first = totals.size + len(pairs)

    def add(self, pattern: Pattern) -> bool:
        """Add a column; False if one of the same items on this GPU type is there."""
        key = pattern.load.gpu_type, pattern.counts.tobytes()
        if key in self._seen:
            return False
        self._seen.add(key)
        self.patterns.append(pattern)
        cover = self.items.basis @ pattern.counts
        rows = np.flatnonzero(cover)
        index = np.append(rows, [self._prices + pattern.load.gpu_type, self._prices + self._types]).astype(np.int32)
        weights = np.append(cover[rows], [1.0, 1.0])
        self._solver.addCol(pattern.cost, 0.0, highspy.kHighsInf, index.size, index, weights)
        return True

    def take(self, gpu_type: int, gpus: int) -> None:
        """There are so many GPUs of this type less from now on."""
        for row in (gpu_type, self._types):
            self._stock[row] -= gpus
            self._solver.changeRowBounds(self._prices + row, -highspy.kHighsInf, float(self._stock[row]))

    def solve(self) -> Prices:
        """Solve the linear relaxation."""
        self._solver.run()
        solution = self._solver.getSolution()
        duals, values = np.array(solution.row_dual), np.array(solution.col_value)
        asked = np.maximum(duals[: self._prices], 0.0)
        scarce = np.maximum(-duals[self._prices :], 0.0)
        value = float(self._solver.getInfo().objective_function_value)
        items = self.items.basis.T @ asked
        used = values[self._first :]
        return Prices(value, items, scarce[:-1], float(scarce[-1]), used, float(values[: self._prices].sum()))

    def whole(self, seconds: float) -> Floats | None:
        """How often to use each pattern, whole numbers, shape (patterns,); None if nothing was found in time."""
        model = self._solver.getModel()
        solver = quiet()
        solver.passModel(model)
        columns = np.arange(self._first + len(self.patterns), dtype=np.int32)
        whole = np.full(columns.size, highspy.HighsVarType.kInteger)
        parts = [self._first + place for place, pattern in enumerate(self.patterns) if not pattern.whole]
        for column in (*range(self._prices), *parts):
            solver.changeColBounds(column, 0.0, 0.0)
        solver.changeColsIntegrality(columns.size, columns, whole)
        solver.setOptionValue("time_limit", max(seconds, 0.01))
        solver.run()
        solution = solver.getSolution()
        if not solution.value_valid:
            return None
        return np.round(np.array(solution.col_value)[self._first :])


def exchanges(problem: Problem, items: Items) -> list[tuple[int, int]]:
    """Prices of which the first is at least the second: a load may always have a smaller adapter of the family instead.

    As columns of a master they keep its prices from going astray while it knows few loads (dual-optimal inequalities:
    Ben Amor, Desrosiers and Valerio de Carvalho, 2006).
    """
    sizes = np.array([problem.offered[list(members)].mean() for members in items.members])
    knots = (items.basis @ sizes) / items.basis.sum(axis=1)
    families = items.family[items.basis.argmax(axis=1)]
    pairs: list[tuple[int, int]] = []
    for family in np.unique(families):
        mine = np.flatnonzero(families == family)
        pairs += pairwise(mine[np.argsort(-knots[mine], kind="stable")].tolist())
    return pairs


def stock_of(problem: Problem) -> Floats:
    """GPUs of each type, and of all, shape (types + 1,)."""
    return np.array([*(gpu_type.count for gpu_type in problem.fleet.types), problem.gpus], dtype=np.float64)


def quiet() -> highspy.Highs:
    """HiGHS on one thread, without its log."""
    solver = highspy.Highs()
    solver.setOptionValue("output_flag", False)
    solver.setOptionValue("threads", 1)
    return solver
