"""Problems of many adapters: bounds that are bounds whatever the size, and a plan and a bound for thousands."""

from __future__ import annotations

import time

import numpy as np
import pytest
from support.brute_force import least_cost
from support.oracles import server

from loraplan.certificate import verify
from loraplan.oracle import ORACLES
from loraplan.problem import Problem, ProblemBuilder
from objectives import OBJECTIVES
from solvers import SOLVERS, Search, Solution, column_generation
from solvers.base import complaint
from solvers.striping import TAILS, orders

CLOSE = 1e-6


def make_search(problem: Problem, objective: str, oracle: str, seconds: float) -> Search:
    judge, aim = ORACLES.get(oracle), OBJECTIVES.get(objective)
    deadline = time.monotonic() + seconds
    return Search(problem, aim(aim.Params()), judge(problem, judge.Params()), seed=0, deadline=deadline)


def solve(search: Search) -> Solution:
    solver = SOLVERS.get("column_generation")
    return solver(solver.Params(enumerate=0)).solve(search)


def tiny_problem(seed: int) -> Problem:
    """Up to seven adapters on two or three GPUs of two types."""
    rng = np.random.default_rng(seed)
    rates = np.exp(rng.uniform(0.0, 2.0)) * rng.lognormal(sigma=0.7, size=int(rng.integers(3, 8)))
    builder = ProblemBuilder()
    for i, rate in enumerate(rates):
        builder.adapter(f"a{i}", int(rng.choice([8, 16, 32])), float(rate), tokens_in=250, tokens_out=231)
    slow = server("slow")
    slow = slow.model_copy(update={"step_ms": slow.step_ms.model_copy(update={"base": 2 * slow.step_ms.base})})
    builder.gpus(server("fast"), 3, price_per_hour=2.5).gpus(slow, 3, price_per_hour=1.0)
    return builder.build()


def many(count: int, total_rate: float) -> Problem:
    """So many adapters with shares of the requests by a Dirichlet law, most of them hardly ever asked for."""
    shares = np.random.default_rng(3).dirichlet(np.full(count, 0.5))
    builder = ProblemBuilder()
    for i, share in enumerate(shares):
        builder.adapter(f"a{i}", (8, 16, 32)[i % 3], float(total_rate * share), tokens_in=250, tokens_out=231)
    return builder.gpus("h100-64gb/llama-3.1-8b", 64).build()


@pytest.mark.parametrize("oracle", ["fluid", "surrogate"])
@pytest.mark.parametrize("objective", ["gpu_count", "cost"])
def test_bounds_are_bounds(monkeypatch: pytest.MonkeyPatch, oracle: str, objective: str) -> None:
    monkeypatch.setattr(column_generation, "MANY", 0)
    bounded = 0
    for seed in range(6):
        problem = tiny_problem(seed)
        least = least_cost(make_search(problem, objective, oracle, seconds=60.0))
        search = make_search(problem, objective, oracle, seconds=2.0)
        solution = solve(search)
        if solution.status in ("optimal", "feasible"):
            assert least is not None
            assert complaint(search.problem, solution) == ""
            floor = search.objective.floor(search.problem)
            assert floor is not None
            if solution.lower_bound is None or solution.certificate is None:
                continue
            assert solution.lower_bound <= least * (1 + CLOSE)
            verdict = verify(search.problem, search.oracle, floor, solution.certificate)
            assert verdict.proven, verdict.reason
            assert verdict.bound <= least * (1 + CLOSE)
            bounded += solution.lower_bound > 0
    assert bounded >= 3


@pytest.mark.parametrize("oracle", ["fluid", "surrogate"])
def test_thousands_of_adapters_get_a_plan_and_a_bound(oracle: str) -> None:
    search = make_search(many(3500, 80.0), "gpu_count", oracle, seconds=4.0)
    solution = solve(search)
    assert solution.status in ("optimal", "feasible")
    assert complaint(search.problem, solution) == ""
    kept = search.oracle.predict(solution.loads).keeps(search.problem.constraints)
    assert kept.all()
    assert solution.lower_bound is not None
    assert 1 <= solution.lower_bound <= len(solution.loads)


def test_any_part_of_the_mixed_order_has_a_like_share_of_busy_adapters() -> None:
    problem = many(3000, 50.0)
    falling, mixed, *others = orders(problem)
    assert all(sorted(order.tolist()) == list(range(3000)) for order in (falling, mixed, *others))
    assert (np.diff(problem.ranks[mixed]) <= 0).all()
    for first in range(0, 1000, 250):
        part = problem.rates[mixed[first : first + 250]].sum()
        assert part == pytest.approx(problem.rates[mixed[:1000]].sum() / 4, rel=0.1)
        assert (np.diff(problem.rates[falling[first : first + 250]]) <= 0).all()


def test_the_rarest_adapters_of_a_rank_come_last_where_they_are_left_out_of_the_mix() -> None:
    problem = many(3000, 50.0)
    for order, tail in zip(orders(problem)[1:], TAILS, strict=True):
        assert (np.diff(problem.ranks[order]) <= 0).all()
        for rank in np.unique(problem.ranks):
            offered = problem.offered[order[problem.ranks[order] == rank]]
            rarest = np.sort(offered)
            size = int(np.searchsorted(np.cumsum(rarest), tail * rarest.sum())) + 1 if tail else 0
            assert np.sort(offered[offered.size - size :]) == pytest.approx(rarest[:size])
