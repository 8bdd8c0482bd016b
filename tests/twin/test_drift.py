"""Drift on queues whose fate is known: stable ones keep up, overloaded ones do not, and short runs do not tell."""

from __future__ import annotations

import numpy as np
import pytest
from support.scenarios import make_profile, make_requests

from loraplan.workload import Floats
from twin.drift import LIMIT, NOISE, Drift, measure_drift
from twin.metrics import measure
from twin.server import simulate

STEP_S = 0.01
ONE_BY_ONE = make_profile(max_num_seqs=1)
SEEDS = range(10)


def queue(load: float, requests: int, seed: int) -> Drift:
    """A queue with Poisson arrivals and one server that takes one step for each: M/D/1."""
    rng = np.random.default_rng(seed)
    stream = make_requests(np.cumsum(rng.exponential(STEP_S / load, requests)), 0, 8, 1)
    run = simulate(ONE_BY_ONE, 1, 16, np.array([8]), stream, requests * STEP_S / load)
    return measure(run, 1).drift


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("load", [0.5, 0.8, 0.95])
def test_a_stable_queue_is_steady(load: float, seed: int) -> None:
    drift = queue(load, 10_000, seed)
    assert drift.verdict == "steady"
    assert abs(drift.work) < 0.01
    assert drift.waiting == pytest.approx(drift.work, abs=1e-3)


@pytest.mark.parametrize("load", [1.1, 1.5, 4.0])
def test_an_overloaded_queue_is_starved_and_its_drift_is_the_share_left_over(load: float) -> None:
    seen = [queue(load, 10_000, seed) for seed in SEEDS]
    assert {drift.verdict for drift in seen} == {"starved"}
    works = np.array([drift.work for drift in seen])
    assert works.mean() == pytest.approx(1 - 1 / load, abs=3 * works.std() / np.sqrt(works.size))
    assert works.std() < 2 * seen[0].noise


def test_a_little_overload_stays_below_the_limit_and_says_so() -> None:
    works = [queue(1.03, 20_000, seed).work for seed in SEEDS]
    assert np.mean(works) == pytest.approx(1 - 1 / 1.03, abs=0.01)
    assert queue(1.03, 20_000, 0).verdict == "steady"


def test_a_run_too_short_to_tell_is_never_called_starved() -> None:
    verdicts = {queue(load, 60, seed).verdict for load in (0.8, 0.95, 1.1) for seed in SEEDS}
    assert verdicts == {"steady", "filling"}


def test_a_server_that_still_fills_up_is_filling_and_then_steady() -> None:
    """Every answer takes 20 s, and there is room for all: only a horizon well beyond that shows the steady state."""
    rng = np.random.default_rng(0)
    stream = make_requests(np.cumsum(rng.exponential(0.05, 6_000)), 0, 8, 2_000)
    roomy = make_profile(max_model_len=4096, kv_tokens=1e8, max_num_seqs=2048)
    drifts = [measure(simulate(roomy, 1, 16, np.array([8]), stream, horizon), 1).drift for horizon in (15.0, 200.0)]
    filling, steady = drifts
    assert (filling.verdict, steady.verdict) == ("filling", "steady")
    assert filling.work == 1  # nobody has been answered
    assert abs(filling.waiting) < LIMIT


def test_requests_that_were_rejected_are_no_backlog() -> None:
    arrivals = np.arange(0, 100, 0.1)
    longest = ONE_BY_ONE.limits.max_model_len
    stream = make_requests(arrivals, 0, np.where(np.arange(arrivals.size) % 2, 8, longest), 1)
    seen = measure(simulate(ONE_BY_ONE, 1, 16, np.array([8]), stream, 100.0), 1)
    assert seen.rejected == 500
    assert seen.served_fraction < 0.01
    assert seen.drift.verdict == "steady"
    assert seen.drift.work == pytest.approx(0, abs=1e-3)


def test_nothing_arrives_nothing_drifts() -> None:
    nothing, never = np.zeros(0), np.array([np.nan])
    assert measure_drift(make_requests([], [], [], []), nothing, nothing, 10.0) == Drift(0.0, 0.0, 0.0, "steady")
    only_early = measure_drift(make_requests([1.0], 0, 5, 1), never, never, 10.0)
    assert only_early == Drift(0.0, 0.0, 0.0, "steady")


def course(times: Floats, weights: Floats, at: Floats) -> Floats:
    """What has jumped by the times ``at``."""
    total: Floats = (weights[None, :] * (times[None, :] <= at[:, None])).sum(axis=1)
    return total


@pytest.mark.parametrize("seed", range(3))
def test_drift_is_the_slope_of_a_least_squares_line(seed: int) -> None:
    rng = np.random.default_rng(seed)
    n, horizon = 300, 50.0
    arrival = np.sort(rng.uniform(0, horizon, n))
    first = arrival + rng.exponential(3.0, n)
    finish = first + rng.exponential(5.0, n)
    asked = make_requests(arrival, 0, rng.integers(1, 300, n), rng.integers(1, 300, n))
    tokens = (asked.tokens_in + asked.tokens_out).astype(np.float64)
    seen = measure_drift(asked, first, np.where(finish < horizon, finish, np.nan), horizon)
    at = np.linspace(horizon / 2, horizon, 40_001)
    offered = np.polyfit(at, course(arrival, tokens, at), 1)[0]
    for value, until in ((seen.work, finish), (seen.waiting, first)):
        backlog = course(arrival, tokens, at) - course(until, tokens, at)
        assert value == pytest.approx(np.polyfit(at, backlog, 1)[0] / offered, abs=2e-4)
    assert NOISE * seen.noise > LIMIT
