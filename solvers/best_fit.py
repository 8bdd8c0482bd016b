"""Best-fit and first-fit decreasing: one adapter at a time onto a GPU that takes it, with the slots that suit it."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar

import numpy as np

from loraplan.errors import BadInputError
from loraplan.problem import GPULoad, Problem
from solvers.base import Search, Solution, Solver
from solvers.construction import Kind, SlotChoices, Stock, conclude, kinds_of_units

PUBLISH_EVERY = 16


@dataclass(frozen=True)
class BestFitParams:
    """Settings of best-fit.

    Attributes:
        slots: the numbers of slots a GPU may have; None for a list that suits the number of adapters on it.
    """

    slots: tuple[int, ...] | None = None

    def __post_init__(self) -> None:
        """Check the numbers of slots."""
        if self.slots is not None and (not self.slots or min(self.slots) < 1):
            raise BadInputError(f"best_fit: slots must be numbers of at least 1 (got {list(self.slots)})")


@dataclass
class OpenGPU:
    """A GPU while it is filled.

    Attributes:
        max_rank: the largest rank on it; ranks descend, so that of its first adapter.
        itl_ms: what the oracle said when the load last changed: how full the GPU is.
        refused: kinds that it has not taken since then, with any slots.
        in_reach: numbers of slots that would do for its load as it is.
        ruled_out: numbers of slots that would not; nor, by heredity, for any load it grows to.
    """

    load: GPULoad
    max_rank: int = 0
    itl_ms: float = 0.0
    refused: set[Kind] = field(default_factory=set)
    in_reach: set[int] = field(default_factory=set)
    ruled_out: set[int] = field(default_factory=set)

    def grow(self, load: GPULoad, itl_ms: float) -> None:
        """Take over a larger load; what was known of the old one is forgotten."""
        self.load, self.itl_ms = load, itl_ms
        self.refused.clear()
        self.in_reach.clear()


class BestFit(Solver):
    """Adapters in decreasing (rank, rate), each onto the fullest GPU (highest ITL) that takes it, else a new one."""

    Params: ClassVar[type[Any]] = BestFitParams
    _name = "best_fit"

    def __init__(self, params: BestFitParams) -> None:
        """Take the numbers of slots to choose from."""
        self._slots = params.slots

    def solve(self, search: Search) -> Solution:
        """Place every adapter that some GPU takes."""
        problem = search.problem
        kinds = dict(zip(problem.units, kinds_of_units(problem), strict=True))
        choices, stock = SlotChoices(problem, self._slots), Stock(problem)
        used: list[OpenGPU] = []
        left = fill(search, decreasing(problem), kinds, used, choices, stock, self._offers, publish=True)
        refused = [GPULoad(t, (left[0],), min(self._slots or (1,))) for t in stock.types()] if left else []
        return conclude(search, self._name, [gpu.load for gpu in used], left, refused)

    @staticmethod
    def _offers(used: Sequence[OpenGPU]) -> Sequence[OpenGPU]:
        """The GPUs in use, in the order in which a unit is offered to them."""
        return fullest_first(used)


class FirstFit(BestFit):
    """Adapters in decreasing (rank, rate), each onto the first GPU in use that takes it, else a new one."""

    _name = "first_fit"

    @staticmethod
    def _offers(used: Sequence[OpenGPU]) -> Sequence[OpenGPU]:
        return used


def fullest_first(used: Sequence[OpenGPU]) -> list[OpenGPU]:
    """By falling ITL."""
    return sorted(used, key=lambda gpu: -gpu.itl_ms)


def fill(
    search: Search,
    units: Sequence[tuple[int, ...]],
    kinds: Mapping[tuple[int, ...], Kind],
    used: list[OpenGPU],
    choices: SlotChoices,
    stock: Stock,
    offered: Callable[[Sequence[OpenGPU]], Sequence[OpenGPU]] = fullest_first,
    publish: bool = False,
) -> list[int]:
    """Put every unit, one after the other, onto the first GPU of ``offered(used)`` that takes it, or on a new one.

    Returns:
        The adapters that no GPU took.
    """
    empty = {t: OpenGPU(GPULoad(t, (), 0)) for t in stock.types()}
    left: list[int] = []
    for seen, unit in enumerate(units):
        offers = [*offered(used), *(empty[t] for t in stock.types())]
        taker = next((gpu for gpu in offers if _takes(search, choices, gpu, unit, kinds[unit])), None)
        if taker is None:
            left += unit
        elif len(taker.load.adapters) == len(unit):  # it was empty
            t = taker.load.gpu_type
            used.append(taker)
            stock.take(t)
            empty[t] = OpenGPU(GPULoad(t, (), 0))
        if publish and seen % PUBLISH_EVERY == 0:
            search.publish([gpu.load for gpu in used])
    return left


def decreasing(problem: Problem) -> list[tuple[int, ...]]:
    """The units by descending rank, those of equal rank by descending rate."""

    def size(unit: tuple[int, ...]) -> tuple[int, float]:
        adapters = [problem.adapters[i] for i in unit]
        return -max(a.rank for a in adapters), -sum(a.rate for a in adapters)

    return sorted(problem.units, key=size)


def _takes(search: Search, choices: SlotChoices, gpu: OpenGPU, unit: tuple[int, ...], kind: Kind) -> bool:
    """Put ``unit`` on ``gpu`` if the constraints allow it, with its current slots or else those of lowest ITL."""
    if kind in gpu.refused:
        return False
    adapters = tuple(sorted((*gpu.load.adapters, *unit)))
    if gpu.load.adapters and _try(search, gpu, adapters, [gpu.load.slots]):
        return True
    max_rank = max(gpu.max_rank, *(int(search.problem.ranks[i]) for i in unit))
    values = choices.on(gpu.load.gpu_type, max_rank, len(adapters))
    if _try(search, gpu, adapters, _alternatives(search, gpu, values)):
        gpu.max_rank = max_rank
        return True
    gpu.refused.add(kind)
    return False


def _alternatives(search: Search, gpu: OpenGPU, values: Sequence[int]) -> list[int]:
    """Which slots, other than the current, are worth a try with one more adapter: those that do for the load as it is.

    Most offers go to full GPUs: this leaves few slots to ask for there.
    """
    others = [slots for slots in values if slots != gpu.load.slots]
    if not gpu.load.adapters:
        return others
    unknown = [slots for slots in others if slots not in gpu.in_reach | gpu.ruled_out]
    if unknown:
        kept, _ = search.judge([replace(gpu.load, slots=slots) for slots in unknown])
        for slots, fine in zip(unknown, kept, strict=True):
            (gpu.in_reach if fine else gpu.ruled_out).add(slots)
    return [slots for slots in others if slots in gpu.in_reach]


def _try(search: Search, gpu: OpenGPU, adapters: tuple[int, ...], choices: Sequence[int]) -> bool:
    """Give ``gpu`` these adapters and, of the slots that keep the constraints, those of lowest ITL, if any do."""
    if not choices:
        return False
    loads = [GPULoad(gpu.load.gpu_type, adapters, slots) for slots in choices]
    kept, predicted = search.judge(loads)
    if not kept.any():
        return False
    itl_ms = np.nan_to_num(predicted.itl_ms)  # nan where nothing is asked for: nobody waits there
    best = min(np.flatnonzero(kept), key=lambda n: float(itl_ms[n]))
    gpu.grow(loads[best], float(itl_ms[best]))
    return True
