"""What objectives are worth: figures worked out by hand, and what holds for every plan."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import replace
from itertools import permutations
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from support.oracles import server, small_problem

import loraplan
from loraplan.errors import BadInputError
from loraplan.oracle import Predictions
from loraplan.plan import Plan
from loraplan.problem import GPULoad, Problem
from loraplan.registry import choose
from objectives import OBJECTIVES
from objectives.base import Objective

# Rates 1 and 3 req/s, each request 200 + 200 tokens, on two GPUs of two types (prices 2 and 3).
PROBLEM = small_problem([(8, 1.0), (16, 3.0)], counts=(2, 1))
LOADS = (GPULoad(0, (0,), 1), GPULoad(1, (1,), 1))
SAYS = Predictions(
    starts=np.array([True, True]),
    served_fraction=np.array([1.0, 0.9]),
    throughput_tok_s=np.array([400.0, 1080.0]),
    itl_ms=np.array([10.0, 30.0]),
    ttft_s=np.array([0.1, math.inf]),
    kv_utilisation=np.array([0.1, 0.9]),
    itl_p95_ms=np.array([20.0, 40.0]),
    headroom=np.array([2.0, 0.5]),
)


def objective(spec: str | dict[str, Any]) -> Objective:
    chosen = choose(OBJECTIVES, spec)
    made: Objective = chosen.kind(chosen.params)
    return made


def costs(spec: str | dict[str, Any], problem: Problem = PROBLEM, loads: Sequence[GPULoad] = LOADS) -> list[float]:
    found: list[float] = objective(spec).gpu_costs(problem, loads, SAYS).tolist()
    return found


@pytest.mark.parametrize(
    ("spec", "expected"),
    [
        ("gpu_count", [1, 1]),
        ("cost", [2, 3]),
        ("latency", [0.25 * 10, 0.75 * 30]),
        ({"name": "latency", "figure": "itl_p95_ms"}, [0.25 * 20, 0.75 * 40]),
        ({"name": "latency", "figure": "ttft_s"}, [0.25 * 0.1, 0.75 * 1e6]),
        ({"name": "latency", "figure": "ttft_p95_s"}, [0.25 * 0.1 * math.log(20), 0.75 * 1e6]),
        ({"name": "headroom", "sharpness": 3}, [0.5**3, 2**3]),
        ({"name": "weighted", "terms": [{"objective": "cost", "weight": 2}, {"objective": "latency", "weight": 0.1}]},
         [2 * 2 + 0.1 * 2.5, 2 * 3 + 0.1 * 22.5]),
        # three GPUs of at most 1,000 each: all less than 10,000
        ("lexicographic", [1 + 2.5e-4, 1 + 22.5e-4]),
        ({"name": "lexicographic", "objectives": ["cost", "gpu_count", "latency"], "ranges": [2, 30]},
         [2 + 0.1 + 0.1 * 0.01 * 2.5, 3 + 0.1 + 0.1 * 0.01 * 22.5]),
    ],
)  # fmt: skip
def test_figures_worked_out_by_hand(spec: str | dict[str, Any], expected: list[float]) -> None:
    assert costs(spec) == pytest.approx(expected)


def test_energy_is_idle_power_and_what_steps_draw_more_while_a_request_runs() -> None:
    power = server().power
    assert power is not None
    # on the first GPU 200 tokens/s x 10 ms: 2 requests run in the mean, none with probability exp(-2)
    running = np.array([200 * 0.010, 600 * 0.9 * 0.030])
    watts = power.idle + (power.busy - power.idle) * (1 - np.exp(-running))
    assert costs("energy") == pytest.approx(watts.tolist())
    # a watt is 1 / 3.6 mWh per second; 1,600 tokens arrive in one
    assert costs({"name": "energy", "per": "wh_per_1000_tokens"}) == pytest.approx((watts / 3600 / 1.6).tolist())


def test_a_gpu_that_nobody_asks_draws_idle_power_and_makes_nobody_wait() -> None:
    problem = small_problem([(8, 0.0), (8, 1.0)])
    nothing = replace(SAYS, itl_ms=np.array([math.nan, 10.0]), ttft_s=np.array([math.nan, 1.0]), ttft_p95_s=None)
    loads = (GPULoad(0, (0,), 1), GPULoad(0, (1,), 1))
    power = server().power
    assert power is not None
    assert objective("energy").gpu_costs(problem, loads, nothing)[0] == power.idle
    for figure in ("itl_ms", "ttft_s", "ttft_p95_s"):
        assert objective({"name": "latency", "figure": figure}).gpu_costs(problem, loads, nothing)[0] == 0


@pytest.mark.parametrize("name", sorted(set(OBJECTIVES.names()) - {"migration"}))
def test_no_loads_cost_nothing(name: str) -> None:
    assert objective(name).gpu_costs(PROBLEM, (), Predictions.none()).shape == (0,)


def test_what_an_objective_lacks_is_said() -> None:
    profile = server()
    free = loraplan.ProblemBuilder().adapter("a", 8, 1, 10, 10).gpus(profile, 1).build()
    with pytest.raises(BadInputError, match="server in the fleet has no price_per_hour"):
        costs("cost", free)
    dark = profile.model_copy(update={"power": None})
    with pytest.raises(BadInputError, match="profile server has no power"):
        costs("energy", loraplan.ProblemBuilder().adapter("a", 8, 1, 10, 10).gpus(dark, 1).build())
    silent = replace(SAYS, itl_p95_ms=None)
    with pytest.raises(BadInputError, match="predicts no itl_p95_ms; the oracle 'twin' does"):
        objective({"name": "latency", "figure": "itl_p95_ms"}).gpu_costs(PROBLEM, LOADS, silent)


@pytest.mark.parametrize(
    ("spec", "complaint"),
    [
        ({"name": "latency", "figure": "itl"}, "setting figure"),
        ({"name": "headroom", "sharpness": 0.5}, "sharpness must be 1 to 64"),
        ({"name": "weighted", "terms": []}, "terms must name an objective"),
        ({"name": "weighted", "terms": [{"objective": "cost", "weight": 0}]}, "weight must be above 0"),
        ({"name": "weighted", "terms": [{"objective": "cots", "weight": 1}]}, "did you mean 'cost'"),
        ({"name": "lexicographic", "objectives": ["cost"]}, "must name two at least"),
        ({"name": "lexicographic", "ranges": [1, 2]}, "one for each objective but the first"),
        ({"name": "lexicographic", "ranges": [-1]}, "ranges must be above 0"),
        ({"name": "lexicographic", "objectives": ["cost", {"name": "latency", "figur": "itl_ms"}]},
         "did you mean 'figure'"),
        ("migration", "expected plan, the file of the plan in force, or placement"),
        ({"name": "migration", "plan": "p.json", "placement": [["a"]]}, "expected plan"),
    ],
)  # fmt: skip
def test_settings_that_make_no_sense(spec: str | dict[str, Any], complaint: str) -> None:
    with pytest.raises(BadInputError, match=complaint):
        objective(spec)


# ---- one after another ----

VALUES = st.one_of(st.floats(0, 100), st.just(1e9))
"""Of one GPU; some without end."""


def totals_in_order(rows: Sequence[tuple[int, float]]) -> tuple[float, float]:
    """The number of GPUs, and the sum of latencies that are clipped at the range."""
    return len(rows), sum(min(latency, 1000.0) for _, latency in rows)


@settings(deadline=None)
@given(*(st.lists(VALUES, min_size=1, max_size=12) for _ in range(2)), st.sampled_from([1, 9, 10, 12]))
def test_one_unit_of_the_first_outweighs_all_of_the_next(one: list[float], other: list[float], more: int) -> None:
    """More GPUs are worse whatever they are worth otherwise; of as many, those of the lower total."""
    problem = small_problem([(8, 1.0)] * 12, counts=(max(12, more),))
    goal = objective({"name": "lexicographic", "objectives": ["gpu_count", "latency"], "ranges": [1000]})

    def total(latencies: list[float]) -> float:
        loads = [GPULoad(0, (i,), 1) for i in range(len(latencies))]
        ones = np.ones(len(latencies))
        says = Predictions(ones > 0, ones, ones, np.array(latencies) * 12, ones, ones)
        return float(goal.gpu_costs(problem, loads, says).sum())

    firsts = [totals_in_order([(1, value) for value in values]) for values in (one, other)]
    if firsts[0][0] != firsts[1][0]:
        assert (total(one) < total(other)) == (firsts[0][0] < firsts[1][0])
    elif abs(firsts[0][1] - firsts[1][1]) > 1e-3:
        assert (total(one) < total(other)) == (firsts[0][1] < firsts[1][1])


# ---- migration ----


def migration(placement: Sequence[Sequence[str]]) -> Objective:
    return objective({"name": "migration", "placement": [list(gpu) for gpu in placement]})


def loading(problem: Problem) -> np.ndarray[Any, Any]:
    """Milliseconds to load each adapter, from the profile's constants."""
    times = problem.fleet.types[0].profile.load_ms
    return np.array([times.disk + times.disk_per_rank * a.rank + times.to_gpu for a in problem.adapters])


