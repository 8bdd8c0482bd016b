"""Oracles simple enough to be worked out by hand, and small problems for them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, ClassVar

import numpy as np

from loraplan.oracle import Oracle, Predictions
from loraplan.problem import GPULoad, Problem
from loraplan.testing.problems import TOKENS, TokenBudgetOracle, TokenBudgetParams, server, small_problem

__all__ = ["TOKENS", "ScriptedOracle", "TokenBudgetOracle", "TokenBudgetParams", "server", "small_problem"]


class ScriptedOracle(Oracle):
    """Answers what ``answer`` says of a load, (served fraction, tokens/s), and keeps what it was asked in ``asked``."""

    Params: ClassVar[type[Any]] = type(None)
    hereditary = True

    def __init__(self, problem: Problem, answer: Callable[[GPULoad], tuple[float, float]]) -> None:
        self._answer = answer
        self.asked: list[GPULoad] = []

    def predict(self, loads: Sequence[GPULoad]) -> Predictions:
        self.asked += loads
        served, throughput = np.array([self._answer(load) for load in loads]).T
        ones = np.ones(len(loads))
        return Predictions(ones > 0, served, throughput, ones, ones, ones)
