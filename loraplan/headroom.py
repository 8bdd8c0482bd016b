"""How far a load is from starving, by any oracle: the factor on all rates up to which it is not."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from loraplan.oracle import Oracle
from loraplan.problem import GPULoad, Problem
from loraplan.workload import Floats

FACTORS = np.concatenate(([0.0], 1.02 ** np.arange(-150, 151)))
"""From 5 % of the rates to 20 times them; 0: starved even then, or memory error."""


class Headroom:
    """Asks an oracle of copies of a problem with other rates, which are made when they are first needed."""

    def __init__(self, problem: Problem, oracle_type: type[Oracle], params: Any) -> None:
        """Prepare for loads of ``problem``, judged by oracles of this type and settings."""
        self._problem, self._type, self._params = problem, oracle_type, params
        self._oracles: dict[int, Oracle] = {}

    def of(self, loads: Sequence[GPULoad]) -> Floats:
        """The largest of ``FACTORS`` with which each load is not starved, shape (loads,)."""
        limit = self._problem.constraints.served_fraction
        low, high = np.zeros(len(loads), dtype=np.int64), np.full(len(loads), FACTORS.size)
        while (open_ := np.flatnonzero(high - low > 1)).size:
            middle = (low + high) // 2
            for place in np.unique(middle[open_]):
                rows = open_[middle[open_] == place]
                starved = self._oracle(int(place)).predict([loads[row] for row in rows]).starved(limit)
                high[rows[starved]], low[rows[~starved]] = place, place
        return np.asarray(FACTORS[low])

    def _oracle(self, place: int) -> Oracle:
        if place not in self._oracles:
            self._oracles[place] = self._type(self._problem.scaled(float(FACTORS[place])), self._params)
        return self._oracles[place]
