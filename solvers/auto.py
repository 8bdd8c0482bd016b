"""Which solver: by the size of the problem, the objective and the oracle."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np

from solvers.base import Search, Solution, Solver
from solvers.column_generation import ColumnGeneration, ColumnGenerationParams
from solvers.enumeration import conclude_choice, enumerate_loads
from solvers.integer import choose
from solvers.local_search import LocalSearch, LocalSearchParams

MOST_LISTED = 20_000
"""Loads that are listed at most; an oracle of microseconds judges them in a tenth of a second."""
SLOW_PATIENCE = 16
"""Patience of local search with an oracle that simulates."""


@dataclass(frozen=True)
class AutoParams:
    """No settings."""


class Auto(Solver):
    """All loads where they are few, else column generation where it can prove something, else local search."""

    Params: ClassVar[type[Any]] = AutoParams

    def __init__(self, params: AutoParams) -> None:
        """There is nothing to set."""

    def solve(self, search: Search) -> Solution:
        """Solve by what suits the problem."""
        search.check()
        floor = search.objective.floor(search.problem)
        one_item = np.zeros(len(search.problem.adapters), dtype=np.int64)
        quick = search.oracle.bin_types(one_item) is not None
        loads = enumerate_loads(search, MOST_LISTED) if quick else None
        if loads is not None:
            return conclude_choice(search, loads, choose(search, loads), "auto")
        if quick and floor is not None and floor.exact:
            return ColumnGeneration(ColumnGenerationParams()).solve(search)
        patience = LocalSearchParams().patience if quick else SLOW_PATIENCE
        return LocalSearch(LocalSearchParams(patience)).solve(search)
