"""LoRAServe's placement (arXiv 2511.22880), as arXiv 2602.24044 re-implements it: GPUs for each rank, equally used."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar

import numpy as np

from loraplan.errors import BadInputError
from loraplan.problem import Problem
from solvers.base import Search, Solution, Solver
from solvers.published import LORASERVE_TOK_S, Parts, counts, demands, model_family, sweep

HARDLY = 1e-9
"""Shares below this are none."""


@dataclass(frozen=True)
class LoRAServeParams:
    """Settings of the baseline.

    Attributes:
        tok_s: rank -> tokens/s of a GPU that serves it; empty for the published figures of the fleet's base model. A
            rank that is not in it has the figure of the next larger one, or of the largest.
    """

    tok_s: Mapping[int, float] = field(default_factory=dict)

    def __post_init__(self) -> None:
        """Check the figures."""
        if any(not value > 0 for value in self.tok_s.values()):
            raise BadInputError(f"loraserve: tok_s must be above 0 (got {dict(self.tok_s)})")


class LoRAServe(Solver):
    """Each rank has GPUs of its own, as many as its part of the demand; large demands come first there."""

    Params: ClassVar[type[Any]] = LoRAServeParams
    baseline = True

    def __init__(self, params: LoRAServeParams) -> None:
        """Take the operating points."""
        self._tok_s = params.tok_s

    def solve(self, search: Search) -> Solution:
        """Place on ever more GPUs."""
        points = self._tok_s or LORASERVE_TOK_S[model_family(search.problem, "loraserve")]
        return sweep(search, "loraserve", lambda gpus: _place(search.problem, gpus, points))


def _place(problem: Problem, gpus: int, points: Mapping[int, float]) -> tuple[Parts, list[int]] | None:
    demand = demands(problem)
    ranks = sorted({int(rank) for rank in problem.ranks}, reverse=True)
    point = {rank: points[min((known for known in points if known >= rank), default=max(points))] for rank in ranks}
    use = {rank: float(demand[problem.ranks == rank].sum()) / point[rank] for rank in ranks}
    target = sum(use.values()) / gpus
    if target > 1.0:
        return None
    parts: list[dict[int, float]] = [{} for _ in range(gpus)]
    used, largest = [0.0] * gpus, [0] * gpus
    left: list[tuple[int, float]] = []
    first = 0
    for rank, count in _whole_gpus(use, target, gpus).items():
        mine = range(first, first + count)
        first += count
        for gpu in mine:
            largest[gpu] = rank
        room = dict.fromkeys(mine, target * point[rank])
        for i in sorted(np.flatnonzero(problem.ranks == rank).tolist(), key=lambda i: -demand[i]):
            rest = 1.0
            while rest > HARDLY:
                gpu = max(room, key=lambda g: room[g], default=-1)
                if gpu < 0 or room[gpu] <= HARDLY * point[rank]:
                    left.append((i, rest))
                    break
                share = rest if demand[i] == 0 else min(rest, room[gpu] / float(demand[i]))
                share = rest if rest - share <= HARDLY else share
                parts[gpu][i] = parts[gpu].get(i, 0.0) + share
                room[gpu] -= share * float(demand[i])
                used[gpu] += share * float(demand[i]) / point[rank]
                rest -= share
    for i, share in left:
        takers = [gpu for gpu in range(gpus) if largest[gpu] >= problem.ranks[i]] or list(range(gpus))
        gpu = min(takers, key=lambda g: used[g])
        parts[gpu][i] = parts[gpu].get(i, 0.0) + share
        used[gpu] += share * float(demand[i]) / point[int(problem.ranks[i])]
    return parts, counts(parts)


def _whole_gpus(use: Mapping[int, float], target: float, gpus: int) -> dict[int, int]:
    """GPUs of each rank, by largest remainder."""
    wanted = {rank: value / target if target > 0 else gpus / len(use) for rank, value in use.items()}
    count = {rank: int(value) for rank, value in wanted.items()}
    for rank in sorted(wanted, key=lambda rank: count[rank] - wanted[rank])[: gpus - sum(count.values())]:
        count[rank] += 1
    return count
