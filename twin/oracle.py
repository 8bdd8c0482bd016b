"""The twin as an oracle: every GPU load is simulated, with Poisson or bursty arrivals at the adapters' rates."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Any, ClassVar

import numpy as np

from loraplan.arrivals import Gamma
from loraplan.errors import BadInputError
from loraplan.oracle import Oracle, Predictions
from loraplan.problem import GPULoad, Problem
from loraplan.workload import RateWorkload
from twin.batch import Simulation, spread
from twin.metrics import Metrics

Row = tuple[bool, float, float, float, float, float, float, float, float]
DOES_NOT_START: Row = (False, 0.0, 0.0, np.nan, np.nan, 0.0, np.nan, np.nan, 0.0)
FEWEST_REQUESTS = 20
"""Requests of an adapter below which its own served fraction says nothing: one cut off by the end would be 5 %."""


@dataclass(frozen=True)
class TwinParams:
    """Settings of the twin oracle.

    Attributes:
        horizon_s: seconds to simulate.
        seeds: runs to average.
        first_seed: the first of these seeds; every load gets the same ones.
        cv: coefficient of variation of the gaps between an adapter's requests; 1 is Poisson.
    """

    horizon_s: float = 3600.0
    seeds: int = 1
    first_seed: int = 0
    cv: float = 1.0

    def __post_init__(self) -> None:
        """Check the settings."""
        if not (math.isfinite(self.horizon_s) and self.horizon_s > 0):
            raise BadInputError(f"oracle 'twin': horizon_s must be above 0 (got {self.horizon_s})")
        if self.seeds < 1 or self.first_seed < 0:
            raise BadInputError("oracle 'twin': seeds must be at least 1 and first_seed at least 0")
        Gamma(self.cv)


class TwinOracle(Oracle):
    """Simulates each load step by step; loads are spread over the machine's cores, answers are remembered."""

    Params: ClassVar[type[Any]] = TwinParams

    def __init__(self, problem: Problem, params: TwinParams) -> None:
        """Prepare for loads of ``problem``."""
        self._problem = problem
        self._params = params
        self._known: dict[GPULoad, Row] = {}

    def predict(self, loads: Sequence[GPULoad]) -> Predictions:
        """Simulate those loads that were not simulated before."""
        new = [load for load in dict.fromkeys(loads) if load not in self._known]
        starting = [load for load in new if self._problem.starts(load)]
        self._known.update(dict.fromkeys(set(new) - set(starting), DOES_NOT_START))
        seeds = range(self._params.first_seed, self._params.first_seed + self._params.seeds)
        metrics = spread(Simulation.metrics, (self._simulation(load, seed) for load in starting for seed in seeds))
        for load in starting:
            self._known[load] = _row(list(islice(metrics, len(seeds))))
        columns = list(zip(*(self._known[load] for load in loads), strict=True)) or [()] * len(DOES_NOT_START)
        return Predictions(np.array(columns[0], dtype=np.bool_), *(np.array(c, dtype=np.float64) for c in columns[1:]))

    def _simulation(self, load: GPULoad, seed: int) -> Simulation:
        adapters = tuple(self._problem.adapters[i] for i in load.adapters)
        return Simulation.of(
            RateWorkload(adapters, self._params.horizon_s, Gamma(self._params.cv)),
            self._problem.profile(load),
            load.slots,
            seed,
            name=f"oracle 'twin', {len(adapters)} adapters on {load.slots} slots, seed {seed}",
        )


def _row(seen: Sequence[Metrics]) -> Row:
    """The means over the seeds."""
    return (
        True,
        float(np.mean([m.served_fraction for m in seen])),
        float(np.mean([m.throughput_tok_s for m in seen])),
        _mean_of_known([m.itl_ms.mean for m in seen]),
        _mean_of_known([m.ttft_s.mean for m in seen]),
        float(np.mean([m.kv_utilisation for m in seen])),
        _mean_of_known([m.ttft_s.p95 for m in seen]),
        _mean_of_known([m.itl_ms.p95 for m in seen]),
        float(np.mean([_served_worst(m) for m in seen])),
    )


def _served_worst(seen: Metrics) -> float:
    """Served fraction of the adapter served worst, of those with enough requests to tell."""
    known = seen.per_adapter.arrived >= FEWEST_REQUESTS
    return float(seen.per_adapter.served_fraction[known].min(initial=seen.served_fraction))


def _mean_of_known(values: Sequence[float]) -> float:
    """The mean over the runs that served something; nan if none did."""
    known = [value for value in values if not math.isnan(value)]
    return float(np.mean(known)) if known else math.nan
