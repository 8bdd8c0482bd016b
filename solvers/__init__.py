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
SOLVERS.register("first_fit", "solvers.best_fit:FirstFit", "one adapter at a time onto the first GPU that takes it")
SOLVERS.register(
    "max_base", "solvers.max_base:MaxBase", "published baseline: GPUs filled to the base model's throughput"
)
SOLVERS.register("max_base_half", "solvers.max_base:MaxBaseHalf", "the same with half as many slots (MaxBase*)")
SOLVERS.register(
    "random", "solvers.random_placement:RandomPlacement", "published baseline: random GPU and slots; GPU count swept"
)
SOLVERS.register(
    "least_loaded", "solvers.least_loaded:LeastLoaded", "published latency variant (ProposedLat); GPU count swept"
)
SOLVERS.register("dlora", "solvers.dlora:DLoRA", "published baseline (OSDI 2024), with replicas; GPU count swept")
SOLVERS.register(
    "loraserve", "solvers.loraserve:LoRAServe", "published baseline (arXiv 2511.22880), GPUs by rank; GPU count swept"
)
SOLVERS.register("milp", "solvers.milp:MILP", "integer programming (Pyomo, HiGHS), exact on small problems")
SOLVERS.register("cp_sat", "solvers.cp_sat:CPSAT", "constraint programming (OR-Tools), exact on small problems")
SOLVERS.register("auto", "solvers.auto:Auto", "the one that suits size, objective and oracle")

__all__ = ["SOLVERS", "Search", "Solution", "Solver"]
