"""The compiled knapsacks beside HiGHS."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.optimize import linprog

from solvers.knapsack import CORE, pack, relax


@pytest.mark.parametrize("items", [1, 5, 30, 4 * CORE])
@pytest.mark.parametrize("seed", range(5))
def test_relaxations_are_those_of_highs(items: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    rows = rng.random((6, items)) * rng.choice([0.05, 0.3, 1.5]) * (rng.random((6, items)) < 0.8)
    values, counts = rng.random(items) - 0.1, rng.integers(1, 6, items).astype(np.float64)
    prices, x = np.zeros(6), np.zeros(items)
    bound = relax(rows, values, counts, prices, x)
    most = np.where((rows <= 1).all(axis=0), counts, 0.0)
    exact = -linprog(-values, rows, np.ones(6), bounds=[(0.0, float(one)) for one in most]).fun
    assert bound == pytest.approx(exact, abs=1e-7)
    assert (rows @ x <= 1 + 1e-7).all()
    heavier = rows * (1 + 0.1 * rng.random((6, 1)))
    again = relax(heavier, values, counts, prices, x)  # from the prices before
    fresh = relax(heavier, values, counts, np.zeros(6), np.zeros(items))
    assert fresh * (1 - 1e-9) - 1e-9 <= again <= fresh * (1 + 2e-4) + 1e-9
    assert (heavier @ x <= 1 + 1e-7).all()


@pytest.mark.parametrize("seed", range(20))
def test_whole_solutions_are_those_of_enumeration(seed: int) -> None:
    rng = np.random.default_rng(seed)
    rows = rng.random((3, 4)) * rng.choice([0.2, 0.6])
    values, counts = rng.random(4), rng.integers(1, 4, 4).astype(np.float64)
    grid = np.stack(np.meshgrid(*(np.arange(count + 1) for count in counts)), axis=-1).reshape(-1, 4)
    best = (grid[(grid @ rows.T <= 1).all(axis=1)] @ values).max()
    prices, x = np.zeros(3), np.zeros(4)
    relax(rows, values, counts, prices, x)
    found, done = pack(rows, values, counts, prices, 0.0, 100_000, x)
    assert done
    assert found == pytest.approx(best)
    assert values @ x == pytest.approx(best)
    assert (rows @ x <= 1 + 1e-9).all()
    assert pack(rows, values, counts, prices, best, 100_000, x) == (best, True)
