"""Reserve: the loss of any GPU leaves a plan that keeps the limits."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from support.data import data_file
from support.oracles import server, small_problem

import loraplan
from loraplan.config import load_config
from loraplan.errors import BadInputError
from loraplan.loss import without
from loraplan.oracle import ORACLES
from loraplan.plan import Plan
from loraplan.problem import GPULoad, Problem
from loraplan.recorded import recorded
from loraplan.reserve import one_rank
from loraplan.validation import validate

ROOT = Path(__file__).parents[2]
ADAPTERS = [(8, 6.0), (16, 5.0), (8, 5.0), (32, 4.0), (8, 3.0), (8, 3.0), (8, 2.0), (16, 1.0)]


def left_after_each_loss(plan: Plan) -> dict[str, Plan]:
    return {gpu.id: without(plan, gpu.id) for gpu in plan.gpus}


def check_survival(problem: Problem, plan: Plan) -> None:
    """After any loss every adapter is somewhere, the others run on as they are, and the oracle keeps them."""
    alike = one_rank(problem)
    oracle = ORACLES.get("fluid")(alike, ORACLES.get("fluid").Params())
    types = {gpu_type.profile.name: t for t, gpu_type in enumerate(alike.fleet.types)}
    before = {gpu.id: gpu for gpu in plan.gpus}
    for lost, left in left_after_each_loss(plan).items():
        assert {gpu.id for gpu in left.gpus} == set(before) - {lost}
        placed = sorted(adapter.name for gpu in left.gpus for adapter in gpu.adapters)
        assert placed == sorted(adapter.name for gpu in plan.gpus for adapter in gpu.adapters)
        for gpu in left.gpus:
            old = before[gpu.id]
            assert (gpu.slots, gpu.max_rank, gpu.profile) == (old.slots, old.max_rank, old.profile)
            assert gpu.adapters[: len(old.adapters)] == old.adapters
        loads = [
            GPULoad(types[gpu.profile], tuple(sorted(alike.index[a.name] for a in gpu.adapters)), gpu.slots)
            for gpu in left.gpus
        ]
        assert oracle.predict(loads).keeps(alike.constraints).all()
        assert all(map(alike.allows, loads))


@pytest.mark.parametrize(
    "solver",
    [{"name": "greedy", "test_points": [1, 2, 4, 8]}, "best_fit", "local_search"],
    ids=["greedy", "best_fit", "local_search"],
)
@pytest.mark.parametrize("objective", ["gpu_count", "latency"])
def test_the_loss_of_any_gpu_leaves_loads_that_are_kept(solver: Any, objective: str) -> None:
    problem = small_problem([(rank, 3 * rate) for rank, rate in ADAPTERS], counts=(6,), reserve=True)
    plan = loraplan.solve(problem, solver, objective, time_limit_s=2.0, oracle="fluid")
    assert plan.complete, plan.reason
    assert len({gpu.max_rank for gpu in plan.gpus}) == 1
    check_survival(problem, plan)


@pytest.mark.parametrize(
    "limits",
    [
        {"together": (("a0", "a1"),), "separate": (("a2", "a3"),)},
        {"max_adapters": 6},
        {"itl_ms": 40.0},
    ],
)
def test_the_reserve_keeps_the_other_constraints(limits: dict[str, Any]) -> None:
    problem = small_problem(ADAPTERS, counts=(8,), reserve=True, **limits)
    plan = loraplan.solve(problem, "best_fit", oracle="fluid")
    assert plan.complete, plan.reason
    check_survival(problem, plan)


def test_what_fits_on_one_gpu_gets_two_of_which_each_carries_all() -> None:
    problem = small_problem([(8, 0.1), (8, 0.1), (16, 0.1)], counts=(4,), reserve=True)
    plan = loraplan.solve(problem, "best_fit", oracle="fluid")
    assert len(plan.gpus) == 2
    check_survival(problem, plan)


def test_a_single_adapter_cannot_be_kept_in_reserve() -> None:
    plan = loraplan.solve(small_problem([(8, 0.1)], reserve=True), "best_fit", oracle="fluid")
    assert not plan.complete
    assert plan.reason.startswith("reserve: no plan survives the loss of any GPU")


def test_no_reserve_where_the_fleet_is_full() -> None:
    adapters = [(8, 10.0)] * 6
    needed = len(loraplan.solve(small_problem(adapters), "best_fit", oracle="fluid").gpus)
    assert needed > 1
    full = small_problem(adapters, counts=(needed,), reserve=True)
    plan = loraplan.solve(full, "best_fit", oracle="fluid")
    assert plan.status == "unknown"
    assert plan.reason.startswith("reserve: no plan survives the loss of any GPU that plans for up to ")
    assert plan.fallbacks == {}


def test_a_time_limit_ends_the_search_for_a_reserve() -> None:
    problem = small_problem([(8, 0.5)] * 60, counts=(8,), reserve=True)
    for limit in (0.0, 0.01, 0.05, 0.2):
        plan = loraplan.solve(problem, "best_fit", time_limit_s=limit, oracle="fluid")
        assert plan.complete or "time limit" in plan.reason


def test_a_type_that_takes_no_adapter_of_the_largest_rank() -> None:
    narrow = server("narrow")
    limits = narrow.limits.model_copy(update={"lora_ranks": (8, 16)})
    profiles = [server("wide"), narrow.model_copy(update={"limits": limits})]
    with pytest.raises(BadInputError, match="reserve: narrow takes no adapter of rank 32"):
        loraplan.solve(
            small_problem([(32, 1.0), (8, 1.0)], counts=(2, 2), profiles=profiles, reserve=True), oracle="fluid"
        )


def test_replicas_of_an_adapter_never_meet() -> None:
    problem = small_problem([(8, 4.0), (8, 3.0), (8, 2.0)], counts=(6,), reserve=True, replicas={"a0": 2})
    plan = loraplan.solve(problem, "best_fit", oracle="fluid")
    assert plan.complete, plan.reason
    for left in left_after_each_loss(plan).values():  # a plan that names an adapter twice on a GPU is refused
        assert sum(adapter.share for gpu in left.gpus for adapter in gpu.adapters if adapter.name == "a0") == 1.0


def test_losses_that_a_plan_knows_nothing_of() -> None:
    plan = loraplan.solve(small_problem([(8, 1.0)]), "best_fit", oracle="fluid")
    with pytest.raises(BadInputError, match="solve with constraints"):
        without(plan, "gpu-0")
    with pytest.raises(BadInputError, match="the plan has no GPU 'gpu-1'; did you mean 'gpu-0'"):
        without(plan, "gpu-1")


@pytest.mark.slow
def test_on_recorded_traffic_no_gpu_starves_after_any_loss() -> None:
    """256 adapters of the Azure trace, planned on one half hour; in the twin, on the next."""
    trace = data_file("traces/azure_llm_2023_conv.csv")
    changes = [f"workload.trace={trace}", "constraints.reserve=true", "solver=best_fit"]
    plan = loraplan.solve_config(load_config(ROOT / "examples" / "azure-256.yaml", changes))
    assert plan.complete, plan.reason
    assert validate(plan, None, 1).starved_gpus == 0
    for lost, left in left_after_each_loss(plan).items():
        assert validate(left, None, 1).starved_gpus == 0, lost
    made = recorded(plan)
    assert [made.problem.max_rank(load.gpu_type, load.adapters) for load in made.loads] == [32] * len(plan.gpus)
