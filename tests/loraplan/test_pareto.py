"""Fronts of two objectives: what is on them, and that nothing found is better."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

import loraplan
from loraplan.config import Config, parse_config
from loraplan.errors import BadInputError, NoPlanError
from loraplan.pareto import Front, pareto

ROOT = Path(__file__).parents[2]
GENERATE = {"count": 24, "ranks": [8, 16], "total_rate": 30, "input_tokens": 200, "output_tokens": 150, "seed": 0}


def config_of(**settings: Any) -> Config:
    fleet = [
        {"profile": "h100-64gb/llama-3.1-8b", "count": 4, "price_per_hour": 4},
        {"profile": str(ROOT / "examples" / "h100-40gb.yaml"), "count": 3, "price_per_hour": 1.5},
    ]
    solver = {"name": "local_search", "patience": 8}
    basis = {"workload": {"generate": GENERATE, "horizon_s": 120}, "fleet": fleet, "solver": solver}
    return parse_config(basis | settings)


def check(front: Front) -> None:
    """By ascending x; exactly what nothing found beats is called best, so that y falls along the front."""
    points = [(point.x, point.y) for point in front.points]
    assert points == sorted(points)
    for point in front.points:
        beaten = any(
            (x < point.x * (1 - 1e-6) and y <= point.y) or (y < point.y * (1 - 1e-6) and x <= point.x)
            for x, y in points
        )
        assert point.best is not beaten
        assert point.plan.complete
    best = [point.y for point in front.points if point.best]
    assert best == sorted(best, reverse=True)
    assert best


@pytest.mark.parametrize(("x", "y"), [("gpu_count", "latency"), ("latency", "gpu_count")])
def test_a_plan_for_every_number_of_gpus(x: str, y: str) -> None:
    front = pareto(config_of(), x, y, points=4)
    check(front)
    counts = [len(point.plan.gpus) for point in front.points]
    assert sorted(counts) == list(range(min(counts), min(counts) + len(counts)))
    assert len(counts) >= 3
    for point in front.points:
        assert (point.x if x == "gpu_count" else point.y) == len(point.plan.gpus)
        assert point.validation is None


@pytest.mark.parametrize(("x", "y"), [("cost", "latency"), ("energy", "headroom")])
def test_corners_of_other_fronts(x: str, y: str) -> None:
    seen: list[tuple[int, int]] = []
    front = pareto(config_of(), x, y, points=5, on_progress=lambda done, most: seen.append((done, most)))
    check(front)
    assert 1 < len(front.points) <= 5
    assert seen[-1] == (len(front.points), 5)
    ends = [loraplan.solve_config(config_of(objective=name)) for name in (x, y)]
    assert min(point.x for point in front.points) <= (ends[0].objective.value or 0) * (1 + 1e-6)
    assert min(point.y for point in front.points) <= (ends[1].objective.value or 0) * (1 + 1e-6)


def test_the_twin_measures_every_plan() -> None:
    front = pareto(config_of(), "gpu_count", "latency", points=2, seeds=1)
    for point in front.points:
        assert point.validation is not None
        assert point.twin_x == point.x
        assert point.twin_y == pytest.approx(point.y, rel=0.3)


def test_settings_of_an_objective_are_the_config_s() -> None:
    config = config_of(objective={"name": "latency", "figure": "ttft_s"}, constraints={"max_gpus": 2})
    front = pareto(config, "gpu_count", "latency", points=3)
    assert front.y_unit == "s"
    assert all(len(point.plan.gpus) <= 2 for point in front.points)


def test_what_has_no_front() -> None:
    with pytest.raises(BadInputError, match="x and y are both 'cost'; name two objectives"):
        pareto(config_of(), "cost", "cost")
    with pytest.raises(BadInputError, match="did you mean 'latency'"):
        pareto(config_of(), "cost", "latenci")
    hot = config_of(workload={"generate": GENERATE | {"total_rate": 3000}})
    for x, y in (("gpu_count", "latency"), ("cost", "latency")):
        with pytest.raises(NoPlanError, match="no feasible plan to begin with: "):
            pareto(hot, x, y)
