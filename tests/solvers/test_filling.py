"""Adapters in parts over bin types, and plans made of them: by hand, and invariants."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from support.oracles import TokenBudgetOracle, TokenBudgetParams, small_problem

from loraplan.bin_types import BinType
from loraplan.certificate import verify
from loraplan.oracle import ORACLES
from loraplan.problem import ProblemBuilder
from loraplan.profiles import load_profile
from loraplan.workload import Floats
from objectives.gpu_count import GPUCount, GPUCountParams
from solvers.base import Search
from solvers.column_generation import ColumnGeneration, ColumnGenerationParams
from solvers.filling import whole_adapters, whole_gpus
from solvers.spread import Spread


def search_of(gpus: int = 9) -> Search:
    problem = small_problem([(8, 1.0)] * 9, counts=(gpus,))
    return Search(problem, GPUCount(GPUCountParams()), TokenBudgetOracle(problem, TokenBudgetParams()), seed=0)


def spread_of(counts: list[float], *bins: list[list[float]], gpus: int = 9) -> Spread:
    """Bin types of these rows, each of which costs 1."""
    spread = Spread(search_of(gpus), np.array(counts), dearest=100.0)
    for rows in bins:
        weights = np.array(rows)
        assert spread.add(BinType(0, 8, (1, 1), weights, 0.0, None), weights, 1.0, np.zeros(len(counts)))
    return spread


def test_parts_cost_what_the_fullest_row_says() -> None:
    spread = spread_of([5.0, 2.0], [[0.25, 0.5], [0.1, 0.1]])
    prices = spread.solve()
    assert prices.value == pytest.approx(5 * 0.25 + 2 * 0.5)
    assert prices.items == pytest.approx([0.25, 0.5])
    assert prices.missing == pytest.approx(0.0)


def test_what_no_bin_type_takes_is_missing() -> None:
    assert spread_of([5.0, 2.0], [[0.25, 2.0]]).solve().missing == pytest.approx(2.0)
    assert spread_of([9.0], [[1.0]], gpus=4).solve().missing == pytest.approx(5.0)


def test_the_same_bin_type_is_added_once() -> None:
    spread, rows = spread_of([5.0], [[0.25]]), np.array([[0.25]])
    assert not spread.add(BinType(0, 8, (1, 1), rows, 0.0, None), rows, 1.0, np.zeros(1))


def test_a_gpu_has_no_more_of_an_item_than_there_is() -> None:
    spread = spread_of([1.0], [[0.2]])
    assert spread.solve().value == pytest.approx(0.2)
    assert spread.tighten() == 1
    assert spread.solve().value == pytest.approx(1.0)
    assert spread.tighten() == 0


def test_bin_types_are_used_a_whole_number_of_times() -> None:
    spread = spread_of([5.0, 3.0], [[0.4, 2.0]], [[0.5, 0.5]])
    assert spread.solve().value == pytest.approx(3.5)
    times = whole_gpus(spread, most=4.0)
    assert times is not None
    assert sum(times) == 4
    assert times[1] >= 2
    assert whole_gpus(spread, most=3.0) is None
    assert spread.solve().value == pytest.approx(3.5)  # nothing of the search is left


@pytest.mark.parametrize("careful", [False, True])
def test_adapters_that_just_fit_are_placed(careful: bool) -> None:
    bins = [np.array([[0.5, 0.3, 0.19]]), np.array([[0.5, 0.3, 0.19]])]
    filled = whole_adapters(search_of(), bins, np.array([2.0, 2.0, 2.0]), np.array([0.5, 0.3, 0.19]), careful)
    assert filled is not None
    assert np.array(filled).tolist() == [[1.0, 1.0, 1.0], [1.0, 1.0, 1.0]]


def test_too_many_adapters_are_refused() -> None:
    assert whole_adapters(search_of(), [np.array([[0.5]])], np.array([3.0]), np.array([0.5]), careful=False) is None


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 10**6), st.booleans())
def test_no_row_overflows_and_nothing_is_placed_twice(seed: int, careful: bool) -> None:
    rng = np.random.default_rng(seed)
    gpus, items = int(rng.integers(1, 5)), int(rng.integers(1, 30))
    counts = rng.integers(1, 4, items).astype(np.float64)
    bins: list[Floats] = [rng.uniform(0.0, 1.0, (3, items)) * gpus / (0.6 * counts.sum()) for _ in range(gpus)]
    filled = whole_adapters(search_of(), bins, counts, rng.uniform(size=items), careful)
    if filled is None:
        return
    placed = np.sum(filled, axis=0)
    assert (placed <= counts).all()
    assert (placed == np.round(placed)).all()
    for rows, mine in zip(bins, filled, strict=True):
        assert (rows @ mine <= 1.0).all()
        assert not (rows > 1.0).any(axis=0)[mine > 0].any()


def test_many_different_adapters_are_proven_by_parts() -> None:
    rates = np.random.default_rng(0).dirichlet(np.full(300, 0.5)) * 160.0
    builder = ProblemBuilder()
    for i, rate in enumerate(rates):
        builder.adapter(f"a{i}", [8, 16, 32][i % 3], float(rate), tokens_in=250, tokens_out=231)
    problem = builder.gpus(load_profile("h100-64gb/llama-3.1-8b"), 32, price_per_hour=2.5).build()
    judge = ORACLES.get("surrogate")
    search = Search(problem, GPUCount(GPUCountParams()), judge(problem, judge.Params()), seed=0)
    solution = ColumnGeneration(ColumnGenerationParams()).solve(search)
    floor = search.objective.floor(problem)
    assert solution.status == "optimal"
    assert sorted(i for load in solution.loads for i in load.adapters) == list(range(300))
    assert solution.certificate is not None
    assert floor is not None
    assert verify(problem, search.oracle, floor, solution.certificate).bound > len(solution.loads) - 1
