"""What the twin says of a capacity that an oracle found: whether it carries that load, and what its own capacity is."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from loraplan.capacity import Capacity, bisect, first_adapters, slots_text
from loraplan.problem import Problem
from loraplan.validation import FIRST_FRESH_SEED, GPUVerdict, verdict
from loraplan.workload import Ints, RateWorkload
from twin.batch import Simulation, spread
from twin.metrics import Metrics

GRID = (0.5, 0.75, 0.9, 1.0, 1.1, 1.25, 1.5)
"""The numbers of adapters that the twin replays on all seeds, as parts of what the oracle says."""
FURTHER = 1.5
"""Growth from one number to the next where the twin still carries the last one."""
PRECISION = 0.01
"""The twin's capacity is found to this part of the oracle's."""


@dataclass(frozen=True)
class Replayed:
    """What the twin says of the first ``adapters`` adapters on ``slots`` slots."""

    slots: int
    adapters: int
    seen: GPUVerdict


@dataclass(frozen=True)
class TwinCapacity:
    """The twin's own capacity on a number of slots.

    Attributes:
        slots: ``--max-loras``.
        points: what all seeds say, by number of adapters.
        carries: the most adapters that are not starved, by seed.
        within: so many adapters above each of ``carries`` there is a number that is starved.
    """

    slots: int
    points: tuple[Replayed, ...]
    carries: tuple[int, ...]
    within: int


@dataclass(frozen=True)
class TwinCheck:
    """What the twin says of a capacity.

    Attributes:
        by_slots: its lines, but for those without adapters.
        best: the best of them.
        on_best_slots: the twin's capacity with the slots that the oracle takes for the best.
        on_other_slots: that with the slots of the largest load of ``by_slots`` that the twin carries, if the best load
            starves and this one is larger than what the best slots carry.
        seeds, horizon_s: of the replays.
        simulations: how many there were.
    """

    by_slots: tuple[Replayed, ...]
    best: Replayed
    on_best_slots: TwinCapacity
    on_other_slots: TwinCapacity | None
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
    """Replay ``found`` in the twin on fresh seeds, and find what the twin carries on the best slots.

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
    lines = [(line.slots, line.adapters) for line in found.by_slots if line.adapters]
    twin.replay([*lines, *((best.slots, count) for count in _grid(problem, best.adapters))])
    by_slots = tuple(twin.verdict(*line) for line in lines)
    on_best = _twin_capacity(problem, twin, best.slots, best.adapters)
    carried = [line for line in by_slots if not line.seen.starved]
    largest = max(carried, key=lambda line: line.adapters, default=None)
    on_other = None
    if largest is not None and largest.slots != best.slots and largest.adapters > max(on_best.carries):
        on_other = _twin_capacity(problem, twin, largest.slots, largest.adapters)
    return TwinCheck(
        by_slots=by_slots,
        best=twin.verdict(best.slots, best.adapters),
        on_best_slots=on_best,
        on_other_slots=on_other,
        seeds=chosen,
        horizon_s=workload.horizon_s,
        simulations=twin.simulations,
    )


def _grid(problem: Problem, guess: int) -> list[int]:
    """Numbers of adapters around a guess, itself among them."""
    return sorted({min(len(problem.adapters), max(1, round(part * guess))) for part in GRID})


def _twin_capacity(problem: Problem, twin: _Twin, slots: int, guess: int) -> TwinCapacity:
    """Replay numbers around ``guess`` on all seeds, and bisect each seed's own between two of them."""
    limit, seeds, counts = len(problem.adapters), twin.seeds, _grid(problem, guess)
    twin.replay([(slots, count) for count in counts])
    while counts[-1] < limit and any(twin.carries(slots, counts[-1], seed) for seed in seeds):
        counts.append(min(limit, round(FURTHER * counts[-1]) + 1))
        twin.replay([(slots, counts[-1])])
    carried = np.array([[twin.carries(slots, count, seed) for count in counts] for seed in seeds])
    # Between the first number that a seed's replay does not carry and the one before it.
    first = np.where(carried.all(axis=1), len(counts), carried.argmin(axis=1))
    ends = np.array([0, *counts, limit + 1])
    within = max(1, round(PRECISION * guess))

    def fits(lanes: Ints, asked: Ints) -> NDArray[np.bool_]:
        return twin.fits(slots, asked, [seeds[lane] for lane in lanes])

    most = bisect(ends[first], ends[first + 1], fits, within)
    points = tuple(twin.verdict(slots, count) for count in counts)
    return TwinCapacity(slots, points, tuple(int(count) for count in most), within)


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

    def fits(self, slots: int, counts: Ints, seeds: Sequence[int]) -> NDArray[np.bool_]:
        """Run numbers of adapters, each on a seed of its own: which are not starved?"""
        self._run([(slots, int(count), seed) for count, seed in zip(counts, seeds, strict=True)])
        return np.array(
            [self.carries(slots, int(count), seed) for count, seed in zip(counts, seeds, strict=True)], dtype=np.bool_
        )

    def carries(self, slots: int, count: int, seed: int) -> bool:
        """Whether a load that was run is not starved; one that does not start is."""
        seen = self._seen.get((slots, count, seed))
        return seen is not None and seen.served_fraction >= self._problem.constraints.served_fraction

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
