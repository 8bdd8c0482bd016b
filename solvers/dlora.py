"""dLoRA's proactive placement (OSDI 2024), as arXiv 2602.24044 re-implements it: replicas of what is asked for most."""

from __future__ import annotations

import heapq
from dataclasses import dataclass
from typing import Any, ClassVar

from loraplan.problem import Problem
from solvers.base import Search, Solution, Solver
from solvers.published import Parts, counts, gpu_types, sweep

HORIZON_S = 3600.0


@dataclass(frozen=True)
class DLoRAParams:
    """No settings."""


class DLoRA(Solver):
    """Every adapter on the GPU with the fewest adapters; then replicas, GPUs - 1 of them at most, with equal shares.

    The next replica is of the adapter with the fewest for its requests. It is made if that does not lower the least,
    over the adapters, of free memory of its GPUs per request.
    """

    Params: ClassVar[type[Any]] = DLoRAParams
    baseline = True

    def __init__(self, params: DLoRAParams) -> None:
        """There is nothing to set."""

    def solve(self, search: Search) -> Solution:
        """Place on ever more GPUs."""
        return sweep(search, "dlora", lambda gpus: _place(search.problem, gpus))


def _place(problem: Problem, gpus: int) -> tuple[Parts, list[int]]:
    expected = [max(rate * HORIZON_S, 1e-9) for rate in problem.rates.tolist()]
    widest = int(problem.ranks.max())
    profiles = [problem.fleet.types[t].profile for t in gpu_types(problem)[:gpus]]
    free = [profile.kv.tokens for profile in profiles]
    cost = [profile.kv.per_slot + profile.kv.per_slot_rank * widest for profile in profiles]
    homes: list[list[int]] = [[] for _ in expected]
    filled = [(0, gpu) for gpu in range(gpus)]
    for i in sorted(range(len(expected)), key=lambda i: -expected[i]):
        count, gpu = heapq.heappop(filled)
        heapq.heappush(filled, (count + 1, gpu))
        homes[i].append(gpu)
        free[gpu] -= cost[gpu]
    adapters_on = [count for count, _ in sorted(filled, key=lambda entry: entry[1])]
    order = [(1.0 / expected[i], i) for i in range(len(expected))]
    heapq.heapify(order)
    replicas = 0
    while order and replicas < gpus - 1:
        _, i = heapq.heappop(order)
        others = [gpu for gpu in range(gpus) if gpu not in homes[i]]
        if not others:
            continue
        gpu = min(others, key=lambda g: adapters_on[g])
        before = _scarcest(homes, free, expected)
        free[gpu] -= cost[gpu]
        homes[i].append(gpu)
        if _scarcest(homes, free, expected) < before:
            homes[i].pop()
            free[gpu] += cost[gpu]
            continue
        adapters_on[gpu] += 1
        replicas += 1
        heapq.heappush(order, (len(homes[i]) / expected[i], i))
    parts: list[dict[int, float]] = [{} for _ in range(gpus)]
    for i, mine in enumerate(homes):
        for gpu in mine:
            parts[gpu][i] = 1.0 / len(mine)
    return parts, counts(parts)


def _scarcest(homes: list[list[int]], free: list[float], expected: list[float]) -> float:
    """The least free memory of its GPUs per request, over the adapters."""
    return min(sum(free[gpu] for gpu in mine) / asked for mine, asked in zip(homes, expected, strict=True))
