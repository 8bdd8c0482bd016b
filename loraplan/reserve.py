"""Plans that survive the loss of any one GPU: its adapters fit onto the others, which run on as they are.

Any solver makes them: it plans for servers that all take the largest rank and, a little more from one try to the next,
for higher rates, until what it finds, maybe with one GPU more, has a place for the adapters of every GPU at the rates
there are.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import chain

import numpy as np

from loraplan.errors import BadInputError
from loraplan.problem import Fleet, GPULoad, Problem
from loraplan.replicas import Split, split
from loraplan.run import Run
from solvers.base import Search, SearchStoppedError, Solution
from solvers.construction import Stock

STEP, MOST = 1.05, 8.0
"""By how much the rates that are planned for grow from one try to the next, and up to what."""
BUSIEST = 3
"""Of so many GPUs it is tried whether a further one relieves them enough."""

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


@dataclass(frozen=True, eq=False)
class Reserved:
    """What was found.

    Attributes:
        parts: the problem of replicas that was solved.
        search: judges its loads, at the rates there are.
        solution: of ``parts.problem``.
        fallbacks: where the adapters of each GPU go if it is lost; empty if there is no plan.
    """

    parts: Split
    search: Search
    solution: Solution
    fallbacks: tuple[Fallback, ...]


def with_reserve(problem: Problem, run: Run) -> Reserved:
    """The first plan found that survives the loss of any GPU.

    Its bound, and a proof that there is none, are of the problem without a reserve; there are none where adapters of
    several ranks make that another problem than the one that is solved here.
    """
    alike, problem = _one_rank_already(problem), one_rank(problem)
    parts = split(problem, run.oracle_of)
    search, solution = run.for_half_the_time().search(parts.problem)
    if not alike:
        status = "unknown" if solution.status == "infeasible" else solution.status
        solution = replace(solution, status=status, lower_bound=None)
    bound, factor, beyond = solution.lower_bound, 1.0, ""
    if solution.status not in ("optimal", "feasible"):
        return Reserved(parts, search, solution, ())
    parts = parts if solution.replicas is None else parts.then(solution.replicas)
    search = run.prepare(parts.problem)
    try:
        while factor <= MOST:
            loads, fallbacks = _survivors(search, solution.loads)
            if fallbacks:
                return Reserved(parts, search, Solution("feasible", loads, bound), fallbacks)
            factor *= STEP
            scaled = split(problem.scaled(factor), run.oracle_of)
            _, solution = run.for_half_the_time().search(scaled.problem)
            scaled = scaled if solution.replicas is None else scaled.then(solution.replicas)
            if solution.status not in ("optimal", "feasible"):
                beyond = f"; with more: {solution.reason}"
                break
            parts = replace(scaled, problem=scaled.problem.scaled(1.0 / factor))
            search = run.prepare(parts.problem)
    except SearchStoppedError as stopped:
        beyond = f"; then {stopped}"
    reason = f"reserve: no plan survives the loss of any GPU that plans for up to {factor:.2f} times the rates{beyond}"
    return Reserved(parts, search, Solution("unknown", reason=reason), ())


def _one_rank_already(problem: Problem) -> bool:
    """Whether servers of each type take the same rank, whichever adapters they have."""
    ranks = problem.ranks
    profiles = [gpu_type.profile for gpu_type in problem.fleet.types]
    return all(profile.server_rank(int(ranks.min())) == profile.server_rank(int(ranks.max())) for profile in profiles)


def _survivors(search: Search, loads: Sequence[GPULoad]) -> tuple[tuple[GPULoad, ...], tuple[Fallback, ...]]:
    """The plan, or else one with a GPU more, and where the adapters of each GPU go; nothing if neither survives."""
    for tried in chain([tuple(loads)], _with_one_more(search, loads)):
        if not search.judge(tried)[0].all():
            continue
        fallbacks: list[Fallback] = []
        for lost in range(len(tried)):
            goes = evacuate(search, tried, lost)
            if goes is None:
                break
            fallbacks.append(goes)
        if len(fallbacks) == len(tried):
            return tried, tuple(fallbacks)
    return (), ()


def _with_one_more(search: Search, loads: Sequence[GPULoad]) -> Iterator[tuple[GPULoad, ...]]:
    """Plans in which one of the busiest GPUs shares its adapters with a GPU more, of its type or of another."""
    problem, stock = search.problem, Stock(search.problem)
    for load in loads:
        stock.take(load.gpu_type)
    spare = stock.types()
    for row in np.argsort([-problem.offered[list(load.adapters)].sum() for load in loads], kind="stable")[:BUSIEST]:
        load = loads[int(row)]
        members = set(load.adapters)
        units = sorted(
            (unit for unit in problem.units if members.issuperset(unit)),
            key=lambda unit: -float(problem.offered[list(unit)].sum()),
        )
        if len(units) < 2:
            continue
        halves = [replace(load, adapters=tuple(sorted(i for unit in units[k::2] for i in unit))) for k in (0, 1)]
        rest = [other for n, other in enumerate(loads) if n != row]
        for t in sorted(spare, key=lambda t: t != load.gpu_type):
            yield (*rest, halves[0], replace(halves[1], gpu_type=t))


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
