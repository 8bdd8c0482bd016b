"""Arrival laws: mean rates, dispersion, how rates wander and swing, and the gaps between requests."""

from __future__ import annotations

import math
from collections import Counter

import numpy as np
import pytest
from scipy import stats

from loraplan.arrivals import MOST_PIECES, Arrivals, Diurnal, Floats, Gamma, Hourly, Poisson, Unpredictable
from loraplan.errors import BadInputError
from loraplan.workload import Adapter, Lengths, RateWorkload, Requests

LAWS = [
    Poisson(),
    Gamma(2.0),
    Unpredictable(every_s=60.0),
    Diurnal(peak_hours=(0.0, 0.1), period_hours=0.25),
    Hourly((1.0, 2.0)),
]
law_each = pytest.mark.parametrize("law", LAWS, ids=lambda law: type(law).__name__)

HOUR_S = 3600.0


def stream(law: Arrivals, rates: Floats | list[float], horizon_s: float, seed: int = 0) -> Requests:
    lengths = Lengths.constant(1, 1)
    adapters = tuple(Adapter(f"a{i}", 8, float(rate), lengths) for i, rate in enumerate(rates))
    return RateWorkload(adapters, horizon_s, law).requests(seed)


def mean_factor(law: Unpredictable, intervals: int) -> float:
    """What the law multiplies a rate by, in the mean over this many intervals, from its Markov chain."""
    chances, total = Counter({1.0: 1.0}), 0.0
    for _ in range(intervals):
        total += sum(factor * chance for factor, chance in chances.items())
        after: Counter[float] = Counter()
        for factor, chance in chances.items():
            for turned in (factor * law.step, factor / law.step):
                after[round(min(max(turned, 1 / law.swing), law.swing), 9)] += chance / 2
        chances = after
    return total / intervals


# ---- every law ----


@law_each
def test_streams_are_ordered_inside_the_horizon_and_repeat_with_their_seed(law: Arrivals) -> None:
    one, again, other = (stream(law, [2.0, 0.0, 0.5], 700.0, seed) for seed in (7, 7, 8))
    assert (np.diff(one.arrival_s) >= 0).all()
    assert 0 <= one.arrival_s[0] <= one.arrival_s[-1] < 700
    assert set(one.adapter) == {0, 2}
    for name in ("arrival_s", "adapter", "tokens_in", "tokens_out"):
        assert getattr(one, name).tobytes() == getattr(again, name).tobytes()
    assert one.arrival_s.tobytes() != other.arrival_s.tobytes()


@law_each
@pytest.mark.parametrize("rates", [[], [0.0], [0.0, 5e-324]])
def test_nobody_asks_at_rate_zero(law: Arrivals, rates: list[float]) -> None:
    assert len(stream(law, rates, 700.0)) == 0


@law_each
def test_a_horizon_shorter_than_anything_in_the_law_is_fine(law: Arrivals) -> None:
    times = stream(law, [1.0] * 50_000, 0.1).arrival_s
    assert 0 <= times.min() <= times.max() < 0.1
    assert times.size > 1000


@pytest.mark.parametrize(
    ("law", "peak"),
    [
        (Poisson(), 1.0),
        (Gamma(3.0), 1.0),
        (Unpredictable(), 7.5),
        (Diurnal(0.8), 1.8),
        (Hourly((1e308, 3e307)), 1 / 0.65),
    ],
)
def test_streams_too_long_at_their_peak_are_refused(law: Arrivals, peak: float) -> None:
    assert law.peak == pytest.approx(peak)
    law.check(np.array([0.99e8 / HOUR_S / peak]), HOUR_S)
    at_peak = "" if peak == 1 else rf" at peak rates \({peak:g} times the mean ones\)"
    with pytest.raises(BadInputError, match=rf"^workload: 1\.01e\+08 requests are expected in 3600 s{at_peak}, more"):
        law.check(np.array([1.01e8 / HOUR_S / peak]), HOUR_S)


# ---- unpredictable ----


def test_the_published_settings_are_the_defaults() -> None:
    law = Unpredictable()
    assert (law.every_s, law.step, law.swing) == (300.0, 1.5, 7.5)


