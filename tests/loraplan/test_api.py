"""The Python front door: names in, a plan out, whatever ends the search."""

from __future__ import annotations

import subprocess
import sys
from functools import cache
from pathlib import Path
from typing import Any

import pytest
from support import plugins
from support.oracles import small_problem

import loraplan
from loraplan.config import parse_config
from loraplan.errors import BadInputError, PluginError
from loraplan.oracle import ORACLES
from loraplan.plan import Plan
from loraplan.problem import GPULoad, Problem, ProblemBuilder
from loraplan.registry import Entry
from objectives import OBJECTIVES
from solvers import SOLVERS, Search, Solution, Solver
from solvers.greedy import GreedyParams


@cache
def problem() -> Problem:
    """Adapters for more than one GPU."""
    return small_problem([(8, 1.0 + i % 4) for i in range(40)])


def loads(plan: Plan) -> list[Any]:
    return [(gpu.id, gpu.profile, gpu.slots, gpu.max_rank, gpu.adapters) for gpu in plan.gpus]


@pytest.fixture
def third_party(monkeypatch: pytest.MonkeyPatch) -> None:
    plugins.install(monkeypatch)


# ---- plans ----


def test_a_plan_places_every_adapter_once_and_says_how_it_came_about() -> None:
    plan = loraplan.solve(problem(), solver="greedy", objective="gpu_count", seed=1)
    placed = [adapter for gpu in plan.gpus for adapter in gpu.adapters]
    assert plan.complete
    assert sorted(adapter.name for adapter in placed) == sorted(adapter.name for adapter in problem().adapters)
    by_name = {adapter.name: adapter for adapter in problem().adapters}
    assert all((by_name[a.name].rank, by_name[a.name].rate) == (a.rank, a.rate) for a in placed)
    assert {adapter.share for adapter in placed} == {1.0}
    assert len(plan.gpus) > 1
    assert plan.objective.value == len(plan.gpus)
    assert plan.objective.unit == "GPUs"
    assert (plan.solver.name, plan.solver.seed, plan.oracle.name) == ("greedy", 1, "surrogate")
    assert plan.solver.params["test_points"][0] == 8
    assert all(gpu.predicted.served_fraction >= plan.provenance.served_fraction for gpu in plan.gpus)
    assert set(plan.provenance.profiles) == {"type0"}
    assert (plan.unplaced, plan.reason) == ((), "")


@pytest.mark.parametrize("solver", ["greedy", "best_fit"])
@pytest.mark.parametrize("oracle", ["fluid", {"name": "twin", "horizon_s": 200}])
def test_the_same_seed_gives_the_same_plan(solver: str, oracle: Any) -> None:
    first, again = (loraplan.solve(problem(), solver=solver, oracle=oracle, seed=3) for _ in range(2))
    assert [gpu.model_dump() for gpu in first.gpus] == [gpu.model_dump() for gpu in again.gpus]
    assert first.complete


def test_settings_go_to_whom_they_are_for_and_into_the_plan() -> None:
    plan = loraplan.solve(
        problem(), solver={"name": "best_fit", "slots": [7]}, oracle={"name": "twin", "horizon_s": 90}
    )
    assert {gpu.slots for gpu in plan.gpus} == {7}
    assert plan.solver.params == {"slots": (7,)}
    assert plan.oracle.params["horizon_s"] == 90


def test_a_config_is_solved_as_it_says_and_recorded(tmp_path: Path) -> None:
    table = tmp_path / "adapters.csv"
    table.write_text("name,rank,rate,tokens_in,tokens_out\nx,8,1.0,200,100\ny,16,3.0,20,10\n")
    settings = {
        "workload": {"adapters": "adapters.csv"},
        "fleet": [{"profile": "h100-64gb/qwen-2.5-7b", "count": 2}],
        "solver": "best_fit",
        "seed": 5,
    }
    config = parse_config(settings, folder=tmp_path)
    plan = loraplan.solve_config(config)
    assert (plan.solver.name, plan.solver.seed) == ("best_fit", 5)
    assert list(plan.provenance.inputs) == [str(table)]
    assert parse_config(plan.provenance.config) == config
    assert loads(loraplan.solve(loraplan.build(config).problem, solver="best_fit", seed=5)) == loads(plan)


