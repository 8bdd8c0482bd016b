"""The ground truth for up to about ten adapters: every subset, every number of slots, every partition."""

from __future__ import annotations

import math
from functools import cache

import numpy as np
from numpy.typing import NDArray

from loraplan.oracle import Oracle
from loraplan.problem import GPULoad, Problem
from solvers import Search
from solvers.enumeration import FEW_SLOTS


def feasible_subsets(problem: Problem, oracle: Oracle) -> NDArray[np.bool_]:
    """Which subsets of the adapters (bit masks) fit on one GPU with some slots; shape (types, 2^adapters).

    Slots go up to the number of adapters in all; heredity is not made use of.
    """
    n, types = len(problem.adapters), len(problem.fleet.types)
    subsets = [tuple(i for i in range(n) if mask >> i & 1) for mask in range(1, 2**n)]
    loads = [GPULoad(t, subset, slots) for t in range(types) for subset in subsets for slots in range(1, n + 1)]
    fits = np.ones((types, 2**n), dtype=np.bool_)
    kept = ~oracle.predict(loads).starved(problem.constraints.served_fraction)
    fits[:, 1:] = kept.reshape(types, len(subsets), n).any(axis=2)
    return fits


def fits_nowhere(problem: Problem, oracle: Oracle) -> list[int]:
    """The adapters that no GPU type carries even alone."""
    fits = np.asarray(feasible_subsets(problem, oracle).any(axis=0))
    return [i for i in range(len(problem.adapters)) if not fits[1 << i]]


def fewest_gpus(problem: Problem, oracle: Oracle) -> int | None:
    """The least number of GPUs of the fleet that carry all adapters; None if there is no plan."""
    fits = feasible_subsets(problem, oracle).tolist()

    @cache
    def fewest(rest: int, spare: tuple[int, ...]) -> float:
        if not rest:
            return 0
        lowest = rest & -rest  # its GPU comes first: partitions are counted once
        others = with_lowest = rest ^ lowest
        best = math.inf
        while True:
            subset = with_lowest | lowest
            for t, count in enumerate(spare):
                if count and fits[t][subset]:
                    best = min(best, 1 + fewest(rest ^ subset, (*spare[:t], count - 1, *spare[t + 1 :])))
            if not with_lowest:
                return best
            with_lowest = (with_lowest - 1) & others

    n = len(problem.adapters)
    answer = fewest(2**n - 1, tuple(min(gpu_type.count, n) for gpu_type in problem.fleet.types))
    return None if math.isinf(answer) else int(answer)


def least_cost(search: Search) -> float | None:
    """The least cost of a plan that keeps all constraints (but for the reserve); None if there is none."""
    problem = search.problem
    n, types = len(problem.adapters), len(problem.fleet.types)
    subsets = [tuple(i for i in range(n) if mask >> i & 1) for mask in range(1, 2**n)]
    numbers = range(1, max(n, FEW_SLOTS) + 1)
    loads = [GPULoad(t, subset, slots) for t in range(types) for subset in subsets for slots in numbers]
    kept, predicted = search.judge(loads)
    costs = np.where(kept, search.costs(loads, predicted), math.inf)
    whole = [all(set(unit) <= set(s) or not set(unit) & set(s) for unit in problem.units) for s in subsets]
    cheapest = np.full((types, 2**n), math.inf)
    cheapest[:, 1:] = np.where(whole, costs.reshape(types, len(subsets), len(numbers)).min(axis=2), math.inf)

    @cache
    def least(rest: int, spare: tuple[int, ...], gpus: int) -> float:
        if not rest:
            return 0.0
        lowest = rest & -rest
        others = with_lowest = rest ^ lowest
        best = math.inf
        while gpus:
            subset = with_lowest | lowest
            for t, count in enumerate(spare):
                if count and cheapest[t, subset] < best:
                    left = (*spare[:t], count - 1, *spare[t + 1 :])
                    best = min(best, cheapest[t, subset] + least(rest ^ subset, left, gpus - 1))
            if not with_lowest:
                break
            with_lowest = (with_lowest - 1) & others
        return best

    spare = tuple(min(gpu_type.count, n) for gpu_type in problem.fleet.types)
    answer = least(2**n - 1, spare, min(problem.gpus, n))
    return None if math.isinf(answer) else answer
