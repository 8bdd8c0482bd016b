"""An oracle of which one resource is scarce, and a way to have it known by name for the time of a test."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import pytest

from loraplan.oracle import ORACLES, Oracle, Predictions
from loraplan.problem import GPULoad, Problem
from loraplan.profiles import load_profile

STEP_MS = load_profile("h100-64gb/llama-3.1-8b").step_ms.base


@dataclass(frozen=True)
class ScarceParams:
    """Which resource sets how many requests/s a server carries, and how many for one unit of it."""

    resource: str = "kv"
    per_unit: float = 1.0


class ScarceOracle(Oracle):
    """A server carries requests/s in proportion to one resource; faster steps give all but time back sooner."""

    Params: ClassVar[type[Any]] = ScarceParams
    hereditary = True

    def __init__(self, problem: Problem, params: ScarceParams) -> None:
        self._problem, self._params = problem, params

    def predict(self, loads: Sequence[GPULoad]) -> Predictions:
        rates = np.array([self._problem.rates[list(load.adapters)].sum() for load in loads])
        carried = np.array([self._carried(load) for load in loads])
        starts = np.array([self._problem.starts(load) for load in loads], dtype=np.bool_)
        served = np.where(starts, np.minimum(1.0, carried / np.maximum(rates, 1e-9)), 0.0)
        ones = np.ones(len(loads))
        return Predictions(starts, served, served * rates, ones, ones, ones)

    def _carried(self, load: GPULoad) -> float:
        profile = self._problem.profile(load)
        max_rank = self._problem.max_rank(load.gpu_type, load.adapters)
        per_second = self._params.per_unit * STEP_MS / profile.step_ms.base
        match self._params.resource:
            case "kv":
                return per_second * profile.kv_tokens(load.slots, max_rank)
            case "slots":
                return per_second * load.slots
            case "tokens":
                return per_second * profile.limits.max_num_batched_tokens
            case "seqs":
                return per_second * profile.limits.max_num_seqs
            case "rank":
                return per_second / max_rank
            case "loads":
                return self._params.per_unit / profile.load_ms.to_gpu
            case "steps":
                return per_second
            case _:
                return math.inf


def install(monkeypatch: pytest.MonkeyPatch) -> None:
    """Register it as ``scarce`` until the test ends."""
    for name in ("_entries", "_loaded"):
        monkeypatch.setattr(ORACLES, name, dict(getattr(ORACLES, name)))
    ORACLES.register("scarce", "support.scarce:ScarceOracle", "one resource is scarce")