@pytest.mark.parametrize(
    ("given", "complaint"),
    [
        ({"solver": "gredy"}, "^unknown solver 'gredy'; did you mean 'greedy'\\?"),
        ({"objective": "gpu_cont"}, "^unknown objective 'gpu_cont'; did you mean 'gpu_count'\\?"),
        ({"oracle": "fluit"}, "^unknown oracle 'fluit'; did you mean 'fluid'\\?"),
        ({"solver": {"name": "best_fit", "slot": [3]}}, "^solver 'best_fit' has no setting 'slot'; did you mean"),
        ({"solver": {"name": "best_fit", "slots": [0]}}, "^best_fit: slots must be numbers of at least 1"),
        ({"oracle": {"name": "twin", "seeds": "x"}}, "^oracle 'twin', setting seeds: "),
        ({"objective": {"nam": "gpu_count"}}, "^objective: expected a name, or a mapping with a name"),
        ({"time_limit_s": -1}, "^time_limit_s must be at least 0"),
        ({"time_limit_s": float("nan")}, "^time_limit_s must be at least 0"),
    ],
)
def test_wrong_names_and_settings_are_named(given: dict[str, Any], complaint: str) -> None:
    with pytest.raises(BadInputError, match=complaint) as error:
        loraplan.solve(problem(), **given)
    assert error.value.exit_code == 2


# ---- no plan ----


def test_an_adapter_too_hot_for_any_gpu_is_named_with_the_limit() -> None:
    for solver in ("greedy", "best_fit"):
        plan = loraplan.solve(small_problem([(8, 1.0), (8, 5000.0)]), solver=solver)
        assert plan.status == "infeasible"
        assert plan.objective.value is None
        assert "a1" in plan.unplaced
        assert "carries adapter a1 (rank 8, 5000 req/s) even alone (served fraction 0." in plan.reason
        assert "is below 0.9 with 1 slot on type0" in plan.reason


def test_more_adapters_than_the_fleet_holds_are_counted() -> None:
    plan = loraplan.solve(small_problem([(8, 2.0)] * 64, counts=(1,)), solver="best_fit")
    placed = sum(len(gpu.adapters) for gpu in plan.gpus)
    assert plan.status == "unknown"
    assert plan.objective.value is plan.objective.gap is None
    assert 0 < placed == 64 - len(plan.unplaced) < 64
    assert f"{64 - placed} of 64 adapters (first: a" in plan.reason
    assert "when the only GPU of the fleet was used" in plan.reason


# ---- searches that are stopped ----


@pytest.mark.parametrize("solver", ["greedy", "best_fit"])
@pytest.mark.parametrize("time_limit_s", [0, 1e-9])
def test_the_time_limit_ends_the_search_with_what_there_is(solver: str, time_limit_s: float) -> None:
    plan = loraplan.solve(problem(), solver=solver, time_limit_s=time_limit_s)
    assert plan.status == "unknown"
    assert plan.reason == "the time limit was reached when 0 of 40 adapters were placed"
    assert len(plan.unplaced) == 40


def test_a_time_limit_that_is_not_reached_changes_nothing() -> None:
    assert loads(loraplan.solve(problem(), time_limit_s=1000.0)) == loads(loraplan.solve(problem()))


@pytest.mark.usefixtures("third_party")
@pytest.mark.parametrize(("solver", "after"), [("greedy", 1), ("greedy", 3), ("best_fit", 1), ("best_fit", 40)])
def test_ctrl_c_ends_the_search_with_what_there_is(solver: str, after: int) -> None:
    capacity = (9_000.0,)
    plan = loraplan.solve(
        problem(), solver=solver, oracle={"name": "interrupted", "after": after, "capacity_tok_s": capacity}
    )
    placed = sum(len(gpu.adapters) for gpu in plan.gpus)
    assert plan.status == "unknown"
    assert plan.reason == f"the search was interrupted when {placed} of 40 adapters were placed"
    assert placed == 40 - len(plan.unplaced)
    assert (placed > 0) == (after > 1)


@pytest.mark.usefixtures("third_party")
def test_ctrl_c_after_the_last_adapter_gives_a_plan() -> None:
    plan = loraplan.solve(small_problem([(8, 1.0)] * 3), solver="interrupted_at_the_end")
    assert plan.status == "feasible"
    assert plan.objective.value == 3


