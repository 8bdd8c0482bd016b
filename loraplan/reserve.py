"""Plans that survive the loss of any one GPU: its adapters fit onto the others, which run on as they are.

Any solver makes them: it plans for higher rates, and for servers that all take the largest rank, until what it finds
has a place for the adapters of every GPU at the rates there are.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

import numpy as np

from loraplan.errors import BadInputError
from loraplan.problem import Fleet, GPULoad, Problem
from solvers.base import Search, Solution

STEP, MOST = 1.05, 8.0
"""By how much the rates that are planned for grow from one try to the next, and up to what."""

Fallback = dict[int, int]
"""Adapter -> row of the GPU that takes it over."""


def one_rank(problem: Problem) -> Problem:
    """The same with servers that all take the largest rank, so that every adapter can move to each of them."""
    widest = int(problem.ranks.max())
    types = []
    for gpu_type in problem.fleet.types:
        profile = gpu_type.profile
        if widest > max(profile.limits.lora_ranks):
            raise BadInputError(f"constraints: reserve: {profile.name} takes no adapter of rank {widest}")
        ranks = tuple(rank for rank in profile.limits.lora_ranks if rank >= profile.server_rank(widest))
        limits = profile.limits.model_copy(update={"lora_ranks": ranks})
        types.append(replace(gpu_type, profile=profile.model_copy(update={"limits": limits})))
    return replace(problem, fleet=Fleet(tuple(types)))


def with_reserve(
    problem: Problem, run: Callable[[Problem], tuple[Search, Solution]]
) -> tuple[Search, Solution, tuple[Fallback, ...]]:
    """The first plan found that survives, and where the adapters of each of its GPUs go.

    Args:
        problem: with servers of one rank.
        run: solves a problem.
    """
    search, solution = run(problem)
    bound, judging = solution.lower_bound, search
    factor = 1.0
    while solution.status in ("optimal", "feasible"):
        fallbacks = [evacuate(judging, solution.loads, lost) for lost in range(len(solution.loads))]
        if all(fallback is not None for fallback in fallbacks):
            found = Solution("feasible", solution.loads, bound)
            return judging, found, tuple(fallback for fallback in fallbacks if fallback is not None)
        factor *= STEP
        if factor > MOST:
            break
        search, solution = run(problem.scaled(factor))
    if factor == 1.0:
        return judging, solution, ()
    why = solution.reason or "it did not find one"
    reason = f"reserve: no plan that survives the loss of a GPU, planning for up to {factor:.2f} times the rates: {why}"
    return judging, Solution("unknown", reason=reason), ()


def evacuate(search: Search, loads: Sequence[GPULoad], lost: int) -> Fallback | None:
    """Where the adapters of one GPU go, each to the fullest of the others that takes it; None if one finds no place."""
    rest = {row: load for row, load in enumerate(loads) if row != lost}
    problem, goes = search.problem, {}
    gone = set(loads[lost].adapters)
    units = [unit for unit in problem.units if gone.issuperset(unit)]
    for unit in sorted(units, key=lambda unit: -sum(problem.adapters[i].rate for i in unit)):
        rows = list(rest)
        grown = [replace(rest[row], adapters=tuple(sorted((*rest[row].adapters, *unit)))) for row in rows]
        if not grown:
            return None
        kept, predicted = search.judge(grown)
        fine = np.flatnonzero(kept)
        if not fine.size:
            return None
        best = int(fine[np.nan_to_num(predicted.itl_ms[fine]).argmax()])
        rest[rows[best]] = grown[best]
        goes.update(dict.fromkeys(unit, rows[best]))
    return goes
