"""Looking at GPUs in the twin: a plan's, each with its own stream, or a single one with everything on it."""

from __future__ import annotations

from functools import cache
from typing import Any

import numpy as np
import pytest

import loraplan
from loraplan.config import Config, parse_config
from loraplan.errors import BadInputError
from loraplan.plan import Plan
from loraplan.simulation import simulate_config, simulate_plan
from loraplan.validation import route
from twin.metrics import measure
from twin.recording import Recording
from twin.server import simulate


@cache
def config() -> Config:
    """About one and a half GPUs' worth of traffic."""
    workload: dict[str, Any] = {
        "generate": {"count": 24, "ranks": [8, 16], "total_rate": 60, "input_tokens": 200, "output_tokens": 150},
        "horizon_s": 40,
    }
    fleet = [{"profile": "h100-64gb/llama-3.1-8b", "count": 4}]
    return parse_config({"workload": workload, "fleet": fleet, "solver": "best_fit"})


@cache
def plan() -> Plan:
    """A plan with more than one GPU."""
    made = loraplan.solve_config(config())
    assert len(made.gpus) > 1
    return made


def test_every_gpu_is_run_on_its_own_stream() -> None:
    reports = simulate_plan(plan(), seed=4)
    assert [report.id for report in reports] == [gpu.id for gpu in plan().gpus]
    streams = route(plan(), loraplan.build(config()).replay, 4)
    for report, gpu, stream in zip(reports, plan().gpus, streams, strict=True):
        assert report.adapters == tuple(adapter.name for adapter in gpu.adapters)
        assert (report.slots, report.max_rank, report.profile) == (gpu.slots, gpu.max_rank, gpu.profile)
        assert report.metrics.arrived == len(stream) > 0
        profile = plan().provenance.profiles[gpu.profile]
        ranks = np.array([adapter.rank for adapter in gpu.adapters])
        run = simulate(profile, gpu.slots, gpu.max_rank, ranks, stream, 40.0)
        assert report.metrics.itl_ms == measure(run, len(ranks)).itl_ms


def test_one_gpu_is_the_same_alone_and_among_the_others() -> None:
    (alone,) = simulate_plan(plan(), "gpu-1", seed=4)
    among = simulate_plan(plan(), seed=4)[1]
    assert alone.id == among.id == "gpu-1"
    assert alone.metrics.itl_ms == among.metrics.itl_ms
    np.testing.assert_array_equal(alone.metrics.per_adapter.completed, among.metrics.per_adapter.completed)


def test_an_unknown_gpu_gets_a_suggestion() -> None:
    with pytest.raises(BadInputError, match=r"no GPU 'gpu1'; did you mean 'gpu-1'\? known: gpu-0, gpu-1"):
        simulate_plan(plan(), "gpu1")


def test_progress_is_told() -> None:
    seen: list[tuple[int, int]] = []
    simulate_plan(plan(), on_progress=lambda *at: seen.append(at))
    n = len(plan().gpus)
    assert seen == [(done, n) for done in range(1, n + 1)]


def test_a_single_gpu_gets_the_whole_workload() -> None:
    report = simulate_config(config(), slots=8, seed=2)
    workload = loraplan.build(config()).replay
    assert report.metrics.arrived == len(workload.requests(2))
    assert report.adapters == tuple(adapter.name for adapter in workload.adapters)
    assert (report.slots, report.max_rank, report.horizon_s) == (8, 16, 40.0)
    assert report.metrics.served_fraction < 0.9
    assert report.metrics.loads_from_disk == 0


def test_cpu_memory_that_is_too_small_costs_loads_from_disk() -> None:
    assert simulate_config(config(), slots=8, cpu_slots=10).metrics.loads_from_disk > 0
    assert all(report.metrics.loads_from_disk == 0 for report in simulate_plan(plan()))


@pytest.mark.parametrize(
    ("settings", "complaint"),
    [
        ({"slots": 5000}, "^memory error: 5000 slots of rank 16 leave -[0-9]+ KV tokens on h100-64gb/llama-3.1-8b"),
        ({"slots": 0}, "^slots must be at least 1"),
        ({"slots": 8, "cpu_slots": 7}, "^cpu_slots must be at least slots, 8"),
    ],
)
def test_a_server_that_would_not_start_is_refused(settings: dict[str, int], complaint: str) -> None:
    with pytest.raises(BadInputError, match=complaint):
        simulate_config(config(), **settings)


def test_a_gpu_of_a_plan_whose_server_does_not_start_is_told_apart() -> None:
    first, *others = plan().gpus
    broken = plan().model_copy(update={"gpus": (first.model_copy(update={"slots": 5000}), *others)})
    reports = simulate_plan(broken, seed=4)
    assert [report.starts for report in reports] == [False, *(True for _ in others)]
    assert reports[0].metrics is None
    assert (reports[0].id, reports[0].slots) == ("gpu-0", 5000)
    among = simulate_plan(plan(), seed=4)
    assert [report.metrics.throughput_tok_s for report in reports[1:]] == [
        report.metrics.throughput_tok_s for report in among[1:]
    ]


def test_a_setting_that_does_not_fit_one_gpu_names_it() -> None:
    with pytest.raises(BadInputError, match=r"^GPU gpu-0: cpu_slots must be at least slots"):
        simulate_plan(plan(), cpu_slots=1)


def test_what_was_asked_to_be_recorded_comes_with_the_run() -> None:
    (plain,) = simulate_plan(plan(), "gpu-0", seed=4)
    (report,) = simulate_plan(plan(), "gpu-0", seed=4, recording=Recording(series_s=10.0))
    assert plain.run is None
    assert report.run is not None
    assert report.run.series["finished"].sum() == report.metrics.completed == plain.metrics.completed
    assert simulate_config(config(), slots=8, recording=Recording(steps_s=(0.0, 1.0))).run.steps_log is not None
