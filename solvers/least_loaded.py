"""The paper's latency variant (arXiv 2602.24044, "ProposedLat"): the least loaded GPU, a slot for every adapter."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

from solvers.base import Search, Solution, Solver
from solvers.published import Parts, argmin, counts, sweep


@dataclass(frozen=True)
class LeastLoadedParams:
    """No settings."""


class LeastLoaded(Solver):
    """Each adapter, in input order, to the GPU with the least requests/s so far.

    The paper calls a plan infeasible if its throughput in all is 10 % below what arrives; here every GPU is judged.
    """

    Params: ClassVar[type[Any]] = LeastLoadedParams
    baseline = True

    def __init__(self, params: LeastLoadedParams) -> None:
        """There is nothing to set."""

    def solve(self, search: Search) -> Solution:
        """Spread over ever more GPUs."""
        rates = search.problem.rates.tolist()

        def place(gpus: int) -> tuple[Parts, list[int]]:
            parts: list[dict[int, float]] = [{} for _ in range(gpus)]
            load = [0.0] * gpus
            for i, rate in enumerate(rates):
                gpu = argmin(load)
                parts[gpu][i] = 1.0
                load[gpu] += rate
            return parts, counts(parts)

        return sweep(search, "least_loaded", place)
