"""The twin against queueing theory, where the server is simple enough for the theory to be exact.

Loads are free and every step takes ``STEP_S`` seconds, so that a request is a job of ``tokens_out`` steps. Seeds are
fixed; tolerances are multiples of the standard error, so a pass means agreement within the noise of the sample.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from scipy import stats
from support.scenarios import make_profile, make_requests

from loraplan.profiles import Profile
from loraplan.workload import Floats, Ints, Requests
from twin.server import Run, simulate

STEP_S = 0.01
LATER_S = 100.0  # after the last arrival: everybody is served
SEEDS = 10


def poisson_requests(seed: int, rate: float, n: int, outs: Any = (1,), tokens_in: int = 8) -> Requests:
    rng = np.random.default_rng(seed)
    return make_requests(np.cumsum(rng.exponential(1 / rate, size=n)), 0, tokens_in, rng.choice(outs, size=n))


def serve(profile: Profile, requests: Requests, *, slots: int = 1, horizon_s: float | None = None) -> Run:
    ranks: Ints = np.full(int(requests.adapter.max()) + 1, 8, dtype=np.int64)
    return simulate(profile, slots, 8, ranks, requests, horizon_s or requests.arrival_s[-1] + LATER_S)


ONE_BY_ONE = make_profile(max_num_seqs=1)
NO_QUEUE = make_profile(kv_tokens=1e9, max_num_seqs=100_000, max_num_batched_tokens=1_000_000)


def assert_mean(samples: list[float], theory: float) -> None:
    """The mean over independent seeds is the theory's, and precise enough to tell."""
    error = float(np.std(samples, ddof=1)) / np.sqrt(len(samples))
    assert error < 0.02 * theory
    assert abs(float(np.mean(samples)) - theory) < 3 * error


@pytest.mark.parametrize("outs", [(1,), (4,), (1, 3, 30)], ids=["one step", "four steps", "random"])
@pytest.mark.parametrize("load", [0.3, 0.7])
def test_one_at_a_time_waits_as_pollaczek_and_khinchine_say(outs: tuple[int, ...], load: float) -> None:
    service = np.array(outs) * STEP_S
    rate = load / service.mean()
    theory = rate * (service**2).mean() / (2 * (1 - load))
    waits = []
    for seed in range(SEEDS):
        requests = poisson_requests(seed, rate, 30_000, outs)
        run = serve(ONE_BY_ONE, requests)
        waits.append(float((run.first_token_s - STEP_S - requests.arrival_s).mean()))
    assert_mean(waits, theory)


def test_one_at_a_time_never_idles_while_a_request_waits() -> None:
    requests = poisson_requests(1, 12.0, 5_000, [1, 3, 17])
    run = serve(ONE_BY_ONE, requests)
    free, finish = 0.0, []
    for arrival, out in zip(requests.arrival_s, requests.tokens_out, strict=True):
        free = max(free, arrival) + out * STEP_S  # Lindley's recursion
        finish.append(free)
    np.testing.assert_allclose(run.finish_s, finish, rtol=1e-9)
    assert run.busy_s == pytest.approx(requests.tokens_out.sum() * STEP_S, rel=1e-9)


def bulk_service_sojourn(rate: float, at_once: int) -> float:
    """Mean time in system when each step of ``STEP_S`` serves up to ``at_once`` of those present at its start.

    Stationary law of the Markov chain of the numbers present at the starts of steps; an empty server sleeps until the
    next arrival and starts at once with it.
    """
    present = np.arange(1, 600)
    arrivals = rate * STEP_S
    left = np.maximum(present - at_once, 0)
    to = stats.poisson.pmf(np.arange(600)[None, :] - left[:, None], arrivals)
    empty = to[:, 0].copy()
    chain = to[:, 1:].copy()
    chain[:, 0] += empty
    chain /= chain.sum(axis=1, keepdims=True)
    balance = np.vstack([chain.T - np.eye(present.size), np.ones(present.size)])
    law = np.linalg.lstsq(balance, np.append(np.zeros(present.size), 1.0), rcond=None)[0]
    area = float(law @ (present + arrivals / 2)) * STEP_S
    cycle = STEP_S + float(law @ empty) / rate
    return area / cycle / rate


def test_bulk_service_theory_contains_the_single_server() -> None:
    assert bulk_service_sojourn(70.0, 1) == pytest.approx(STEP_S + 0.7 * STEP_S / (2 * 0.3), rel=1e-6)


AT_ONCE = 3
# Every limit of the server, set so that exactly AT_ONCE one-token requests of 8 tokens fit into one step.
LIMITED_BY = {
    "seqs": make_profile(max_num_seqs=AT_ONCE),
    "tokens": make_profile(max_num_batched_tokens=8 * AT_ONCE, max_num_seqs=8 * AT_ONCE),
    "kv": make_profile(kv_tokens=8 * AT_ONCE + 8, block_tokens=8, max_model_len=9),
    "slots": make_profile(),
}


def limited(limit: str, requests: Requests) -> Run:
    if limit != "slots":
        return serve(LIMITED_BY[limit], requests)
    own = np.arange(len(requests)) % 1000  # never two requests of one adapter in the queue together
    apart = make_requests(requests.arrival_s, own, requests.tokens_in, requests.tokens_out)
    return serve(LIMITED_BY[limit], apart, slots=AT_ONCE)


