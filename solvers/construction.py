"""What solvers that place adapters one after another share: slot choices, and what to say when adapters are left."""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import cache

import numpy as np

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
        return Solution("infeasible" if search.oracle.hereditary else "unknown", tuple(loads), reason=proof)
    problem = search.problem
    reason = f"{solver}: {len(left)} of {len(problem.adapters)} adapters (first: {_names(problem, left)}) were left"
    if refused:
        block = refused[0].adapters
        what = "the next adapter" if len(block) == 1 else f"the next block of {len(block)}"
        limits = "; ".join(text for text in _shortfalls(search, refused) if text)
        reason += f": an empty GPU does not take {what} ({limits}){hint}"
    else:
        gpus = problem.fleet.count
        which = "the only GPU" if gpus == 1 else f"all {gpus} GPUs"
        reason += f" when {which} of the fleet {'was' if gpus == 1 else 'were'} used"
    return Solution("unknown", tuple(loads), reason=reason)


def _fits_nowhere(search: Search, left: Sequence[int]) -> str:
    """Which adapters no GPU type carries even alone, in words; empty if there are none.

    A proof of infeasibility with respect to a hereditary oracle: what breaks alone, with any number of slots, breaks in
    company too. Of equal rank and lengths only the adapter with the highest rate is asked for, because the others are
    easier.
    """
    problem = search.problem
    laws = length_laws(problem)
    hardest: dict[tuple[int, int], int] = {}
    for i in sorted(left, key=lambda i: problem.adapters[i].rate):
        hardest[problem.adapters[i].rank, laws[i]] = i
    types = range(len(problem.fleet.types))
    texts = _shortfalls(search, [GPULoad(t, (i,), 1) for i in hardest.values() for t in types])
    per_adapter = [texts[start : start + len(types)] for start in range(0, len(texts), len(types))]
    broken = {
        i: limits
        for i, limits in zip(hardest.values(), per_adapter, strict=True)
        if all(limits) and not _fits_with_more_slots(search, i)
    }
    if not broken:
        return ""
    worst, *others = broken
    adapter = problem.adapters[worst]
    also = f"; nor {_names(problem, others)}" if others else ""
    return (
        f"no GPU type carries adapter {adapter.name} (rank {adapter.rank}, {adapter.rate:g} req/s) even alone "
        f"({'; '.join(broken[worst])}){also}"
    )


def _fits_with_more_slots(search: Search, adapter: int) -> bool:
    """Whether some GPU type carries the adapter alone with two slots or more, which not every oracle excludes."""
    problem = search.problem
    loads = [
        GPULoad(t, (adapter,), slots)
        for t, gpu_type in enumerate(problem.fleet.types)
        if problem.ranks[adapter] <= max(gpu_type.profile.limits.lora_ranks)
        for slots in range(2, gpu_type.profile.max_slots(problem.max_rank(t, (adapter,))) + 1)
    ]
    return bool(loads) and bool(search.judge(loads)[0].any())


def _shortfalls(search: Search, loads: Sequence[GPULoad]) -> list[str]:
    """For each load the limit it breaks, in words; empty where it keeps them all."""
    problem = search.problem
    texts = {load: _does_not_start(problem, load) for load in loads if not problem.starts(load)}
    starting = [load for load in loads if load not in texts]
    if starting:
        kept, predicted = search.judge(starting)
        for load, fine, served in zip(starting, kept, np.nan_to_num(predicted.served_fraction), strict=True):
            texts[load] = "" if fine else _serves_too_little(problem, load, served)
    return [texts[load] for load in loads]


def _serves_too_little(problem: Problem, load: GPULoad, served: float) -> str:
    shown = math.floor(1000 * served) / 1000  # down, so that a near miss does not read as "0.9 is below 0.9"
    limit = problem.constraints.served_fraction
    return f"served fraction {shown:g} is below {limit:g} with {_slots(load)} on {problem.profile(load).name}"


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
