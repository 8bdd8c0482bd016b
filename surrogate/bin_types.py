"""The surrogate's accepted loads as a union of knapsacks (`loraplan.bin_types`).

A load is accepted if, at some pace and in some way to serve, all rows of its margin are at most what the risk allows:
for every server (GPU type, slots, max rank), way and pace one bin type, and that is exact, but for adapters that a
server takes on in part. A load on few slots is accepted if it is on more of them (up to `oracle.FEW_SLOTS`). There
are too many to list: a coarse bin type stands for ranges of slots and paces, with the least weight of the ranges for
every term. Who runs at a pace grows with the pace, so it is taken at the range's first.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from loraplan.bin_types import EXCLUDED, BinType, BinTypes, Groups, server_ranks
from loraplan.problem import Problem
from loraplan.workload import Floats, Ints
from surrogate import features, kernel
from surrogate.model import Model

SLACK = 2e-5
"""Relative, on every weight: the margin is computed in single precision."""
ROWS, WAYS = kernel.ROWS, kernel.WAYS


@dataclass(frozen=True)
class _Box:
    """A way to serve, and ranges (both ends included) of slots and of paces; no way: for adapters without requests."""

    gpu_type: int
    max_rank: int
    way: int
    slots: tuple[int, int]
    paces: tuple[int, int]


@dataclass(frozen=True, eq=False)
class _Rows:
    """Weights of the margin's rows of all servers of a GPU type and max rank, of 1, 2, ... slots.

    Attributes:
        terms: shape (slots, WEIGHT_TERMS, rows, ways), in the order of `kernel`.
        factors: shape (slots, rows, ways, paces): what rows are multiplied by, with what the risk allows as 1.
    """

    terms: Floats
    factors: Floats


class SurrogateBinTypes(BinTypes):
    """Ranges of slots and paces for each way to serve, split down to single ones."""

    exact = True
    rows = ROWS

    def __init__(
        self,
        problem: Problem,
        model: Model,
        cv: float,
        score: float | None,
        tables: NDArray[np.int64],
        group_of: Ints,
        few_slots: int,
    ) -> None:
        """Embed the items.

        Args:
            problem: whose adapters they are made of.
            model: the surrogate.
            cv: of the gaps between an adapter's requests.
            score: the largest that is accepted; None if none is.
            tables: shape (types, adapters, EMBEDDING), embeddings in fixed point.
            group_of: shape (adapters,), each one's item.
            few_slots: numbers of slots up to which loads of fewer adapters are judged by the best of them.
        """
        self._problem, self._model, self._cv, self._score = problem, model, cv, score
        groups = Groups(group_of)
        self._items = [
            np.stack([groups.least(column) for column in table.T.astype(np.float64) / kernel.FIXED_POINT])
            for table in tables
        ]
        self._busy = groups.least((problem.rates > 0).astype(np.float64)) > 0
        self._ranks = [groups.least(server_ranks(problem, t)) for t in range(len(problem.fleet.types))]
        self._count = max(int((group_of >= 0).sum()), few_slots)
        self._known: dict[tuple[int, int], _Rows] = {}

    def roots(self) -> list[BinType]:
        """For each GPU type and max rank, the ways to serve; and one for adapters without requests."""
        found = []
        for t, gpu_type in enumerate(self._problem.fleet.types):
            profile = gpu_type.profile
            for rank in np.unique(self._ranks[t][np.isfinite(self._ranks[t])]).astype(int).tolist():
                most = min(profile.max_slots(rank), self._count)
                while most and not profile.starts(most, rank):
                    most -= 1
                if most:
                    ways = [-1] * bool((~self._busy).any()) + list(range(WAYS)) * (self._score is not None)
                    found += [self._make(_Box(t, rank, way, (1, most), (0, kernel.PACES - 1))) for way in ways]
        return found

    def split(self, bin_type: BinType, counts: Floats) -> list[BinType]:
        """Halve the slots or the paces, whichever lets ``counts`` look heavier."""
        box: _Box = bin_type.box
        choices = []
        for name in ("slots", "paces"):
            low, high = getattr(box, name)
            if high > low and box.way >= 0:
                middle = (low + high) // 2
                ends = (low, middle), (middle + 1, high)
                halves = [self._make(replace(box, **{name: part})) for part in ends]  # type: ignore[arg-type]
                choices.append((min(float((half.rows @ counts).max()) for half in halves), high - low, halves))
        if not choices:
            return [bin_type]
        return max(choices, key=lambda choice: choice[:2])[2]

    def _make(self, box: _Box) -> BinType:
        items = self._items[box.gpu_type]
        rows = np.zeros((ROWS, items.shape[1]))
        if box.way >= 0:
            rows = self._weights(box) @ items * (1.0 - SLACK)
        else:
            rows[:, self._busy] = EXCLUDED
        rows[0, self._ranks[box.gpu_type] > box.max_rank] = EXCLUDED
        place = box.gpu_type, box.max_rank, box.way, box.slots[0], box.paces[0]
        return BinType(box.gpu_type, box.max_rank, box.slots, rows, 0.0, box, place)

    def _weights(self, box: _Box) -> Floats:
        """Least weights over the ranges, shape (rows, EMBEDDING)."""
        known = self._rows_of(box.gpu_type, box.max_rank)
        slots, paces = slice(box.slots[0] - 1, box.slots[1]), slice(box.paces[0], box.paces[1] + 1)
        terms, factors = known.terms[slots, :, :, box.way], known.factors[slots, :, box.way, paces]
        fixed, growing = terms[:, : kernel.STILL], terms[:, kernel.STILL_PLACES :][:, : kernel.STILL]
        weights = np.zeros((ROWS, kernel.EMBEDDING))
        of_paces = [
            ((fixed + pace * growing) * factors[:, None, :, p]).min(axis=0)
            for p, pace in enumerate(kernel.PACE_FACTORS[paces])
        ]
        weights[:, : kernel.STILL] = np.min(of_paces, axis=0).T
        place, part = kernel.POINT_OF_PACE[box.paces[0]], kernel.PART_OF_PACE[box.paces[0]]
        for term, first in ((kernel.BUSY_TERM, kernel.FIRST_BUSY), (kernel.TURN_TERM, kernel.FIRST_TURN)):
            own = (terms[:, term] * factors.min(axis=2)).min(axis=0)
            weights[:, first + place] += (1.0 - part) * own
            weights[:, first + place + 1] += part * own
        return weights

    def _rows_of(self, gpu_type: int, max_rank: int) -> _Rows:
        key = gpu_type, max_rank
        if key not in self._known:
            profile = self._problem.fleet.types[gpu_type].profile
            most = [
                s for s in range(1, min(profile.max_slots(max_rank), self._count) + 1) if profile.starts(s, max_rank)
            ]
            terms = np.array([features.server(profile, s, max_rank) for s in most])
            servers = self._model.servers(terms, np.array([features.context(profile, s, self._cv) for s in most]))
            allowed = np.exp((self._score or 0.0) / servers.beta)[:, None, :, None]
            self._known[key] = _Rows(
                servers.weights.astype(np.float64).reshape(len(most), -1, ROWS, WAYS),
                servers.factors.astype(np.float64).reshape(len(most), ROWS, WAYS, -1) / allowed,
            )
        return self._known[key]
