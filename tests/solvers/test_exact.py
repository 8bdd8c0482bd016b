"""Exact solvers: as good as brute force, and the independent checker agrees with what they claim, but not with more."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from pydantic import ValidationError
from support.brute_force import least_cost
from support.oracles import server

from loraplan.api import solve_config
from loraplan.check import check
from loraplan.config import Config, build, parse_config
from loraplan.oracle import ORACLES
from loraplan.plan import Plan
from loraplan.problem import Problem, ProblemBuilder
from loraplan.recorded import recorded
from loraplan.registry import choose
from loraplan.run import Run
from objectives import OBJECTIVES
from solvers import SOLVERS, Search
from solvers.base import complaint

EXACT = ("milp", "cp_sat", "column_generation")
CLOSE = 1e-6


def tiny(folder: Path, seed: int, **settings: Any) -> Config:
    """Three to six adapters that take two or three GPUs, in most cases of two types with different prices."""
    rng = np.random.default_rng(seed)
    n = int(rng.integers(3, 7))
    rates = np.exp(rng.uniform(0.0, 2.5)) * rng.lognormal(sigma=0.7, size=n) * (rng.random(n) > 0.1)
    if rng.random() < 0.3:
        rates = np.full(n, rates.max())
    lines = [f"a{i},{rng.choice([8, 16, 32])},{rate:.6g},250,231\n" for i, rate in enumerate(rates)]
    (folder / "adapters.csv").write_text("name,rank,rate,tokens_in,tokens_out\n" + "".join(lines))
    fast, slow = server("fast"), server("slow")
    slow = slow.model_copy(update={"step_ms": slow.step_ms.model_copy(update={"base": 2 * slow.step_ms.base})})
    for profile in (fast, slow):
        (folder / f"{profile.name}.yaml").write_text(yaml.safe_dump(profile.model_dump(mode="json")))
    fleet = [{"profile": "fast.yaml", "count": int(rng.integers(1, 4)), "price_per_hour": 2.5}]
    if rng.random() < 0.6:
        fleet.append({"profile": "slow.yaml", "count": int(rng.integers(1, 4)), "price_per_hour": 1.0})
    workload = {"adapters": "adapters.csv", "horizon_s": 60.0}
    return parse_config({"workload": workload, "fleet": fleet, "oracle": "fluid", **settings}, folder=folder)


def best_cost(config: Config, problem: Problem) -> float | None:
    """By brute force."""
    oracle = choose(ORACLES, {"name": config.oracle.name, **config.oracle.params})
    run = Run(choose(SOLVERS, "best_fit"), choose(OBJECTIVES, config.objective.name), oracle, seed=0)
    return least_cost(run.prepare(problem))


def assert_best(config: Config) -> None:
    """The plan is the best there is, is called so, and the checker finds nothing wrong with it."""
    plan = solve_config(config)
    divided = recorded(plan).problem  # with the replicas that the plan has of hot adapters
    least = best_cost(config, divided if plan.complete else build(config).problem)
    if least is None:
        assert plan.status == "infeasible", plan.reason
        return
    assert plan.status == "optimal", plan.reason
    assert plan.objective.value == pytest.approx(least, rel=CLOSE, abs=1e-9)
    assert [finding for finding in check(plan) if not finding.fine] == []


@pytest.mark.parametrize("objective", ["gpu_count", "cost", "latency"])
@pytest.mark.parametrize("solver", EXACT)
def test_as_good_as_brute_force(tmp_path: Path, solver: str, objective: str) -> None:
    for seed in range(4):
        assert_best(tiny(tmp_path, seed, solver=solver, objective=objective))


@pytest.mark.slow
@pytest.mark.parametrize("objective", ["gpu_count", "cost", "latency"])
@pytest.mark.parametrize("solver", EXACT)
def test_as_good_as_brute_force_two_hundred_times(tmp_path: Path, solver: str, objective: str) -> None:
    for seed in range(200):
        assert_best(tiny(tmp_path, seed, solver=solver, objective=objective))


# ---- claims that are false ----

Change = Callable[[dict[str, Any]], object]


def first(data: dict[str, Any]) -> dict[str, Any]:
    return dict(data)["gpus"][0]


def false_claims() -> Iterator[tuple[str, Change]]:
    """What is done to a plan's data, and what the checker has to find wrong; each makes another claim false."""
    for much in (1.0, 2.0, 10.0):
        yield "bound", lambda plan, much=much: plan["objective"].update(lower_bound=plan["objective"]["value"] + much)  # type: ignore[misc]
        yield "cost", lambda plan, much=much: plan["objective"].update(value=plan["objective"]["value"] + much)  # type: ignore[misc]
        yield "cost", lambda plan, much=much: plan["objective"].update(value=plan["objective"]["value"] / (1 + much))  # type: ignore[misc]
    yield "placement", lambda plan: first(plan)["adapters"].pop()
    yield "placement", lambda plan: plan["gpus"].pop()
    yield "placement", lambda plan: first(plan)["adapters"][0].update(share=0.5)
    yield "placement", lambda plan: first(plan)["adapters"][0].update(rank=64)
    yield "placement", lambda plan: first(plan)["adapters"][0].update(rate=first(plan)["adapters"][0]["rate"] + 1.0)
    yield "placement", lambda plan: first(plan)["adapters"].append(first(plan)["adapters"][0])
    yield "placement", lambda plan: plan["gpus"].extend([{**plan["gpus"][-1], "id": f"more-{n}"} for n in range(9)])
    yield "limits", lambda plan: first(plan).update(max_rank=first(plan)["max_rank"] // 2)
    yield "limits", lambda plan: first(plan).update(slots=100_000)
    yield "limits", lambda plan: first(plan).update(slots=1)


@pytest.fixture(scope="module", params=["prices", "listing"])
def proven(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Plan:
    """A plan whose bound is proven that way."""
    return proven_by(request.param, tmp_path_factory.mktemp("proven"), "gpu_count")


def proven_by(kind: str, folder: Path, objective: str) -> Plan:
    listed = {"enumerate": 0} if kind == "prices" else {}
    lines = [f"a{i},{8 * 2 ** (i % 3)},{6.0 + i},250,231\n" for i in range(6)]
    config = tiny(folder, 5, solver={"name": "column_generation", **listed}, objective=objective)
    (folder / "adapters.csv").write_text("name,rank,rate,tokens_in,tokens_out\n" + "".join(lines))
    plan = solve_config(config)
    assert plan.status == "optimal"
    assert plan.certificate is not None
    assert plan.certificate.kind == kind
    assert len(plan.gpus) > 1
    return plan


@pytest.mark.parametrize("number", range(len(list(false_claims()))))
def test_a_false_claim_is_found(proven: Plan, number: int) -> None:
    what, change = list(false_claims())[number]
    data = copy.deepcopy(proven.model_dump(mode="json"))
    change(data)
    try:
        plan = Plan.model_validate(data)
    except ValidationError:  # that is not even read
        return
    found = {finding.what: finding for finding in check(plan)}
    assert not found[what].fine, found


def bound_of(plan: Plan, factor: float) -> bool:
    """Whether the checker finds the plan's bound proven by its prices times ``factor``."""
    data = plan.model_dump(mode="json")
    for one in data["certificate"]["adapters"]:
        one["worth"] *= factor
    data["certificate"]["bound"] *= factor
    (bound,) = (finding for finding in check(Plan.model_validate(data)) if finding.what == "bound")
    return bound.fine


@pytest.mark.parametrize(
    ("objective", "factor"),
    [("gpu_count", factor) for factor in (0.0, 0.5, 0.9, 0.99, 1.5, 2.0, 10.0)]
    + [("cost", factor) for factor in (0.0, 0.5, 0.55, 0.59, 1.5, 2.0, 10.0)],
)
def test_prices_that_prove_less_than_is_claimed(tmp_path: Path, objective: str, factor: float) -> None:
    """Worth more: some load is worth more than it costs; less: the next total of GPU costs falls short of the bound."""
    assert not bound_of(proven_by("prices", tmp_path, objective), factor)


def test_lower_prices_prove_as_much_where_the_next_total_is_the_same(tmp_path: Path) -> None:
    """5/3 of the smallest total, and so 9/10 of that, are rounded up to twice the smallest."""
    assert bound_of(proven_by("prices", tmp_path, "cost"), 0.9)


# ---- where loads are too many to list ----


def several_alike(seed: int) -> Problem:
    """Three to eleven adapters of each of three kinds."""
    rng = np.random.default_rng(seed)
    kinds = [(int(rng.choice([8, 16, 32])), float(np.exp(rng.uniform(-1.0, 1.6)))) for _ in range(3)]
    builder = ProblemBuilder()
    for kind, (rank, rate) in enumerate(kinds):
        for number in range(int(rng.integers(3, 12))):
            builder.adapter(f"a{kind}-{number}", rank, rate, tokens_in=250, tokens_out=231)
    return builder.gpus("h100-64gb/llama-3.1-8b", 8, price_per_hour=1.0).build()


@pytest.mark.parametrize("seed", [391, 399, 767, 794])
@pytest.mark.parametrize("name", ["milp", "cp_sat"])
def test_assignments_give_every_adapter_one_gpu(name: str, seed: int) -> None:
    """Of items with several adapters each GPU gets others; and the plan costs as much as by listing loads."""
    problem, solver, objective = several_alike(seed), SOLVERS.get(name), OBJECTIVES.get("gpu_count")
    made = ORACLES.get("surrogate")(problem, ORACLES.get("surrogate").Params())
    costs = []
    for settings in ({"enumerate": 0}, {}):
        search = Search(problem, objective(objective.Params()), made, seed=0)
        solution = solver(solver.Params(**settings)).solve(search)
        assert complaint(problem, solution) == ""
        assert solution.status == "optimal"
        kept, predicted = search.judge(solution.loads)
        assert kept.all()
        costs.append(float(search.costs(solution.loads, predicted).sum()))
    assert costs[0] == costs[1]
