"""Checks the lower bound of a plan anew, from the prices that are said to prove it; no solver has a part in it.

A certificate gives what each adapter is worth, w_i >= 0, a rent for each GPU type and one for any GPU. If no load that
the oracle accepts is worth more than it costs with its rents, then a plan, which places every adapter and uses no more
GPUs than there are, costs at least ``sum(w) - sum(rent of a type * its stock) - rent of any * GPUs``.

That no load is worth more is checked over the oracle's bin types (`loraplan.bin_types`), which cover all accepted
loads: each is a knapsack of a few rows, bounded by its linear relaxation; where that does not do, the bin type is split
into finer ones, and where it cannot be split, HiGHS solves it in whole numbers. What is taken on trust is the oracle's
bin types, the objective's floor, and the arithmetic of this file: of HiGHS only bounds are used that are recomputed
from its dual values, but for those in whole numbers.

A check takes about 2 ms for each bin type looked at: seconds for a few classes of adapters, minutes for a thousand
different ones.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import product
from typing import Any, Protocol

import highspy
import numpy as np
from scipy.optimize import linprog

from loraplan.bin_types import BinType, BinTypes
from loraplan.errors import BadInputError
from loraplan.oracle import Oracle
from loraplan.problem import Problem
from loraplan.workload import Floats, Ints

TOLERANCE = 1e-6
"""Relative, on what a load may be worth and on the bound: it is lowered by as much."""
NEARLY = 1.0
"""Where the relaxation exceeds the limit by less than this factor, whole numbers are tried before splitting."""
MOST_TOTALS = 1_000_000


class Floor(Protocol):
    """A lower bound on what a load costs: by its type, and for each ms of its ITL."""

    @property
    def of_type(self) -> Floats:
        """Shape (types,)."""

    @property
    def per_ms(self) -> Floats:
        """Shape (adapters,)."""

    @property
    def exact(self) -> bool:
        """Whether a load costs exactly what its type does."""


@dataclass(frozen=True)
class Verdict:
    """What the check found.

    Attributes:
        proven: whether the prices prove the bound.
        bound: what they prove if so, rounded up to a cost that a plan can have.
        bin_types: how many were looked at.
        reason: why it is not proven, in a line.
    """

    proven: bool
    bound: float
    bin_types: int
    reason: str = ""


def verify(
    problem: Problem, oracle: Oracle, floor: Floor, certificate: Mapping[str, Any], most: int = 1_000_000
) -> Verdict:
    """Check a certificate of `Solution.certificate`.

    Args:
        problem, oracle, floor: what the bound is about.
        certificate: ``worth`` of each adapter, ``rents`` of each GPU type, ``rent`` of any GPU, the ``bound``.
        most: bin types after which the check gives up.

    Raises:
        BadInputError: it is no certificate of this problem, or the oracle has no bin types.
    """
    worth, rents, rent = _read(problem, certificate)
    if (worth < 0).any() or (rents < 0).any() or rent < 0:
        return Verdict(False, -math.inf, 0, "a price is negative")
    stock = np.array([gpu_type.count for gpu_type in problem.fleet.types], dtype=np.float64)
    bound = float(worth.sum() - rents @ stock - rent * problem.gpus)
    claimed = float(certificate["bound"])
    if claimed > bound + TOLERANCE * max(1.0, abs(bound)):
        return Verdict(False, -math.inf, 0, f"the prices add up to {bound:g}, less than the bound {claimed:g}")
    bound -= TOLERANCE * (abs(bound) + float(rents @ stock) + rent * problem.gpus)
    check = _Check(problem, oracle, floor, worth, floor.of_type + rents + rent)
    reason = check.run(most)
    if reason:
        return Verdict(False, -math.inf, check.seen, reason)
    return Verdict(True, _rounded(problem, floor, bound), check.seen)


def _read(problem: Problem, certificate: Mapping[str, Any]) -> tuple[Floats, Floats, float]:
    try:
        worth = np.array(certificate["worth"], dtype=np.float64)
        rents = np.array(certificate["rents"], dtype=np.float64)
        rent, bound = float(certificate["rent"]), float(certificate["bound"])
    except (KeyError, TypeError, ValueError) as error:
        raise BadInputError(f"certificate: {error!r}") from None
    if worth.shape != (len(problem.adapters),) or rents.shape != (len(problem.fleet.types),):
        raise BadInputError("certificate: it is of a problem with other adapters or GPU types")
    if not all(np.isfinite(one).all() for one in (worth, rents, [rent, bound])):
        raise BadInputError("certificate: a price is no finite number")
    return worth, rents, rent


class _Check:
    """Looks for a load that is worth more than it may be."""

    def __init__(self, problem: Problem, oracle: Oracle, floor: Floor, worth: Floats, paid: Floats) -> None:
        group_of = _alike(problem, worth, floor.per_ms)
        union = oracle.bin_types(group_of)
        if union is None:
            raise BadInputError("certificate: this oracle has no bin types")
        self._union: BinTypes = union
        _, first, counts = np.unique(group_of, return_index=True, return_counts=True)
        self._worth, self._per_ms, self._counts = worth[first], floor.per_ms[first], counts.astype(np.float64)
        self._allowed = [
            np.array([t in problem.types_of((int(i),)) for i in first]) for t in range(len(problem.fleet.types))
        ]
        self._paid = paid
        self.seen = 0

    def run(self, most: int) -> str:
        """Why the prices prove nothing; empty if they do."""
        stack = [(root, np.ones(root.rows.shape[0])) for root in self._union.roots()]
        while stack:
            one, known = stack.pop()
            self.seen += 1
            if self.seen > most:
                return f"not decided after {most} bin types"
            limit = float(self._paid[one.gpu_type]) * (1.0 + TOLERANCE) + 1e-12
            values, counts = self._values(one)
            if _bound(one.rows, values, counts, known) <= limit:
                continue
            prices, x = _relaxed(one.rows, values, counts)
            bound = _bound(one.rows, values, counts, prices)
            if bound <= limit or (bound <= NEARLY * limit and _whole(one.rows, values, counts) <= limit):
                continue
            parts = self._union.split(one, x)
            if len(parts) == 1 and parts[0] is one:
                if _whole(one.rows, values, counts) > limit:
                    return f"a load may be worth more than {limit:g}, its cost and rents: {one.box}"
                continue
            stack += [(part, prices) for part in parts]
        return ""

    def _values(self, one: BinType) -> tuple[Floats, Floats]:
        """What each item adds, and how many of it there may be, shape (items,)."""
        values = self._worth - one.floor_ms * self._per_ms
        fits = (one.rows <= 1.0).all(axis=0) & (values > 0) & self._allowed[one.gpu_type]
        return values, np.where(fits, self._counts, 0.0)


def _alike(problem: Problem, worth: Floats, per_ms: Floats) -> Ints:
    """A number for each adapter; equal ones have equal traffic, rank, worth and pins."""
    laws: dict[tuple[bytes, bytes], int] = {}
    kinds: dict[tuple[Any, ...], int] = {}
    numbers = []
    for i, adapter in enumerate(problem.adapters):
        lengths = adapter.lengths
        law = laws.setdefault((lengths.tokens_in.tobytes(), lengths.tokens_out.tobytes()), len(laws))
        kind = adapter.rank, adapter.rate, law, worth[i], per_ms[i], problem.types_of((i,))
        numbers.append(kinds.setdefault(kind, len(kinds)))
    return np.array(numbers, dtype=np.int64)


def _bound(rows: Floats, values: Floats, counts: Floats, prices: Floats) -> float:
    """No load is worth more: rows cost ``prices``, and what is left of each item is taken in full."""
    return float(prices.sum() + counts @ np.maximum(values - prices @ rows, 0.0))


def _relaxed(rows: Floats, values: Floats, counts: Floats) -> tuple[Floats, Floats]:
    """Prices of the rows that give about the least bound, and the fractional load that is worth it."""
    used = np.flatnonzero(counts)
    if not used.size:
        return np.zeros(rows.shape[0]), np.zeros(values.size)
    ends = [(0.0, float(most)) for most in counts[used]]
    solved = linprog(-values[used], rows[:, used], np.ones(rows.shape[0]), bounds=ends)
    x = np.zeros(values.size)
    if solved.status != 0:
        return np.ones(rows.shape[0]), x
    x[used] = solved.x
    return np.maximum(-solved.ineqlin.marginals, 0.0), x


def _whole(rows: Floats, values: Floats, counts: Floats) -> float:
    """An upper bound on what whole numbers of items are worth."""
    used = np.flatnonzero((counts > 0) & (values > 0))
    if not used.size:
        return 0.0
    solver = highspy.Highs()
    for option, value in (("output_flag", False), ("threads", 1), ("time_limit", 5.0), ("mip_rel_gap", 1e-7)):
        solver.setOptionValue(option, value)
    none = np.array([], dtype=np.int32), np.array([], dtype=np.float64)
    for _ in range(rows.shape[0]):
        solver.addRow(-highspy.kHighsInf, 1.0, 0, *none)
    for item in used:
        weights = np.flatnonzero(rows[:, item]).astype(np.int32)
        solver.addCol(-float(values[item]), 0.0, float(counts[item]), weights.size, weights, rows[weights, item])
    columns = np.arange(used.size, dtype=np.int32)
    solver.changeColsIntegrality(used.size, columns, np.full(used.size, highspy.HighsVarType.kInteger))
    solver.run()
    bound = float(solver.getInfo().mip_dual_bound)
    return -bound if math.isfinite(bound) else math.inf


def _rounded(problem: Problem, floor: Floor, bound: float) -> float:
    """The least total of GPU costs that is not below the bound."""
    counts = [min(gpu_type.count, len(problem.adapters)) + 1 for gpu_type in problem.fleet.types]
    if not floor.exact or math.prod(counts) > MOST_TOTALS:
        return bound
    totals = np.array([np.dot(used, floor.of_type) for used in product(*map(range, counts))])
    return max(bound, float(totals[totals >= bound - 2 * TOLERANCE * max(1.0, abs(bound))].min(initial=math.inf)))
