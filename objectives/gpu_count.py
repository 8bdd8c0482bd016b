"""The number of GPUs in use."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np

from loraplan.oracle import Predictions
from loraplan.problem import GPULoad, Problem
from loraplan.workload import Floats
from objectives.base import CostFloor, Objective


@dataclass(frozen=True)
class GPUCountParams:
    """No settings."""


class GPUCount(Objective):
    """Every GPU in use costs 1, of whatever type."""

    Params: ClassVar[type[Any]] = GPUCountParams
    unit = "GPUs"

    def __init__(self, params: GPUCountParams) -> None:
        """There is nothing to set."""

    def gpu_costs(self, problem: Problem, loads: Sequence[GPULoad], predicted: Predictions) -> Floats:
        """One for each load, shape (loads,)."""
        return np.ones(len(loads))

    def floor(self, problem: Problem) -> CostFloor:
        """One, exactly."""
        return CostFloor(np.ones(len(problem.fleet.types)), np.zeros(len(problem.adapters)), exact=True)
