"""Constraints: what is refused at once, and what plans keep."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from support.oracles import server, small_problem

import loraplan
from loraplan.constraints import Constraints
from loraplan.errors import BadInputError
from loraplan.oracle import Predictions
from loraplan.problem import GPULoad

ADAPTERS = [(8, 4.0), (16, 3.0), (8, 3.0), (32, 2.0), (8, 1.0), (8, 0.5)]


@pytest.mark.parametrize(
    ("limits", "complaint"),
    [
        ({"served_fraction": 0}, "served_fraction must be in"),
        ({"adapter_served_fraction": 1.5}, "adapter_served_fraction must be in"),
        ({"served_fraction": float("nan")}, "served_fraction must be in"),
        ({"itl_ms": -1}, "itl_ms must be above 0"),
        ({"ttft_p95_s": float("nan")}, "ttft_p95_s must be above 0"),
        ({"max_gpus": 0}, "max_gpus must be at least 1"),
        ({"max_adapters": -1}, "max_adapters must be at least 1"),
        ({"pins": {"a0": ()}}, "pins of adapter a0 name no profile"),
        ({"separate": (("a0",),)}, "separate: a group needs two adapters"),
        ({"together": (("a0", "a0"),)}, "together: a group needs two adapters or more, each once"),
        ({"replicas": {"a0": 0}}, "replicas of adapter a0 must be at least 1"),
        # of adapters and GPUs that are not there
        ({"pins": {"a9": ("type0",)}}, "pins: unknown adapter 'a9'; did you mean 'a"),
        ({"replicas": {"b0": 2}}, "replicas: unknown adapter 'b0'; did you mean 'a0'"),
        ({"together": (("a0", "zz"),)}, "together: unknown adapter 'zz'"),
        ({"separate": (("a0", "A1"),)}, "separate: unknown adapter 'A1'"),
        ({"pins": {"a0": ("typ1",)}}, "pinned to 'typ1', which is not in the fleet; did you mean 'type1'"),
        # that contradict each other
        ({"together": (("a0", "a1"),), "separate": (("a1", "a0"),)}, "a0 and a1 are to be together and separate"),
        ({"together": (("a0", "a1", "a2"),), "separate": (("a0", "a1", "a2"),)}, "are to be together and separate"),
        ({"together": (("a0", "a1"), ("a1", "a2")), "separate": (("a0", "a2"),)}, "a0 and a2 are to be together and"),
        ({"together": (("a0", "a1"),), "pins": {"a0": ("type0",), "a1": ("type1",)}}, "leave no GPU type"),
        ({"together": (("a0", "a1", "a2"),), "max_adapters": 2}, "are to be together, but max_adapters is 2"),
        # that no load keeps
        ({"itl_ms": 1.0}, "itl_ms 1 is below 13.46, a step of an empty server of type"),
        ({"ttft_p95_s": 0.001}, "ttft_p95_s 0.001 is below 0.01346"),
        ({"max_gpus": 1, "reserve": True}, "reserve: if the only GPU is lost"),
    ],
)  # fmt: skip
def test_limits_that_make_no_sense(limits: dict[str, Any], complaint: str) -> None:
    with pytest.raises(BadInputError) as caught:
        small_problem(ADAPTERS, counts=(2, 2), **limits)
    assert complaint in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("limits", "complaint"),
    [
        ({"replicas": {"a0": 5}}, "5 replicas of adapter a0 need as many GPUs, of 4"),
        ({"replicas": {"a0": 2}, "together": (("a0", "a1"),)}, "a0 needs 2 replicas, so it cannot be kept together"),
    ],
)
def test_replicas_that_cannot_be(limits: dict[str, Any], complaint: str) -> None:
    with pytest.raises(BadInputError, match=complaint):
        loraplan.solve(small_problem(ADAPTERS, counts=(2, 2), **limits))


def test_groups_that_share_an_adapter_are_one() -> None:
    problem = small_problem(ADAPTERS, together=(("a0", "a1"), ("a4", "a5"), ("a1", "a4")))
    assert problem.units == ((0, 1, 4, 5), (2,), (3,))


@pytest.mark.parametrize("solver", ["greedy", "best_fit", "local_search"])
@pytest.mark.parametrize("objective", ["gpu_count", "latency"])
@pytest.mark.parametrize(
    "limits",
    [
        {"separate": (("a0", "a1", "a2"),), "together": (("a0", "a3"), ("a1", "a4"))},
        {"pins": {"a0": ("type1",), "a3": ("type0",)}, "max_adapters": 3},
        {"max_gpus": 2, "separate": (("a0", "a1"),)},
        {"replicas": {"a0": 3}, "pins": {"a0": ("type0",)}, "separate": (("a0", "a1"),)},
    ],
)
def test_plans_keep_several_constraints_at_once(solver: str, objective: str, limits: dict[str, Any]) -> None:
    problem = small_problem(ADAPTERS, counts=(4, 2), **limits)
    plan = loraplan.solve(problem, solver, objective, time_limit_s=1.0)
    assert plan.complete, plan.reason
    asked = problem.constraints
    homes: dict[str, list[str]] = {}
    for gpu in plan.gpus:
        names = {adapter.name for adapter in gpu.adapters}
        for name in names:
            homes.setdefault(name, []).append(gpu.profile)
            assert gpu.profile in asked.pins.get(name, (gpu.profile,))
        assert all(len(names.intersection(group)) <= 1 for group in asked.separate)
        assert all(len(names.intersection(group)) in (0, len(group)) for group in asked.together)
        assert len(names) <= (asked.max_adapters or 99)
    assert len(plan.gpus) <= (asked.max_gpus or 99)
    assert {name: len(found) for name, found in homes.items()} == {
        adapter.name: asked.replicas.get(adapter.name, 1) for adapter in problem.adapters
    }


def test_latency_limits_of_the_oracle_s_figures() -> None:
    limits = Constraints(0.9, adapter_served_fraction=0.8, itl_ms=20.0, ttft_p95_s=1.0)
    ones = np.ones(5)
    says = Predictions(
        starts=ones > 0,
        served_fraction=ones,
        throughput_tok_s=ones,
        itl_ms=np.array([20.0, 20.1, np.nan, 10.0, 10.0]),
        ttft_s=ones,
        kv_utilisation=ones,
        ttft_p95_s=np.array([1.0, 0.5, np.nan, np.inf, 0.5]),
        adapter_served_fraction=np.array([1.0, 1.0, 1.0, 1.0, 0.7]),
    )
    assert says.keeps(limits).tolist() == [True, False, True, False, False]


@settings(deadline=None)
@given(
    st.lists(st.integers(0, 5), min_size=1, unique=True),
    st.integers(0, 1),
    st.sampled_from(
        [
            {},
            {"max_adapters": 2},
            {"pins": {"a0": ("type1",), "a1": ("type0",)}},
            {"separate": (("a0", "a1", "a2"), ("a2", "a3"))},
            {"max_adapters": 3, "pins": {"a2": ("type0",)}, "separate": (("a4", "a5"),)},
        ]
    ),
)
def test_what_is_allowed_has_no_breaches(adapters: list[int], gpu_type: int, limits: dict[str, Any]) -> None:
    problem = small_problem(ADAPTERS, counts=(2, 2), **limits)
    load = GPULoad(gpu_type, tuple(sorted(adapters)), 2)
    assert problem.allows(load) == (problem.breaches(load) == 0)


def test_negative_prices_are_refused() -> None:
    with pytest.raises(BadInputError, match="price_per_hour of server must be at least 0"):
        loraplan.ProblemBuilder().gpus(server(), 1, price_per_hour=-1.0)
