"""Loads that are known not to do, whatever the oracle says of them: with all that is at least as much."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from loraplan.problem import GPULoad, Problem
from loraplan.workload import Floats
from solvers.construction import length_laws

HARDLY = 1e-9
"""Relative difference of rates that is none."""


class Cuts:
    """Loads of a problem that are cut off, each with those that dominate it.

    A load dominates another one of equal GPU type and slots if every adapter of that one has one of equal rank and
    lengths in it that is asked for at least as often.
    """

    def __init__(self, problem: Problem) -> None:
        """Begin with none."""
        self._problem = problem
        self._laws = length_laws(problem)
        self._of: dict[tuple[int, int], list[dict[tuple[int, int], Floats]]] = defaultdict(list)

    def __len__(self) -> int:
        """How many loads were cut off."""
        return sum(map(len, self._of.values()))

    def add(self, load: GPULoad) -> None:
        """Cut off a load."""
        self._of[load.gpu_type, load.slots].append(self._rates(load))

    def allow(self, loads: Sequence[GPULoad]) -> NDArray[np.bool_]:
        """Which loads are not cut off, shape (loads,)."""
        return np.fromiter(map(self._allows, loads), np.bool_, len(loads))

    def _allows(self, load: GPULoad) -> bool:
        known = self._of.get((load.gpu_type, load.slots))
        if not known:
            return True
        mine = self._rates(load)
        return not any(all(_covers(mine.get(kind), rates) for kind, rates in cut.items()) for cut in known)

    def _rates(self, load: GPULoad) -> dict[tuple[int, int], Floats]:
        """Rates by rank and lengths, descending."""
        groups: dict[tuple[int, int], list[float]] = defaultdict(list)
        for i in load.adapters:
            adapter = self._problem.adapters[i]
            groups[adapter.rank, self._laws[i]].append(adapter.rate)
        return {kind: np.sort(rates)[::-1] for kind, rates in groups.items()}


def _covers(mine: Floats | None, cut: Floats) -> bool:
    return mine is not None and mine.size >= cut.size and bool((mine[: cut.size] >= cut * (1.0 - HARDLY)).all())
