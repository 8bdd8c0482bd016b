"""What solvers that place adapters one after another share: slot choices, and what to say when adapters are left."""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import cache

import numpy as np

from loraplan.oracle import Predictions
from loraplan.problem import GPULoad, Problem
from solvers.base import Search, Solution

SLOTS = (1, 2, 4, 8, 12, 16, 24, 32, 48, 64, 96, 128, 160, 192, 256, 320, 384, 448, 512)
NAMED = 3
"""How many adapters a message names."""


class SlotChoices:
    """Which numbers of slots are worth a try on a GPU.

    Slots beyond the number of adapters cost memory and time and serve nobody, so the choices are ``SLOTS`` below that
    number, and the number itself; or exactly the ``given`` ones. Either way only those with which the server starts.
    """

    def __init__(self, problem: Problem, given: tuple[int, ...] | None = None) -> None:
        """Prepare for GPUs of ``problem``."""
        self._problem = problem
        self._given = given
        self._starts = cache(self._ask_starts)

    def on(self, gpu_type: int, max_rank: int, adapters: int) -> list[int]:
        """The choices for a GPU of ``gpu_type`` with this many ``adapters``, the largest of rank ``max_rank``."""
        values = self._given or [*(slots for slots in SLOTS if slots < adapters), adapters]
        return [slots for slots in values if self._starts(gpu_type, max_rank, slots)]

    def _ask_starts(self, gpu_type: int, max_rank: int, slots: int) -> bool:
        profile = self._problem.fleet.types[gpu_type].profile
        return max_rank <= max(profile.limits.lora_ranks) and profile.starts(slots, profile.server_rank(max_rank))


ROOM = 2.0
"""How much longer, relatively, steps may take for more slots to be had."""


def with_room(search: Search, loads: Sequence[GPULoad]) -> tuple[GPULoad, ...]:
    """The same GPUs at the same cost, with as many slots as make the ITL at most twice what it could be.

    Many objectives do not tell numbers of slots apart. Few make for short steps and long waits for a slot, which
    oracles tell less well, so that room is worth a little.
    """
    choices, found = SlotChoices(search.problem), []
    for load in loads:
        rank = int(search.problem.ranks[list(load.adapters)].max())
        values = {load.slots, *choices.on(load.gpu_type, rank, len(load.adapters))}
        options = [GPULoad(load.gpu_type, load.adapters, slots) for slots in sorted(values)]
        kept, predicted = search.judge(options)
        costs, itl_ms = search.costs(options, predicted), np.nan_to_num(predicted.itl_ms)
        now = float(costs[options.index(load)])
        fine = kept & (costs <= now + 1e-9 * abs(now))
        if not fine.any():
            found.append(load)
            continue
        quick = fine & (itl_ms <= ROOM * itl_ms[fine].min())
        found.append(options[int(np.flatnonzero(quick)[-1])])
    return tuple(found)


class Stock:
    """The GPUs not yet in use."""

    def __init__(self, problem: Problem, first: int = 0) -> None:
        """All that ``problem`` offers; GPU type ``first`` is used before the others."""
        self._spare = [gpu_type.count for gpu_type in problem.fleet.types]
        self._left, self._first = problem.gpus, first

    def types(self) -> list[int]:
        """The types of which another GPU may be used, in the fleet's order but for the first."""
        if self._left <= 0:
            return []
        return sorted((t for t, count in enumerate(self._spare) if count > 0), key=lambda t: (t != self._first, t))

    def take(self, gpu_type: int) -> None:
        """Use one."""
        self._spare[gpu_type] -= 1
        self._left -= 1


Kind = tuple[object, ...]


def kinds_of_units(problem: Problem) -> list[Kind]:
    """For each of ``problem.units`` what it is like: nothing can tell two units of one kind apart."""
    laws = length_laws(problem)
    alone = {i for group in problem.separate for i in group}
    kinds: list[Kind] = []
    for unit in problem.units:
        members = sorted((problem.adapters[i].rank, problem.adapters[i].rate, laws[i]) for i in unit)
        apart = tuple(i for i in unit if i in alone)
        kinds.append((tuple(members), problem.types_of(unit), apart))
    return kinds


def length_laws(problem: Problem) -> list[int]:
    """A number for each adapter's request lengths: equal lengths, equal number."""
    seen: dict[tuple[bytes, bytes], int] = {}
    by_object = {id(adapter.lengths): adapter.lengths for adapter in problem.adapters}
    law = {
        key: seen.setdefault((lengths.tokens_in.tobytes(), lengths.tokens_out.tobytes()), len(seen))
        for key, lengths in by_object.items()
    }
    return [law[id(adapter.lengths)] for adapter in problem.adapters]


def conclude(
    search: Search,
    solver: str,
    loads: Sequence[GPULoad],
    left: Sequence[int],
    refused: Sequence[GPULoad] = (),
    hint: str = "",
) -> Solution:
    """The solution of a solver that has come to its end.

    Args:
        search: the search; ``loads`` become its incumbent.
        solver: the solver's name, for the reason.
        loads: the GPUs in use.
        left: the adapters that found no place, in the solver's order.
        refused: what the solver last tried on an empty GPU of each type that has GPUs left; empty where none has.
        hint: what the user might do about a refusal.
    """
    search.publish(loads)
    if not left:
        return Solution("feasible", tuple(loads))
    proof = _fits_nowhere(search, left)
    if proof:
        return Solution("infeasible" if search.hereditary else "unknown", tuple(loads), reason=proof)
    problem = search.problem
    reason = f"{solver}: {len(left)} of {len(problem.adapters)} adapters (first: {_names(problem, left)}) were left"
    if refused:
        block = refused[0].adapters
        what = "the next adapter" if len(block) == 1 else f"the next block of {len(block)}"
        limits = "; ".join(text for text in shortfalls(search, refused) if text)
        reason += f": an empty GPU does not take {what} ({limits}){hint}"
    else:
        gpus = problem.gpus
        which = "the only GPU" if gpus == 1 else f"all {gpus} GPUs"
        reason += f" when {which} of the fleet {'was' if gpus == 1 else 'were'} used"
    return Solution("unknown", tuple(loads), reason=reason)


