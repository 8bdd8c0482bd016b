"""Replanning: few moves, steps that break nothing, and exactly the plan that they lead to."""

from __future__ import annotations

from collections import defaultdict
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from loraplan.api import solve_config
from loraplan.config import Config, build, build_workload, parse_config
from loraplan.errors import BadInputError, NoPlanError
from loraplan.oracle import ORACLES
from loraplan.plan import Plan
from loraplan.problem import GPULoad, Problem
from loraplan.registry import choose
from loraplan.replan import Replanned, in_the_twin, replan
from loraplan.run import Run
from objectives import OBJECTIVES
from solvers import SOLVERS

PROFILE = "h100-64gb/llama-3.1-8b"
Rates = dict[str, tuple[int, float]]
"""Adapter -> rank and rate."""
BEFORE: Rates = {f"t{i}": (rank, 3.0 + i / 2) for i, rank in enumerate([8, 16, 8, 8, 16, 8, 8, 8, 16, 8])}


@pytest.fixture
def folder(tmp_path: Any) -> Any:
    return tmp_path


def config_of(folder: Any, adapters: Rates, count: int = 6, **settings: Any) -> Config:
    table = folder / f"table{len(list(folder.iterdir()))}.csv"
    rows = [f"{name},{rank},{rate},200,200" for name, (rank, rate) in adapters.items()]
    table.write_text("\n".join(["name,rank,rate,tokens_in,tokens_out", *rows]) + "\n")
    workload = {"adapters": str(table), "horizon_s": 300, "lengths": {"law": "constant"}}
    fleet = [{"profile": PROFILE, "count": count, "price_per_hour": 2}]
    return parse_config({"workload": workload, "fleet": fleet, "solver": "best_fit", "oracle": "fluid", **settings})


def run_of(config: Config, objective: Any = "gpu_count") -> Run:
    return Run(choose(SOLVERS, "best_fit"), choose(OBJECTIVES, objective), choose(ORACLES, "fluid"), seed=0)


def moved_to(plan: Plan, config: Config, moves: int, objective: Any = "gpu_count", **more: Any) -> Replanned:
    found = replan(plan, config, run_of(config, objective), moves, **more)
    follow(plan, found, build(config).problem)
    assert len(found.moved) <= moves
    return found


def placement(plan: Plan) -> dict[str, set[str]]:
    return {gpu.id: {adapter.name for adapter in gpu.adapters} for gpu in plan.gpus}


def follow(old: Plan, found: Replanned, problem: Problem) -> None:
    """Do the steps one after another: they lead to the new plan, and each keeps what was kept before it.

    A server is asked with all adapters that are on it at that moment, those that are about to leave among them.
    """
    slots = {gpu.id: gpu.slots for gpu in (*old.gpus, *found.plan.gpus)}
    ranks = {gpu.id: gpu.max_rank for gpu in (*found.plan.gpus, *old.gpus)}  # of a new server: with all that it gets
    oracle = ORACLES.get("fluid")(problem, ORACLES.get("fluid").Params())
    now = {gpu: set(names) for gpu, names in placement(old).items()}
    replicas = {a.name for gpu in (*old.gpus, *found.plan.gpus) for a in gpu.adapters if a.share < 1}

    def kept(gpu: str) -> bool:
        load = GPULoad(0, tuple(sorted(problem.index[name] for name in now[gpu] if name in problem.index)), slots[gpu])
        if not load.adapters:
            return True
        assert max(int(problem.ranks[i]) for i in load.adapters) <= ranks[gpu] or gpu in found.overloaded
        return bool(oracle.predict([load]).keeps(problem.constraints)[0])

    loaded: set[tuple[str, str]] = set()
    for step in found.steps:
        if step.action == "start":
            assert step.gpu not in now
            now[step.gpu] = set()
            assert len(now) <= problem.fleet.count
        elif step.action == "stop":
            assert not {name for name in now.pop(step.gpu) if name in problem.index}
        elif step.action == "load":
            before = kept(step.gpu)
            now[step.gpu].add(step.adapter)
            loaded.add((step.gpu, step.adapter))
            if not replicas:
                assert kept(step.gpu) or not before, step
        elif step.action == "drain":
            assert step.adapter in now[step.gpu]
            assert any(name == step.adapter and gpu != step.gpu for gpu, name in loaded)
        elif step.action == "unload":
            now[step.gpu].remove(step.adapter)
            if step.adapter in problem.index:  # it is served elsewhere by now
                assert any(step.adapter in names for names in now.values())
        else:
            assert step.action == "reload"
            assert step.adapter in now[step.gpu]
    assert now == placement(found.plan)
    new = {gpu.id: gpu for gpu in found.plan.gpus}
    for gpu in old.gpus:
        if gpu.id in new:
            assert (new[gpu.id].slots, new[gpu.id].max_rank) == (gpu.slots, gpu.max_rank)
    everyone = sorted(name for gpu in found.plan.gpus for name in {adapter.name for adapter in gpu.adapters})
    assert sorted(set(everyone)) == sorted(problem.index)


