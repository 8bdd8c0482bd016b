"""The twin in the loop: a GPU load that starves in the twin is cut off, and the solver goes on."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

import numpy as np

from loraplan.plan import Plan, Verification
from loraplan.problem import GPULoad, Problem
from loraplan.replicas import Split
from loraplan.run import Run
from loraplan.validation import share_of
from loraplan.workload import Requests, Workload
from solvers import Search, Solution
from solvers.base import Status
from solvers.cuts import Cuts
from twin.batch import Simulation, spread

FIRST_SEED = 500_000
"""Verification counts its seeds from here: neither those of oracles nor those of validation."""
ROUNDS, STEP = 40, 1.01
"""Rounds at most; and how much higher rates each is planned for than the one before, once cuts alone ..."""
EQUAL = 1e-6
"""Relative difference up to which value and bound are the same."""
PATIENCE = 4
"""... have not done in so many rounds."""
OTHER_SLOTS = tuple(np.geomspace(0.6, 2.0, 14))
"""Of a starving load's slots: numbers that are tried instead. On the README's trace 16 % more helped."""


@dataclass(frozen=True, eq=False)
class Verifier:
    """Replays GPU loads in the twin.

    Attributes:
        workload: what is planned for (not what validation replays, where they differ).
        seeds: how many replays.
    """

    workload: Workload
    seeds: int = 3
    _streams: list[Requests] = field(default_factory=list, init=False)
    _known: dict[object, float] = field(default_factory=dict, init=False)

    @property
    def numbers(self) -> tuple[int, ...]:
        """The seeds."""
        return tuple(range(FIRST_SEED, FIRST_SEED + self.seeds))

    def served(self, parts: Split, problem: Problem, loads: tuple[GPULoad, ...]) -> list[float]:
        """The mean served fraction of each load; loads are of ``parts.problem``, ``problem`` is the original one."""
        if not self._streams:
            self._streams.extend(self.workload.requests(seed) for seed in self.numbers)
        names = [adapter.name for adapter in self.workload.adapters]
        keys = [self._key(parts, load) for load in loads]
        new = {key: load for key, load in zip(keys, loads, strict=True) if key not in self._known}
        simulations = (
            self._simulation(parts, problem, load, share_of(stream, names, _placed(parts, problem, load)))
            for load in new.values()
            for stream in self._streams
        )
        runs = list(spread(Simulation.metrics, simulations, total=len(new) * self.seeds))
        for n, key in enumerate(new):
            mine = runs[n * self.seeds : (n + 1) * self.seeds]
            self._known[key] = float(np.mean([run.served_fraction for run in mine]))
        return [self._known[key] for key in keys]

    def _simulation(self, parts: Split, problem: Problem, load: GPULoad, requests: Requests) -> Simulation:
        ranks = np.array([problem.adapters[parts.origin[i]].rank for i in load.adapters], dtype=np.int64)
        return Simulation(
            profile=parts.problem.profile(load),
            slots=load.slots,
            max_rank=parts.problem.max_rank(load.gpu_type, load.adapters),
            ranks=ranks,
            workload=requests,
            horizon_s=self.workload.horizon_s,
            name=f"verification, {len(load.adapters)} adapters on {load.slots} slots",
        )

    @staticmethod
    def _key(parts: Split, load: GPULoad) -> object:
        return (
            load.gpu_type,
            load.slots,
            tuple((parts.origin[i], round(float(parts.shares[i]), 9)) for i in load.adapters),
        )


def _placed(parts: Split, problem: Problem, load: GPULoad) -> list[tuple[str, float]]:
    return [(problem.adapters[parts.origin[i]].name, float(parts.shares[i])) for i in load.adapters]


@dataclass(frozen=True, eq=False)
class Verified:
    """What was found: the last round's solution, of the problem of ``parts``, and how it came about."""

    parts: Split
    search: Search
    solution: Solution
    record: Verification


