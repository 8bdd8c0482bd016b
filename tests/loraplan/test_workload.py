"""Workloads: streams have the statistics of their law, and the same seed gives the same stream."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from loraplan.arrivals import Gamma
from loraplan.errors import BadInputError
from loraplan.workload import Adapter, Floats, Lengths, RateWorkload, Requests, TraceWorkload, Workload

PAIRS = Lengths(np.array([10, 200, 30]), np.array([5, 1, 70]))


def adapters(*rates: float, lengths: Lengths = PAIRS) -> tuple[Adapter, ...]:
    return tuple(Adapter(f"a{i}", 8, rate, lengths) for i, rate in enumerate(rates))


def recorded(times: Floats, owner: int = -1) -> Requests:
    n = times.size
    return Requests(times, np.full(n, owner, dtype=np.int64), np.arange(1, n + 1), np.arange(n, 0, -1))


def assert_equal(first: Requests, second: Requests) -> None:
    for name in ("arrival_s", "adapter", "tokens_in", "tokens_out"):
        np.testing.assert_array_equal(getattr(first, name), getattr(second, name))


@pytest.mark.parametrize("cv", [1.0, 0.5, 3.0])
def test_streams_are_ordered_inside_the_horizon_and_repeat_with_their_seed(cv: float) -> None:
    workload: Workload = RateWorkload(adapters(2.0, 0.0, 0.5), 500.0, Gamma(cv))
    stream = workload.requests(7)
    assert (np.diff(stream.arrival_s) >= 0).all()
    assert stream.arrival_s[0] >= 0 and stream.arrival_s[-1] < 500
    assert set(stream.adapter) == {0, 2}
    assert_equal(stream, workload.requests(7))
    assert len(stream) != len(workload.requests(8)) or (stream.arrival_s != workload.requests(8).arrival_s).any()


def test_poisson_counts_have_the_mean_and_the_variance_of_their_rate() -> None:
    workload = RateWorkload(adapters(*[0.02] * 2000), 1000.0)
    counts = np.bincount(workload.requests(0).adapter, minlength=2000)
    assert counts.mean() == pytest.approx(20, abs=4 * math.sqrt(20 / 2000))
    assert counts.var() == pytest.approx(20, rel=4 * math.sqrt(2 / 2000))


@given(st.floats(0.0, 5.0), st.floats(0.0, 5.0), st.integers(0, 1000))
@settings(deadline=None)
def test_poisson_rates_are_met_within_their_noise(first: float, second: float, seed: int) -> None:
    stream = RateWorkload(adapters(first, second), 400.0).requests(seed)
    for index, rate in enumerate((first, second)):
        expected = rate * 400
        assert abs((stream.adapter == index).sum() - expected) <= 6 * math.sqrt(expected) + 6


def test_poisson_arrivals_are_dealt_by_rate_whatever_the_one_before() -> None:
    rates = np.array([0.0, 3.0, 0.01, 1.0, 7.5, 0.3, 0.0, 40.0])
    owner = RateWorkload(adapters(*rates), 2000.0).requests(3).adapter
    share = rates / rates.sum()
    asking = share > 0
    assert set(owner) == set(np.flatnonzero(asking))
    assert stats.chisquare(np.bincount(owner)[asking], share[asking] * owner.size).pvalue > 0.001
    pairs = np.zeros((8, 8))
    np.add.at(pairs, (owner[:-1:2], owner[1::2]), 1)
    expected = np.outer(share, share) * pairs.sum()
    often = expected > 10
    assert stats.chisquare(pairs[often], expected[often] * pairs[often].sum() / expected[often].sum()).pvalue > 0.001


def test_poisson_arrivals_are_as_likely_at_any_time() -> None:
    times = RateWorkload(adapters(30.0, 10.0), 1000.0).requests(4).arrival_s
    assert stats.kstest(times / 1000.0, "uniform").pvalue > 0.001


@pytest.mark.parametrize("cv", [0.3, 0.7, 2.0, 4.0])
def test_gamma_gaps_have_their_mean_and_coefficient_of_variation(cv: float) -> None:
    times = RateWorkload(adapters(10.0), 20_000.0, Gamma(cv)).requests(0).arrival_s
    gaps = np.diff(times)
    assert gaps.mean() == pytest.approx(0.1, rel=5 * cv / math.sqrt(gaps.size))
    assert gaps.std() / gaps.mean() == pytest.approx(cv, rel=0.05)


@pytest.mark.parametrize("cv", [0.3, 3.0])
def test_gamma_arrivals_are_stationary_from_the_start(cv: float) -> None:
    count, rate = 20_000, 0.5
    times = RateWorkload(adapters(*[rate] * count), 4.0, Gamma(cv)).requests(0).arrival_s
    per_part = np.histogram(times, bins=8, range=(0, 4))[0]
    # At most E[N^2] <= (1 + cv^2) * mean spread per adapter and half second.
    noise = 5 * math.sqrt(count * rate * 0.5 * (1 + cv**2))
    assert (np.abs(per_part - count * rate * 0.5) < noise).all()


def test_nobody_asks_at_rate_zero() -> None:
    for cv in (1.0, 2.0):
        assert len(RateWorkload(adapters(0.0), 100.0, Gamma(cv)).requests(0)) == 0


def test_pairs_stay_pairs_and_belong_to_their_adapter() -> None:
    other = Lengths(np.array([1000, 2000]), np.array([3, 4]))
    both = (*adapters(2.0), Adapter("b", 8, 2.0, other))
    stream = RateWorkload(both, 1000.0).requests(0)
    for index, lengths in enumerate((PAIRS, other)):
        own = stream.adapter == index
        drawn, counts = np.unique(
            np.stack([stream.tokens_in[own], stream.tokens_out[own]], axis=1), axis=0, return_counts=True
        )
        expected = {(int(a), int(b)) for a, b in zip(lengths.tokens_in, lengths.tokens_out, strict=True)}
        assert {(int(a), int(b)) for a, b in drawn} == expected
        assert counts.min() / counts.max() > 0.8


@given(st.lists(st.tuples(st.integers(1, 60), st.integers(1, 60)), min_size=1, max_size=5))
def test_mean_kv_is_what_running_requests_hold_step_by_step(pairs: list[tuple[int, int]]) -> None:
    held = [tokens_in + step for tokens_in, tokens_out in pairs for step in range(1, tokens_out + 1)]
    lengths = Lengths(*np.array(pairs).T)
    assert lengths.mean_kv == pytest.approx(np.mean(held))


def test_lengths_are_checked_frozen_and_rounded() -> None:
    assert (Lengths.constant(222.7, 196.2).mean_in, Lengths.constant(222.7, 196.2).mean_out) == (223, 196)
    with pytest.raises(ValueError, match="read-only"):
        PAIRS.tokens_in[0] = 3
    for tokens_in, tokens_out, complaint in (
        ([], [1], "tokens_in must be a non-empty list"),
        ([1], [0], r"tokens_out must be at least 1 \(got 0\)"),
        ([1, 2], [1], "equal lengths"),
    ):
        with pytest.raises(BadInputError, match=complaint):
            Lengths(np.array(tokens_in), np.array(tokens_out))


def test_scale_one_reproduces_the_window_exactly() -> None:
    trace = recorded(np.array([0.0, 1.0, 1.0, 2.5, 4.0, 6.0]), owner=0)
    stream = TraceWorkload(adapters(1.0), trace, (1.0, 4.0)).requests(5)
    np.testing.assert_array_equal(stream.arrival_s, [0.0, 0.0, 1.5])
    np.testing.assert_array_equal(stream.tokens_in, [2, 3, 4])
    np.testing.assert_array_equal(stream.tokens_out, [5, 4, 3])
    assert (stream.adapter == 0).all()


@given(st.floats(0.1, 6.0), st.integers(0, 100))
@settings(deadline=None)
def test_scaling_a_trace_multiplies_its_count_and_keeps_its_pairs(scale: float, seed: int) -> None:
    trace = recorded(np.linspace(10, 990, 2000))
    shares = np.array([0.25, 0.75])
    stream = TraceWorkload(adapters(1.0, 1.0), trace, (0.0, 1000.0), scale, shares).requests(seed)
    assert abs(len(stream) - 2000 * scale) <= 6 * math.sqrt(2000 * 0.25)
    assert abs((stream.adapter == 1).mean() - 0.75) <= 6 * math.sqrt(0.25 * 0.75 / len(stream))
    assert (stream.tokens_in + stream.tokens_out == 2001).all()
    delay = stream.arrival_s - trace.arrival_s[stream.tokens_in - 1]
    assert (delay >= 0).all() and (delay <= 5).all()
    assert (np.diff(stream.arrival_s) >= 0).all()


def test_the_first_copy_keeps_its_time() -> None:
    trace = recorded(np.arange(0.0, 100.0, 7.0))
    stream = TraceWorkload(adapters(1.0), trace, (0.0, 200.0), 3.0, np.ones(1)).requests(0)
    assert len(stream) == 3 * len(trace)
    assert set(trace.arrival_s) <= set(stream.arrival_s)


def test_a_trace_stream_repeats_with_its_seed_and_names_in_the_trace_stay() -> None:
    trace = recorded(np.linspace(0, 99, 300))
    trace.adapter[::2] = 1
    workload = TraceWorkload(adapters(1.0, 1.0), trace, (0.0, 100.0), 1.0, np.array([1.0, 0.0]))
    stream = workload.requests(3)
    np.testing.assert_array_equal(stream.adapter, np.tile([1, 0], 150))
    assert_equal(stream, workload.requests(3))


@pytest.mark.parametrize("horizon_s", [0.0, -1.0, math.nan, math.inf])
def test_horizons_are_checked(horizon_s: float) -> None:
    with pytest.raises(BadInputError, match="the horizon must be above 0 s"):
        RateWorkload(adapters(1.0), horizon_s)
    with pytest.raises(BadInputError, match="the horizon must be above 0 s"):
        TraceWorkload(adapters(1.0), recorded(np.ones(1)), (0.0, horizon_s))


def test_scale_and_arrivals_are_checked() -> None:
    with pytest.raises(BadInputError, match=r"rate_scale must be above 0 \(got 0"):
        TraceWorkload(adapters(1.0), recorded(np.ones(1)), (0.0, 1.0), 0.0)
    for cv in (0.0, 21.0, math.nan):
        with pytest.raises(BadInputError, match="cv must be above 0 and at most 20"):
            Gamma(cv)
