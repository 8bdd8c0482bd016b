"""The optimum of a small problem: every set of adapters on every type of GPU with every number of slots.

Least cost of a set = least, over its subsets that hold its first adapter, of what the subset costs on one GPU and the
least cost of the rest. Nothing but the oracle is trusted: heredity is not made use of.
"""

from __future__ import annotations

import math

import numpy as np
from numba import njit
from numpy.typing import NDArray

from loraplan.config import Config, build
from loraplan.errors import BadInputError
from loraplan.oracle import ORACLES
from loraplan.problem import GPULoad
from loraplan.registry import choose
from loraplan.workload import Floats
from objectives import OBJECTIVES
from solvers import Search

MOST_ADAPTERS = 16
BATCH = 4096


def least_cost(config: Config, objective: str, oracle: str = "fluid") -> float | None:
    """The least cost of a plan; None if there is none.

    Raises:
        BadInputError: too many adapters, or constraints (stock among them) that a sum over GPUs does not know.
    """
    problem = build(config).problem
    n = len(problem.adapters)
    limits = problem.constraints
    if n > MOST_ADAPTERS:
        raise BadInputError(f"brute force: {n} adapters are more than {MOST_ADAPTERS}")
    if min(problem.gpus, *(t.count for t in problem.fleet.types)) < n or limits.named or limits.reserve:
        raise BadInputError("brute force: it knows no stock, and no constraints on several GPUs")
    goal, judge = choose(OBJECTIVES, objective), choose(ORACLES, oracle)
    search = Search(problem, goal.kind(goal.params), judge.kind(problem, judge.params), seed=0)
    least = least_partition(_cheapest(search, n))
    return None if math.isinf(least) else least


def _cheapest(search: Search, n: int) -> Floats:
    """The least cost of every set of adapters (a bit mask) on one GPU; infinite where none carries it."""
    cheapest = np.full(2**n, np.inf)
    types = range(len(search.problem.fleet.types))
    for first in range(1, 2**n, BATCH):
        masks = range(first, min(first + BATCH, 2**n))
        sets = [tuple(i for i in range(n) if mask >> i & 1) for mask in masks]
        for t in types:
            for slots in range(1, n + 1):
                loads = [GPULoad(t, members, slots) for members in sets]
                kept, predicted = search.judge(loads)
                costs = np.where(kept, search.costs(loads, predicted), np.inf)
                cheapest[masks.start : masks.stop] = np.minimum(cheapest[masks.start : masks.stop], costs)
    return cheapest


def least_partition(cheapest: Floats) -> float:
    """The least sum of ``cheapest`` over the parts of a partition of all; shape (2**n,), by bit mask."""
    return float(_least_partition(np.ascontiguousarray(cheapest, dtype=np.float64))[-1])


@njit(cache=True)
def _least_partition(cheapest: NDArray[np.float64]) -> NDArray[np.float64]:
    least = np.full(cheapest.size, np.inf)
    least[0] = 0.0
    for whole in range(1, cheapest.size):
        lowest = whole & -whole
        others = whole ^ lowest
        part = others
        while True:
            cost = cheapest[part | lowest] + least[others ^ part]
            least[whole] = min(least[whole], cost)
            if part == 0:
                break
            part = (part - 1) & others
    return least
