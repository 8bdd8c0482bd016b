"""What every registered solver must do, whatever its method and whatever the oracle."""

from __future__ import annotations

import time
from collections import Counter

import numpy as np
import pytest
from support.brute_force import feasible_subsets, fewest_gpus, fits_nowhere
from support.oracles import TokenBudgetOracle, TokenBudgetParams, server, small_problem

from loraplan.oracle import ORACLES, Oracle
from loraplan.problem import Problem
from objectives import OBJECTIVES
from solvers import SOLVERS, Search, Solution
from solvers.base import SearchStoppedError


@pytest.fixture(params=SOLVERS.names())
def solver(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(params=["token_budget", "fluid", "surrogate"])
def oracle_name(request: pytest.FixtureRequest) -> str:
    return str(request.param)


def make_oracle(problem: Problem, name: str) -> Oracle:
    if name == "token_budget":
        return TokenBudgetOracle(problem, TokenBudgetParams(capacity_tok_s=(10_000.0, 5_000.0)))
    oracle = ORACLES.get(name)
    return oracle(problem, oracle.Params())


def make_search(problem: Problem, oracle: Oracle, deadline: float | None = None) -> Search:
    objective = OBJECTIVES.get("gpu_count")
    return Search(problem, objective(objective.Params()), oracle, seed=0, deadline=deadline)


def solve(solver: str, search: Search) -> Solution:
    solver_type = SOLVERS.get(solver)
    return solver_type(solver_type.Params()).solve(search)


def check_loads(search: Search, solution: Solution) -> None:
    """No load breaks a limit, no GPU is used twice, and adapters are placed once: all of them if it is a plan."""
    problem, loads = search.problem, solution.loads
    placed = Counter(i for load in loads for i in load.adapters)
    assert not placed or max(placed.values()) == 1
    if solution.status in {"feasible", "optimal"}:
        assert len(placed) == len(problem.adapters)
        assert search.incumbent == loads
    assert all(load.adapters == tuple(sorted(load.adapters)) and load.slots >= 1 for load in loads)
    assert all(problem.starts(load) for load in loads)
    if loads:
        assert not search.oracle.predict(loads).starved(problem.constraints.served_fraction).any()
    for t, used in Counter(load.gpu_type for load in loads).items():
        assert used <= problem.fleet.types[t].count


def random_problem(seed: int, typical_rate: float) -> Problem:
    rng = np.random.default_rng(seed)
    n = int(rng.integers(2, 8))
    rates = typical_rate * rng.lognormal(sigma=1.0, size=n) * (rng.random(n) > 0.1)
    adapters = [(int(rng.choice([8, 16, 32])), float(rate)) for rate in rates]
    return small_problem(adapters, counts=(8,) if seed % 2 else (1, 3))


@pytest.mark.parametrize("seed", range(3))
def test_feasibility_is_hereditary(oracle_name: str, seed: int) -> None:
    """What proofs of infeasibility rest on: taking an adapter away never breaks a GPU."""
    problem = random_problem(seed, 4.0)
    fits = feasible_subsets(problem, make_oracle(problem, oracle_name))
    masks = np.arange(fits.shape[1])
    for i in range(len(problem.adapters)):
        assert not (fits & ~fits[:, masks & ~(1 << i)]).any()


@pytest.mark.parametrize("typical_rate", [2.0, 8.0])
@pytest.mark.parametrize("seed", range(6))
def test_small_problems_against_brute_force(solver: str, oracle_name: str, seed: int, typical_rate: float) -> None:
    problem = random_problem(seed, typical_rate)
    oracle = make_oracle(problem, oracle_name)
    search = make_search(problem, oracle)
    solution = solve(solver, search)
    fewest = fewest_gpus(problem, oracle)
    check_loads(search, solution)
    if solution.status in {"feasible", "optimal"}:
        assert fewest is not None
        assert len(solution.loads) >= fewest
        assert solution.lower_bound is None or solution.lower_bound <= fewest
        assert not solution.reason
    else:
        assert solution.reason
        assert "\n" not in solution.reason
    if solution.status == "infeasible":
        assert fewest is None
    if fits_nowhere(problem, oracle):
        assert solution.status == "infeasible"


def test_the_same_seed_gives_the_same_loads(solver: str, oracle_name: str) -> None:
    problem = random_problem(3, 4.0)
    oracle = make_oracle(problem, oracle_name)
    assert solve(solver, make_search(problem, oracle)) == solve(solver, make_search(problem, oracle))


def test_one_adapter(solver: str, oracle_name: str) -> None:
    problem = small_problem([(16, 1.0)], counts=(2,))
    search = make_search(problem, make_oracle(problem, oracle_name))
    solution = solve(solver, search)
    assert [load.adapters for load in solution.loads] == [(0,)]
    check_loads(search, solution)


def test_a_thousand_equal_adapters(solver: str, oracle_name: str) -> None:
    problem = small_problem([(8, 0.05)] * 1000, counts=(64,))
    search = make_search(problem, make_oracle(problem, oracle_name))
    solution = solve(solver, search)
    assert solution.status in {"feasible", "optimal"}
    check_loads(search, solution)


@pytest.mark.parametrize("busy", [[], [(32, 1.0), (8, 2.0)]])
def test_adapters_without_requests_are_placed(solver: str, oracle_name: str, busy: list[tuple[int, float]]) -> None:
    problem = small_problem([(8, 0.0)] * 40 + busy, counts=(8,))
    search = make_search(problem, make_oracle(problem, oracle_name))
    solution = solve(solver, search)
    assert solution.status in {"feasible", "optimal"}
    check_loads(search, solution)


def test_an_adapter_that_fits_nowhere_is_proof(solver: str, oracle_name: str) -> None:
    problem = small_problem([(8, 0.1), (8, 5_000.0), (8, 0.1)], counts=(2, 2))
    search = make_search(problem, make_oracle(problem, oracle_name))
    solution = solve(solver, search)
    assert solution.status == "infeasible"
    assert "a1 " in solution.reason
    assert "served fraction 0." in solution.reason
    check_loads(search, solution)


def test_no_memory_for_a_single_slot_is_proof(solver: str) -> None:
    problem = small_problem([(8, 0.1), (256, 0.1)], counts=(2,), profiles=[server(max_slots=8)])
    solution = solve(solver, make_search(problem, make_oracle(problem, "token_budget")))
    assert solution.status == "infeasible"
    assert "a1 " in solution.reason
    assert "memory" in solution.reason


def test_a_fleet_that_is_too_small(solver: str, oracle_name: str) -> None:
    problem = small_problem([(8, 0.5)] * 400, counts=(2,))
    search = make_search(problem, make_oracle(problem, oracle_name))
    solution = solve(solver, search)
    assert solution.status in {"unknown", "infeasible"}
    assert any(adapter.name in solution.reason for adapter in problem.adapters)
    check_loads(search, solution)


def test_no_time_stops_the_search(solver: str, oracle_name: str) -> None:
    problem = random_problem(1, 1.0)
    search = make_search(problem, make_oracle(problem, oracle_name), deadline=time.monotonic())
    with pytest.raises(SearchStoppedError):
        solve(solver, search)
    assert not search.incumbent
