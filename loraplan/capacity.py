"""The capacity of one GPU: the most adapters it carries without starving, and the slots that reach it.

The question of arXiv 2508.08343. A load of n adapters are the first n of a problem, so that loads are nested. More of
them starve a GPU sooner, so the most that it carries are found by bisection, for every number of slots that is worth a
try. The oracle may err: capacity_check asks the twin.
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
from loraplan.workload import Floats, Ints

LADDER = (1, 2, 4, 8, 16, 32, 48, 64, 96, 128, 192, 256, 384, 512, 768, 1024)
"""Numbers of slots to try first; then some between the best of them and its neighbours."""
BETWEEN = 3
"""How many of the latter in each gap."""

CURVE_POINTS = 48
CURVE_END = 1.5
"""The curve ends at so many times the capacity."""


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


def bisect(low: Ints, high: Ints, fits: Callable[[Ints, Ints], NDArray[np.bool_]], within: int | Ints = 1) -> Ints:
    """Several bisections side by side: the largest numbers that fit, to ``within``.

    Args:
        low: shape (lanes,), numbers that fit.
        high: shape (lanes,), numbers that do not.
        fits: called with lanes and a number for each of them, both of shape (n,); says which fit.
        within: a lane is done when its two numbers are so close; one for all, or shape (lanes,).

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
        loads = [first_adapters(int(count), slots[lane]) for lane, count in zip(lanes, counts, strict=True)]
        return ~oracle.predict(loads).starved(limit)

    none, too_many = np.zeros(len(slots), dtype=np.int64), np.full(len(slots), len(problem.adapters) + 1)
    most = [int(count) for count in bisect(none, too_many, fits)]
    carried = [first_adapters(count, each) for count, each in zip(most, slots, strict=True) if count]
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
        limited_by = "starvation" if problem.starts(first_adapters(count + 1, slots)) else "memory"
    kv_tokens = problem.fleet.types[0].profile.kv_tokens(slots, max_rank)
    return SlotsCapacity(slots, max_rank, kv_tokens, count, limited_by, float(problem.offered[:count].sum()), *said)


def _best(lines: Sequence[SlotsCapacity]) -> SlotsCapacity:
    return min(lines, key=lambda line: (-line.adapters, float(np.nan_to_num(line.itl_ms, nan=np.inf)), line.slots))


def _curve(problem: Problem, oracle: Oracle, best: SlotsCapacity) -> Curve:
    end = min(len(problem.adapters), round(CURVE_END * best.adapters) + 1)
    counts = np.unique([*np.linspace(1, end, CURVE_POINTS).round().astype(np.int64), best.adapters])
    predicted = oracle.predict([first_adapters(int(count), best.slots) for count in counts])
    return Curve(counts, np.cumsum(problem.offered)[counts - 1], predicted)


def _why_nothing_fits(problem: Problem, oracle: Oracle, lines: Sequence[SlotsCapacity]) -> str:
    """The limit that even the first adapter breaks, on the slots that come closest to it."""
    profile, limit = problem.fleet.types[0].profile, problem.constraints.served_fraction
    starting = [line for line in lines if problem.starts(first_adapters(1, line.slots))]
    if not starting:
        line = lines[0]
        return (
            f"{profile.name} carries no adapter: memory, its server does not start with {slots_text(line.slots)} of "
            f"rank {line.max_rank}, which leave {line.kv_tokens:,.0f} KV tokens for requests of up to "
            f"{profile.limits.max_model_len:,} (max_model_len)"
        )
    served = oracle.predict([first_adapters(1, line.slots) for line in starting]).served_fraction
    most, adapter = int(np.nan_to_num(served).argmax()), problem.adapters[0]
    shown = math.floor(1000 * np.nan_to_num(served[most])) / 1000  # down: a near miss must not read as "0.9 below 0.9"
    return (
        f"{profile.name} carries no adapter: starvation, its served fraction is {shown:g} with one of rank "
        f"{adapter.rank} and {adapter.rate:g} req/s on {slots_text(starting[most].slots)}, below {limit:g}"
    )


def slots_text(count: int) -> str:
    """``1 slot``, ``2 slots``."""
    return f"{count} slot{'s' * (count != 1)}"


def first_adapters(count: int, slots: int) -> GPULoad:
    """So many adapters of a problem on so many slots of the first GPU type."""
    return GPULoad(0, tuple(range(count)), slots)
