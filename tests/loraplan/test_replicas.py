"""Hot adapters: what is split, over how many GPUs, and that a plan says so."""

from __future__ import annotations

from collections import defaultdict
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from support.oracles import TokenBudgetOracle, TokenBudgetParams, small_problem

import loraplan
from loraplan.oracle import Oracle
from loraplan.problem import Problem
from loraplan.replicas import split, whole
from loraplan.validation import validate
from loraplan.workload import RateWorkload


def oracle_of(problem: Problem) -> Oracle:
    """10,000 tokens/s less 2.6 %, at 400 tokens a request and 0.9 served: 27.05 req/s alone."""
    return TokenBudgetOracle(problem, TokenBudgetParams())


def parts_of(problem: Problem) -> dict[str, list[float]]:
    """The shares of each adapter's replicas."""
    found: dict[str, list[float]] = defaultdict(list)
    parts = split(problem, oracle_of)
    for origin, share in zip(parts.origin, parts.shares, strict=True):
        found[problem.adapters[origin].name].append(float(share))
    return dict(found)


def test_too_hot_adapters_get_the_fewest_replicas_that_fit() -> None:
    found = parts_of(small_problem([(8, 27.0), (8, 28.0), (8, 60.0), (8, 81.0), (8, 0.1)], counts=(4,)))
    assert {name: len(shares) for name, shares in found.items()} == {"a0": 1, "a1": 2, "a2": 3, "a3": 3, "a4": 1}
    assert all(shares == [pytest.approx(1 / len(shares))] * len(shares) for shares in found.values())


def test_what_no_number_of_gpus_carries_stays_whole() -> None:
    problem = small_problem([(8, 500.0), (8, 1.0)], counts=(4,))
    assert parts_of(problem) == {"a0": [1.0], "a1": [1.0]}
    plan = loraplan.solve(problem, oracle="fluid")
    assert not plan.complete
    assert "no GPU type carries adapter a0" in plan.reason


@pytest.mark.parametrize(
    "limits", [{"split": False}, {"replicas": {"a0": 1}}, {"together": (("a0", "a1"),)}, {"max_gpus": 1}]
)
def test_adapters_that_are_not_to_be_split(limits: dict[str, Any]) -> None:
    assert parts_of(small_problem([(8, 40.0), (8, 1.0)], counts=(4,), **limits)) == {"a0": [1.0], "a1": [1.0]}


def test_nothing_to_split_leaves_the_problem_alone() -> None:
    problem = small_problem([(8, 1.0), (8, 2.0)])
    assert split(problem, oracle_of).problem is problem
    assert whole(problem).problem is problem


def test_constraints_are_about_the_replicas() -> None:
    problem = small_problem(
        [(8, 1.0), (8, 1.0), (8, 1.0)],
        counts=(3, 3),
        replicas={"a0": 2},
        pins={"a0": ("type1",)},
        separate=(("a0", "a1"),),
    )
    parts = split(problem, oracle_of)
    names = [adapter.name for adapter in parts.problem.adapters]
    assert names == ["a0#1", "a0#2", "a1", "a2"]
    assert parts.problem.constraints.pins == {"a0#1": ("type1",), "a0#2": ("type1",)}
    assert parts.problem.constraints.separate == (("a0#1", "a0#2", "a1"), ("a0#1", "a0#2"))
    assert parts.problem.constraints.replicas == {}


def test_a_replica_s_name_is_nobody_else_s() -> None:
    builder = loraplan.ProblemBuilder().gpus("h100-64gb/llama-3.1-8b", 4)
    builder.adapter("a", 8, 1.0, 10, 10).adapter("a#1", 8, 1.0, 10, 10)
    problem = builder.constraints(replicas={"a": 2}).build()
    names = [adapter.name for adapter in split(problem, oracle_of).problem.adapters]
    assert len(set(names)) == len(names) == 3


@settings(deadline=None, max_examples=50)
@given(st.lists(st.floats(0, 120), min_size=1, max_size=5), st.integers(1, 5))
def test_replicas_keep_the_traffic_and_fit_alone(rates: list[float], gpus: int) -> None:
    problem = small_problem([(8, rate) for rate in rates], counts=(gpus,))
    parts = split(problem, oracle_of)
    totals = np.bincount(parts.origin, weights=parts.problem.rates, minlength=len(rates))
    np.testing.assert_allclose(totals, problem.rates)
    np.testing.assert_allclose(np.bincount(parts.origin, weights=parts.shares), np.ones(len(rates)))
    for i, rate in enumerate(rates):
        count = parts.origin.count(i)
        assert count <= gpus
        if count > 1:  # it fits, and one less would not
            assert rate / count <= 27.056 < rate / (count - 1)


def test_a_plan_with_a_hot_adapter_is_served() -> None:
    adapters = [(8, 90.0), (8, 3.0), (16, 2.0)]
    problem = small_problem(adapters, served_fraction=0.99)
    assert not loraplan.solve(small_problem(adapters, split=False), "best_fit", oracle="fluid").complete
    plan = loraplan.solve(problem, "best_fit", oracle="fluid")
    homes = [gpu.id for gpu in plan.gpus for adapter in gpu.adapters if adapter.name == "a0"]
    assert len(homes) > 1
    assert len(set(homes)) == len(homes)
    seen = validate(plan, RateWorkload(problem.adapters, 300.0), 1)
    assert min(gpu.served_fraction.mean for gpu in seen.gpus) > 0.9
