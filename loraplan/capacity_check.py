"""What the twin says of a capacity that an oracle found: whether it carries that load, and what its own capacity is."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from loraplan.capacity import Capacity, SlotsCapacity, bisect, first_adapters, slots_text
from loraplan.problem import Problem
from loraplan.validation import FIRST_FRESH_SEED, GPUVerdict, verdict
from loraplan.workload import Ints, RateWorkload
from twin.batch import Simulation, spread
from twin.metrics import Metrics

GRID = (0.5, 0.75, 0.9, 1.0, 1.1, 1.25, 1.5)
"""The numbers of adapters that are replayed on the best slots for a curve, as parts of what the oracle says."""
STEP = 1.25
"""Growth from one number to the next where the twin still carries the last one, and back where it does not."""
PRECISION = 0.01
"""The twin's capacity is found to this part of the oracle's."""


@dataclass(frozen=True)
class Replayed:
    """What the twin says of the first ``adapters`` adapters on ``slots`` slots."""

    slots: int
    adapters: int
    seen: GPUVerdict


@dataclass(frozen=True)
class TwinLine:
    """What the twin says of a line of a capacity: of its load, and how many adapters it carries itself.

    Attributes:
        slots: ``--max-loras``.
        load: the oracle's most adapters.
        carries: the twin's most adapters, by seed: none of these runs is starved.
        within: so many adapters above each of them there is a number that is.
    """

    slots: int
    load: Replayed
    carries: tuple[int, ...]
    within: int


@dataclass(frozen=True)
class TwinCheck:
    """What the twin says of a capacity.

    Attributes:
        by_slots: of its lines, but for those without adapters.
        best: of that which is the best for the oracle.
        own_best: of that with which the twin carries the most adapters, in the mean over the seeds.
        own_load: what the twin says of the most adapters that every seed carries there.
        points: more and more adapters on the oracle's best slots.
        seeds, horizon_s: of the replays.
        simulations: how many there were.
    """

    by_slots: tuple[TwinLine, ...]
    best: TwinLine
    own_best: TwinLine
    own_load: Replayed
    points: tuple[Replayed, ...]
    seeds: tuple[int, ...]
    horizon_s: float
    simulations: int


def check(
    problem: Problem,
    found: Capacity,
    workload: RateWorkload,
    seeds: int = 3,
    on_progress: Callable[[int, int], None] | None = None,
) -> TwinCheck:
    """Replay ``found`` in the twin on fresh seeds, and find what the twin carries itself with each number of slots.

    Args:
        problem: that of ``found``.
        found: what is checked.
        workload: gives the law of arrivals and the horizon; the adapters are the problem's.
        seeds: how many; they are those that validation uses.
        on_progress: called with (simulations done, simulations asked for so far).
    """
    chosen = tuple(range(FIRST_FRESH_SEED, FIRST_FRESH_SEED + seeds))
    twin = _Twin(problem, workload, chosen, on_progress)
    best = found.best
    lines = _twin_lines(problem, twin, [line for line in found.by_slots if line.adapters])
    own_best = max(lines, key=lambda line: (sum(line.carries), -line.slots))
    own_load = own_best.slots, max(1, min(own_best.carries))
    limit = len(problem.adapters)
    counts = sorted({min(limit, max(1, round(part * best.adapters))) for part in GRID})
    twin.replay([own_load, *((best.slots, count) for count in counts)])
    return TwinCheck(
        by_slots=lines,
        best=next(line for line in lines if line.slots == best.slots),
        own_best=own_best,
        own_load=twin.verdict(*own_load),
        points=tuple(twin.verdict(best.slots, count) for count in counts),
        seeds=chosen,
        horizon_s=workload.horizon_s,
        simulations=twin.simulations,
    )


def _twin_lines(problem: Problem, twin: _Twin, lines: Sequence[SlotsCapacity]) -> tuple[TwinLine, ...]:
    """Replay the load of each line on all seeds, and search from there: a lane for each line and seed, all at once."""
    lanes = [(line, seed) for line in lines for seed in twin.seeds]
    guess = np.array([line.adapters for line, _ in lanes])
    within = np.maximum(1, np.round(PRECISION * guess)).astype(np.int64)

    def fits(chosen: Ints, counts: Ints) -> NDArray[np.bool_]:
        asked = [(lanes[i][0].slots, int(count), lanes[i][1]) for i, count in zip(chosen, counts, strict=True)]
        return twin.fits(asked)

    low, high = _bracket(guess, len(problem.adapters), fits)
    carries = bisect(low, high, fits, within).reshape(len(lines), -1).tolist()
    return tuple(
        TwinLine(
            line.slots, twin.verdict(line.slots, line.adapters), tuple(own), max(1, round(PRECISION * line.adapters))
        )
        for line, own in zip(lines, carries, strict=True)
    )


def _bracket(guess: Ints, limit: int, fits: Callable[[Ints, Ints], NDArray[np.bool_]]) -> tuple[Ints, Ints]:
    """Numbers that fit and numbers that do not, found by steps away from ``guess``; 0 fits, ``limit`` + 1 does not."""
    low, high = np.zeros_like(guess), np.full_like(guess, limit + 1)
    ask, lanes = guess, np.arange(guess.size)
    while lanes.size:
        fine = fits(lanes, ask[lanes])
        low[lanes[fine]] = ask[lanes[fine]]
        high[lanes[~fine]] = ask[lanes[~fine]]
        further, back = np.minimum(limit, (STEP * low).astype(np.int64) + 1), (high / STEP).astype(np.int64)
        ask = np.where(high > limit, further, np.maximum(1, back))
        lanes = np.flatnonzero(((low == 0) | (high > limit)) & (high - low > 1))
    return low, high


class _Twin:
    """Replays of loads on the chosen seeds, on all cores; each is run once."""

    def __init__(
        self,
        problem: Problem,
        workload: RateWorkload,
        seeds: Sequence[int],
        on_progress: Callable[[int, int], None] | None,
    ) -> None:
        self._problem, self._workload, self.seeds = problem, workload, seeds
        self._on_progress = on_progress
        self._seen: dict[tuple[int, int, int], Metrics] = {}

    @property
    def simulations(self) -> int:
        """How many were run."""
        return len(self._seen)

    def replay(self, loads: Sequence[tuple[int, int]]) -> None:
        """Run loads, given as (slots, adapters), on all seeds."""
        self._run([(slots, count, seed) for slots, count in loads for seed in self.seeds])

    def fits(self, asked: Sequence[tuple[int, int, int]]) -> NDArray[np.bool_]:
        """Run loads, given as (slots, adapters, seed): which are not starved? One that does not start is."""
        self._run(asked)
        limit = self._problem.constraints.served_fraction
        served = [self._seen[one].served_fraction if one in self._seen else 0.0 for one in asked]
        return np.array([part >= limit for part in served], dtype=np.bool_)

    def verdict(self, slots: int, count: int) -> Replayed:
        """What the runs of a load on all seeds say."""
        runs = [self._seen[slots, count, seed] for seed in self.seeds if (slots, count, seed) in self._seen]
        limit = self._problem.constraints.served_fraction
        return Replayed(slots, count, verdict(f"{count} adapters on {slots_text(slots)}", runs, limit))

    def _run(self, asked: Sequence[tuple[int, int, int]]) -> None:
        new = [one for one in dict.fromkeys(asked) if one not in self._seen]
        new = [one for one in new if self._problem.starts(first_adapters(one[1], one[0]))]
        total = len(self._seen) + len(new)
        for one, seen in zip(new, spread(Simulation.metrics, map(self._simulation, new)), strict=True):
            self._seen[one] = seen
            if self._on_progress is not None:
                self._on_progress(len(self._seen), total)

    def _simulation(self, one: tuple[int, int, int]) -> Simulation:
        slots, count, seed = one
        workload = RateWorkload(self._problem.adapters[:count], self._workload.horizon_s, self._workload.arrivals)
        name = f"{count} adapters on {slots_text(slots)}, seed {seed}"
        return Simulation.of(workload, self._problem.fleet.types[0].profile, slots, seed, name=name)