@pytest.mark.parametrize("load", [0.4, 0.8])
def test_steps_that_serve_several_are_a_bulk_service_queue(load: float) -> None:
    rate = load * AT_ONCE / STEP_S
    sojourns = []
    for seed in range(SEEDS):
        requests = poisson_requests(seed, rate, 30_000)
        sojourns.append(float((limited("seqs", requests).finish_s - requests.arrival_s).mean()))
    assert_mean(sojourns, bulk_service_sojourn(rate, AT_ONCE))


@pytest.mark.parametrize("limit", LIMITED_BY)
def test_whichever_limit_binds_the_queue_is_the_same_and_the_limit_is_named(limit: str) -> None:
    requests = poisson_requests(2, 0.8 * AT_ONCE / STEP_S, 5_000)
    run, other = limited(limit, requests), limited("seqs", requests)
    np.testing.assert_array_equal(run.finish_s, other.finish_s)
    nothing_else = dict.fromkeys(LIMITED_BY, 0.0)
    assert run.blocked_s == nothing_else | {limit: other.blocked_s["seqs"]}
    assert other.blocked_s["seqs"] > 0


def in_service(requests: Requests, run: Run, at: Floats) -> Ints:
    """Requests running at the times ``at``, when nobody is ever held up."""
    started = np.sort(run.finish_s - requests.tokens_out * STEP_S)
    return np.searchsorted(started, at, side="right") - np.searchsorted(np.sort(run.finish_s), at, side="right")


def test_unlimited_server_holds_a_poisson_number_of_requests() -> None:
    outs, rate = np.array([5, 20, 65]), 50.0
    requests = poisson_requests(3, rate, 200_000, outs)
    run = serve(NO_QUEUE, requests)
    mean = rate * outs.mean() * STEP_S
    at = np.arange(5.0, requests.arrival_s[-1] - 5.0, 0.7)  # farther apart than the longest stay: independent counts
    counts = in_service(requests, run, at)
    assert abs(counts.mean() - mean) < 3 * np.sqrt(mean / counts.size)
    assert abs(counts.var() / counts.mean() - 1) < 3 * np.sqrt(2 / counts.size)
    edges = np.arange(7, 25)
    seen = np.bincount(np.clip(counts, edges[0], edges[-1]) - edges[0])
    law = np.diff(np.concatenate(([0.0], stats.poisson.cdf(edges[:-1], mean), [1.0])))
    assert stats.chisquare(seen, law * counts.size).pvalue > 0.01


def test_unlimited_server_starts_a_request_with_the_next_step() -> None:
    requests = poisson_requests(4, 500.0, 100_000, [5, 20, 65])
    wait = serve(NO_QUEUE, requests).first_token_s - STEP_S - requests.arrival_s
    assert wait.min() > -1e-9
    assert wait.max() < STEP_S + 1e-9
    assert abs(wait.mean() - STEP_S / 2) < 3 * STEP_S / np.sqrt(12 * wait.size)


def test_running_integral_is_the_sum_of_stays_up_to_the_horizon() -> None:
    rng = np.random.default_rng(5)
    requests = make_requests(np.sort(rng.uniform(0, 10, 2_000)), 0, 8, rng.integers(1, 600, 2_000))
    horizon_s = 10.123456
    run = serve(NO_QUEUE, requests, horizon_s=horizon_s)
    seen = np.isfinite(run.first_token_s)
    stays = np.where(np.isnan(run.finish_s), horizon_s, run.finish_s)[seen] - (run.first_token_s[seen] - STEP_S)
    # What was admitted to the step that the horizon cuts has no first token yet.
    last_step_s = float(run.first_token_s[seen].max())
    admitted = int(np.count_nonzero(requests.arrival_s[~seen] <= last_step_s))
    assert np.count_nonzero(np.isnan(run.finish_s)) > 0
    assert run.running_s == pytest.approx(stays.sum() + admitted * (horizon_s - last_step_s), rel=1e-9)
    assert run.waiting_s == 0


def test_little_s_law_holds_for_the_waiting_line() -> None:
    requests = poisson_requests(6, 0.8 / STEP_S, 5_000)
    run = serve(ONE_BY_ONE, requests)
    started = run.finish_s - STEP_S
    # The engine sees an arrival when the step in progress ends; one that finds it idle, at once.
    idle = np.isclose(started, requests.arrival_s, rtol=0, atol=1e-9)
    seen = np.where(idle, started, run.finish_s[np.searchsorted(run.finish_s, requests.arrival_s)])
    assert run.waiting_s == pytest.approx(float((started - seen).sum()), rel=1e-7)
    assert run.running_s == pytest.approx(len(requests) * STEP_S, rel=1e-9)


def test_kv_tokens_held_are_those_of_each_step_of_each_request() -> None:
    requests = poisson_requests(7, 40.0, 3_000, [1, 9, 40], tokens_in=13)
    run = serve(NO_QUEUE, requests)
    out = requests.tokens_out
    held = requests.tokens_in * out + out * (out - 1) / 2
    assert run.kv_token_s == pytest.approx(float(held.sum()) * STEP_S, rel=1e-9)
