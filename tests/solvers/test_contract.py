"""What every registered solver must do, whatever its method and whatever the oracle."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from loraplan.oracle import Oracle
from loraplan.testing import TokenBudgetOracle, solvers
from loraplan.testing.oracles import feasibility_is_hereditary
from loraplan.testing.solvers import LIMITS, SOLVER_CHECKS, SolverSubject, solver_subject
from solvers import SOLVERS

KNOWN_ORACLES: dict[str, str | type[Oracle]] = {
    "token_budget": TokenBudgetOracle,
    "fluid": "fluid",
    "surrogate": "surrogate",
}


@pytest.fixture(params=KNOWN_ORACLES)
def oracle(request: pytest.FixtureRequest) -> str | type[Oracle]:
    return KNOWN_ORACLES[request.param]


@pytest.fixture(params=SOLVERS.names())
def subject(request: pytest.FixtureRequest, oracle: str | type[Oracle]) -> SolverSubject:
    return solver_subject(request.param, oracle=oracle, strict=not SOLVERS.get(request.param).baseline)


@pytest.mark.parametrize("seed", range(3))
def test_feasibility_is_hereditary(oracle: str | type[Oracle], seed: int) -> None:
    """What proofs of infeasibility rest on: taking an adapter away never breaks a GPU."""
    feasibility_is_hereditary(solver_subject("best_fit", oracle=oracle).oracle, seed)


@pytest.mark.parametrize("typical_rate", [2.0, 8.0])
@pytest.mark.parametrize("seed", range(6))
def test_small_problems_against_brute_force(subject: SolverSubject, seed: int, typical_rate: float) -> None:
    solvers.beside_brute_force(subject, seed, typical_rate)


@pytest.mark.parametrize("limit", LIMITS)
def test_constraints_against_brute_force(subject: SolverSubject, limit: str) -> None:
    solvers.keeps_limits(subject, limit)


@pytest.mark.parametrize("check", SOLVER_CHECKS, ids=lambda check: check.__name__)
def test_every_solver(subject: SolverSubject, check: Callable[[SolverSubject], Any]) -> None:
    check(subject)


def test_adapters_without_requests_beside_others(subject: SolverSubject) -> None:
    solvers.adapters_without_requests(subject, busy=[(32, 1.0), (8, 2.0)])