# ---- hotter, colder, new, gone ----


@settings(deadline=None, max_examples=25)
@given(
    st.lists(st.floats(0, 9), min_size=10, max_size=13),
    st.lists(st.sampled_from([8, 16]), min_size=13, max_size=13),
    st.sets(st.integers(0, 9), max_size=4),
    st.integers(0, 8),
    st.sampled_from(["gpu_count", "latency"]),
)
def test_any_change_of_traffic(
    tmp_path_factory: pytest.TempPathFactory,
    rates: list[float],
    ranks: list[int],
    gone: set[int],
    moves: int,
    objective: str,
) -> None:
    """At most so many moves; steps that break nothing and lead to the plan; adapters new, gone, and of other ranks."""
    folder = tmp_path_factory.mktemp("replan")
    plan = solve_config(config_of(folder, BEFORE))
    after: Rates = {f"t{i}": (ranks[i], rate) for i, rate in enumerate(rates) if i not in gone}
    config = config_of(folder, after)
    try:
        found = moved_to(plan, config, moves, objective)
    except NoPlanError as error:  # its rank is beyond what its server takes
        assert "has rank 16 now, above 8" in str(error)
        return
    assert found.plan.reason == "" or "the limits are not kept by" in found.plan.reason
    assert Plan.model_validate(found.plan.model_dump()) == found.plan


def test_the_same_workload_needs_nothing(folder: Any) -> None:
    config = config_of(folder, BEFORE)
    plan = solve_config(config)
    found = moved_to(plan, config, 10)
    assert (found.steps, found.moved, found.overloaded) == ((), (), ())
    assert placement(found.plan) == placement(plan)


def test_hotter_traffic_moves_adapters_away_from_the_overloaded(folder: Any) -> None:
    plan = solve_config(config_of(folder, BEFORE))
    busiest = max(plan.gpus, key=lambda gpu: len(gpu.adapters))
    hot = {adapter.name for adapter in busiest.adapters}
    after = {name: (rank, rate * (1.6 if name in hot else 1.0)) for name, (rank, rate) in BEFORE.items()}
    config = config_of(folder, after)
    found = moved_to(plan, config, 10)
    assert busiest.id in found.overloaded
    assert found.plan.reason == ""
    assert hot.intersection(found.moved)
    none = moved_to(plan, config, 0)
    assert none.moved == ()
    assert none.plan.reason == f"too few moves: the limits are not kept by {busiest.id}"


def test_what_no_move_helps_is_said(folder: Any) -> None:
    plan = solve_config(config_of(folder, BEFORE))
    found = moved_to(plan, config_of(folder, BEFORE | {"t0": (8, 500.0)}), 10)
    assert found.plan.reason.startswith("no move that the others survive helps: the limits are not kept by gpu-")


def test_colder_traffic_empties_servers(folder: Any) -> None:
    plan = solve_config(config_of(folder, BEFORE))
    assert len(plan.gpus) > 1
    config = config_of(folder, {name: (rank, rate / 20) for name, (rank, rate) in BEFORE.items()})
    found = moved_to(plan, config, 10)
    assert len(found.plan.gpus) == 1
    assert [step.action for step in found.steps if step.action in ("start", "stop")] == ["stop"] * (len(plan.gpus) - 1)
    assert found.plan.objective.value == 1


