"""Solvers: what searches placements. One file each; this registry is how a config finds them."""

from __future__ import annotations

from loraplan.registry import Registry
from solvers.base import Search, Solution, Solver

SOLVERS: Registry[type[Solver]] = Registry("solver", "loraplan.solvers")
SOLVERS.register("best_fit", "solvers.best_fit:BestFit", "one adapter at a time onto the fullest GPU that takes it")
SOLVERS.register(
    "column_generation",
    "solvers.column_generation:ColumnGeneration",
    "loads made as needed, with a lower bound; proves plans optimal",
)
SOLVERS.register(
    "greedy", "solvers.greedy:Greedy", "the published algorithm (arXiv 2602.24044): whole blocks, no way back"
)
SOLVERS.register(
    "local_search", "solvers.local_search:LocalSearch", "improves a plan by moves and swaps, for any objective"
)

__all__ = ["SOLVERS", "Search", "Solution", "Solver"]
