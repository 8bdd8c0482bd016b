"""How far the GPUs are from starving."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np

from loraplan.errors import BadInputError
from loraplan.oracle import Predictions
from loraplan.problem import GPULoad, Problem
from loraplan.workload import Floats
from objectives.base import Objective

LEAST = 0.05
"""A load that starves with less than this part of its rates is counted as if it had this headroom."""


@dataclass(frozen=True)
class HeadroomParams:
    """Settings of the headroom objective.

    Attributes:
        sharpness: the power to which a GPU's use is raised; the higher, the more the fullest GPU alone counts.
    """

    sharpness: float = 8.0

    def __post_init__(self) -> None:
        """Check the power."""
        if not 1 <= self.sharpness <= 64:
            raise BadInputError(f"objective 'headroom': sharpness must be 1 to 64 (got {self.sharpness})")


class Headroom(Objective):
    """A GPU's use, 1 / the factor by which its rates could grow, to a high power: the fullest GPU decides the sum.

    Like latency it falls with every further GPU, so the fleet, or ``max_gpus``, is the budget.
    """

    Params: ClassVar[type[Any]] = HeadroomParams
    needs_headroom = True

    def __init__(self, params: HeadroomParams) -> None:
        """Take the power."""
        self._sharpness = params.sharpness
        self.unit = f"use^{params.sharpness:g}"

    def gpu_costs(self, problem: Problem, loads: Sequence[GPULoad], predicted: Predictions) -> Floats:
        """Use to the power, shape (loads,)."""
        return np.asarray(np.maximum(predicted.headroom, LEAST) ** -self._sharpness)