@st.composite
def two_placements(draw: st.DrawFn) -> tuple[list[list[int]], list[list[int]]]:
    """Seven adapters on up to four GPUs, twice; the first may lack some."""
    homes = [draw(st.lists(st.integers(0, 3), min_size=7, max_size=7)) for _ in range(2)]
    gone = draw(st.sets(st.integers(0, 6), max_size=3))
    old, new = ([[i for i in range(7) if home[i] == gpu] for gpu in range(4)] for home in homes)
    return [kept for gpu in old if (kept := [i for i in gpu if i not in gone])], [gpu for gpu in new if gpu]


@settings(deadline=None)
@given(two_placements())
def test_migration_costs_at_least_what_moves_and_nothing_if_nothing_does(
    case: tuple[list[list[int]], list[list[int]]],
) -> None:
    old, new = case
    problem = small_problem([(8, 1.0), (16, 1.0), (8, 2.0), (32, 1.0), (8, 0.5), (64, 1.0), (16, 0.2)])
    ms = loading(problem)
    if not old:
        return
    goal = migration([[problem.adapters[i].name for i in gpu] for gpu in old])
    loads = [GPULoad(0, tuple(gpu), 8) for gpu in new]
    says = Predictions(*[np.ones(len(loads))] * 6)  # type: ignore[arg-type]
    cost = float(goal.gpu_costs(problem, loads, says).sum())
    # the least: new GPUs stand for different old ones, in the best of all ways
    padded = [*map(set, old), *[set[int]()] * len(new)]
    kept = max(
        sum(float(ms[list(set(gpu) & before)].sum()) for gpu, before in zip(new, way, strict=True))
        for way in permutations(padded, len(new))
    )
    assert float(ms.sum()) - kept <= cost + 1e-6 <= float(ms.sum()) + 2e-6
    if sorted(old) == sorted(new):
        assert cost == pytest.approx(0, abs=1e-9)


