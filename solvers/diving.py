"""Diving: a plan by fixing one load of the solved master after the other, with new loads for what is left."""

from __future__ import annotations

import math

import numpy as np

from loraplan.problem import Problem
from loraplan.workload import Floats
from solvers.classes import Items
from solvers.master import Master, Pattern
from solvers.pricing import Pricing

COLUMNS, LOOKS, ROUNDS = 4, 120, 3
"""Loads of one pricing, bin types it looks at, and pricings after each load that was fixed."""
SPREAD = 0.3
"""By how much at most, relatively, chance favours one load before another."""
WHOLE = 1e-6


class Dive:
    """One way down; another one with other random numbers."""

    def __init__(self, problem: Problem, items: Items, dearest: float, patterns: list[Pattern], paid: Floats) -> None:
        """Begin with loads that are known.

        Args:
            problem, items, dearest: as `Master` takes them.
            patterns: known loads.
            paid: shape (types,), what a GPU of each type costs at least.
        """
        self._paid = paid
        self.master = Master(problem, items, dearest)
        for pattern in patterns:
            self.master.add(pattern)
        self._left = items.counts.copy()

    def run(self, pricing: Pricing, below: float, rng: np.random.Generator | None) -> Floats | None:
        """How often to use each of the master's patterns, shape (patterns,), at a cost below ``below``; None if not.

        Raises:
            SearchStoppedError: the time is up.
        """
        times, cost = np.zeros(len(self.master.patterns)), 0.0
        try:
            while self._left.any():
                used = self._relaxed(pricing, below - cost)
                if used is None:
                    return None
                fixed = np.floor(used + WHOLE)
                if not fixed.any():
                    chance = 1.0 if rng is None else 1.0 + SPREAD * rng.random(used.size)
                    fixed[int((used * chance).argmax())] = 1.0
                times = np.append(times, np.zeros(used.size - times.size)) + fixed
                for place in np.flatnonzero(fixed):
                    pattern = self.master.patterns[place]
                    self._left = np.maximum(self._left - fixed[place] * pattern.counts, 0.0)
                    cost += float(fixed[place]) * pattern.cost
                    self.master.take(pattern.load.gpu_type, int(fixed[place]))
                self.master.want(self._left)
        finally:
            pricing.left = None
        return times if cost < below else None

    def _relaxed(self, pricing: Pricing, below: float) -> Floats | None:
        """How often each pattern is used for what is left; None if that costs too much, or cannot be had."""
        pricing.left = self._left
        for turn in range(ROUNDS + 1):
            prices = self.master.solve()
            if turn == ROUNDS:
                break
            paid = (self._paid + prices.types + prices.gpus) * (1.0 + WHOLE)
            found = pricing.price(prices.items, paid, COLUMNS, LOOKS).patterns
            if not sum(self.master.add(pattern) for pattern in found):
                break
        if prices.missing > WHOLE or not prices.value < below or not math.isfinite(prices.value):
            return None
        return prices.used