def with_twin(problem: Problem, parts: Split, run: Run, verifier: Verifier, start: Plan | None = None) -> Verified:
    """Solve, replay, cut off what starves with whatever slots, and solve again, until nothing does.

    The bound is that of the first round: no plan costs less by the oracle, whatever the twin says. Where cuts alone do
    not soon come to an end, because there is always another load like those that starved, further rounds plan for rates
    that are a little higher from one to the next.

    Args:
        problem: the original one.
        parts: its replicas; ``parts.problem`` is solved.
        run: what was chosen.
        verifier: asks the twin.
        start: a plan to begin with.
    """
    cuts, factor, number = Cuts(parts.problem), 1.0, 0
    bound: float | None = None
    certificate: dict[str, Any] | None = None
    known: tuple[Split, Search, Solution] | None = None
    while True:
        number += 1
        asked = parts.problem if factor == 1.0 else parts.problem.scaled(factor)
        search, solution = run.for_half_the_time().search(asked, start, cuts)
        if number == 1:
            bound, certificate = solution.lower_bound, solution.certificate
        made = parts if solution.replicas is None else parts.then(solution.replicas)
        if factor > 1.0:
            made = replace(made, problem=made.problem.scaled(1.0 / factor))
            search = run.prepare(made.problem)
        complete = solution.status in ("optimal", "feasible")
        if not complete and known is not None:  # better a plan that is not confirmed than none
            made, search, solution = known
            complete = True
        known = (made, search, solution) if complete else known
        served = verifier.served(made, problem, solution.loads) if complete else []
        starving = [n for n, part in enumerate(served) if part < problem.constraints.served_fraction]
        if not starving or run.timed_out or number == ROUNDS:
            break
        loads, starved = _mended(search, solution.loads, starving, partial(verifier.served, made, problem))
        starving = [n for n in starving if loads[n] in starved]
        solution = replace(solution, loads=loads)
        known = made, search, solution
        if not starving:
            break
        if solution.replicas is None:  # else the adapters are not those of the next round
            for load in starved:
                cuts.add(load)
        if number >= PATIENCE or solution.replicas is not None:
            factor *= STEP
    record = Verification(
        rounds=number,
        cuts=len(cuts),
        planned_for=round(factor, 6),
        confirmed=complete and not starving,
        seeds=verifier.numbers,
    )
    if not complete:
        status: Status = "infeasible" if number == 1 and solution.status == "infeasible" else "unknown"
        return Verified(made, search, replace(solution, status=status, replicas=None), record)
    value = float(search.costs(solution.loads, search.oracle.predict(solution.loads)).sum())
    proven = record.confirmed and bound is not None and value <= bound * (1.0 + EQUAL)
    found = Solution("optimal" if proven else "feasible", solution.loads, bound, certificate=certificate)
    return Verified(made, search, found, record)


def _mended(
    search: Search,
    loads: tuple[GPULoad, ...],
    starving: Sequence[int],
    served: Callable[[tuple[GPULoad, ...]], list[float]],
) -> tuple[tuple[GPULoad, ...], list[GPULoad]]:
    """The loads with other slots for those that starve, where these help at no more cost; and all that starved.

    Args:
        search: judges loads and their costs.
        loads: of a plan.
        starving: places of those that starve in the twin.
        served: the served fraction of each of some loads in the twin, 0 to 1.
    """
    limit, mended, starved = search.problem.constraints.served_fraction, list(loads), []
    for n in starving:
        load = loads[n]
        slots = {round(load.slots * part) for part in OTHER_SLOTS} - {0, load.slots}
        options = [replace(load, slots=one) for one in sorted(slots)]
        options = [one for one in (load, *options) if search.problem.starts(one)]
        kept, predicted = search.judge(options)
        costs = search.costs(options, predicted)
        kept &= costs <= costs[0] * (1.0 + EQUAL)
        others = tuple(one for one, fine in zip(options[1:], kept[1:], strict=True) if fine)
        parts = served(others)
        starved += [load, *(one for one, part in zip(others, parts, strict=True) if part < limit)]
        if others and max(parts) >= limit:
            mended[n] = others[int(np.argmax(parts))]
    return tuple(mended), starved
