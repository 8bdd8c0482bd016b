"""Every objective with every solver and every oracle, beside brute force on tiny problems."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from support.brute_force import least_cost
from support.oracles import small_problem

import loraplan
from loraplan.oracle import ORACLES
from loraplan.problem import Problem
from loraplan.registry import choose
from loraplan.run import Run
from objectives import OBJECTIVES
from solvers import SOLVERS

SETTINGS: dict[str, dict[str, Any]] = {
    "migration": {"placement": [["a0", "a1", "a2"], ["a3", "a4"]]},
}
ORACLE_SETTINGS: dict[str, dict[str, Any]] = {"twin": {"horizon_s": 300.0}}
EXACT = 1e-6
"""Relative gap up to which a proof counts as one."""


def tiny_problem(seed: int, **limits: Any) -> Problem:
    """Five adapters that take about two GPUs, of one type or of two."""
    rng = np.random.default_rng(seed)
    adapters = [
        (int(rank), float(rate)) for rank, rate in zip(rng.choice([8, 16, 32], 5), rng.uniform(1, 12, 5), strict=True)
    ]
    return small_problem(adapters, counts=(3,) if seed % 2 else (2, 3), **limits)


def run_of(solver: str, objective: str, oracle: str) -> Run:
    return Run(
        choose(SOLVERS, solver),
        choose(OBJECTIVES, {"name": objective, **SETTINGS.get(objective, {})}),
        choose(ORACLES, {"name": oracle, **ORACLE_SETTINGS.get(oracle, {})}),
        seed=0,
    )


def check(problem: Problem, run: Run) -> None:
    """The plan costs no less than the best there is, as much if it is called optimal; bounds are bounds."""
    plan = loraplan.solve(
        problem,
        {"name": run.solver.name, **({"patience": 8} if run.solver.name == "local_search" else {})},
        {"name": run.objective.name, **SETTINGS.get(run.objective.name, {})},
        {"name": run.oracle.name, **ORACLE_SETTINGS.get(run.oracle.name, {})},
        time_limit_s=20.0,
    )
    least = least_cost(run.prepare(problem))
    if plan.status == "infeasible":
        assert least is None
    if not plan.complete:
        assert plan.reason
        return
    value = plan.objective.value
    if any(adapter.share < 1 for gpu in plan.gpus for adapter in gpu.adapters):
        return  # brute force keeps adapters whole: divided ones may be cheaper
    assert least is not None
    assert value is not None
    assert value >= least * (1 - EXACT) - 1e-9
    assert sum(gpu.cost or 0.0 for gpu in plan.gpus) == pytest.approx(value)
    if plan.objective.lower_bound is not None:
        assert plan.objective.lower_bound <= least * (1 + EXACT) + 1e-9
    if plan.status == "optimal":
        assert value <= least * (1 + EXACT) + 1e-9


@pytest.mark.parametrize("objective", OBJECTIVES.names())
@pytest.mark.parametrize("solver", SOLVERS.names())
@pytest.mark.parametrize("oracle", ["fluid", "surrogate"])
def test_every_combination(objective: str, solver: str, oracle: str) -> None:
    check(tiny_problem(len(objective)), run_of(solver, objective, oracle))


@pytest.mark.slow
@pytest.mark.parametrize("objective", OBJECTIVES.names())
@pytest.mark.parametrize("solver", SOLVERS.names())
def test_every_combination_with_the_twin(objective: str, solver: str) -> None:
    rng = np.random.default_rng(1)
    adapters = [(8, float(rate)) for rate in rng.uniform(2, 9, 4)]
    check(small_problem(adapters, counts=(2, 1)), run_of(solver, objective, "twin"))


@pytest.mark.parametrize("limits", [{"ttft_p95_s": 0.25}, {"replicas": {"a0": 2}}], ids=["ttft_p95_s", "replicas"])
@pytest.mark.parametrize("solver", SOLVERS.names())
def test_limits_that_the_contract_does_not_try(solver: str, limits: dict[str, Any]) -> None:
    plan = loraplan.solve(tiny_problem(4, **limits), solver, time_limit_s=20.0)
    assert plan.complete or SOLVERS.get(solver).baseline
    if not plan.complete:
        return
    assert all((gpu.predicted.ttft_p95_s or 0.0) <= limits.get("ttft_p95_s", np.inf) for gpu in plan.gpus)
    shares = [a.share for gpu in plan.gpus for a in gpu.adapters if a.name == "a0"]
    assert len(shares) >= limits.get("replicas", {}).get("a0", 1)
    assert sum(shares) == pytest.approx(1.0)
