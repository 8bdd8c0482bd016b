"""MaxBase and MaxBase* (baselines of arXiv 2602.24044): GPUs filled up to what the bare base model serves."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

from loraplan.errors import BadInputError
from solvers.base import Search, Solution, Solver
from solvers.published import BASE_TOK_S, accepted, demands, gpu_types, model_family


@dataclass(frozen=True)
class MaxBaseParams:
    """Settings of the baseline.

    Attributes:
        tok_s: tokens/s up to which a GPU is filled; None for the published figure of the fleet's base model.
    """

    tok_s: float | None = None

    def __post_init__(self) -> None:
        """Check the throughput."""
        if self.tok_s is not None and not self.tok_s > 0:
            raise BadInputError(f"max_base: tok_s must be above 0 (got {self.tok_s})")


class MaxBase(Solver):
    """Adapters in input order, onto the next GPU once a GPU's tokens/s reach the limit; a slot for each."""

    Params: ClassVar[type[Any]] = MaxBaseParams
    baseline = True
    _name, _adapters_per_slot = "max_base", 1

    def __init__(self, params: MaxBaseParams) -> None:
        """Take the limit."""
        self._tok_s = params.tok_s

    def solve(self, search: Search) -> Solution:
        """Fill GPU after GPU, whatever the oracle says; it decides in the end whether that is a plan."""
        search.check()
        problem = search.problem
        limit = self._tok_s or BASE_TOK_S[model_family(problem, self._name)]
        parts: list[dict[int, float]] = [{}]
        used = 0.0
        for i, demand in enumerate(demands(problem)):
            if used >= limit:
                parts.append({})
                used = 0.0
            parts[-1][i] = 1.0
            used += float(demand)
        if len(parts) > len(gpu_types(problem)):
            first = problem.adapters[next(iter(parts[problem.gpus]))].name
            why = f"it needs {len(parts)} GPUs, of {problem.gpus} (first adapter left: {first})"
            return Solution("unknown", reason=f"{self._name}: {why}")
        solution, why = accepted(search, parts, [len(mine) // self._adapters_per_slot for mine in parts])
        if solution is None:
            return Solution("unknown", reason=f"{self._name}: of {len(parts)} GPUs {why}")
        search.publish(solution.loads)
        return solution


class MaxBaseHalf(MaxBase):
    """The same with half as many slots."""

    _name, _adapters_per_slot = "max_base_half", 2
