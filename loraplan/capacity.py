"""The capacity of one GPU: the most adapters it carries without starving, and the slots that reach it.

The question of arXiv 2508.08343. A load of n adapters are the first n of a problem, so that loads are nested: one more
adapter is one more load. More adapters starve a GPU sooner, so the most that it carries are found by bisection: with an
oracle for every number of slots that is worth a try, and then in the twin, for the best of them.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from loraplan.errors import BadInputError, NothingFitsError
from loraplan.oracle import Oracle, Predictions
from loraplan.problem import GPULoad, Problem
from loraplan.validation import FIRST_FRESH_SEED, GPUVerdict, verdict
from loraplan.workload import Floats, Ints, RateWorkload
from twin.batch import Simulation, spread
from twin.metrics import Metrics

LADDER = (1, 2, 4, 8, 16, 32, 48, 64, 96, 128, 192, 256, 384, 512, 768, 1024)
"""Numbers of slots to try first; then some between the best of them and its neighbours."""
BETWEEN = 3
"""How many of the latter in each gap."""

CURVE_POINTS = 48
CURVE_END = 1.5
"""The curve ends at so many times the capacity."""

GRID = (0.5, 0.75, 0.9, 1.0, 1.1, 1.25, 1.5)
"""The numbers of adapters that the twin replays on all seeds, as parts of what the oracle says."""
FURTHER = 1.5
"""Growth from one number to the next where the twin still carries the last one."""
PRECISION = 0.01
"""The twin's capacity is found to this part of the oracle's."""


@dataclass(frozen=True)
class SlotsCapacity:
    """The most adapters with one number of slots, and what the oracle says of them.

    Attributes:
        slots: ``--max-loras``.
        max_rank: ``--max-lora-rank`` for these adapters; for the first one if there are none.
        kv_tokens: KV-cache tokens that slots of this rank leave; below 0 if they take more than there is.
        adapters: the most that are not starved; 0 if even one is.
        limited_by: why not one more: it starves the GPU, the server does not start with it (``memory``: it needs a
            larger rank), or there are no more (``adapters``).
        offered_tok_s: tokens/s that arrive for them.
        throughput_tok_s, served_fraction, itl_ms, ttft_s, kv_utilisation: as in ``Predictions``; nan for 0 adapters.
    """

    slots: int
    max_rank: int
    kv_tokens: float
    adapters: int
    limited_by: Literal["starvation", "memory", "adapters"]
    offered_tok_s: float
    throughput_tok_s: float
    served_fraction: float
    itl_ms: float
    ttft_s: float
    kv_utilisation: float


@dataclass(frozen=True, eq=False)
class Curve:
    """What the oracle says of more and more adapters on the best slots; arrays of shape (loads,)."""

    adapters: Ints
    offered_tok_s: Floats
    predicted: Predictions


@dataclass(frozen=True, eq=False)
class Capacity:
    """The capacity of one GPU as an oracle sees it.

    Attributes:
        profile: name of the GPU's profile.
        served_fraction: the limit below which the GPU is starved.
        most_asked: adapters that were there to be carried.
        by_slots: a line for each number of slots, ascending.
        best: that of the most adapters; of several, that of the lowest ITL.
        curve: around the best.
    """

    profile: str
    served_fraction: float
    most_asked: int
    by_slots: tuple[SlotsCapacity, ...]
    best: SlotsCapacity
    curve: Curve


@dataclass(frozen=True)
class Replayed:
    """What the twin says of the first ``adapters`` adapters on ``slots`` slots."""

    slots: int
    adapters: int
    seen: GPUVerdict


@dataclass(frozen=True)
class TwinCheck:
    """What the twin says of a capacity.

    Attributes:
        by_slots: of every line with adapters.
        points: on the best slots, by number of adapters; the best load is one of them.
        best: that one.
        carries: the most adapters that are not starved on the best slots, by seed; found to ``within`` adapters.
        within: see there.
        seeds, horizon_s: of the replays.
        simulations: how many there were.
    """

    by_slots: tuple[Replayed, ...]
    points: tuple[Replayed, ...]
    best: Replayed
    carries: tuple[int, ...]
    within: int
    seeds: tuple[int, ...]
    horizon_s: float
    simulations: int


def capacity(problem: Problem, oracle: Oracle, slots: Sequence[int] | None = None) -> Capacity:
    """The most adapters of ``problem``, in their order, that the first GPU type of its fleet carries.

    Args:
        problem: its adapters are the most that are asked for.
        oracle: judges loads of ``problem``; a load that it calls starved must stay so with more adapters.
        slots: the numbers of slots to choose from; None for a ladder up to what memory and adapters allow.

    Raises:
        BadInputError: a number of slots is below 1, or there is none.
        NothingFitsError: not even the first adapter is carried; the text names the limit.
    """
    if slots is None:
        lines = _search_ladder(problem, oracle)
    else:
        if not slots or min(slots) < 1:
            raise BadInputError(f"slots: expected numbers of at least 1 (got {list(slots)})")
        lines = _lines(problem, oracle, sorted(set(slots)))
    best = _best(lines)
    if best.adapters == 0:
        raise NothingFitsError(_why_nothing_fits(problem, oracle, lines))
    return Capacity(
        profile=problem.fleet.types[0].profile.name,
        served_fraction=problem.constraints.served_fraction,
        most_asked=len(problem.adapters),
        by_slots=tuple(lines),
        best=best,
        curve=_curve(problem, oracle, best),
    )


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
    best, limit = found.best, len(problem.adapters)
    lines = [(line.slots, line.adapters) for line in found.by_slots if line.adapters]
    counts = sorted({min(limit, max(1, round(part * best.adapters))) for part in GRID})
    twin.replay([*lines, *((best.slots, count) for count in counts)])
    carried = np.array([[twin.carries(best.slots, count, seed) for count in counts] for seed in chosen])
    while counts[-1] < limit and carried.all(axis=1).any():
        counts.append(min(limit, round(FURTHER * counts[-1]) + 1))
        twin.replay([(best.slots, counts[-1])])
        more = [[twin.carries(best.slots, counts[-1], seed)] for seed in chosen]
        carried = np.hstack([carried, more])
    within = max(1, round(PRECISION * best.adapters))
    # Between the first number that a seed's replay does not carry and the one before it.
    ends = np.array([0, *counts, limit + 1])
    first = np.where(carried.all(axis=1), len(counts), carried.argmin(axis=1))

    def fits(lanes: Ints, asked: Ints) -> NDArray[np.bool_]:
        return twin.fits(best.slots, asked, [chosen[lane] for lane in lanes])

    most = bisect(ends[first], ends[first + 1], fits, within)
    return TwinCheck(
        by_slots=tuple(twin.verdict(*line) for line in lines),
        points=tuple(twin.verdict(best.slots, count) for count in counts),
        best=twin.verdict(best.slots, best.adapters),
        carries=tuple(int(count) for count in most),
        within=within,
        seeds=chosen,
        horizon_s=workload.horizon_s,
        simulations=twin.simulations,
    )


def bisect(low: Ints, high: Ints, fits: Callable[[Ints, Ints], NDArray[np.bool_]], within: int = 1) -> Ints:
    """Several bisections side by side: the largest numbers that fit, to ``within``.

    Args:
        low: shape (lanes,), numbers that fit.
        high: shape (lanes,), numbers that do not.
        fits: called with lanes and a number for each of them, both of shape (n,); says which fit.
        within: a lane is done when its two numbers are so close.

    Returns:
        Shape (lanes,): a number that fits, ``within`` below one that does not.
    """
    low, high = low.copy(), high.copy()
    while (lanes := np.flatnonzero(high - low > within)).size:
        # Never far beyond what is known to fit: to simulate what is grossly too much takes long.
        middle = np.minimum((low[lanes] + high[lanes]) // 2, 2 * low[lanes] + 1)
        fine = fits(lanes, middle)
        low[lanes[fine]] = middle[fine]
        high[lanes[~fine]] = middle[~fine]
    return low


def _search_ladder(problem: Problem, oracle: Oracle) -> list[SlotsCapacity]:
    """Lines for the ladder, and for some slots around the best of it; none with more slots than are of use."""
    profile = problem.fleet.types[0].profile
    largest = min(profile.max_slots(problem.max_rank(0, range(len(problem.adapters)))), len(problem.adapters))
    ladder = [*(slots for slots in LADDER if slots < largest), max(1, largest)]
    lines = _lines(problem, oracle, ladder)
    place = ladder.index(_best(lines).slots)
    around = ladder[max(0, place - 1) : place + 2]
    between = {round(slots) for gap in pairwise(around) for slots in np.linspace(*gap, BETWEEN + 2)} - set(ladder)
    lines = sorted([*lines, *_lines(problem, oracle, sorted(between))], key=lambda line: line.slots)
    best = _best(lines)
    enough = next((slots for slots in ladder if slots >= best.adapters), ladder[-1])
    return [line for line in lines if line.slots <= max(enough, best.slots)]


def _lines(problem: Problem, oracle: Oracle, slots: Sequence[int]) -> list[SlotsCapacity]:
    """The most adapters for each of ``slots``, all bisected at once."""
    limit = problem.constraints.served_fraction

    def fits(lanes: Ints, counts: Ints) -> NDArray[np.bool_]:
        loads = [_load(int(count), slots[lane]) for lane, count in zip(lanes, counts, strict=True)]
        return ~oracle.predict(loads).starved(limit)

    none, too_many = np.zeros(len(slots), dtype=np.int64), np.full(len(slots), len(problem.adapters) + 1)
    most = [int(count) for count in bisect(none, too_many, fits)]
    carried = [_load(count, each) for count, each in zip(most, slots, strict=True) if count]
    said = iter(_rows(oracle.predict(carried)) if carried else [])
    return [
        _line(problem, each, count, next(said) if count else _NOTHING) for count, each in zip(most, slots, strict=True)
    ]


_Row = tuple[float, float, float, float, float]
_NOTHING: _Row = (np.nan,) * 5


def _rows(said: Predictions) -> list[_Row]:
    """Throughput, served fraction, ITL, TTFT and KV use of every load."""
    columns = said.throughput_tok_s, said.served_fraction, said.itl_ms, said.ttft_s, said.kv_utilisation
    return list(zip(*(column.tolist() for column in columns), strict=True))


def _line(problem: Problem, slots: int, count: int, said: _Row) -> SlotsCapacity:
    max_rank = problem.max_rank(0, range(max(1, count)))
    limited_by: Literal["starvation", "memory", "adapters"] = "adapters"
    if count < len(problem.adapters):
        limited_by = "starvation" if problem.starts(_load(count + 1, slots)) else "memory"
    kv_tokens = problem.fleet.types[0].profile.kv_tokens(slots, max_rank)
    return SlotsCapacity(slots, max_rank, kv_tokens, count, limited_by, float(problem.offered[:count].sum()), *said)


def _best(lines: Sequence[SlotsCapacity]) -> SlotsCapacity:
    return min(lines, key=lambda line: (-line.adapters, float(np.nan_to_num(line.itl_ms, nan=np.inf)), line.slots))


def _curve(problem: Problem, oracle: Oracle, best: SlotsCapacity) -> Curve:
    end = min(len(problem.adapters), round(CURVE_END * best.adapters) + 1)
    counts = np.unique([*np.linspace(1, end, CURVE_POINTS).round().astype(np.int64), best.adapters])
    predicted = oracle.predict([_load(int(count), best.slots) for count in counts])
    return Curve(counts, np.cumsum(problem.offered)[counts - 1], predicted)


def _why_nothing_fits(problem: Problem, oracle: Oracle, lines: Sequence[SlotsCapacity]) -> str:
    """The limit that even the first adapter breaks, on the slots that come closest to it."""
    profile, limit = problem.fleet.types[0].profile, problem.constraints.served_fraction
    starting = [line for line in lines if problem.starts(_load(1, line.slots))]
    if not starting:
        line = lines[0]
        return (
            f"{profile.name} carries no adapter: memory, its server does not start with {_slots(line.slots)} of rank "
            f"{line.max_rank}, which leave {line.kv_tokens:,.0f} KV tokens for requests of up to "
            f"{profile.limits.max_model_len:,} (max_model_len)"
        )
    served = oracle.predict([_load(1, line.slots) for line in starting]).served_fraction
    most, adapter = int(np.nan_to_num(served).argmax()), problem.adapters[0]
    shown = math.floor(1000 * np.nan_to_num(served[most])) / 1000  # down: a near miss must not read as "0.9 below 0.9"
    return (
        f"{profile.name} carries no adapter: starvation, its served fraction is {shown:g} with one of rank "
        f"{adapter.rank} and {adapter.rate:g} req/s on {_slots(starting[most].slots)}, below {limit:g}"
    )


def _slots(count: int) -> str:
    return f"{count} slot{'s' * (count != 1)}"


def _load(count: int, slots: int) -> GPULoad:
    return GPULoad(0, tuple(range(count)), slots)


class _Twin:
    """Replays of loads on the chosen seeds, on all cores; each is run once."""

    def __init__(
        self,
        problem: Problem,
        workload: RateWorkload,
        seeds: Sequence[int],
        on_progress: Callable[[int, int], None] | None,
    ) -> None:
        self._problem, self._workload, self._seeds = problem, workload, seeds
        self._on_progress = on_progress
        self._seen: dict[tuple[int, int, int], Metrics] = {}

    @property
    def simulations(self) -> int:
        """How many were run."""
        return len(self._seen)

    def replay(self, loads: Sequence[tuple[int, int]]) -> None:
        """Run loads, given as (slots, adapters), on all seeds."""
        self._run([(slots, count, seed) for slots, count in loads for seed in self._seeds])

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
        runs = [self._seen[slots, count, seed] for seed in self._seeds if (slots, count, seed) in self._seen]
        limit = self._problem.constraints.served_fraction
        return Replayed(slots, count, verdict(f"{count} adapters on {_slots(slots)}", runs, limit))

    def _run(self, asked: Sequence[tuple[int, int, int]]) -> None:
        new = [one for one in dict.fromkeys(asked) if one not in self._seen]
        new = [one for one in new if self._problem.starts(_load(one[1], one[0]))]
        total = len(self._seen) + len(new)
        for one, seen in zip(new, spread(Simulation.metrics, map(self._simulation, new)), strict=True):
            self._seen[one] = seen
            if self._on_progress is not None:
                self._on_progress(len(self._seen), total)

    def _simulation(self, one: tuple[int, int, int]) -> Simulation:
        slots, count, seed = one
        workload = RateWorkload(self._problem.adapters[:count], self._workload.horizon_s, self._workload.arrivals)
        name = f"{count} adapters on {_slots(slots)}, seed {seed}"
        return Simulation.of(workload, self._problem.fleet.types[0].profile, slots, seed, name=name)
