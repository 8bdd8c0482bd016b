"""Thresholds keep their promise on loads of the same law, and on packed ones."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.special import expit

from surrogate.calibration import PACKED_RISK, Calibration, logistic_slope, packed_threshold, threshold


def drawn(rng: np.random.Generator, n: int, shift: float = 0.0) -> tuple[np.ndarray, np.ndarray]:
    """Scores, and whether such loads starve: with the odds that the score says, but for ``shift``."""
    score = rng.uniform(-12.0, 12.0, n)
    return score, rng.random(n) < expit(score + shift)


@pytest.mark.parametrize("risk", [0.01, 0.05, 0.2])
def test_at_most_the_risk_starves_of_what_is_accepted(risk: float) -> None:
    rng = np.random.default_rng(0)
    shares = []
    for _ in range(50):
        limit = threshold(*drawn(rng, 2000), risk)
        score, starved = drawn(rng, 20_000)
        shares.append(starved[score <= limit].mean())
    assert np.mean(shares) == pytest.approx(risk, rel=0.25)


def test_too_few_loads_accept_nothing() -> None:
    assert threshold(np.zeros(10), np.zeros(10, dtype=bool), 0.01) == -np.inf
    assert threshold(np.zeros(0), np.zeros(0, dtype=bool), 0.5) == -np.inf


def test_the_slope_of_scores_that_are_too_sure() -> None:
    score, starved = drawn(np.random.default_rng(1), 20_000)
    assert logistic_slope(2.0 * score, starved) == pytest.approx(0.5, rel=0.05)
    assert logistic_slope(score[:5], starved[:5]) == 1.0


def test_packed_loads_move_the_threshold_to_where_so_many_starve() -> None:
    """Packed up to a score of -2, more of them starve than it says; packed up to the threshold, two in a hundred do."""
    rng = np.random.default_rng(2)
    starved = []
    for _ in range(100):
        below = rng.exponential(1.0, 120)
        found = packed_threshold(-2.0 - below, rng.random(120) < expit(-1.0 - below), 1.0, 0.02)
        starved.append(expit(found + 1.0 - below).mean())
    assert np.median(starved) == pytest.approx(0.02, rel=0.1)
    assert packed_threshold(np.full(50, -2.0), np.zeros(50, dtype=bool), 1.0, 0.02) > packed_threshold(
        np.full(50, -2.0), np.ones(50, dtype=bool), 1.0, 0.02
    )


def test_served_fractions_agree_with_the_thresholds() -> None:
    rng = np.random.default_rng(3)
    score = rng.uniform(-12.0, 12.0, 3000)
    served = np.clip(expit(-score) + 0.02 * rng.standard_normal(3000), 0.0, 1.0)
    calibration = Calibration(score, served, score[:200], served[:200])
    for limit in (0.9, 0.873):
        scores, fractions = calibration.served_at(0.05, limit)
        assert (np.diff(scores) >= 0).all()
        assert (np.diff(fractions) < 0).all()
        at = calibration.threshold(limit, 0.05)
        assert np.interp(at - 1e-6, scores, fractions) >= limit
        assert np.interp(at + 1e-6, scores, fractions) < limit
    assert calibration.threshold(0.9, 0.05) <= calibration.threshold(0.9, 0.2)
    assert PACKED_RISK >= 1.0
