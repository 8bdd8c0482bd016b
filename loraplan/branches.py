"""Checks that no plan costs so little, from a tree of limits on how many GPUs are of which bin types.

A plan's GPUs are each of a bin type that cannot be split. Of some of these, those in a box, it has at most k or else
more: that is a fork. A branch ends with prices, ``worth`` of the items and ``rents`` of all limits that it is under,
such that no load is worth more than its cost and the rents of the limits that count it: with N_l GPUs in limit l, a
plan then costs at least ``sum(worth) - sum(rents * N)``, whatever the signs. Or it ends with bin types that a plan has
to have, and for no others is money left, and an integer program says that they do not take all adapters.

Beside what `loraplan.certificate` takes on trust: that such an integer program of HiGHS has no solution.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from loraplan.errors import BadInputError
from loraplan.knapsacks import Relaxation, holds, price_bound
from loraplan.problem import Problem
from loraplan.workload import Floats, Ints

TOLERANCE = 1e-6


@dataclass(frozen=True, eq=False)
class Bin:
    """A bin type that cannot be split: `loraplan.bin_types`; ``rows`` above 1 where an item is not allowed."""

    gpu_type: int
    place: tuple[int, ...]
    rows: Floats


@dataclass(frozen=True, eq=False)
class _Limit:
    """GPUs of the bin types ``inside``, shape (bins,): from ``least`` to ``most``."""

    inside: NDArray[np.bool_]
    least: int
    most: int


class Branches:
    """One tree.

    Attributes:
        most: no plan costs this or less, the tree says.
    """

    def __init__(self, problem: Problem, of_type: Floats, counts: Floats, given: Mapping[str, Any]) -> None:
        """Take the tree.

        Args:
            problem: what it is about.
            of_type: what a GPU costs, shape (types,).
            counts: of the items, shape (items,).
            given: ``most``, and the ``tree``.

        Raises:
            BadInputError: it is no such tree.
        """
        try:
            self.most, self._tree = float(given["most"]), dict(given["tree"])
        except (KeyError, OverflowError, TypeError, ValueError) as error:
            raise BadInputError(f"certificate: branches: {error!r}") from None
        if not math.isfinite(self.most):
            raise BadInputError("certificate: branches: most is no finite number")
        self._problem, self._of_type, self._counts = problem, of_type, counts
        self._gpus = int(min(problem.gpus, max(0.0, self.most / float(of_type.min()))))
        self._relaxation = Relaxation()

    def run(self, bins: Sequence[Bin]) -> str:
        """Why the tree proves nothing, empty if it does.

        Args:
            bins: all bin types that cannot be split and that a plan of ``most`` may have.

        Raises:
            BadInputError: it is no such tree.
        """
        self._bins = bins
        self._types = np.array([one.gpu_type for one in bins], dtype=np.int64)
        lengths = {len(one.place) for one in bins}
        if len(lengths) != 1 or 0 in lengths:
            return "" if not bins else "the oracle's bin types cannot be told apart"
        self._places = np.array([one.place for one in bins])
        stock = [gpu_type.count for gpu_type in self._problem.fleet.types]
        always = [_Limit(np.ones(len(bins), dtype=np.bool_), 0, self._gpus)]
        always += [_Limit(self._types == t, 0, count) for t, count in enumerate(stock)]
        waiting: list[tuple[dict[str, Any], list[_Limit]]] = [(self._tree, always)]
        while waiting:
            node, limits = waiting.pop()
            try:
                if "fewer" in node:
                    waiting += self._fork(node, limits)
                    continue
                reason = self._priced(node, limits) if "worth" in node else self._packed(node, limits)
            except (KeyError, OverflowError, TypeError, ValueError) as error:
                raise BadInputError(f"certificate: branches: {error!r}") from None
            if reason:
                return reason
        return ""

    def _fork(self, node: Mapping[str, Any], limits: list[_Limit]) -> list[tuple[dict[str, Any], list[_Limit]]]:
        gpus = int(node["gpus"])
        inside = self._inside(node["least"], node["most"])
        return [
            (dict(node["fewer"]), [*limits, _Limit(inside, 0, gpus)]),
            (dict(node["more"]), [*limits, _Limit(inside, gpus + 1, self._gpus)]),
        ]

    def _inside(self, least: Sequence[int], most: Sequence[int]) -> NDArray[np.bool_]:
        low, high = self._place(least), self._place(most)
        return np.asarray(((self._places >= low) & (self._places <= high)).all(axis=1))

    def _place(self, given: Sequence[int]) -> Ints:
        place = np.array(given, dtype=np.int64)
        if place.shape != self._places.shape[1:]:
            raise ValueError(f"{given} is no place of a bin type")
        return place

    def _priced(self, node: Mapping[str, Any], limits: list[_Limit]) -> str:
        """Whether prices prove that a branch costs more than ``most``."""
        worth, rents = np.array(node["worth"], dtype=np.float64), np.array(node["rents"], dtype=np.float64)
        if worth.shape != self._counts.shape or rents.shape != (len(limits),):
            raise ValueError("a branch has too many prices, or too few")
        if not (np.isfinite(worth).all() and np.isfinite(rents).all() and (worth >= 0).all()):
            raise ValueError("a price is negative, or no finite number")
        inside = np.array([limit.inside for limit in limits])
        paid = self._of_type[self._types] + rents @ inside
        over = 0.0
        known = np.ones(self._bins[0].rows.shape[0])
        for one, limit in zip(self._bins, paid, strict=True):
            allowed = (one.rows <= 1.0).all(axis=0)
            rows, counts = np.where(allowed, one.rows, 0.0), np.where(allowed, self._counts, 0.0)
            if price_bound(rows, worth, counts, known) > limit:
                known, _ = self._relaxation.solve(rows, worth, counts, known)
                over = max(over, price_bound(rows, worth, counts, known) - float(limit))
        ends = np.array([[limit.least, limit.most] for limit in limits], dtype=np.float64)
        dues = np.maximum(rents * ends[:, 0], rents * ends[:, 1])
        value = float(worth @ self._counts - dues.sum()) - over * self._gpus
        if value <= self.most + TOLERANCE * max(1.0, abs(self.most)):
            return f"prices of a branch prove {value:g}, no more than {self.most:g}"
        return ""

    def _packed(self, node: Mapping[str, Any], limits: list[_Limit]) -> str:
        """Whether the GPUs that a branch has to have are all there can be, and do not take all adapters."""
        chosen = []
        for given, times in node["packed"]:
            inside = self._inside(given, given)
            if inside.sum() != 1 or not any(
                limit.least >= int(times) > 0 and (limit.inside == inside).all() for limit in limits
            ):
                return f"a plan need not have {times} GPUs of bin type {given}"
            chosen += [int(np.flatnonzero(inside)[0])] * int(times)
        most = min(limit.most for limit in limits if limit.inside.all())
        if len(chosen) < most and self._of_type[self._types[chosen]].sum() + self._of_type.min() <= self.most:
            return f"a branch has GPUs {node['packed']}, and could have more"
        if holds([self._bins[b].rows for b in chosen], self._counts):
            return f"GPUs {node['packed']} may take all adapters"
        return ""
