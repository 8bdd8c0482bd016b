"""Explanations of plans, where the binding resource and everybody's part are known."""

from __future__ import annotations

import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from support import scarce
from support.oracles import TokenBudgetOracle, TokenBudgetParams, small_problem

from loraplan.api import solve, solve_config
from loraplan.config import Config, parse_config
from loraplan.constraints import Constraints
from loraplan.errors import BadInputError
from loraplan.explain import Explanation, Gain, binding, explain, planned_adapters, planned_problem
from loraplan.headroom import FINE_FACTORS, Headroom
from loraplan.plan import Plan
from loraplan.problem import GPULoad
from loraplan.profiles import Profile, load_profile

H100 = load_profile("h100-64gb/llama-3.1-8b")


@pytest.fixture(autouse=True)
def scarce_oracle(monkeypatch: pytest.MonkeyPatch) -> None:
    scarce.install(monkeypatch)


def config_of(
    folder: Path, adapters: list[tuple[int, float]], profile: Profile = H100, count: int = 1, **settings: Any
) -> Config:
    """A config of adapters a0, a1, ..., given as (rank, rate), of 200 tokens each way."""
    rows = [f"a{i},{rank},{rate},200,200\n" for i, (rank, rate) in enumerate(adapters)]
    (folder / "table.csv").write_text("name,rank,rate,tokens_in,tokens_out\n" + "".join(rows))
    (folder / "server.yaml").write_text(yaml.safe_dump(profile.model_dump(mode="json", exclude_none=True)))
    data = {
        "workload": {"adapters": "table.csv", "lengths": {"law": "constant"}},
        "fleet": [{"profile": "server.yaml", "count": count}],
        "solver": {"name": "best_fit"},
    }
    return parse_config(data | settings, folder=folder)


def scarce_spec(resource: str, per_unit: float) -> dict[str, Any]:
    return {"name": "scarce", "resource": resource, "per_unit": per_unit}


def part_of(profile: Profile, name: str, **changes: Any) -> Profile:
    return profile.model_copy(update={name: getattr(profile, name).model_copy(update=changes)})


def gain(found: Explanation, resource: str, gpu: int = 0) -> float:
    """Headroom with more of a resource / headroom."""
    (mine,) = [gain for gain in found.gpus[gpu].gains if gain.resource == resource]
    return mine.headroom / found.gpus[gpu].headroom


# ---- headroom ----


def test_headroom_is_found_between_the_factors() -> None:
    problem = small_problem([(8, 2.0), (8, 6.0)])
    loads = [GPULoad(0, (0,), 1), GPULoad(0, (0, 1), 2)]
    params = TokenBudgetParams()
    capacity = TokenBudgetOracle(problem.scaled(100.0), params).predict(loads).throughput_tok_s
    expected = capacity / np.array([800.0, 3200.0]) / 0.9
    found = Headroom(problem, TokenBudgetOracle, params, FINE_FACTORS, keep=False).within(loads)
    np.testing.assert_allclose(found, expected, rtol=1e-5)


def test_headroom_knows_the_other_limits() -> None:
    problem = replace(small_problem([(8, 2.0)]), constraints=Constraints(itl_ms=50.0))
    load = GPULoad(0, (0,), 1)
    params = TokenBudgetParams(per_slot=0.0, per_rank=0.0)
    headroom = Headroom(problem, TokenBudgetOracle, params, FINE_FACTORS)
    (found,) = headroom.within([load])  # ITL is 10 + 100 * use + 0.1
    assert found == pytest.approx(0.399 * 10_000 / 800, rel=1e-4)
    (starving,) = headroom.of([load])
    assert starving > 2 * found


# ---- what binds ----