def test_progress_is_told() -> None:
    seen: list[tuple[int, int, int]] = []
    plan = loraplan.solve(problem(), on_progress=lambda *at: seen.append(at))
    assert seen[-1] == (40, 40, len(plan.gpus))
    assert all(placed <= total == 40 for placed, total, _ in seen)


# ---- third parties ----


@pytest.mark.usefixtures("third_party")
def test_plugins_are_used_by_name() -> None:
    settings = {
        "workload": {"generate": {"count": 3, "ranks": [8], "total_rate": 1, "input_tokens": 90, "output_tokens": 9}},
        "fleet": [{"profile": "h100-64gb/llama-3.1-8b", "count": 4}],
        "solver": "one_each",
        "objective": {"name": "rent", "euros": 5},
        "oracle": {"name": "token_budget", "per_slot": 0.25},
    }
    plan = loraplan.solve_config(parse_config(settings))
    assert len(plan.gpus) == 3
    assert (plan.objective.name, plan.objective.value, plan.objective.unit) == ("rent", 15, "EUR/h")
    assert (plan.objective.lower_bound, plan.objective.gap) == (7.5, 0.5)
    assert plan.objective.params == {"euros": 5}
    assert plan.oracle.params["per_slot"] == 0.25
    assert SOLVERS.entry("one_each").origin == "their-package"


def test_plugins_are_gone_when_their_package_is() -> None:
    assert "one_each" not in SOLVERS.names()
    assert "rent" not in OBJECTIVES.names()
    assert "token_budget" not in ORACLES.names()


# ---- the package ----


def test_every_public_name_is_there() -> None:
    for name in loraplan.__all__:
        assert getattr(loraplan, name).__doc__
    with pytest.raises(AttributeError, match=r"^module 'loraplan' has no attribute 'sovle'$"):
        loraplan.sovle  # noqa: B018


def test_the_front_door_opens_only_when_someone_knocks() -> None:
    code = "import sys, loraplan; print(*sorted({name.partition('.')[0] for name in sys.modules}))"
    loaded = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split()
    assert "loraplan" in loaded
    assert not {"numba", "numpy", "scipy", "pydantic", "solvers", "objectives", "twin", "surrogate"} & set(loaded)


class Careless(Solver):
    """Returns whatever it is told to."""

    Params = GreedyParams
    answer = Solution("feasible")

    def __init__(self, params: GreedyParams) -> None:
        """There is nothing to set."""

    def solve(self, search: Search) -> Solution:
        """Return the answer, right or wrong."""
        return self.answer


@pytest.mark.parametrize(
    ("loads", "complaint"),
    [
        ([], "it is called feasible, but 2 of 2 adapters are not placed"),
        ([GPULoad(0, (0, 0), 1)], "adapter a0 is placed 2 times"),
        ([GPULoad(0, (0, 7), 1)], "it places adapters other than 0 to 1"),
        ([GPULoad(0, (0,), 1), GPULoad(0, (1,), 1)], "it uses 2 of 1 h100-64gb/llama-3.1-8b"),
        ([GPULoad(3, (0, 1), 1)], "it uses GPU type 3, which the fleet does not have"),
        ([GPULoad(0, (0, 1), 0)], "a GPU in use has no adapter or no slot"),
        ([GPULoad(0, (0, 1), 10_000)], "the oracle says that GPU 0 does not start or starves"),
    ],
)
def test_what_a_solver_returns_is_checked(
    monkeypatch: pytest.MonkeyPatch, loads: list[GPULoad], complaint: str
) -> None:
    monkeypatch.setattr(Careless, "answer", Solution("feasible", tuple(loads)))
    monkeypatch.setitem(SOLVERS._entries, "careless", Entry("careless", "tests:Careless", "wrong on purpose"))
    monkeypatch.setitem(SOLVERS._loaded, "careless", Careless)
    builder = ProblemBuilder().gpus("h100-64gb/llama-3.1-8b", 1)
    for i in range(2):
        builder.adapter(f"a{i}", 8, 0.1, tokens_in=100, tokens_out=100)
    with pytest.raises(PluginError, match=r"^solver 'careless' returned a wrong plan: ") as raised:
        loraplan.solve(builder.build(), solver="careless")
    assert complaint in str(raised.value)