def test_factors_step_up_or_down_by_a_fair_coin_and_stay_in_bounds() -> None:
    law = Unpredictable()
    factors = law.factors(np.random.default_rng(0), 400, 200)
    assert (factors[0] == 1).all()
    assert factors.min() == 1 / 7.5
    assert factors.max() == 7.5
    ratios = factors[1:] / factors[:-1]
    free = (factors[1:] > 1.01 / 7.5) & (factors[1:] < 7.5 / 1.01)
    up, down = np.isclose(ratios, 1.5), np.isclose(ratios, 1 / 1.5)
    # Coming from a bound is free as well, so: every step that did not end at a bound is a whole one.
    assert (up | down)[free].all()
    inner = (factors[:-1] > 1.5 / 7.5) & (factors[:-1] < 7.5 / 1.5)
    assert up[inner].mean() == pytest.approx(0.5, abs=4 * 0.5 / math.sqrt(inner.sum()))
    # Adapters do not move together.
    assert abs(np.corrcoef(np.log(factors[:12]).T)[np.triu_indices(400, 1)].mean()) < 0.02


def test_the_mean_rate_is_that_of_the_walk() -> None:
    law, horizon_s = Unpredictable(), HOUR_S
    expected = mean_factor(law, 12)
    assert expected == pytest.approx(1.47, abs=0.01)
    assert mean_factor(law, 24 * 12) == pytest.approx(2.0, abs=0.01)
    counts = np.bincount(stream(law, [0.01] * 20_000, horizon_s).adapter, minlength=20_000)
    assert counts.mean() / (0.01 * horizon_s) == pytest.approx(expected, abs=4 * counts.std() / 36 / math.sqrt(20_000))