def test_a_server_that_nobody_asks_for_stops_before_another_starts(folder: Any) -> None:
    plan = solve_config(config_of(folder, BEFORE))
    fleet = len(plan.gpus)
    gone = {adapter.name for adapter in plan.gpus[0].adapters}
    after = {name: value for name, value in BEFORE.items() if name not in gone} | {"wide": (128, 5.0)}
    found = moved_to(plan, config_of(folder, after, count=fleet), 3)
    actions = [step.action for step in found.steps]
    assert actions.index("stop") < actions.index("start")


def test_a_new_adapter_that_nothing_takes(folder: Any) -> None:
    plan = solve_config(config_of(folder, BEFORE))
    with pytest.raises(NoPlanError, match="no server in force or on offer takes the new adapter hot"):
        moved_to(plan, config_of(folder, BEFORE | {"hot": (8, 900.0)}), 3)


def test_another_rank_is_loaded_again_or_moves(folder: Any) -> None:
    plan = solve_config(config_of(folder, BEFORE))
    wide = next(gpu for gpu in plan.gpus if gpu.max_rank == 16)
    name = next(adapter.name for adapter in wide.adapters if adapter.rank == 8)
    found = moved_to(plan, config_of(folder, BEFORE | {name: (16, BEFORE[name][1])}), 0)
    assert [(step.action, step.gpu, step.adapter) for step in found.steps] == [("reload", wide.id, name)]
    too_wide = config_of(folder, BEFORE | {name: (32, 1.0)})
    with pytest.raises(NoPlanError, match=f"adapter {name} has rank 32 now, above 16"):
        moved_to(plan, too_wide, 0)
    moved = moved_to(plan, too_wide, 1)
    assert moved.moved == (name,)
    assert "start" in [step.action for step in moved.steps]


# ---- constraints ----


@pytest.mark.parametrize("moves", [2, 6])
def test_groups_and_pins_are_kept(folder: Any, moves: int) -> None:
    limits = {"together": [["t0", "t3"]], "separate": [["t1", "t2", "t4"]], "pins": {"t5": PROFILE}}
    plan = solve_config(config_of(folder, BEFORE, constraints=limits))
    hotter = {name: (rank, rate * 1.3) for name, (rank, rate) in BEFORE.items()} | {"new": (8, 1.0)}
    found = moved_to(plan, config_of(folder, hotter, constraints=limits), moves)
    for names in placement(found.plan).values():
        assert len(names & {"t1", "t2", "t4"}) <= 1
        assert names.isdisjoint({"t0", "t3"}) or {"t0", "t3"} <= names


def test_a_separation_that_is_new_moves_who_breaks_it(folder: Any) -> None:
    plan = solve_config(config_of(folder, BEFORE))
    crowd = max(placement(plan).values(), key=len)
    first, second = sorted(crowd)[:2]
    config = config_of(folder, BEFORE, constraints={"separate": [[first, second]]})
    found = moved_to(plan, config, 1, {"name": "migration", "placement": [sorted(crowd)]})
    assert found.plan.reason == ""
    assert set(found.moved) <= {first, second}
    assert not any({first, second} <= names for names in placement(found.plan).values())


def test_a_new_member_of_a_group_joins_it(folder: Any) -> None:
    plan = solve_config(config_of(folder, BEFORE))
    config = config_of(folder, BEFORE | {"new": (8, 0.1)}, constraints={"together": [["t0", "new"]]})
    found = moved_to(plan, config, 2)
    assert next(names for names in placement(found.plan).values() if "t0" in names) >= {"t0", "new"}


def test_groups_are_kept_not_made(folder: Any) -> None:
    plan = solve_config(config_of(folder, BEFORE))
    apart = [sorted(names)[0] for names in placement(plan).values()][:2]
    with pytest.raises(BadInputError, match="replan keeps groups, it does not make them"):
        moved_to(plan, config_of(folder, BEFORE, constraints={"together": [apart]}), 5)


def test_limits_on_the_fleet_that_the_servers_in_force_exceed(folder: Any) -> None:
    plan = solve_config(config_of(folder, BEFORE))
    used = len(plan.gpus)
    assert used > 1
    found = moved_to(plan, config_of(folder, BEFORE, constraints={"max_gpus": 1}), 0)
    assert f"{used} servers are in use, but max_gpus is 1" in found.plan.reason
    found = replan(plan, config_of(folder, BEFORE, count=1), run_of(config_of(folder, BEFORE)), 0)
    assert f"{used} servers of {PROFILE} are in use, of 1 in the fleet" in found.plan.reason


