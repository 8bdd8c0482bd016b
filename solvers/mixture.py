"""GPUs of bin types that cannot be split, mixed at will: a linear program with limits on how many are of which.

Its columns are loads in parts of adapters, the best of a bin type at some prices. All bin types are looked at for the
next columns: there are few of them (`solvers.branching`).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import highspy
import numpy as np
from numpy.typing import NDArray

from loraplan.workload import Floats, Ints
from solvers.base import Search
from solvers.knapsack import relax_all
from solvers.master import quiet
from solvers.spread import add_rows

COLUMNS = 12
"""Added at a time."""
CLOSE, HARDLY = 1e-7, 1e-5
DUAL, PRIMAL = 1, 4
"""HiGHS's numbers of the simplex methods: which one goes on from a basis after rows, and after columns, were added."""


@dataclass(frozen=True, eq=False)
class Limit:
    """GPUs of the bin types ``inside``, shape (bins,): from ``least`` to ``most``."""

    inside: NDArray[np.bool_]
    least: int
    most: int


@dataclass(frozen=True, eq=False)
class Mixed:
    """A solution of the linear program.

    Attributes:
        used: shape (bins,), how often each bin type is.
        worth, rents: prices, shapes (items,) and (limits,): no load is worth more than its cost and the rents of the
            limits that it counts for. Rents of limits from below are negative.
        value: what the prices prove: it costs no less.
        basis: of HiGHS, for the next one.
    """

    used: Floats
    worth: Floats
    rents: Floats
    value: float
    basis: highspy.HighsBasis


class Mixture:
    """The linear program with all columns that were made for it, under other limits each time."""

    def __init__(self, search: Search, rows: Floats, costs: Floats, counts: Floats, dearest: float) -> None:
        """Begin with a GPU of each bin type that takes nothing.

        Args:
            search: says when the time is up.
            rows: of the bin types, shape (bins, rows, items).
            costs: of a GPU of each, shape (bins,).
            counts: of the items, shape (items,).
            dearest: more than any adapter is worth.
        """
        self._search, self._rows, self._costs, self._counts = search, rows, costs, counts
        n, bins = counts.size, costs.size
        self._bin_of, self._limits = np.empty(0, dtype=np.int64), 0
        self._model = quiet()
        self._model.setOptionValue("presolve", "off")
        add_rows(self._model, counts, np.full(n, highspy.kHighsInf))
        # what is missing of an item, and of any limit from below
        free = np.zeros(n + 1), np.full(n + 1, highspy.kHighsInf)
        place = np.arange(n, dtype=np.int32)
        self._model.addCols(
            n + 1, np.full(n + 1, dearest), *free, n, np.arange(n + 1, dtype=np.int32), place, np.ones(n)
        )
        self._add(np.zeros((bins, n)), np.arange(bins), ())

    def solve(self, limits: Sequence[Limit], enough: float, before: Mixed | None = None) -> Mixed:
        """The best mixture, or prices that prove more than ``enough``.

        Args:
            limits: the first is on all GPUs, from 0.
            enough: see above.
            before: a solution under the first few of these limits.

        Raises:
            SearchStoppedError: the time is up.
        """
        self._limit(limits, before)
        inside, model, n = np.array([limit.inside for limit in limits]), self._model, self._counts.size
        least, most = (np.array([getattr(one, end) for one in limits], dtype=np.float64) for end in ("least", "most"))
        worth, rents, proven = np.zeros(n), np.zeros(len(limits)), -np.inf
        model.setOptionValue("simplex_strategy", DUAL)
        while True:
            self._search.check()
            model.run()
            solution, value = model.getSolution(), float(model.getInfo().objective_function_value)
            asked, due = np.maximum(solution.row_dual[:n], 0.0), -np.array(solution.row_dual[n:])
            worths, loads = best_loads(self._rows, asked, self._counts)
            lacks = worths - self._costs - due @ inside
            due[0] = max(due[0], 0.0) + max(float(lacks.max()), 0.0)
            now = float(asked @ self._counts - np.maximum(due, 0.0) @ most - np.minimum(due, 0.0) @ least)
            if now > proven:
                worth, rents, proven = asked, due, now
            fresh = [b for b in np.argsort(-lacks)[:COLUMNS].tolist() if lacks[b] > CLOSE]
            if proven > enough or value - proven <= HARDLY * max(1.0, abs(value)) or not fresh:
                break
            self._add(loads[fresh], np.array(fresh), limits)
            model.setOptionValue("simplex_strategy", PRIMAL)
        used = np.bincount(self._bin_of, solution.col_value[n + 1 :], self._costs.size).astype(np.float64)
        return Mixed(used, worth, rents, proven, model.getBasis())

    def _limit(self, limits: Sequence[Limit], before: Mixed | None) -> None:
        """Put these limits in the place of those there are, and begin from the basis of ``before``."""
        model, first = self._model, self._counts.size
        if self._limits:
            model.deleteRows(self._limits, np.arange(first, first + self._limits, dtype=np.int32))
        for limit in limits:
            index = first + 1 + np.flatnonzero(limit.inside[self._bin_of])
            if limit.least:
                index = np.append(first, index)
            model.addRow(limit.least, limit.most, index.size, index.astype(np.int32), np.ones(index.size))
        self._limits = len(limits)
        if before is not None:
            basis, known = highspy.HighsBasis(), before.basis
            lower, basic = highspy.HighsBasisStatus.kLower, highspy.HighsBasisStatus.kBasic
            basis.col_status = known.col_status + [lower] * (model.getNumCol() - len(known.col_status))
            basis.row_status = known.row_status + [basic] * (model.getNumRow() - len(known.row_status))
            model.setBasis(basis)

    def _add(self, loads: Floats, bins: Ints, limits: Sequence[Limit]) -> None:
        """Add columns: loads, shape (columns, items), of these bin types, shape (columns,)."""
        weights = np.concatenate((loads, *(limit.inside[bins][:, None] for limit in limits)), axis=1)
        which, index = np.nonzero(weights)
        starts = np.searchsorted(which, np.arange(bins.size)).astype(np.int32)
        free = np.zeros(bins.size), np.full(bins.size, highspy.kHighsInf)
        entries = which.size, starts, index.astype(np.int32), weights[which, index]
        self._model.addCols(bins.size, self._costs[bins], *free, *entries)
        self._bin_of = np.append(self._bin_of, bins)


def best_loads(rows: Floats, worth: Floats, counts: Floats) -> tuple[Floats, Floats]:
    """What the best load of each bin type is worth at most, shape (bins,), and that load, in parts of adapters.

    Args:
        rows: shape (bins, rows, items).
        worth, counts: shape (items,).
    """
    bins, height, items = rows.shape
    values, loads = np.empty(bins), np.zeros((bins, items), dtype=np.float32)
    none, prices = np.full(bins, -np.inf), np.zeros((bins, height))
    relax_all(rows, worth, np.zeros(bins), np.zeros(items), counts, none, prices, loads, values)
    return values, loads.astype(np.float64)
