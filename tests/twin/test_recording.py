"""The course of a run adds up to its totals, and recording it changes nothing."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from support.scenarios import REGIMES, RULES, Scenario, make_profile, make_requests, random_scenario

from loraplan.errors import BadInputError
from twin import recording
from twin.recording import MOST_STEPS, SERIES_COLUMNS, Recording, chrome_trace
from twin.server import Run, simulate
from twin.state import FEATURES, STEP_LOG

scenarios = st.builds(random_scenario, st.sampled_from(REGIMES), st.sampled_from(RULES), st.integers(0, 10**6))
quick = settings(max_examples=60, deadline=None, derandomize=True)


def recorded(scenario: Scenario, **what: Any) -> Run:
    def simulator(*args: Any, **kwargs: Any) -> Run:
        return simulate(*args, **kwargs, recording=Recording(**what))

    run: Run = scenario.run_by(simulator)
    return run


@quick
@given(scenarios, st.floats(0.003, 1.5))
def test_intervals_add_up_to_the_totals(scenario: Scenario, part: float) -> None:
    run = recorded(scenario, series_s=part * scenario.horizon_s)
    series = run.series
    assert series is not None
    assert tuple(series.columns) == SERIES_COLUMNS
    assert series["seconds"].sum() == pytest.approx(run.horizon_s)
    for name, total in {
        "running": run.running_s,
        "waiting": run.waiting_s,
        "kv_tokens": run.kv_token_s,
        "busy": run.busy_s,
    }.items():
        assert (series[name] * series["seconds"]).sum() == pytest.approx(total, rel=1e-9, abs=1e-9), name
        assert (series[name] >= -1e-9).all(), name
    assert (series["busy"] <= 1 + 1e-9).all()
    assert series["steps"].sum() == run.steps
    assert series["loads"].sum() == run.loads_from_cpu + run.loads_from_disk
    assert series["finished"].sum() == np.isfinite(run.finish_s).sum()
    prefill, tokens = (run.features[0, FEATURES.index(name)] for name in ("prefill_tokens", "tokens"))
    assert series["prefill_tokens"].sum() == prefill
    assert series["decode_tokens"].sum() == tokens - prefill


@quick
@given(scenarios, st.floats(0.003, 1.5))
def test_recording_changes_nothing(scenario: Scenario, part: float) -> None:
    horizon = scenario.horizon_s
    plain: Run = scenario.run_by(simulate)
    run = recorded(scenario, series_s=part * horizon, steps_s=(0.2 * horizon, 0.5 * horizon))
    for name in ("first_token_s", "finish_s", "preempted"):
        assert getattr(run, name).tobytes() == getattr(plain, name).tobytes()
    for name in ("steps", "preemptions", "max_kv_tokens", "max_waiting", "loads_from_cpu", "loads_from_disk"):
        assert getattr(run, name) == getattr(plain, name)
    assert run.kv_token_s == pytest.approx(plain.kv_token_s, rel=1e-12)
    assert run.blocked_s == pytest.approx(plain.blocked_s, rel=1e-12)


@quick
@given(scenarios, st.floats(0.01, 0.3))
def test_series_is_what_the_steps_say(scenario: Scenario, part: float) -> None:
    horizon, width = scenario.horizon_s, part * scenario.horizon_s
    run = recorded(scenario, series_s=width, steps_s=(0.0, 2 * horizon))
    series, steps = run.series, run.steps_log
    assert series is not None
    assert steps is not None
    assert tuple(steps.columns) == STEP_LOG
    assert len(steps) == run.steps
    start = steps["start_s"].to_numpy()
    end = np.minimum(start + 1e-3 * steps["ms"].to_numpy(), horizon)
    for low, seconds, row in zip(series["time_s"], series["seconds"], series.to_dict("records"), strict=True):
        inside = np.clip(np.minimum(end, low + seconds) - np.maximum(start, low), 0, None) / seconds
        for name in ("running", "waiting", "kv_tokens", "adapters"):
            assert row[name] == pytest.approx(float(steps[name].to_numpy() @ inside), rel=1e-6, abs=1e-6), name
        starts = (start >= low) & (start < low + seconds)
        # A step may start on the edge of an interval, within rounding.
        if not np.any(np.abs(start - low) < 1e-9) and not np.any(np.abs(start - low - seconds) < 1e-9):
            assert row["steps"] == starts.sum()
            assert row["prefill_tokens"] == steps["prefill_tokens"][starts].sum()
            assert row["loads"] == steps["loads"][starts].sum()


def small(**given: Any) -> Scenario:
    requests = make_requests([0.0, 0.005, 5.0], [0, 1, 0], [20, 30, 10], [3, 1, 2])
    scenario = Scenario(make_profile(), 4, 16, np.array([8, 8]), requests, 10.0, None)
    return replace(scenario, **given)


def test_series_of_a_small_run_is_the_one_worked_out_by_hand() -> None:
    # Steps of 10 ms: the first prompt; a decode and the second prompt; a decode; then nothing until 5 s.
    series = recorded(small(), series_s=2.0).series
    assert series is not None
    assert series["time_s"].tolist() == [0, 2, 4, 6, 8]
    assert series["steps"].tolist() == [3, 0, 2, 0, 0]
    assert series["finished"].tolist() == [2, 0, 1, 0, 0]
    assert series["prefill_tokens"].tolist() == [50, 0, 10, 0, 0]
    assert series["decode_tokens"].tolist() == [2, 0, 1, 0, 0]
    assert series["running"].tolist() == pytest.approx([0.04 / 2, 0, 0.02 / 2, 0, 0])
    assert series["kv_tokens"].tolist() == pytest.approx([0.01 * (20 + 51 + 22) / 2, 0, 0.01 * (10 + 11) / 2, 0, 0])
    assert series["step_ms"].tolist() == pytest.approx([10, np.nan, 10, np.nan, np.nan], nan_ok=True)


def test_the_last_interval_is_cut_by_the_horizon() -> None:
    series = recorded(small(), series_s=4.0).series
    assert series is not None
    assert series["seconds"].tolist() == [4, 4, 2]


def test_only_the_steps_that_start_in_the_window_are_kept() -> None:
    steps = recorded(small(), steps_s=(0.01, 5.01)).steps_log
    assert steps is not None
    assert steps["start_s"].tolist() == pytest.approx([0.01, 0.02, 5.0])
    assert steps["running"].tolist() == [2, 1, 1]
    assert steps["adapters"].tolist() == [2, 1, 1]
    assert steps["prefill_tokens"].tolist() == [30, 0, 10]
    assert recorded(small(), steps_s=(6.0, 7.0)).steps_log.empty


def test_nothing_is_recorded_unless_asked_for() -> None:
    run: Run = small().run_by(simulate)
    assert run.series is None
    assert run.steps_log is None


@pytest.mark.parametrize(
    ("what", "complaint"),
    [
        ({"series_s": 0.0}, "an interval of a series must be longer than 0 s"),
        ({"series_s": float("nan")}, "an interval of a series must be longer than 0 s"),
        ({"series_s": 1e-6}, "more than 1,000,000: make them at least 1e-05 s long"),
        ({"steps_s": (3.0, 3.0)}, r"must start at 0 or later and end after that \(got 3 to 3\)"),
        ({"steps_s": (-1.0, 3.0)}, "must start at 0 or later"),
        ({"steps_s": (float("nan"), 3.0)}, "must start at 0 or later"),
    ],
)
def test_what_cannot_be_recorded_is_refused(what: dict[str, Any], complaint: str) -> None:
    with pytest.raises(BadInputError, match=complaint):
        recorded(small(), **what)


def test_too_many_steps_are_refused_with_a_window_that_fits() -> None:
    long = small(requests=make_requests([0.0], 0, 10, 10**6), horizon_s=2000.0)
    long = replace(long, profile=make_profile(max_model_len=10**6, kv_tokens=1e7))
    with pytest.raises(
        BadInputError, match=f"190,00. steps .* more than {MOST_STEPS:,}: end the window at 599.9"
    ) as error:
        recorded(long, steps_s=(100.0, 2100.0))
    end = float(str(error.value).split(" at ")[1].split(" s ")[0])
    steps = recorded(long, steps_s=(100.0, end)).steps_log
    assert steps is not None
    assert MOST_STEPS - 2 <= len(steps) <= MOST_STEPS


def test_trace_events_are_those_of_the_steps() -> None:
    scenario = random_scenario("mixed", RULES[0], 1)
    run = recorded(scenario, steps_s=(0.0, scenario.horizon_s))
    steps = run.steps_log
    assert steps is not None
    trace = json.loads(chrome_trace(steps, "gpu-0", run.kv_capacity_tokens))
    slices = [event for event in trace["traceEvents"] if event["ph"] == "X"]
    assert len(slices) == run.steps > 10
    for event, row in zip(slices, steps.to_dict("records"), strict=True):
        assert event["ts"] == pytest.approx(1e6 * row["start_s"], abs=1e-3)
        assert event["dur"] == pytest.approx(1e3 * row["ms"], abs=1e-3)
        assert event["args"] == {name: row[name] for name in STEP_LOG[2:]}
    counters = [event for event in trace["traceEvents"] if event["ph"] == "C"]
    assert {event["name"] for event in counters} == {"requests", "KV cache, %"}
    assert max(event["args"].get("in use", 0) for event in counters) <= 100
    assert {event["name"] for event in slices} <= {"prefill", "decode", "prefill and decode"}
    assert recording.chrome_trace(steps[:0], "gpu-0", 1).count("ph") == 1
