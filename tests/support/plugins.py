"""Plugins of a third party, and a way to have them installed for the time of a test."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import pytest
from support.oracles import TokenBudgetOracle, TokenBudgetParams

from loraplan import registry
from loraplan.oracle import ORACLES, Predictions
from loraplan.problem import GPULoad, Problem
from loraplan.workload import Floats
from objectives import OBJECTIVES, Objective
from solvers import SOLVERS, Search, Solution, Solver


@dataclass(frozen=True)
class NoParams:
    """No settings."""


class OneEach(Solver):
    """Every adapter gets a GPU of its own, which is proven to be half as good again as it could be."""

    Params: ClassVar[type[Any]] = NoParams

    def __init__(self, params: NoParams) -> None: ...

    def solve(self, search: Search) -> Solution:
        loads = tuple(GPULoad(0, (i,), 1) for i in range(len(search.problem.adapters)))
        search.publish(loads)
        bound = float(search.objective.gpu_costs(search.problem, loads, search.oracle.predict(loads)).sum()) / 2
        return Solution("feasible", loads, lower_bound=bound)


@dataclass(frozen=True)
class RentParams:
    """What a GPU costs."""

    euros: float = 2.0


class Rent(Objective):
    """Euros per hour."""

    Params: ClassVar[type[Any]] = RentParams
    unit = "EUR/h"

    def __init__(self, params: RentParams) -> None:
        self._euros = params.euros

    def gpu_costs(self, problem: Problem, loads: Sequence[GPULoad], predicted: Predictions) -> Floats:
        return np.full(len(loads), self._euros)


class TokenBudget(TokenBudgetOracle):
    """The oracle of the solvers' tests."""


@dataclass(frozen=True)
class InterruptedParams(TokenBudgetParams):
    """When the user presses Ctrl-C."""

    after: int = 10


class Interrupted(TokenBudgetOracle):
    """An oracle whose user presses Ctrl-C while it works on its nth question, once."""

    Params: ClassVar[type[Any]] = InterruptedParams

    def __init__(self, problem: Problem, params: InterruptedParams) -> None:
        super().__init__(problem, params)
        self._left = params.after

    def predict(self, loads: Sequence[GPULoad]) -> Predictions:
        self._left -= 1
        if self._left == 0:
            raise KeyboardInterrupt
        return super().predict(loads)


class InterruptedAtTheEnd(OneEach):
    """Presses Ctrl-C when all adapters are placed."""

    def solve(self, search: Search) -> Solution:
        super().solve(search)
        raise KeyboardInterrupt


@dataclass(frozen=True)
class _Distribution:
    name: str = "their-package"


@dataclass(frozen=True)
class _Point:
    name: str
    value: str
    dist: _Distribution = _Distribution()


_POINTS = {
    "loraplan.solvers": {"one_each": "OneEach", "interrupted_at_the_end": "InterruptedAtTheEnd"},
    "loraplan.objectives": {"rent": "Rent"},
    "loraplan.oracles": {"token_budget": "TokenBudget", "interrupted": "Interrupted"},
}


def install(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let the registries find the plugins of this module as entry points, until the test ends."""

    def entry_points(group: str) -> list[_Point]:
        return [_Point(name, f"support.plugins:{attribute}") for name, attribute in _POINTS.get(group, {}).items()]

    monkeypatch.setattr(registry, "entry_points", entry_points)
    for known in (SOLVERS, OBJECTIVES, ORACLES):
        # Work on copies, so that the process's registries are afterwards what they were.
        for name in ("_entries", "_loaded"):
            monkeypatch.setattr(known, name, dict(getattr(known, name)))
        monkeypatch.setattr(known, "_scanned", False)
