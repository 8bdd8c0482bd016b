"""What a request waits for, in the mean over all requests."""

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

NEVER = 1e6
"""Stands for a figure without end: a queue that grows, in the units of the figure."""


@dataclass(frozen=True)
class LatencyParams:
    """Settings of the latency objective.

    Attributes:
        figure: mean or 95th percentile of the gaps between tokens (ITL), or of the time to first token (TTFT).
    """

    figure: Literal["itl_ms", "itl_p95_ms", "ttft_s", "ttft_p95_s"] = "itl_ms"


class Latency(Objective):
    """A GPU's figure, weighted by its part of all requests: the sum is what a request sees in the mean.

    It falls with every further GPU, so the fleet, or ``max_gpus``, is the budget (arXiv 2602.24044, "ProposedLat").
    """

    Params: ClassVar[type[Any]] = LatencyParams

    def __init__(self, params: LatencyParams) -> None:
        """Take the figure."""
        self._figure = params.figure
        self.unit = "ms" if params.figure.endswith("ms") else "s"

    def gpu_costs(self, problem: Problem, loads: Sequence[GPULoad], predicted: Predictions) -> Floats:
        """Part of all requests x figure, shape (loads,); nothing where no request comes.

        Raises:
            BadInputError: the oracle does not predict the figure.
        """
        part = np.array([problem.rates[list(load.adapters)].sum() for load in loads]) / max(problem.rates.sum(), 1e-300)
        values = getattr(predicted, self._figure)
        if self._figure == "itl_p95_ms" and len(loads) and np.isnan(values).all() and (predicted.itl_ms > 0).any():
            raise BadInputError("objective 'latency': this oracle predicts no itl_p95_ms; the oracle 'twin' does")
        return np.where(part > 0, part * np.nan_to_num(values, nan=0.0, posinf=NEVER), 0.0)

    def floor(self, problem: Problem) -> CostFloor | None:
        """Of the mean ITL: the adapter's part of all requests for each ms."""
        if self._figure != "itl_ms":
            return None
        part = problem.rates / max(float(problem.rates.sum()), 1e-300)
        return CostFloor(np.zeros(len(problem.fleet.types)), part)
