"""How far a load is from breaking its limits, by any oracle: the factor on all rates up to which it keeps them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from loraplan.constraints import Constraints
from loraplan.oracle import Oracle, Predictions
from loraplan.problem import GPULoad, Problem
from loraplan.workload import Floats

FACTORS = np.concatenate(([0.0], 1.02 ** np.arange(-150, 151)))
"""From 5 % of the rates to 20 times them; 0: starved even then, or memory error."""

FINE_FACTORS = np.concatenate(([0.0], 1.005 ** np.arange(-600, 601)))
"""The same range in steps that are short enough to interpolate within."""

Asked = Callable[[int], None]
"""Called with the number of loads that the oracle was asked for."""


class Headroom:
    """Asks an oracle of copies of a problem with other rates, which are made when they are first needed."""

    def __init__(
        self,
        problem: Problem,
        oracle_type: type[Oracle],
        params: Any,
        factors: Floats = FACTORS,
        on_asked: Asked | None = None,
        keep: bool = True,
    ) -> None:
        """Prepare for loads of ``problem``, judged by oracles of this type and settings.

        Args:
            problem, oracle_type, params: what is judged, and by what.
            factors: ascending from 0.
            on_asked: told how many loads were judged.
            keep: whether the copies are kept for further calls; one call asks each of them once.
        """
        self._problem, self._type, self._params = problem, oracle_type, params
        self._factors, self._on_asked, self._keep = factors, on_asked, keep
        self._oracles: dict[int, Oracle] = {}

    def of(self, loads: Sequence[GPULoad]) -> Floats:
        """The largest of the factors with which each load is not starved, shape (loads,)."""
        limit = self._problem.constraints.served_fraction
        low, _, _ = self._search(loads, lambda predicted: slack(predicted, Constraints(served_fraction=limit)))
        return np.asarray(self._factors[low])

    def within(self, loads: Sequence[GPULoad]) -> Floats:
        """The factor up to which each load keeps all limits on predicted figures, shape (loads,).

        Interpolated linearly between the last of the factors that it keeps them with and the next one, so that
        differences much smaller than a step of the factors show; exact where the slack is linear in between.
        """
        low, below, above = self._search(loads, lambda predicted: slack(predicted, self._problem.constraints))
        factors = np.append(self._factors, self._factors[-1])
        part = np.zeros(len(loads))
        known = (low > 0) & np.isfinite(below) & np.isfinite(above)
        part[known] = below[known] / (below[known] - above[known])
        return np.asarray(factors[low] + part * (factors[low + 1] - factors[low]))

    def _search(
        self, loads: Sequence[GPULoad], slack_of: Callable[[Predictions], Floats]
    ) -> tuple[np.ndarray[Any, np.dtype[np.int64]], Floats, Floats]:
        """Bisection of every load: its place among the factors, and its slack there and at the next; nan if not asked.

        Each is of shape (loads,).
        """
        low, high = np.zeros(len(loads), dtype=np.int64), np.full(len(loads), self._factors.size)
        below, above = np.full(len(loads), np.nan), np.full(len(loads), np.nan)
        while (open_ := np.flatnonzero(high - low > 1)).size:
            middle = (low + high) // 2
            for place in np.unique(middle[open_]):
                rows = open_[middle[open_] == place]
                found = slack_of(self._oracle(int(place)).predict([loads[row] for row in rows]))
                broken = ~(found >= 0)
                high[rows[broken]], low[rows[~broken]] = place, place
                above[rows[broken]], below[rows[~broken]] = found[broken], found[~broken]
                if self._on_asked is not None:
                    self._on_asked(rows.size)
        return low, below, above

    def _oracle(self, place: int) -> Oracle:
        if place in self._oracles:
            return self._oracles[place]
        oracle = self._type(self._problem.scaled(float(self._factors[place])), self._params)
        if self._keep:
            self._oracles[place] = oracle
        return oracle


def slack(predicted: Predictions, limits: Constraints) -> Floats:
    """By which part of its tightest limit each load keeps the limits on predicted figures, shape (loads,).

    At least 0 exactly where ``predicted.keeps(limits)``; -inf where the server does not start.
    """
    least = (predicted.served_fraction - limits.served_fraction) / limits.served_fraction
    fraction = limits.adapter_served_fraction
    if fraction is not None:
        least = np.fmin(least, (predicted.adapter_served_fraction - fraction) / fraction)
    for name, most in (("itl_ms", limits.itl_ms), ("ttft_p95_s", limits.ttft_p95_s)):
        if most is not None:
            least = np.fmin(least, (most - getattr(predicted, name)) / most)  # nan where nobody waits
    return np.where(predicted.starts, least, -np.inf)
