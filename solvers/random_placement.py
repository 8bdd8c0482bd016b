"""Random (baseline of arXiv 2602.24044): every adapter on a random GPU, with a random number of slots."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np

from loraplan.errors import BadInputError
from solvers.base import Search, Solution, Solver
from solvers.published import Parts, sweep


@dataclass(frozen=True)
class RandomParams:
    """Settings of the baseline.

    Attributes:
        tries: placements drawn for each number of GPUs.
    """

    tries: int = 1

    def __post_init__(self) -> None:
        """Check the number."""
        if self.tries < 1:
            raise BadInputError(f"random: tries must be at least 1 (got {self.tries})")


class RandomPlacement(Solver):
    """Uniform over the GPUs; slots uniform over 1 to the number of adapters there."""

    Params: ClassVar[type[Any]] = RandomParams
    baseline = True

    def __init__(self, params: RandomParams) -> None:
        """Take the number of tries."""
        self._tries = params.tries

    def solve(self, search: Search) -> Solution:
        """Draw for ever more GPUs."""
        rng = np.random.default_rng(search.seed)

        def place(gpus: int) -> tuple[Parts, list[int]]:
            parts: list[dict[int, float]] = [{} for _ in range(gpus)]
            for i, gpu in enumerate(rng.integers(gpus, size=len(search.problem.adapters))):
                parts[gpu][i] = 1.0
            return parts, [int(rng.integers(1, max(len(mine), 1) + 1)) for mine in parts]

        for _ in range(self._tries - 1):
            solution = sweep(search, "random", place)
            if solution.status == "feasible":
                return solution
        return sweep(search, "random", place)
