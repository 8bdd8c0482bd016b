"""Figures of a run: what they are on runs worked out by hand, and against exact computation on large ones."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import numpy as np
import pytest
from support.scenarios import make_profile, make_requests

from loraplan.workload import Floats
from twin import state
from twin.metrics import BLOCKED_SHARE, measure
from twin.server import Run, simulate

NAN = float("nan")
NOBODY: dict[Any, float] = {"slots": 0.0, "kv": 0.0, "tokens": 0.0, "seqs": 0.0}


def make_run(**given: Any) -> Run:
    """Four requests of two adapters in 10 s: one has no token yet, one has its first only."""
    requests = make_requests([0.0, 1.0, 2.0, 3.0], [0, 1, 1, 0], [10, 20, 30, 40], [5, 1, 11, 7])
    run = dataclasses.replace(
        simulate(make_profile(), 2, 16, np.array([8, 16]), requests, 10.0),
        first_token_s=np.array([0.5, 1.25, 3.0, NAN]),
        finish_s=np.array([2.5, 1.25, NAN, NAN]),
        preempted=np.zeros(4, dtype=np.int64),
        steps=17,
        loads_from_cpu=2,
        loads_from_disk=1,
        preemptions=3,
        rejected=1,
        kv_capacity_tokens=100,
        max_kv_tokens=80,
        max_waiting=2,
        busy_s=9.0,
        running_s=15.0,
        waiting_s=5.0,
        kv_token_s=400.0,
        blocked_s=NOBODY | {"kv": 0.5, "slots": 2.0},
        itl_counts=np.zeros(state.ITL_BINS),
    )
    return dataclasses.replace(run, **given)


def histogram(gaps_ms: Floats) -> Floats:
    """Counts by the bins that the twin documents."""
    places = np.floor((np.log(gaps_ms) - state.ITL_BIN_START) / state.ITL_BIN_WIDTH).astype(np.int64)
    return np.bincount(places, minlength=state.ITL_BINS).astype(np.float64)


def test_figures_of_a_small_run_are_those_worked_out_by_hand() -> None:
    seen = measure(make_run(), 2)
    assert (seen.arrived, seen.completed, seen.rejected) == (4, 2, 1)
    assert seen.offered_tok_s == pytest.approx(124 / 10)
    assert seen.throughput_tok_s == pytest.approx(36 / 10)
    assert seen.served_fraction == pytest.approx(36 / 124)
    assert seen.ttft_s.mean == pytest.approx((0.5 + 0.25) / 2)
    assert seen.ttft_s.p50 == pytest.approx(0.375)
    assert (seen.running, seen.waiting, seen.max_waiting) == (1.5, 0.5, 2)
    assert (seen.kv_utilisation, seen.max_kv_utilisation) == (pytest.approx(0.4), pytest.approx(0.8))
    assert (seen.loads_from_cpu, seen.loads_from_disk, seen.preemptions, seen.steps) == (2, 1, 3, 17)
    assert seen.busy_fraction == pytest.approx(0.9)
    assert seen.binding == "slots"
    assert seen.blocked_fraction["kv"] == pytest.approx(0.05)


def test_mean_itl_is_decoding_time_over_gaps_of_completed_requests() -> None:
    """As ``vllm bench serve``: a request with a single token has no gap, one that is not done does not count."""
    assert measure(make_run(), 2).itl_ms.mean == pytest.approx(1e3 * (2.0 + 0.0) / (4 + 0))
    only_single_tokens = make_run(finish_s=np.array([NAN, 1.25, NAN, NAN]))
    assert math.isnan(measure(only_single_tokens, 2).itl_ms.mean)


@pytest.mark.parametrize("seed", range(3))
def test_percentiles_of_itl_are_within_one_percent(seed: int) -> None:
    gaps_ms = np.random.default_rng(seed).lognormal(mean=3.0, sigma=1.0, size=50_000)
    spread = measure(make_run(itl_counts=histogram(gaps_ms)), 2).itl_ms
    exact = np.percentile(gaps_ms, [50, 95, 99], method="inverted_cdf")
    assert (spread.p50, spread.p95, spread.p99) == pytest.approx(tuple(exact), rel=0.01)


def test_percentiles_of_ttft_are_exact() -> None:
    n = 1000
    arrivals = np.sort(np.random.default_rng(0).uniform(0, 9, size=n))
    waits = np.random.default_rng(1).exponential(size=n)
    run = make_run(
        requests=make_requests(arrivals, 0, 10, 1), first_token_s=arrivals + waits, finish_s=arrivals + waits
    )
    spread = measure(run, 1).ttft_s
    assert (spread.p50, spread.p95, spread.p99) == pytest.approx(tuple(np.percentile(waits, [50, 95, 99])))


def test_a_run_without_requests_has_nothing_to_complain_of() -> None:
    nothing = np.zeros(0)
    run = make_run(
        requests=make_requests([], [], [], []), first_token_s=nothing, finish_s=nothing, blocked_s=NOBODY, rejected=0
    )
    seen = measure(run, 3)
    assert (seen.arrived, seen.completed, seen.offered_tok_s, seen.throughput_tok_s) == (0, 0, 0, 0)
    assert seen.served_fraction == 1
    assert all(math.isnan(value) for value in (*dataclasses.astuple(seen.itl_ms), *dataclasses.astuple(seen.ttft_s)))
    assert seen.binding == "none"
    assert seen.per_adapter.arrived.tolist() == [0, 0, 0]
    assert np.isnan(seen.per_adapter.served_fraction).all()


def test_nothing_binds_where_requests_hardly_wait() -> None:
    hardly = 10.0 * BLOCKED_SHARE
    assert measure(make_run(blocked_s=NOBODY), 2).binding == "none"
    assert measure(make_run(blocked_s=NOBODY | {"tokens": 0.99 * hardly}), 2).binding == "none"
    assert measure(make_run(blocked_s=NOBODY | {"tokens": 1.01 * hardly}), 2).binding == "tokens"


def test_each_adapter_gets_its_own_figures() -> None:
    own = measure(make_run(), 3).per_adapter
    assert own.arrived.tolist() == [2, 2, 0]
    assert own.completed.tolist() == [1, 1, 0]
    assert own.served_fraction.tolist() == pytest.approx([15 / 62, 21 / 62, NAN], nan_ok=True)
    assert own.ttft_s.tolist() == pytest.approx([0.5, 0.25, NAN], nan_ok=True)


def test_what_adapters_got_adds_up_to_what_the_server_did() -> None:
    rng = np.random.default_rng(3)
    n, adapters, horizon_s = 2000, 9, 60.0
    requests = make_requests(
        np.sort(rng.uniform(0, horizon_s, n)),
        rng.integers(0, adapters, n),
        rng.integers(1, 80, n),
        rng.integers(1, 60, n),
    )
    profile = make_profile(max_num_seqs=10)
    run = simulate(profile, 4, 16, np.full(adapters, 8), requests, horizon_s)
    seen, own = measure(run, adapters), measure(run, adapters).per_adapter
    assert 0 < seen.completed < n
    assert own.arrived.sum() == seen.arrived == n
    assert own.completed.sum() == seen.completed
    tokens = np.bincount(requests.adapter, requests.tokens_in + requests.tokens_out, adapters)
    assert (own.served_fraction * tokens).sum() / horizon_s == pytest.approx(seen.throughput_tok_s)
    assert tokens.sum() / horizon_s == pytest.approx(seen.offered_tok_s)
    assert (own.ttft_s * own.completed).sum() / seen.completed == pytest.approx(seen.ttft_s.mean)
    assert seen.binding in {"slots", "seqs"}
