"""Column generation: equal to brute force, bounds that are bounds, certificates that prove them, limits on time."""

from __future__ import annotations

import time
from typing import Any

import numpy as np
import pytest
from support.brute_force import least_cost
from support.oracles import server, small_problem

from loraplan.certificate import verify
from loraplan.errors import BadInputError
from loraplan.oracle import ORACLES
from loraplan.problem import Problem, ProblemBuilder
from objectives import OBJECTIVES
from solvers import SOLVERS, Search, Solution
from solvers.base import SearchStoppedError
from solvers.classes import MOST_ITEMS, MOST_KINDS, make_items

CLOSE = 1e-6


def make_search(problem: Problem, objective: str, oracle: str, seconds: float | None = 60.0) -> Search:
    judge, aim = ORACLES.get(oracle), OBJECTIVES.get(objective)
    deadline = None if seconds is None else time.monotonic() + seconds
    return Search(problem, aim(aim.Params()), judge(problem, judge.Params()), seed=0, deadline=deadline)


def solve(search: Search, **settings: Any) -> Solution:
    solver = SOLVERS.get("column_generation")
    return solver(solver.Params(**{"enumerate": 0, **settings})).solve(search)


def tiny_problem(seed: int, most: int = 7) -> Problem:
    """Up to ``most`` adapters that take two or three GPUs, of one type or of two with different prices."""
    rng = np.random.default_rng(seed)
    n = int(rng.integers(3, most + 1))
    rates = np.exp(rng.uniform(0.0, 2.5)) * rng.lognormal(sigma=0.7, size=n) * (rng.random(n) > 0.1)
    if rng.random() < 0.3:
        rates = np.full(n, rates.max())
    builder = ProblemBuilder()
    for i, rate in enumerate(rates):
        builder.adapter(f"a{i}", int(rng.choice([8, 16, 32])), float(rate), tokens_in=250, tokens_out=231)
    slow = server("slow")
    slow = slow.model_copy(update={"step_ms": slow.step_ms.model_copy(update={"base": 2 * slow.step_ms.base})})
    builder.gpus(server("fast"), int(rng.integers(1, 4)), price_per_hour=2.5)
    if rng.random() < 0.6:
        builder.gpus(slow, int(rng.integers(1, 4)), price_per_hour=1.0)
    return builder.build()


def check(seed: int, objective: str, oracle: str, most: int = 7, certified: bool = True) -> str:
    """Plan, bound and certificate beside brute force; the status."""
    problem = tiny_problem(seed, most)
    search = make_search(problem, objective, oracle)
    solution = solve(search)
    least = least_cost(search)
    if least is None:
        assert solution.status in ("infeasible", "unknown")
        return solution.status
    assert solution.status != "infeasible"
    if solution.lower_bound is not None:
        assert solution.lower_bound <= least * (1 + CLOSE) + 1e-9
    if solution.status in ("optimal", "feasible"):
        kept, predicted = search.judge(solution.loads)
        assert kept.all()
        value = float(search.costs(solution.loads, predicted).sum())
        assert value >= least * (1 - CLOSE) - 1e-9
        if solution.status == "optimal":
            assert value == pytest.approx(least, rel=1e-5, abs=1e-9)
    floor = search.objective.floor(problem)
    if certified and solution.certificate is not None and floor is not None:
        verdict = verify(problem, search.oracle, floor, solution.certificate)
        assert verdict.proven, verdict.reason
        assert verdict.bound <= least * (1 + CLOSE) + 1e-9
    return solution.status


@pytest.mark.parametrize(
    ("objective", "oracle"), [("gpu_count", "fluid"), ("cost", "fluid"), ("gpu_count", "surrogate")]
)
def test_as_good_as_brute_force(objective: str, oracle: str) -> None:
    statuses = [check(seed, objective, oracle, 6, certified=seed < 2) for seed in range(4)]
    assert "optimal" in statuses


def test_latency_bounds_are_bounds() -> None:
    assert "feasible" in {check(seed, "latency", "fluid", 5) for seed in range(2)}


@pytest.mark.slow
@pytest.mark.parametrize("oracle", ["fluid", "surrogate"])
@pytest.mark.parametrize("objective", ["gpu_count", "cost", "latency"])
def test_as_good_as_brute_force_two_hundred_times(objective: str, oracle: str) -> None:
    statuses = [check(seed, objective, oracle, certified=oracle == "fluid" and seed % 10 == 0) for seed in range(200)]
    found = [status for status in statuses if status in ("optimal", "feasible")]
    if objective != "latency":
        assert found.count("optimal") >= 0.95 * len(found)


def proven(count: int = 40) -> tuple[Search, Solution]:
    problem = small_problem([(8, 3.0)] * count + [(16, 1.0)] * count, counts=(12,))
    search = make_search(problem, "gpu_count", "fluid")
    return search, solve(search)