def test_the_first_interval_has_the_own_rate_and_later_ones_spread() -> None:
    n, rate = 4000, 0.1
    requests = stream(Unpredictable(sigma=1.0), [rate] * n, HOUR_S)
    counts = np.zeros((n, 12))
    np.add.at(counts, (requests.adapter, (requests.arrival_s // 300).astype(int)), 1)
    assert counts[:, 0].mean() == pytest.approx(300 * rate, rel=4 / math.sqrt(n * 30) * 1.3)
    # Half of the intervals are Poisson (variance / mean 1), half lognormal renewals (about their squared CV, e - 1).
    assert counts[:, 0].var() / counts[:, 0].mean() == pytest.approx((1 + math.e - 1) / 2, rel=0.1)
    # In the second, the rate is 1.5 or 1 / 1.5 times as high: variance of the two means, and the noise around them.
    means = 30 * np.array([1.5, 1 / 1.5])
    assert counts[:, 1].mean() == pytest.approx(means.mean(), rel=0.02)
    assert counts[:, 1].var() == pytest.approx(means.var() + (means * math.e / 2).mean(), rel=0.1)


def test_gaps_are_exponential_or_lognormal_of_the_rate_of_their_interval() -> None:
    law = Unpredictable(every_s=10_000.0, step=2.0, sigma=0.7)
    requests = stream(law, [1.0] * 40, 10_000.0)
    kinds = []
    for index in range(40):
        gaps = np.diff(requests.arrival_s[requests.adapter == index])
        lognormal = stats.kstest(gaps, stats.lognorm(s=0.7, scale=math.exp(-0.5 * 0.7**2)).cdf).pvalue
        exponential = stats.kstest(gaps, stats.expon().cdf).pvalue
        assert (lognormal > 1e-4) != (exponential > 1e-4)
        kinds.append(lognormal > exponential)
    assert 8 <= sum(kinds) <= 32


@pytest.mark.parametrize("sigma", [0.0, 1.0, 2.0])
def test_lognormal_arrivals_are_stationary_from_the_start(sigma: float) -> None:
    n, rate = 40_000, 0.5
    times = stream(Unpredictable(every_s=4.0, sigma=sigma), [rate] * n, 4.0).arrival_s
    per_part = np.histogram(times, bins=8, range=(0, 4))[0]
    noise = 5 * math.sqrt(n * rate * 0.5 * math.exp(sigma**2))
    assert (np.abs(per_part - n * rate * 0.5) < noise).all()


def test_without_steps_and_swing_the_mean_rates_stay() -> None:
    law = Unpredictable(step=1.0, swing=1.0)
    assert (law.factors(np.random.default_rng(0), 3, 50) == 1).all()
    assert len(stream(law, [10.0], HOUR_S)) == pytest.approx(36_000, rel=0.03)


def test_too_many_changes_are_refused() -> None:
    law, rates = Unpredictable(every_s=1.0), np.zeros(1000)
    law.check(rates, MOST_PIECES / 1000)
    for horizon_s in (MOST_PIECES / 900, 1e308):
        with pytest.raises(
            BadInputError, match=r"^arrivals: 1000 adapters that change every 1 s for .*; raise every_s"
        ):
            law.check(rates, horizon_s)


# ---- daily curves ----


def expected_by_part(law: Arrivals, rate: float, horizon_s: float, parts: int) -> Floats:
    """Mean requests in equal parts of the horizon, from the definition of the curves."""
    hours = (np.arange(parts * 1000) + 0.5) * horizon_s / HOUR_S / (parts * 1000)
    if isinstance(law, Diurnal):
        peaks = np.array(law.peak_hours)[:, None]
        curve = (1 + law.amplitude * np.cos(2 * np.pi * (hours - peaks) / law.period_hours)).mean(0)
    else:
        assert isinstance(law, Hourly)
        curve = np.array(law.weights)[hours.astype(int) % len(law.weights)] / np.mean(law.weights)
    return np.asarray(curve.reshape(parts, 1000).mean(1) * rate * horizon_s / parts)


@pytest.mark.parametrize(
    "law",
    [
        Diurnal(),
        Diurnal(amplitude=1.0, peak_hours=(3.0,), period_hours=6.0),
        Diurnal(peak_hours=(0.0, 6.0)),
        Diurnal(amplitude=0.0),
        Hourly(tuple(range(24))),
        Hourly((0.0, 5.0)),
    ],
    ids=str,
)
def test_arrivals_follow_the_curve_of_the_day(law: Arrivals) -> None:
    rate = 2.0
    requests = stream(law, [rate / 100] * 100, 48 * HOUR_S)
    counts = np.histogram(requests.arrival_s, bins=48, range=(0, 48 * HOUR_S))[0]
    expected = expected_by_part(law, rate, 48 * HOUR_S, 48)
    assert (counts[expected == 0] == 0).all()
    busy = expected > 0
    assert (((counts - expected)[busy] ** 2 / expected[busy]).sum()) < stats.chi2(busy.sum()).isf(1e-4)
    # Whole cycles, so the mean rate is the adapters' own.
    assert len(requests) == pytest.approx(rate * 48 * HOUR_S, abs=4 * math.sqrt(rate * 48 * HOUR_S))


@pytest.mark.parametrize("law", [Diurnal(), Hourly((1.0, 4.0))], ids=str)
def test_counts_around_the_curve_are_poisson(law: Arrivals) -> None:
    counts = np.bincount(stream(law, [0.001] * 4000, law.cycle_s or 0).adapter, minlength=4000)
    assert counts.var() / counts.mean() == pytest.approx(1, abs=5 * math.sqrt(2 / 4000))


def test_several_peaks_are_dealt_evenly_and_anew_in_each_stream() -> None:
    law = Diurnal(amplitude=1.0, peak_hours=(0.0, 12.0))

    def early(seed: int) -> list[bool]:
        requests = stream(law, [0.01] * 40, 24 * HOUR_S, seed)
        hours = requests.arrival_s / HOUR_S
        night = (hours < 6) | (hours >= 18)
        return [bool(night[requests.adapter == index].mean() > 0.5) for index in range(40)]

    assert sum(early(0)) == sum(early(1)) == 20
    assert early(0) != early(1)


def test_a_cycle_is_what_repeats() -> None:
    assert [law.cycle_s for law in (Poisson(), Gamma(2.0), Unpredictable())] == [None, None, None]
    assert Diurnal(period_hours=2.0).cycle_s == 7200
    assert Hourly((1.0, 2.0, 3.0)).cycle_s == 3 * HOUR_S


# ---- settings ----


@pytest.mark.parametrize(
    ("law", "settings", "complaint"),
    [
        (Unpredictable, {"every_s": 0.0}, "every_s must be above 0 (got 0.0)"),
        (Unpredictable, {"every_s": math.inf}, "every_s must be above 0 (got inf)"),
        (Unpredictable, {"step": 0.5}, "step must be between 1 and 1000 (got 0.5)"),
        (Unpredictable, {"swing": math.nan}, "swing must be between 1 and 1000 (got nan)"),
        (Unpredictable, {"sigma": 3.0}, "sigma must be between 0 and 2.5 (got 3.0)"),
        (Diurnal, {"amplitude": 1.1}, "amplitude must be between 0 and 1 (got 1.1)"),
        (Diurnal, {"period_hours": 0.0}, "period_hours must be above 0 (got 0.0)"),
        (Diurnal, {"peak_hours": ()}, "peak_hours must be a list of hours (got ())"),
        (Hourly, {"weights": (0.0, 0.0)}, "weights must be numbers >= 0, not all 0 (got (0.0, 0.0))"),
        (Hourly, {"weights": (1.0, -1.0)}, "weights must be numbers >= 0, not all 0 (got (1.0, -1.0))"),
    ],
)
def test_settings_are_checked(law: type[Arrivals], settings: dict[str, object], complaint: str) -> None:
    with pytest.raises(BadInputError) as error:
        law(**settings)
    assert str(error.value) == f"arrivals: {complaint}"