@pytest.mark.parametrize(
    ("resource", "per_unit"),
    [
        ("kv", 1e-4),
        ("slots", 4.0),
        ("tokens", 0.01),
        ("seqs", 0.1),
        ("loads", 100.0),
        ("steps", 20.0),
        ("nothing", 1.0),
    ],
)
def test_the_scarce_resource_binds(tmp_path: Path, resource: str, per_unit: float) -> None:
    profile = part_of(H100, "limits", max_num_seqs=256, max_num_batched_tokens=2048)
    config = config_of(tmp_path, [(8, 2.0)] * 5, profile, oracle=scarce_spec(resource, per_unit))
    plan = solve_config(config)
    found = explain(plan)
    (gpu,) = found.gpus
    assert gpu.binding == ("none" if resource == "nothing" else resource)
    assert (gpu.id, gpu.slots, gpu.adapters) == ("gpu-0", plan.gpus[0].slots, 5)
    assert gpu.use == pytest.approx(1 / gpu.headroom)
    if resource == "nothing":
        assert gpu.at_least
        assert gpu.headroom == pytest.approx(20, rel=0.01)
    elif resource != "slots":
        assert gain(found, resource) == pytest.approx(1.1, rel=0.02)
    others = {"kv", "slots", "tokens", "seqs", "loads"} - {resource} - ({"slots"} if resource == "kv" else set())
    assert all(gain(found, other) == pytest.approx(1.0, abs=2e-3) for other in others)
    if resource not in ("loads", "nothing"):  # steps help whatever binds, and are named only if nothing else does
        assert gain(found, "steps") == pytest.approx(1.1, rel=1e-3)


def test_a_wide_adapter_binds_by_its_rank(tmp_path: Path) -> None:
    config = config_of(tmp_path, [(8, 1.0), (8, 1.0), (32, 1.0)], oracle=scarce_spec("rank", 200.0))
    found = explain(solve_config(config))
    (gpu,) = found.gpus
    assert gpu.binding == "rank"
    assert gpu.gains[0].change == "a2 of rank 8 instead of 32"
    assert gain(found, "rank") == pytest.approx(4.0, rel=1e-3)
    # leaving out a2 frees 3 / headroom(32) - 2 / headroom(8), any of the others 1 / headroom(32) of requests
    parts = {one.name: one.part for one in found.adapters}
    freed = {"a0": 1 * 32, "a1": 1 * 32, "a2": 3 * 32 - 2 * 8}
    for name, one in freed.items():
        assert parts[name] == pytest.approx(one / sum(freed.values()), rel=1e-3)


def test_two_wide_adapters_share_what_neither_costs_alone(tmp_path: Path) -> None:
    config = config_of(tmp_path, [(8, 1.0), (32, 1.0), (32, 1.0)], oracle=scarce_spec("rank", 200.0))
    found = explain(solve_config(config))
    assert "rank" not in [gain.resource for gain in found.gpus[0].gains]
    assert [one.part for one in found.adapters] == pytest.approx([1 / 3] * 3, rel=1e-3)


def test_without_any_requests_nothing_binds(tmp_path: Path) -> None:
    found = explain(solve_config(config_of(tmp_path, [(8, 0.0), (16, 0.0)])))
    assert found.gpus[0].binding == "none"
    assert sum(one.part for one in found.adapters) == pytest.approx(1.0)


SHORT_OF: dict[str, tuple[Profile, int]] = {
    "kv": (part_of(part_of(H100, "limits", max_model_len=2048), "kv", tokens=3e4, per_slot=0.0), 64),
    "slots": (H100, 12),
    "seqs": (part_of(H100, "limits", max_num_seqs=24), 64),
    "tokens": (part_of(H100, "limits", max_num_seqs=64, max_num_batched_tokens=64), 64),
    "steps": (
        part_of(part_of(H100, "kv", tokens=1e8), "limits", max_num_seqs=10_000, max_num_batched_tokens=10**6),
        64,
    ),
}


@pytest.mark.parametrize("resource", SHORT_OF)
def test_what_binds_a_server_of_the_fluid_oracle(tmp_path: Path, resource: str) -> None:
    profile, slots = SHORT_OF[resource]
    config = config_of(
        tmp_path, [(8, 0.05)] * 64, profile, solver={"name": "best_fit", "slots": [slots]}, oracle="fluid"
    )
    found = explain(solve_config(config))
    assert found.oracle == "fluid"
    assert found.gpus[0].binding == resource


