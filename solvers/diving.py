"""Diving: a plan by fixing one load of the solved master after the other, with new loads for what is left."""

from __future__ import annotations

from dataclasses import dataclass, replace

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


@dataclass(eq=False)
class Dive:
    """One way down; another one with other random numbers.

    Attributes:
        problem, items, dearest: as `Master` takes them. The coarser the prices of the items, the fewer loads the master
            needs to know, and the less it notices that two of them have the same adapters: these are taken out of all
            loads as soon as one of them is fixed.
        known: loads to begin with; afterwards those found on the way, too.
        paid: shape (types,), what a GPU of each type costs at least.
    """

    problem: Problem
    items: Items
    dearest: float
    known: list[Pattern]
    paid: Floats

    def run(
        self, pricing: Pricing, below: float, rng: np.random.Generator | None, turns: int
    ) -> list[tuple[Pattern, int]] | None:
        """Loads and how often to use each, at a cost below ``below``; None if there were none.

        Where a way ends, others are tried: at every step the best load may be passed over, the second best, too, and so
        on, ``turns`` loads in all on one way (limited discrepancy: Sadykov, Vanderbeck and others, 2019).

        Raises:
            SearchStoppedError: the time is up.
        """
        try:
            return self._down(pricing, self.items.counts, 0.0, [], below, rng, turns)
        finally:
            pricing.left = None

    def _down(
        self,
        pricing: Pricing,
        left: Floats,
        cost: float,
        chosen: list[tuple[Pattern, int]],
        below: float,
        rng: np.random.Generator | None,
        turns: int,
    ) -> list[tuple[Pattern, int]] | None:
        """The same from where some loads are chosen."""
        if not left.any():
            return chosen if cost < below else None
        pricing.left = left
        solved = self._relaxed(pricing, left, chosen, below - cost)
        if solved is None:
            return None
        for turn, more in enumerate(_ways(*solved, left, rng)[: turns + 1]):
            rest, spent = left, cost
            for pattern, times in more:
                rest = np.maximum(rest - times * pattern.counts, 0.0)
                spent += times * pattern.cost
            found = self._down(pricing, rest, spent, [*chosen, *more], below, rng, turns - turn)
            if found is not None:
                return found
        return None

    def _relaxed(
        self, pricing: Pricing, left: Floats, chosen: list[tuple[Pattern, int]], below: float
    ) -> tuple[list[Pattern], Floats] | None:
        """Loads for what is left and how much of each is used; None if that costs too much, or cannot be had."""
        master = Master(self.problem, replace(self.items, counts=left), self.dearest)
        for pattern, times in chosen:
            master.take(pattern.load.gpu_type, times)
        for pattern in self.known:
            counts = np.minimum(pattern.counts, left)
            if pattern.whole and counts.any():
                master.add(replace(pattern, counts=counts))
        for turn in range(ROUNDS + 1):
            prices = master.solve()
            if turn == ROUNDS:
                break
            limits = (self.paid + prices.types + prices.gpus) * (1.0 + WHOLE)
            found = pricing.price(prices.items, limits, COLUMNS, LOOKS).patterns
            fresh = [pattern for pattern in found if pattern.whole and master.add(pattern)]
            self.known.extend(fresh)
            if not fresh:
                break
        if prices.missing > WHOLE or not prices.value < below:
            return None
        return master.patterns, prices.used


def _ways(
    patterns: list[Pattern], used: Floats, left: Floats, rng: np.random.Generator | None
) -> list[list[tuple[Pattern, int]]]:
    """What to fix next, the best first: all loads that are used at least once, or the one that is used most, or next.

    Each as often as there are adapters for.
    """
    fixed, rest = [], left
    for place in np.flatnonzero(used >= 1.0 - WHOLE):
        counts = patterns[place].counts
        there = rest[counts > 0] / counts[counts > 0]
        times = int(min(used[place] + WHOLE, float(there.min())))
        if times:
            fixed.append((patterns[place], times))
            rest = np.maximum(rest - times * counts, 0.0)
    chance = 1.0 if rng is None else 1.0 + SPREAD * rng.random(used.size)
    order = np.argsort(-np.where(used < 1.0 - WHOLE, used, 0.0) * chance, kind="stable")
    others = [[(patterns[place], 1)] for place in order if WHOLE < used[place] < 1.0 - WHOLE]
    return [fixed, *others] if fixed else others
