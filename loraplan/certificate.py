"""Checks the lower bound of a plan anew, from the prices that are said to prove it; no solver has a part in it.

A certificate gives what each adapter is worth, w_i >= 0, a rent for each GPU type and one for any GPU. If no load that
the oracle accepts is worth more than it costs with its rents, then a plan, which places every adapter and uses no more
GPUs than there are, costs at least ``sum(w) - sum(rent of a type * its stock) - rent of any * GPUs``.

That no load is worth more is checked over the oracle's bin types (`loraplan.bin_types`), which cover all accepted
loads: each is a knapsack of a few rows, bounded by its linear relaxation, or in whole numbers by a short search; where
neither does, the bin type is split into finer ones (`loraplan.knapsacks`). A certificate may say which adapters to take
as one item, as light as the lightest of them and worth as much as the dearest: that makes the check quicker and at
most less able to prove. What is taken on trust is the oracle's bin types, the objective's floor, and the arithmetic of
this file and of `loraplan.knapsacks`; of HiGHS only bounds are used that are recomputed from its dual values.

Where prices leave a gap, a certificate may have a tree of further limits and prices on top (`loraplan.branches`).

A check takes 1 to 2 ms for each bin type looked at: 4 s for 256 adapters, 9 s for 20,000 (900 items), most of the
former the start (one core, 2026-11-26).
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import product
from typing import Any, Protocol

import numpy as np

from loraplan.bin_types import EXCLUDED, BinType, BinTypes, Groups
from loraplan.branches import Bin, Branches
from loraplan.errors import BadInputError
from loraplan.knapsacks import Relaxation, price_bound, whole_exceeds
from loraplan.oracle import Oracle
from loraplan.problem import Problem
from loraplan.workload import Floats, Ints

TOLERANCE = 1e-6
"""Relative, on what a load may be worth and on the bound: it is lowered by as much."""
STEPS, DEEP = 3_000, 3_000_000
"""Of the search in whole numbers; and in a bin type that cannot be split."""
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
        certificate: ``worth`` of each adapter, ``rents`` of each GPU type, ``rent`` of any GPU, the ``bound``; and
            perhaps the ``items``: a number for each adapter, equal for those to take as one item; and with these,
            perhaps the ``branches``.
        most: bin types after which the check gives up.

    Raises:
        BadInputError: it is no certificate of this problem, or the oracle has no bin types.
    """
    worth, rents, rent, items = _read(problem, certificate)
    if (worth < 0).any() or (rents < 0).any() or rent < 0:
        return Verdict(False, -math.inf, 0, "a price is negative")
    stock = np.array([gpu_type.count for gpu_type in problem.fleet.types], dtype=np.float64)
    bound = float(worth.sum() - rents @ stock - rent * problem.gpus)
    claimed = float(certificate["bound"])
    if claimed > bound + TOLERANCE * max(1.0, abs(bound)):
        return Verdict(False, -math.inf, 0, f"the prices add up to {bound:g}, less than the bound {claimed:g}")
    bound -= TOLERANCE * (abs(bound) + float(rents @ stock) + rent * problem.gpus)
    if items is None:
        items = _alike(problem, worth, floor.per_ms)
    check = _Check(problem, oracle, floor, worth, floor.of_type + rents + rent, items)
    reason = check.run(most)
    branches = certificate.get("branches")
    if not reason and branches is not None:
        tree = Branches(problem, floor.of_type, check.counts, branches)
        found = check.used(tree.most - bound, most)
        reason = tree.run(found) if isinstance(found, list) else found
        bound = max(bound, tree.most)
    if reason:
        return Verdict(False, -math.inf, check.seen, reason)
    return Verdict(True, _rounded(problem, floor, bound), check.seen)


def _read(problem: Problem, certificate: Mapping[str, Any]) -> tuple[Floats, Floats, float, Ints | None]:
    try:
        worth = np.array(certificate["worth"], dtype=np.float64)
        rents = np.array(certificate["rents"], dtype=np.float64)
        rent, bound = float(certificate["rent"]), float(certificate["bound"])
        items = certificate.get("items")
        if items is not None:
            items = np.unique(np.array(items, dtype=np.int64), return_inverse=True)[1]
    except (KeyError, OverflowError, TypeError, ValueError) as error:
        raise BadInputError(f"certificate: {error!r}") from None
    shape = (len(problem.adapters),)
    fits = worth.shape == shape and (items is None or items.shape == shape)
    if not fits or rents.shape != (len(problem.fleet.types),):
        raise BadInputError("certificate: it is of a problem with other adapters or GPU types")
    if not all(np.isfinite(one).all() for one in (worth, rents, [rent, bound])):
        raise BadInputError("certificate: a price is no finite number")
    return worth, rents, rent, items