def test_a_reserve_is_told_or_missed(folder: Any) -> None:
    limits = {"reserve": True}
    plan = solve_config(config_of(folder, BEFORE, constraints=limits))
    found = moved_to(plan, config_of(folder, BEFORE, constraints=limits), 0)
    assert set(found.plan.fallbacks) == set(placement(plan))
    hotter = {name: (rank, rate * 1.25) for name, (rank, rate) in BEFORE.items()}
    assert "would not be survived" in moved_to(plan, config_of(folder, hotter, constraints=limits), 0).plan.reason


def test_replicas_stay_where_they_are(folder: Any) -> None:
    limits = {"replicas": {"t9": 2}}
    plan = solve_config(config_of(folder, BEFORE, constraints=limits))
    found = moved_to(plan, config_of(folder, BEFORE | {"t9": (8, 9.0)}, constraints=limits), 3)
    shares = defaultdict(float)
    for gpu in found.plan.gpus:
        for adapter in gpu.adapters:
            shares[adapter.name] += adapter.share
    assert shares["t9"] == pytest.approx(1.0)
    assert sum("t9" in names for names in placement(found.plan).values()) == 2


# ---- what it is asked and what it records ----


def test_no_complete_plan_no_replan(folder: Any) -> None:
    config = config_of(folder, BEFORE | {"t0": (8, 900.0)}, count=1)
    plan = solve_config(config)
    with pytest.raises(BadInputError, match="there is no complete plan to begin with"):
        moved_to(plan, config, 3)


def test_profiles_of_the_plan_are_in_the_fleet(folder: Any) -> None:
    plan = solve_config(config_of(folder, BEFORE))
    other = config_of(folder, BEFORE, fleet=[{"profile": "h100-64gb/qwen-2.5-7b", "count": 4}])
    with pytest.raises(BadInputError, match="not in the fleet"):
        moved_to(plan, other, 3)


def test_the_new_plan_says_how_it_was_made(folder: Any) -> None:
    plan = solve_config(config_of(folder, BEFORE))
    config = config_of(folder, BEFORE, constraints={"served_fraction": 0.8})
    run = Run(
        choose(SOLVERS, "greedy"),
        choose(OBJECTIVES, "latency"),
        choose(ORACLES, {"name": "fluid", "slot_wait_s": 20.0}),
        seed=3,
    )
    made = replan(plan, config, run, 2).plan
    assert (made.solver.name, made.objective.name) == ("replan", "latency")
    assert made.oracle.params["slot_wait_s"] == 20.0
    assert made.provenance.served_fraction == 0.8
    assert made.provenance.config == config.model_dump(mode="json")
    assert list(map(str, made.provenance.inputs)) == [str(config.workload.adapters)]


def test_the_twin_has_a_veto(folder: Any) -> None:
    plan = solve_config(config_of(folder, BEFORE))
    hotter = config_of(folder, {name: (rank, rate * 1.3) for name, (rank, rate) in BEFORE.items()})
    refused = moved_to(plan, hotter, 5, fits=lambda gpu, profile: False)
    assert refused.moved == ()
    asked: list[str] = []

    def fits(gpu: Any, profile: Any) -> bool:
        asked.append(gpu.id)
        return True

    moved_to(plan, hotter, 5, fits=fits)
    assert asked
    fits = in_the_twin(build_workload(hotter), 0.9)
    (light, *_), (heavy, *_) = (
        sorted(plan.gpus, key=lambda gpu: sign * sum(a.rate * a.share for a in gpu.adapters)) for sign in (1, -1)
    )
    profile = plan.provenance.profiles[PROFILE]
    assert fits(light.model_copy(update={"slots": 8}), profile)
    everyone = tuple(adapter for gpu in plan.gpus for adapter in gpu.adapters)
    assert not fits(heavy.model_copy(update={"adapters": everyone, "slots": 1, "max_rank": 16}), profile)


def test_moves_make_the_plan_better_for_its_objective(folder: Any) -> None:
    config = config_of(folder, BEFORE)
    plan = solve_config(config)
    values = []
    for moves in (0, 1, 3, 6):
        found = moved_to(plan, config, moves, "latency")
        values.append(found.plan.objective.value or 0.0)
    assert np.all(np.diff(values) <= 1e-9)
    assert values[-1] < values[0]