def test_migration_by_hand() -> None:
    problem = small_problem([(8, 1.0), (16, 1.0), (8, 1.0), (8, 1.0)], counts=(2, 2))
    ms = loading(problem)
    goal = migration([["a0", "a1"], ["a2", "gone"]])
    says = Predictions(*[np.ones(2)] * 6)  # type: ignore[arg-type]
    new = [GPULoad(0, (1, 2, 3), 4), GPULoad(0, (0,), 1)]
    # the first holds the anchors a1 (of rank 16) and a2, and keeps more of the first old GPU; a0 has no anchor
    assert goal.gpu_costs(problem, new, says).tolist() == pytest.approx([ms[2] + ms[3], ms[0]])
    with pytest.raises(BadInputError, match="none of the adapters in force"):
        migration([["x"]]).gpu_costs(problem, new, says)


def test_a_gpu_of_another_type_stands_for_none_in_force(tmp_path: Path) -> None:
    problem = small_problem([(8, 1.0), (8, 1.0)], counts=(2, 2))
    plan = loraplan.solve(problem, "best_fit")
    path = tmp_path / "plan.json"
    plan.save(path)
    goal = {"name": "migration", "plan": str(path)}
    assert loraplan.solve(problem, "best_fit", goal).objective.value == 0
    (gpu,) = plan.gpus
    other = {"type0": "type1", "type1": "type0"}[gpu.profile]
    data = json.loads(path.read_text())
    data["gpus"][0]["profile"] = other
    path.write_text(json.dumps(data))
    assert loraplan.solve(problem, "best_fit", goal).objective.value == pytest.approx(loading(problem).sum())


@pytest.mark.parametrize("text", [None, "{", "[]", '{"gpus": [{"adapters": []}]}', '{"gpus": 3}'])
def test_a_broken_plan_in_force(tmp_path: Path, text: str | None) -> None:
    path = tmp_path / "plan.json"
    if text is not None:
        path.write_text(text)
    with pytest.raises(BadInputError, match="objective 'migration': ") as caught:
        objective({"name": "migration", "plan": str(path)})
    assert str(path) in str(caught.value)


def test_migration_as_an_objective_keeps_the_plan_in_force() -> None:
    problem = small_problem([(8, rate) for rate in (4.0, 3.0, 3.0, 2.0, 2.0)], counts=(3,))
    names = [["a0", "a3"], ["a1", "a4"], ["a2"]]
    plan: Plan = loraplan.solve(problem, "local_search", {"name": "migration", "placement": names}, time_limit_s=10)
    assert plan.objective.value == 0
    assert sorted(sorted(a.name for a in gpu.adapters) for gpu in plan.gpus) == sorted(names)
