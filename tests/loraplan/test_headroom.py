"""Headroom: the factor on all rates up to which a load is not starved."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from support.oracles import TokenBudgetOracle, TokenBudgetParams, server, small_problem

import loraplan
from loraplan.headroom import FACTORS, Headroom
from loraplan.oracle import ORACLES
from loraplan.problem import GPULoad

STEP = 1.02


def test_headroom_of_a_server_whose_capacity_is_known() -> None:
    # 10,000 tokens/s less 1 % a slot and 0.2 % a rank; 400 tokens a request: 10 req/s are 4,000 tokens/s
    problem = small_problem([(8, 10.0), (8, 1.0), (8, 0.0), (8, 1000.0)], served_fraction=0.8)
    headroom = Headroom(problem, TokenBudgetOracle, TokenBudgetParams(swapping=0.0))
    loads = [GPULoad(0, (0,), 1), GPULoad(0, (0, 1), 2), GPULoad(0, (2,), 1), GPULoad(0, (3,), 1)]
    capacity = [10_000 * (1 - 0.01 * slots - 0.016) / 0.8 for slots in (1, 2)]
    found = headroom.of(loads)
    for value, exact in zip(found[:2], (capacity[0] / 4000, capacity[1] / 4400), strict=True):
        assert exact / STEP <= value <= exact
    assert found[2] == FACTORS[-1]  # nobody asks
    assert found[3] == 0.0  # starved even with 5 % of its rate
    assert headroom.of([]).shape == (0,)


def test_a_server_that_does_not_start_has_none() -> None:
    problem = small_problem([(8, 1.0)], profiles=[server("small", max_slots=2)])
    assert Headroom(problem, TokenBudgetOracle, TokenBudgetParams()).of([GPULoad(0, (0,), 5)]).tolist() == [0.0]


@pytest.mark.parametrize(("oracle", "params"), [("fluid", {}), ("twin", {"horizon_s": 120.0})])
def test_headroom_is_what_scaling_the_rates_by_hand_says(oracle: str, params: dict[str, Any]) -> None:
    problem = small_problem([(8, 4.0), (16, 2.0), (8, 6.0)])
    kind = ORACLES.get(oracle)
    loads = [GPULoad(0, (0,), 1), GPULoad(0, (0, 1, 2), 2)]
    found = Headroom(problem, kind, kind.Params(**params)).of(loads)
    for load, value in zip(loads, found, strict=True):
        scaled = loraplan.ProblemBuilder()
        for factor, starved in ((value, False), (value * STEP, True)):
            scaled = loraplan.ProblemBuilder().gpus(problem.fleet.types[0].profile, 8)
            for adapter in problem.adapters:
                scaled.adapter(adapter.name, adapter.rank, adapter.rate * factor, lengths=adapter.lengths)
            says = kind(scaled.build(), kind.Params(**params)).predict([load])
            assert bool(says.starved(0.9)[0]) is starved, (load, factor)


def test_a_plan_for_headroom_evens_out_the_fullest_gpu() -> None:
    problem = small_problem([(8, 8.0), (8, 8.0), (8, 1.0), (8, 1.0)], counts=(2,))
    plan = loraplan.solve(problem, "local_search", "headroom", time_limit_s=2.0, oracle="fluid")
    rates = sorted(sum(adapter.rate for adapter in gpu.adapters) for gpu in plan.gpus)
    assert rates == [9.0, 9.0]
    kind = ORACLES.get("fluid")
    loads = [GPULoad(0, tuple(sorted(problem.index[a.name] for a in gpu.adapters)), gpu.slots) for gpu in plan.gpus]
    use = 1 / Headroom(problem, kind, kind.Params()).of(loads)
    assert plan.objective.value == pytest.approx(float(np.sum(use**8)))