def test_a_limit_is_named_before_steps_only_if_it_matters() -> None:
    def gains(kv: float, steps: float) -> list[Gain]:
        return [Gain("kv", "", kv), Gain("steps", "", steps)]

    assert binding(1.0, gains(1.02, 1.1)) == "kv"
    assert binding(1.0, gains(1.005, 1.1)) == "steps"
    assert binding(1.0, gains(1.0, 1.0)) == "none"
    assert binding(0.0, gains(0.5, 0.0)) == "kv"  # it does not even start, but would with more
    assert binding(1.0, []) == "none"


# ---- what adapters cost ----


def test_adapters_share_a_gpu_as_they_use_it(tmp_path: Path) -> None:
    rates = [0.5, 1.0, 1.0, 2.5]
    config = config_of(tmp_path, [(8, rate) for rate in rates], oracle=scarce_spec("steps", 10.0))
    plan = solve_config(config)
    found = explain(plan)
    parts = {one.name: one.part for one in found.adapters}
    assert [parts[f"a{i}"] for i in range(4)] == pytest.approx(np.array(rates) / 5.0, rel=1e-3)
    assert found.adapters[0].name == "a3"
    assert sum(one.use for one in found.adapters) == pytest.approx(found.gpus[0].use)
    assert sum(one.cost or 0.0 for one in found.adapters) == pytest.approx(1.0)
    assert found.unit == "GPUs"


def test_costs_are_in_the_unit_of_the_objective(tmp_path: Path) -> None:
    config = config_of(tmp_path, [(8, 30.0)] * 6, count=4, objective="cost", oracle=scarce_spec("steps", 100.0))
    config = parse_config(config.model_dump(mode="json"), ["fleet.0.price_per_hour=2.5"])
    plan = solve_config(config)
    assert len(plan.gpus) == 2
    found = explain(plan)
    assert found.unit == "per hour"
    assert sum(one.cost or 0.0 for one in found.adapters) == pytest.approx(5.0)
    for gpu in plan.gpus:
        mine = [one for one in found.adapters if one.gpu == gpu.id]
        assert {one.name for one in mine} == {adapter.name for adapter in gpu.adapters}
        assert sum(one.part for one in mine) == pytest.approx(1.0)


def test_a_replica_is_charged_for_its_share(tmp_path: Path) -> None:
    config = config_of(tmp_path, [(8, 30.0), (8, 1.0)], count=3, oracle=scarce_spec("steps", 20.0))
    plan = solve_config(config)
    assert [adapter.share for gpu in plan.gpus for adapter in gpu.adapters if adapter.name == "a0"] == [0.5, 0.5]
    found = explain(plan)
    halves = [one for one in found.adapters if one.name == "a0"]
    assert [one.rate for one in halves] == [15.0, 15.0]
    assert sum(one.rate for one in found.adapters) == 31.0
    for gpu in found.gpus:
        rate = sum(one.rate for one in found.adapters if one.gpu == gpu.id)
        assert gpu.headroom == pytest.approx(20.0 / 0.9 / rate, rel=1e-4)


def test_the_order_of_the_adapters_does_not_matter(tmp_path: Path) -> None:
    adapters = [(8, 0.3), (16, 0.1), (8, 0.7), (32, 0.2), (8, 0.3)]
    plan = solve_config(config_of(tmp_path, adapters))
    turned = plan.model_copy(
        update={"gpus": tuple(gpu.model_copy(update={"adapters": gpu.adapters[::-1]}) for gpu in plan.gpus)}
    )
    first, again = explain(plan), explain(turned)
    assert [one.name for one in first.adapters] == [one.name for one in again.adapters]
    assert [one.part for one in first.adapters] == pytest.approx([one.part for one in again.adapters], rel=1e-6)


# ---- what is judged ----