def test_certificates_are_checked() -> None:
    search, solution = proven()
    assert solution.status == "optimal"
    given, floor = solution.certificate, search.objective.floor(search.problem)
    assert given is not None
    assert floor is not None
    verdict = verify(search.problem, search.oracle, floor, given)
    assert verdict.proven
    assert verdict.bound == pytest.approx(solution.lower_bound)
    single = verify(search.problem, search.oracle, floor, {**given, "items": None})
    assert single.bound == pytest.approx(verdict.bound)
    one = verify(search.problem, search.oracle, floor, {**given, "items": [7] * len(given["worth"])})
    assert not one.proven  # as light as the lightest and worth as much as the dearest
    more = {**given, "worth": [2 * worth for worth in given["worth"]], "bound": 2 * given["bound"]}
    assert not verify(search.problem, search.oracle, floor, more).proven
    assert not verify(search.problem, search.oracle, floor, {**given, "bound": given["bound"] + 1}).proven
    assert not verify(search.problem, search.oracle, floor, {**given, "rents": [-1.0]}).proven
    with pytest.raises(BadInputError, match="other adapters"):
        verify(search.problem, search.oracle, floor, {**given, "worth": given["worth"][1:]})
    with pytest.raises(BadInputError, match="other adapters"):
        verify(search.problem, search.oracle, floor, {**given, "items": given["items"][1:]})
    with pytest.raises(BadInputError, match="certificate: OverflowError"):
        verify(search.problem, search.oracle, floor, {**given, "items": [10**30] * len(given["worth"])})
    with pytest.raises(BadInputError, match="certificate: KeyError"):
        verify(search.problem, search.oracle, floor, {"worth": []})


@pytest.mark.parametrize("seconds", [1.0, 3.0])
def test_the_time_limit_is_kept_and_leaves_a_plan(seconds: float) -> None:
    rng = np.random.default_rng(0)
    problem = small_problem([(8, float(rate)) for rate in rng.lognormal(-2, 1.5, 600)], counts=(40,))
    started = time.monotonic()
    search = make_search(problem, "gpu_count", "fluid", seconds)
    try:
        solution = solve(search)
    except SearchStoppedError:
        assert search.incumbent
    else:
        assert solution.status in ("optimal", "feasible")
    assert time.monotonic() - started <= 1.05 * seconds + 2.0


def test_an_interrupt_leaves_the_best_plan() -> None:
    problem = small_problem([(8, 0.5), (16, 0.3)] * 60, counts=(12,))
    search = make_search(problem, "gpu_count", "fluid")
    since = [0]

    def judge(loads: Any, predict: Any = search.oracle.predict) -> Any:
        since[0] += sum(len(load.adapters) for load in search.incumbent) == 120
        if since[0] == 5:
            raise KeyboardInterrupt
        return predict(loads)

    search.oracle.predict = judge  # type: ignore[method-assign]
    solution = solve(search)
    assert solution.status in ("feasible", "optimal")
    assert sum(len(load.adapters) for load in solution.loads) == 120


def test_a_thousand_equal_adapters_are_one_item() -> None:
    problem = small_problem([(8, 0.2)] * 1000, counts=(40,))
    assert make_items(problem).counts.tolist() == [1000]
    assert solve(make_search(problem, "gpu_count", "fluid")).status == "optimal"


def test_many_different_adapters_are_few_items_as_light_as_the_lightest() -> None:
    rng = np.random.default_rng(0)
    problem = small_problem([(8, float(rate)) for rate in rng.lognormal(-2, 1.5, MOST_KINDS + 1)], counts=(40,))
    items = make_items(problem)
    assert items.counts.size <= MOST_ITEMS
    assert sorted(i for mine in items.members for i in mine) == list(range(MOST_KINDS + 1))
    least = [min(problem.rates[i] for i in mine) for mine in items.members]
    lost = sum(problem.rates) - float(np.dot(least, items.counts))
    assert lost <= 0.01 * sum(problem.rates)
    assert np.allclose(items.basis.sum(axis=0), 1.0)


def test_pins_separate_groups_and_few_adapters_are_kept() -> None:
    adapters = [(8, 1.0)] * 12
    for limits in (
        {"max_adapters": 3},
        {"separate": (("a0", "a1", "a2"),)},
        {"together": (("a0", "a1"), ("a2", "a3", "a4"))},
        {"pins": {"a0": ("type1",)}},
    ):
        problem = small_problem(adapters, counts=(4, 4), **limits)
        search = make_search(problem, "gpu_count", "fluid", 10.0)
        solution = solve(search)
        assert solution.status in ("optimal", "feasible")
        assert all(problem.allows(load) for load in solution.loads)
        if "max_adapters" in limits:
            assert solution.status == "optimal"
            assert len(solution.loads) == 4
