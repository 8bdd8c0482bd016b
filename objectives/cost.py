"""What the GPUs in use cost by the hour."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np

from loraplan.errors import BadInputError
from loraplan.oracle import Predictions
from loraplan.problem import GPULoad, Problem
from loraplan.workload import Floats
from objectives.base import CostFloor, Objective


@dataclass(frozen=True)
class CostParams:
    """No settings: prices are the fleet's."""


class Cost(Objective):
    """The price of the GPU's type."""

    Params: ClassVar[type[Any]] = CostParams
    unit = "per hour"

    def __init__(self, params: CostParams) -> None:
        """There is nothing to set."""

    def gpu_costs(self, problem: Problem, loads: Sequence[GPULoad], predicted: Predictions) -> Floats:
        """Price of each load's GPU, shape (loads,).

        Raises:
            BadInputError: a GPU type of the fleet has no price.
        """
        prices = _prices(problem)
        return prices[np.array([load.gpu_type for load in loads], dtype=np.int64)]

    def floor(self, problem: Problem) -> CostFloor:
        """The price, exactly."""
        return CostFloor(_prices(problem), np.zeros(len(problem.adapters)), exact=True)


def _prices(problem: Problem) -> Floats:
    """Of each GPU type, shape (types,)."""
    prices = []
    for gpu_type in problem.fleet.types:
        if gpu_type.price_per_hour is None:
            raise BadInputError(f"objective 'cost': {gpu_type.profile.name} in the fleet has no price_per_hour")
        prices.append(gpu_type.price_per_hour)
    return np.array(prices, dtype=np.float64)