def _fits_nowhere(search: Search, left: Sequence[int]) -> str:
    """Which adapters no GPU type carries even alone (or with those they go with), in words; empty if there are none.

    A proof of infeasibility with respect to a hereditary oracle: what breaks alone, with any number of slots, breaks in
    company too. Of units of equal ranks and lengths only the one with the highest rates is asked for, because the
    others are easier.
    """
    problem = search.problem
    laws, missing = length_laws(problem), set(left)
    hardest: dict[object, tuple[int, ...]] = {}
    units = [unit for unit in problem.units if missing.issuperset(unit)]
    for unit in sorted(units, key=lambda unit: max(problem.adapters[i].rate for i in unit)):
        kind = tuple(sorted((problem.adapters[i].rank, laws[i]) for i in unit)), problem.types_of(unit)
        hardest[kind if len(unit) == 1 else unit] = unit
    asked = [GPULoad(t, unit, len(unit)) for unit in hardest.values() for t in problem.types_of(unit)]
    texts = dict(zip(asked, shortfalls(search, asked), strict=True))
    broken = {
        unit: limits
        for unit in hardest.values()
        if all(limits := [texts[load] for load in asked if load.adapters == unit])
        and not _fits_with_other_slots(search, unit)
    }
    if not broken:
        return ""
    worst, *others = broken
    what, alone = "adapter", "even alone"
    if len(worst) > 1:
        what, alone = f"{len(worst)} adapters that go together, first", "even without others"
    adapter = problem.adapters[worst[0]]
    also = f"; nor {_names(problem, [i for unit in others for i in unit])}" if others else ""
    return (
        f"no GPU type carries {what} {adapter.name} (rank {adapter.rank}, {adapter.rate:g} req/s) {alone} "
        f"({'; '.join(broken[worst])}){also}"
    )


def _fits_with_other_slots(search: Search, unit: tuple[int, ...]) -> bool:
    """Whether some GPU type carries the unit with another number of slots, which not every oracle excludes."""
    problem = search.problem
    loads = [
        GPULoad(t, unit, slots)
        for t in problem.types_of(unit)
        if max(int(problem.ranks[i]) for i in unit) <= max(problem.fleet.types[t].profile.limits.lora_ranks)
        for slots in range(1, problem.fleet.types[t].profile.max_slots(problem.max_rank(t, unit)) + 1)
    ]
    return bool(loads) and bool(search.judge(loads)[0].any())


def shortfalls(search: Search, loads: Sequence[GPULoad]) -> list[str]:
    """For each load the limit it breaks, in words; empty where it keeps them all."""
    problem = search.problem
    texts = {load: _does_not_start(problem, load) for load in loads if not problem.starts(load)}
    starting = [load for load in loads if load not in texts]
    if starting:
        kept, predicted = search.judge(starting)
        for row, (load, fine) in enumerate(zip(starting, kept, strict=True)):
            texts[load] = "" if fine else _breaks(problem, load, predicted, row)
    return [texts[load] for load in loads]


def _breaks(problem: Problem, load: GPULoad, predicted: Predictions, row: int) -> str:
    """The first limit that a load which starts breaks."""
    limits = problem.constraints
    where = f"with {_slots(load)} on {problem.profile(load).name}"
    for name, least in (
        ("served_fraction", limits.served_fraction),
        ("adapter_served_fraction", limits.adapter_served_fraction),
    ):
        value = float(np.nan_to_num(getattr(predicted, name)[row]))
        if least is not None and value < least:
            # down, so that a near miss does not read as "0.9 is below 0.9"
            return f"{name.replace('_', ' ')} {math.floor(1000 * value) / 1000:g} is below {least:g} {where}"
    for name, most in (("itl_ms", limits.itl_ms), ("ttft_p95_s", limits.ttft_p95_s)):
        value = float(getattr(predicted, name)[row])
        if most is not None and value > most:
            return f"{name} {value:.4g} is above {most:g} {where}"
    return f"a constraint on where adapters may be {where}"


def _does_not_start(problem: Problem, load: GPULoad) -> str:
    profile = problem.profile(load)
    rank, largest = max(int(problem.ranks[i]) for i in load.adapters), max(profile.limits.lora_ranks)
    if rank > largest:
        return f"rank {rank} is above {largest}, the largest of {profile.name}"
    return f"memory: {profile.name} does not start with {_slots(load)} of rank {profile.server_rank(rank)}"


def _slots(load: GPULoad) -> str:
    return f"{load.slots} slot{'s' * (load.slots != 1)}"


def _names(problem: Problem, adapters: Sequence[int]) -> str:
    """The first few names, and dots if there are more."""
    names = [problem.adapters[i].name for i in adapters[:NAMED]]
    return ", ".join(names + ["..."] * (len(adapters) > NAMED))
