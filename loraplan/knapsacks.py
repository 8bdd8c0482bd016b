"""How much a knapsack of a few rows may hold at most, for checking bounds; the solvers have code of their own for it.

Values v >= 0, ``counts`` of each item, rows of non-negative weights that may each add up to 1. Prices y >= 0 of the
rows prove ``sum(y) + sum(counts * max(0, v - y @ rows))`` whatever they are: nothing rests on how they were found.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import highspy
import numpy as np
from numba import njit

from loraplan.workload import Floats

CORE = 60
"""Items that are solved for where known prices leave little doubt of the others."""
CLOSE = 1e-4


def price_bound(rows: Floats, values: Floats, counts: Floats, prices: Floats) -> float:
    """What no choice is worth more than, by these prices, shape (rows,)."""
    return float(prices.sum() + counts @ np.maximum(values - prices @ rows, 0.0))


class Relaxation:
    """Linear relaxations, by HiGHS."""

    def __init__(self) -> None:
        """Prepare."""
        self._solver = highspy.Highs()
        for option, value in (("output_flag", False), ("threads", 1), ("presolve", "off")):
            self._solver.setOptionValue(option, value)

    def solve(self, rows: Floats, values: Floats, counts: Floats, known: Floats) -> tuple[Floats, Floats]:
        """Prices of the rows that prove about the least, and the choice, in fractions, that is worth it.

        Args:
            rows: shape (rows, items).
            values, counts: shape (items,).
            known: prices, shape (rows,), that are perhaps not far off.
        """
        wanted = np.flatnonzero((counts > 0) & (values > 0))
        left = values[wanted] - known @ rows[:, wanted]
        doubt = np.argsort(np.abs(left) / values[wanted])
        sure = wanted[doubt[CORE:]][left[doubt[CORE:]] > 0]
        room = 1.0 - rows[:, sure] @ counts[sure]
        if wanted.size > 2 * CORE and (room >= 0).all():
            prices, x = self._solve(rows, values, counts, wanted[doubt[:CORE]], room)
            x[sure] = counts[sure]
            if price_bound(rows, values, counts, prices) <= (1.0 + CLOSE) * float(values @ x):
                return prices, x
        return self._solve(rows, values, counts, wanted, np.ones(rows.shape[0]))

    def _solve(
        self, rows: Floats, values: Floats, counts: Floats, items: np.typing.NDArray[np.intp], room: Floats
    ) -> tuple[Floats, Floats]:
        height, width = rows.shape[0], items.size
        x = np.zeros(values.size)
        if not width:
            return np.zeros(height), x
        model = highspy.HighsLp()
        model.num_col_, model.num_row_ = width, height
        model.col_cost_, model.col_lower_, model.col_upper_ = -values[items], np.zeros(width), counts[items]
        model.row_lower_, model.row_upper_ = np.full(height, -highspy.kHighsInf), room
        model.a_matrix_.format_ = highspy.MatrixFormat.kColwise
        model.a_matrix_.start_ = np.arange(0, height * width + 1, height, dtype=np.int32)
        model.a_matrix_.index_ = np.tile(np.arange(height, dtype=np.int32), width)
        model.a_matrix_.value_ = rows[:, items].T.ravel()
        self._solver.passModel(model)
        self._solver.run()
        solution = self._solver.getSolution()
        if len(solution.row_dual) != height:
            return np.ones(height), x
        x[items] = solution.col_value
        return np.maximum(-np.array(solution.row_dual), 0.0), x


@njit(cache=True, nogil=True)
def whole_exceeds(rows, values, counts, prices, limit, steps):  # type: ignore[no-untyped-def]
    """Whether a choice of whole items is worth more than ``limit``: 1 one is, 0 none is, -1 not known after ``steps``.

    Depth first, items by falling value per price. What is not yet chosen adds at most what ``prices`` say: the price of
    the room left, and for each item left what it is worth beyond its own price.
    """
    height, width = rows.shape
    cost = np.zeros(width)
    for j in range(width):
        for r in range(height):
            cost[j] += prices[r] * rows[r, j]
    order = np.argsort(-values / (cost + 1e-12))
    order = order[(counts[order] > 0) & (values[order] > 0)]
    size = order.size
    gain = np.zeros(size + 1)
    for place in range(size - 1, -1, -1):
        j = order[place]
        gain[place] = gain[place + 1] + counts[j] * max(0.0, values[j] - cost[j])
    taken, room = np.zeros(size), np.ones(height)
    value, priced, depth = 0.0, prices.sum(), 0
    for _ in range(steps):
        if value > limit:
            return 1
        if depth < size and value + priced + gain[depth] > limit:
            j = order[depth]
            amount = counts[j]
            for r in range(height):
                if rows[r, j] > 0.0:
                    amount = min(amount, np.floor(room[r] / rows[r, j] + 1e-9))
            amount = max(amount, 0.0)
        else:
            while depth > 0 and taken[depth - 1] == 0.0:
                depth -= 1
            if depth == 0:
                return 0
            depth -= 1
            j = order[depth]
            amount = taken[depth] - 1.0
            value -= taken[depth] * values[j]
            priced += taken[depth] * cost[j]
            for r in range(height):
                room[r] += taken[depth] * rows[r, j]
        taken[depth] = amount
        value += amount * values[j]
        priced -= amount * cost[j]
        for r in range(height):
            room[r] -= amount * rows[r, j]
        depth += 1
    return -1


def holds(bins: Sequence[Floats], counts: Floats, seconds: float = 60.0) -> bool:
    """Whether knapsacks may hold all items together; False is the word of an integer program of HiGHS.

    Args:
        bins: rows of each, shape (rows, items); an item with a weight above 1 does not go into it.
        counts: shape (items,).
        seconds: after which they may.
    """
    model = highspy.Highs()
    for option, value in (("output_flag", False), ("threads", 1), ("time_limit", seconds)):
        model.setOptionValue(option, value)
    of_item: list[list[Any]] = [[] for _ in counts]
    for rows in bins:
        of_row: list[list[Any]] = [[] for _ in rows]
        for item in np.flatnonzero((rows <= 1.0).all(axis=0)):
            amount = model.addIntegral(lb=0, ub=float(counts[item]))
            of_item[item].append(amount)
            for row in np.flatnonzero(rows[:, item]):
                of_row[row].append(float(rows[row, item]) * amount)
        for terms in of_row:
            if terms:
                model.addConstr(sum(terms) <= 1.0)
    for amounts, count in zip(of_item, counts, strict=True):
        if not amounts:
            return False
        model.addConstr(sum(amounts) == float(count))
    model.run()
    return bool(model.getModelStatus() != highspy.HighsModelStatus.kInfeasible)
