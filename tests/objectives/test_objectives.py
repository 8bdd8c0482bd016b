"""What every registered objective must do."""

from __future__ import annotations

import numpy as np
import pytest
from support.oracles import TokenBudgetOracle, TokenBudgetParams, small_problem

from loraplan.problem import GPULoad
from objectives import OBJECTIVES, Objective

PROBLEM = small_problem([(8, 1.0), (16, 2.0), (8, 0.0), (32, 0.5), (8, 30.0)], counts=(2, 3))
LOADS = [GPULoad(0, (0, 1), 2), GPULoad(1, (2,), 1), GPULoad(1, (3,), 4), GPULoad(0, (4,), 1)]
ORACLE = TokenBudgetOracle(PROBLEM, TokenBudgetParams())


@pytest.fixture(params=OBJECTIVES.names())
def objective(request: pytest.FixtureRequest) -> Objective:
    objective_type = OBJECTIVES.get(request.param)
    return objective_type(objective_type.Params())


def test_costs_are_one_finite_number_per_load(objective: Objective) -> None:
    costs = objective.gpu_costs(PROBLEM, LOADS, ORACLE.predict(LOADS))
    assert costs.shape == (len(LOADS),)
    assert np.isfinite(costs).all()
    assert (costs >= 0).all()


def test_no_loads_cost_nothing(objective: Objective) -> None:
    assert objective.gpu_costs(PROBLEM, [], ORACLE.predict([])).shape == (0,)


def test_the_cost_of_a_load_does_not_depend_on_the_others(objective: Objective) -> None:
    together = objective.gpu_costs(PROBLEM, LOADS, ORACLE.predict(LOADS))
    alone = [objective.gpu_costs(PROBLEM, [load], ORACLE.predict([load]))[0] for load in LOADS]
    np.testing.assert_allclose(together, alone, rtol=1e-12)


def test_the_unit_is_named(objective: Objective) -> None:
    assert objective.unit


def test_gpu_count_counts() -> None:
    gpu_count = OBJECTIVES.get("gpu_count")
    costs = gpu_count(gpu_count.Params()).gpu_costs(PROBLEM, LOADS, ORACLE.predict(LOADS))
    assert costs.sum() == len(LOADS)
