"""What the GPUs in use draw."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import numpy as np

from loraplan.errors import BadInputError
from loraplan.oracle import Predictions
from loraplan.problem import GPULoad, Problem
from loraplan.workload import Floats
from objectives.base import CostFloor, Objective


@dataclass(frozen=True)
class EnergyParams:
    """Settings of the energy objective.

    Attributes:
        per: ``watts`` that all GPUs together draw, or watt hours per 1,000 tokens that arrive, ``wh_per_1000_tokens``.
    """

    per: Literal["watts", "wh_per_1000_tokens"] = "watts"


class Energy(Objective):
    """Idle power, and what steps draw more during the part of the time in which steps run.

    Steps run while a request does. Arrivals are Poisson, so how many run is close to Poisson, and none with probability
    exp(-mean); the mean is answer tokens/s x ITL (Little's law).
    """

    Params: ClassVar[type[Any]] = EnergyParams

    def __init__(self, params: EnergyParams) -> None:
        """Take the unit."""
        self._per_tokens = params.per != "watts"
        self.unit = "Wh per 1,000 tokens" if self._per_tokens else "W"

    def gpu_costs(self, problem: Problem, loads: Sequence[GPULoad], predicted: Predictions) -> Floats:
        """What each load draws, shape (loads,).

        Raises:
            BadInputError: a profile of the fleet says nothing of power.
        """
        idle, more = _power(problem)
        types = [load.gpu_type for load in loads]
        answers = problem.rates * problem.mean_out
        tokens_s = np.array([answers[list(load.adapters)].sum() for load in loads]) * predicted.served_fraction
        running = tokens_s * 1e-3 * np.nan_to_num(predicted.itl_ms)
        watts = idle[types] + more[types] * -np.expm1(-running)
        return np.asarray(watts * self._per_watt(problem))

    def floor(self, problem: Problem) -> CostFloor:
        """Idle power."""
        return CostFloor(_power(problem)[0] * self._per_watt(problem), np.zeros(len(problem.adapters)))

    def _per_watt(self, problem: Problem) -> float:
        return 1.0 / 3.6 / max(float(problem.offered.sum()), 1e-300) if self._per_tokens else 1.0


def _power(problem: Problem) -> tuple[Floats, Floats]:
    """Idle power of each GPU type, and what steps draw more, W, shape (types,) each."""
    idle, more = [], []
    for gpu_type in problem.fleet.types:
        power = gpu_type.profile.power
        if power is None:
            raise BadInputError(
                f"objective 'energy': profile {gpu_type.profile.name} has no power; add power: {{idle: W, busy: W}}"
            )
        idle.append(power.idle)
        more.append(power.busy - power.idle)
    return np.array(idle), np.array(more)
