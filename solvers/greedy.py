"""The published greedy placement (arXiv 2602.24044, "Proposed"), with any oracle for its predictors."""

from __future__ import annotations

from collections import defaultdict, deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import chain, islice
from typing import Any, ClassVar

from loraplan.errors import BadInputError
from loraplan.problem import GPULoad, Problem
from solvers.base import Search, Solution, Solver
from solvers.construction import Stock, conclude

TIE = 1e-9
"""Throughputs this close, relatively, are a tie: oracles compute in floating point."""

_Unit = tuple[int, ...]
"""Adapters that go together: mostly one."""

MOST_ADAPTERS = 1_000_000
"""Test points above this are more adapters than a problem has, and more slots than a server."""


@dataclass(frozen=True)
class GreedyParams:
    """Settings of the published algorithm.

    Attributes:
        test_points: ascending; the numbers of adapters on a GPU at which it is tested, and its numbers of slots.
    """

    test_points: tuple[int, ...] = (8, 16, 32, 64, 96, 128, 160, 192, 256, 320, 384, 448, 512, 576)

    def __post_init__(self) -> None:
        """Check that the test points are positive, ascend and stay within reason."""
        steps = zip((0, *self.test_points), self.test_points, strict=False)
        if not self.test_points or any(after <= before for before, after in steps):
            raise BadInputError(f"greedy: test_points must be positive and ascend (got {list(self.test_points)})")
        if self.test_points[-1] > MOST_ADAPTERS:
            raise BadInputError(f"greedy: test_points must be at most {MOST_ADAPTERS} (got {self.test_points[-1]})")


class Greedy(Solver):
    """Whole blocks of adapters on one GPU after the other; no backtracking, no splitting, slots never shrink."""

    Params: ClassVar[type[Any]] = GreedyParams

    def __init__(self, params: GreedyParams) -> None:
        """Take the test points."""
        self._points = params.test_points

    def solve(self, search: Search) -> Solution:
        """Fill GPUs in the fleet's order until no adapter or no GPU is left.

        A type whose empty GPU refuses the next block would refuse it again, so the next type is tried for it, and a
        block that every type refuses ends the search (the published algorithm uses up all GPUs on it).
        """
        queue = deque(published_order(search.problem))
        stock = Stock(search.problem)
        loads: list[GPULoad] = []
        while queue and (offered := stock.types()):
            used = next((t for t in offered if self._fill(search, t, queue, loads)), None)
            if used is None:
                block = tuple(sorted(chain.from_iterable(islice(queue, self._points[0]))))
                refused = [GPULoad(t, block, self._points[0]) for t in offered]
                hint = "; greedy cannot split a block or take other slots, best_fit can"
                return conclude(search, "greedy", loads, list(chain.from_iterable(queue)), refused, hint)
            stock.take(used)
        return conclude(search, "greedy", loads, list(chain.from_iterable(queue)))

    def _fill(self, search: Search, gpu_type: int, queue: deque[_Unit], loads: list[GPULoad]) -> bool:
        """Move blocks from ``queue`` to a new GPU, appended to ``loads``; return False if it refused the first one.

        The last block of all ends before its test point: the actual set is tested.
        """
        gpu = GPULoad(gpu_type, (), 0)
        for point in self._points:
            if not queue:
                break
            pending = self._pending(search.problem, gpu, queue, point)
            if not pending:
                continue  # adapters that go together went beyond this point, or constraints keep off all that are left
            grown = self._test(search, gpu, pending)
            if grown is None:
                break
            taken = set(pending)
            rest = [unit for unit in queue if unit not in taken]
            queue.clear()
            queue.extend(rest)
            gpu = grown
            search.publish([*loads, gpu])
        if gpu.adapters:
            loads.append(gpu)
        return bool(gpu.adapters)

    @staticmethod
    def _pending(problem: Problem, gpu: GPULoad, queue: deque[_Unit], point: int) -> list[_Unit]:
        """The next units up to ``point`` adapters; those that constraints keep off this GPU are passed over."""
        pending: list[_Unit] = []
        adapters = gpu.adapters
        for unit in queue:
            if len(adapters) >= point:
                break
            with_unit = (*adapters, *unit)
            if not problem.restricted or problem.allows(GPULoad(gpu.gpu_type, with_unit, 1)):
                pending.append(unit)
                adapters = with_unit
        return pending

    def _test(self, search: Search, gpu: GPULoad, pending: Sequence[_Unit]) -> GPULoad | None:
        """The GPU with ``pending`` and its current or the next larger slots, if it is not starved then."""
        adapters = tuple(sorted((*gpu.adapters, *chain.from_iterable(pending))))
        larger = [slots for slots in self._points if slots > gpu.slots]
        choices = [slots for slots in (gpu.slots, *larger[:1]) if slots]
        candidates = [GPULoad(gpu.gpu_type, adapters, slots) for slots in choices]
        candidates = [load for load in candidates if search.problem.starts(load)]
        if not candidates:
            return None
        kept, predicted = search.judge(candidates)
        throughput = predicted.throughput_tok_s
        winner = len(candidates) - 1 if throughput[-1] >= throughput[0] * (1 - TIE) else 0
        # starvation of the winner only: the loser is not asked for, even if it would be fine
        return candidates[winner] if kept[winner] else None


def published_order(problem: Problem) -> Iterator[_Unit]:
    """Adapters by descending rank; of equal rank in zigzag: highest rate, lowest, second highest, second lowest, ...

    Those that go together come one after another, in the place of their largest rank and whole rate.
    """
    groups: dict[int, list[_Unit]] = defaultdict(list)
    for unit in sorted(problem.units, key=lambda unit: -sum(problem.adapters[i].rate for i in unit)):
        groups[max(problem.adapters[i].rank for i in unit)].append(unit)
    for rank in sorted(groups, reverse=True):
        by_rate = deque(groups[rank])
        while by_rate:
            yield by_rate.popleft()
            if by_rate:
                yield by_rate.pop()