class _Check:
    """Looks for a load that is worth more than it may be.

    Attributes:
        seen: bin types looked at.
        counts: shape (items,), adapters of each item.
    """

    def __init__(
        self, problem: Problem, oracle: Oracle, floor: Floor, worth: Floats, paid: Floats, group_of: Ints
    ) -> None:
        union = oracle.bin_types(group_of)
        if union is None:
            raise BadInputError("certificate: this oracle has no bin types")
        self._union: BinTypes = union
        groups = Groups(group_of)
        self._worth, self._per_ms = groups.most(worth), groups.least(floor.per_ms)
        self.counts = groups.sizes.astype(np.float64)
        unit_of = {i: unit for unit in problem.units for i in unit}
        types_of = [problem.types_of(unit_of[i]) for i in range(len(problem.adapters))]
        types = range(len(problem.fleet.types))
        self._allowed = [groups.most(np.array([float(t in mine) for mine in types_of])) > 0 for t in types]
        most = problem.constraints.max_adapters
        self._extra = np.empty((0, self.counts.size)) if most is None else np.full((1, self.counts.size), 1.0 / most)
        self._paid, self._relaxation = paid, Relaxation()
        self.seen = 0

    def run(self, most: int) -> str:
        """Why the prices prove nothing; empty if they do."""
        stack = [(root, np.ones(root.rows.shape[0] + len(self._extra))) for root in self._union.roots()]
        while stack:
            one, known = stack.pop()
            self.seen += 1
            if self.seen > most:
                return f"not decided after {most} bin types"
            limit = float(self._paid[one.gpu_type]) * (1.0 + TOLERANCE) + 1e-12
            rows, values, counts = self._knapsack(one)
            if price_bound(rows, values, counts, known) <= limit:
                continue
            prices, x = self._relaxation.solve(rows, values, counts, known)
            if price_bound(rows, values, counts, prices) <= limit:
                continue
            if whole_exceeds(rows, values, counts, prices, limit, STEPS) == 0:
                continue
            parts = self._union.split(one, x)
            if len(parts) == 1 and parts[0] is one:
                exceeds = whole_exceeds(rows, values, counts, prices, limit, DEEP)
                if exceeds:
                    doubt = "a load is" if exceeds > 0 and self._union.exact else "a load may be"
                    return f"{doubt} worth more than {limit:g}, its cost and rents: {one.box}"
                continue
            stack += [(part, prices) for part in parts]
        return ""

    def used(self, room: float, most: int) -> list[Bin] | str:
        """The bin types, of those that cannot be split, with a load that is worth its cost and rents but for ``room``.

        Or why that is not known.
        """
        stack, found = [(root, np.ones(root.rows.shape[0] + len(self._extra))) for root in self._union.roots()], []
        while stack:
            one, known = stack.pop()
            self.seen += 1
            if self.seen > most:
                return f"not decided after {most} bin types"
            rows, values, counts = self._knapsack(one)
            limit = float(self._paid[one.gpu_type]) - room
            if price_bound(rows, values, counts, known) < limit:
                continue
            prices, x = self._relaxation.solve(rows, values, counts, known)
            if price_bound(rows, values, counts, prices) < limit:
                continue
            parts = self._union.split(one, x)
            if len(parts) == 1 and parts[0] is one:
                found.append(Bin(one.gpu_type, one.place, np.where(self._allowed[one.gpu_type], rows, EXCLUDED)))
            else:
                stack += [(part, prices) for part in parts]
        return found

    def _knapsack(self, one: BinType) -> tuple[Floats, Floats, Floats]:
        """Rows, what each item adds and how many of it there may be, shapes (rows, items), (items,), (items,)."""
        rows = np.concatenate((one.rows, self._extra))
        values = self._worth - one.floor_ms * self._per_ms
        fits = (rows <= 1.0).all(axis=0) & (values > 0) & self._allowed[one.gpu_type]
        return rows, values, np.where(fits, self.counts, 0.0)


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


def _rounded(problem: Problem, floor: Floor, bound: float) -> float:
    """The least total of GPU costs that is not below the bound."""
    counts = [min(gpu_type.count, len(problem.adapters)) + 1 for gpu_type in problem.fleet.types]
    if not floor.exact or math.prod(counts) > MOST_TOTALS:
        return bound
    totals = np.array([np.dot(used, floor.of_type) for used in product(*map(range, counts))])
    return max(bound, float(totals[totals >= bound - 2 * TOLERANCE * max(1.0, abs(bound))].min(initial=math.inf)))