def test_headroom_of_the_workload_and_reserve_are_part_of_what_is_judged(tmp_path: Path) -> None:
    config = config_of(tmp_path, [(8, 9.0), (8, 9.0), (32, 9.0)], count=3, oracle=scarce_spec("rank", 900.0))
    plan = solve_config(
        parse_config(config.model_dump(mode="json"), ["workload.headroom=1.5", "constraints.reserve=true"])
    )
    assert len(plan.gpus) > 1
    assert {a.rate for a in planned_adapters(plan).values()} == {13.5}
    for gpu, one in zip(plan.gpus, explain(plan).gpus, strict=True):
        assert gpu.max_rank == 32  # even where all adapters are narrow: it takes over others
        assert one.headroom == pytest.approx(900 / 32 / 0.9 / (13.5 * len(gpu.adapters)), rel=1e-4)


def test_a_server_that_takes_a_larger_rank_than_it_needs_is_judged_as_it_is(tmp_path: Path) -> None:
    plan = solve_config(config_of(tmp_path, [(8, 1.0), (8, 1.0)], oracle=scarce_spec("rank", 200.0)))
    wide = plan.model_copy(update={"gpus": tuple(gpu.model_copy(update={"max_rank": 32}) for gpu in plan.gpus)})
    assert explain(plan).gpus[0].headroom == pytest.approx(4 * explain(wide).gpus[0].headroom, rel=1e-4)


def test_another_oracle_and_another_workload(tmp_path: Path) -> None:
    config = config_of(tmp_path, [(8, 1.0)] * 3, oracle=scarce_spec("steps", 10.0))
    plan = solve_config(config)
    assert explain(plan, oracle="fluid").oracle == "fluid"
    twice = parse_config(config.model_dump(mode="json"), ["workload.rate_scale=2"])
    assert explain(plan, twice).gpus[0].headroom == pytest.approx(explain(plan).gpus[0].headroom / 2, rel=1e-4)


def test_the_problem_of_a_plan_is_built_again(tmp_path: Path) -> None:
    config = config_of(tmp_path, [(8, 1.0)] * 3, count=5, constraints={"itl_ms": 500.0, "pins": {"a0": H100.name}})
    problem = planned_problem(solve_config(config))
    assert problem.fleet.types[0].profile == H100
    assert problem.fleet.count == 5
    assert problem.constraints.itl_ms == 500.0
    assert [adapter.name for adapter in problem.adapters] == ["a0", "a1", "a2"]


def test_progress_ends_where_it_was_said_to(tmp_path: Path) -> None:
    seen: list[tuple[int, int]] = []
    explain(solve_config(config_of(tmp_path, [(8, 1.0)] * 3)), on_progress=lambda *now: seen.append(now))
    assert seen == sorted(seen)
    assert 0.7 < seen[-1][0] / seen[-1][1] <= 1


def test_bad_input(tmp_path: Path) -> None:
    config = config_of(tmp_path, [(8, 1.0), (8, 2.0)])
    plan = solve_config(config)
    with pytest.raises(BadInputError, match="adapter 'a1' of the plan is not in the workload"):
        explain(plan, config_of(tmp_path, [(8, 1.0)]))
    with pytest.raises(BadInputError, match="adapter 'a1' has rank 16 in the workload, 8 in the plan"):
        explain(plan, config_of(tmp_path, [(8, 1.0), (16, 1.0)]))
    with pytest.raises(BadInputError, match="has changed since the plan was made"):
        explain(plan)
    with pytest.raises(BadInputError, match="records no config"):
        explain(solve(small_problem([(8, 1.0)])))
    with pytest.raises(BadInputError, match="no complete plan to explain: its status is unknown"):
        explain(plan.model_copy(update={"status": "unknown", "reason": "it was stopped"}))


def test_a_thousand_adapters_take_seconds() -> None:
    generate = {"count": 1000, "ranks": [8, 16, 32], "total_rate": 60, "input_tokens": 200, "output_tokens": 200}
    data = {
        "workload": {"generate": generate | {"popularity": {"law": "dirichlet", "alpha": 0.5}}},
        "fleet": [{"profile": "h100-64gb/llama-3.1-8b", "count": 20}],
        "solver": "best_fit",
    }
    plan: Plan = solve_config(parse_config(data))
    started = time.monotonic()
    found = explain(plan)
    assert time.monotonic() - started < 60  # it takes about 4 s; the machine may be busy
    assert len(found.adapters) == 1000
    assert all(0 <= one.part <= 1 for one in found.adapters)
