"""loraplan: which LoRA adapters go on which GPU of a vLLM fleet, and how many adapter slots each server gets.

>>> import loraplan
>>> config = loraplan.load_config("config.yaml")          # doctest: +SKIP
>>> plan = loraplan.solve_config(config)                  # doctest: +SKIP
>>> loraplan.validate(plan).starved_gpus                  # doctest: +SKIP
0
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from loraplan.api import solve, solve_config
    from loraplan.config import build, load_config
    from loraplan.plan import Plan, read_plan
    from loraplan.problem import Problem, ProblemBuilder
    from loraplan.validation import validate

# The nouns live below the solvers and the twin, which import them: so the front door opens only when someone knocks.
_HOMES = {
    "Plan": "loraplan.plan",
    "Problem": "loraplan.problem",
    "ProblemBuilder": "loraplan.problem",
    "build": "loraplan.config",
    "load_config": "loraplan.config",
    "read_plan": "loraplan.plan",
    "solve": "loraplan.api",
    "solve_config": "loraplan.api",
    "validate": "loraplan.validation",
}

__all__ = [
    "Plan",
    "Problem",
    "ProblemBuilder",
    "build",
    "load_config",
    "read_plan",
    "solve",
    "solve_config",
    "validate",
]


def __getattr__(name: str) -> Any:
    """Import a public name on first use."""
    if name not in _HOMES:
        raise AttributeError(f"module 'loraplan' has no attribute {name!r}")
    return getattr(importlib.import_module(_HOMES[name]), name)
