"""What the checker says of knapsacks, beside all choices there are and another solver of linear programs."""

from __future__ import annotations

from itertools import product

import numpy as np
import pytest
from scipy.optimize import linprog

from loraplan.knapsacks import Relaxation, price_bound, whole_exceeds
from loraplan.workload import Floats


def knapsack(seed: int, items: int, most: int) -> tuple[Floats, Floats, Floats]:
    rng = np.random.default_rng(seed)
    rows = rng.random((3, items)) * (rng.random((3, items)) < 0.8) * rng.uniform(0.2, 1.0)
    return rows, rng.random(items) * (rng.random(items) < 0.9), rng.integers(0, most + 1, items).astype(np.float64)


@pytest.mark.parametrize("seed", range(40))
def test_whole_choices_are_those_of_enumeration(seed: int) -> None:
    rows, values, counts = knapsack(seed, items=5, most=3)
    choices = np.array(list(product(*(range(int(count) + 1) for count in counts))), dtype=np.float64)
    best = float((choices @ values)[(choices @ rows.T <= 1.0).all(axis=1)].max())
    prices, _ = Relaxation().solve(rows, values, counts, np.ones(3))
    assert price_bound(rows, values, counts, prices) >= best - 1e-9
    for any_prices in (prices, np.ones(3), np.zeros(3)):
        assert whole_exceeds(rows, values, counts, any_prices, best + 1e-7, 100_000) == 0
        assert whole_exceeds(rows, values, counts, any_prices, best - 1e-7, 100_000) == 1
    assert whole_exceeds(rows, values, counts, prices, best + 1e-7, 0) == -1


@pytest.mark.parametrize("items", [1, 30, 300])
@pytest.mark.parametrize("seed", range(5))
def test_relaxations_are_those_of_another_solver(seed: int, items: int) -> None:
    rows, values, counts = knapsack(seed, items, most=2)
    rows *= 5.0 / items
    best = -linprog(-values, rows, np.ones(3), bounds=[(0.0, count) for count in counts]).fun
    relaxation, known = Relaxation(), np.ones(3)
    for worth in (values, values, values * 1.01):  # the second time from prices that are right, then nearly so
        known, x = relaxation.solve(rows, worth, counts, known)
        ratio = worth.max() / values.max()
        assert (rows @ x <= 1.0 + 1e-7).all()
        assert price_bound(rows, worth, counts, known) == pytest.approx(best * ratio, rel=2e-4, abs=1e-9)
        assert best * ratio - 1e-9 <= price_bound(rows, worth, counts, known)
