"""Lower bounds from prices: what is proven of every plan, and the certificate that says how."""

from __future__ import annotations

import math
from dataclasses import dataclass
from itertools import product
from typing import Any

import numpy as np

from loraplan.problem import Problem
from loraplan.workload import Floats
from objectives.base import CostFloor
from solvers.classes import Items
from solvers.master import Prices

MOST_TOTALS = 200_000
"""Combinations of GPUs of each type that are listed to round a bound up to a cost that a plan can have."""
SAFE = 1e-9
EQUAL = 1e-6
"""Relative difference up to which bound and value are the same."""
MARGIN = 1e-4
"""By how much, relatively, more than a step is to be proven, so that no rounding error matters."""
EASED = 1e-4
"""By how much less, relatively, adapters may be said to be worth, so that a bound is easier to check.

With 1e-5 the checker could not decide one in 3 million steps, where only whole numbers proved it."""


@dataclass
class Bound:
    """The best lower bound so far, and the prices that prove it.

    With ``worth`` of each adapter, ``rents`` of each GPU type and ``rent`` of any GPU such that no load is worth more
    than its cost and rents, a plan costs at least ``sum(worth) - sum(rents * stock) - rent * GPUs``: every adapter is
    placed, and no more GPUs are used than there are.
    """

    problem: Problem
    items: Items
    floor: CostFloor
    value: float = -math.inf
    worth: Floats | None = None
    rents: Floats | None = None
    rent: float = 0.0
    branches: dict[str, Any] | None = None

    def eased(self) -> Bound:
        """A bound by a little less than these prices, which is easier to check."""
        less = Bound(self.problem, self.items, self.floor)
        if self.worth is not None and self.rents is not None:
            less.offer(self.worth * (1.0 - EASED), self.rents, self.rent)
        return less

    def exclude(self, base: Bound, most: float, tree: dict[str, Any]) -> None:
        """No plan costs ``most`` or less, as a tree on top of the prices of ``base`` proves (`solvers.branching`)."""
        self.value, self.worth, self.rents, self.rent = base.value, base.worth, base.rents, base.rent
        self.branches = {"most": most, "tree": tree}

    def offer(self, worth: Floats, rents: Floats, rent: float) -> None:
        """Take over prices, shape (items,) and (types,), if they prove more."""
        stock = np.array([gpu_type.count for gpu_type in self.problem.fleet.types])
        value = float(worth @ self.items.counts - rents @ stock - rent * self.problem.gpus) * (1 - SAFE)
        if value > self.value:
            self.value, self.worth, self.rents, self.rent = value, worth.copy(), rents.copy(), rent

    def priced(self, prices: Prices, upper: Floats) -> None:
        """What prices prove if no load of a type is worth more than ``upper``, shape (types,)."""
        paid = self.floor.of_type + prices.types + prices.gpus
        if not self.floor.per_ms.any() and (paid > 0).all() and np.isfinite(upper).all():
            # Farley: all prices smaller by one factor
            scale = max(float((upper / paid).max()), 1e-12)
            if prices.types.any() or prices.gpus:
                scale = max(scale, 1.0)  # rents stay as they are
            self.offer(prices.items / scale, prices.types, prices.gpus)
        # Lagrange: what loads are worth too much is rent
        rents = np.maximum(upper - self.floor.of_type - prices.gpus, 0.0)
        self.offer(prices.items, rents, prices.gpus)

    def smoothed(self, prices: Prices, part: float) -> Prices:
        """Prices on the way to those of the best bound: what a few columns ask for changes too much at a time.

        (Wentges, 1997.) ``part`` of the way, if all adapters are placed by the columns.
        """
        centre, rents = self.worth, self.rents
        if not part or centre is None or rents is None or prices.missing > 1e-6:
            return prices
        total = float(centre @ self.items.counts)
        scale = float(prices.items @ self.items.counts) / total if total > 0 else 1.0
        mean = [part * a * scale + (1.0 - part) * b for a, b in ((centre, prices.items), (rents, prices.types))]
        gpus = part * scale * self.rent + (1.0 - part) * prices.gpus
        return Prices(prices.value, mean[0], mean[1], gpus, prices.used, prices.missing)

    def limits(self, prices: Prices, value: float) -> Floats:
        """What loads of each type have to be worth to be looked for, shape (types,), if a plan of ``value`` is known.

        More than their cost and rents; and where costs come in steps, by as much as it takes to prove the next step.
        """
        paid = np.asarray(self.floor.of_type + prices.types + prices.gpus)
        if not self.floor.exact or prices.missing > 1e-6 or (paid <= 0).any():
            return paid + EQUAL * max(1e-6, abs(prices.value)) / max(self.problem.gpus, 1)
        step = self.step_below(min(prices.value, value))
        if self.rounded() > step + EQUAL * max(1.0, abs(step)):
            return paid * (1.0 + EQUAL)  # that is proven: what is left is to find a better plan
        stock = np.array([gpu_type.count for gpu_type in self.problem.fleet.types])
        rents = float(prices.types @ stock) + prices.gpus * self.problem.gpus
        worth = float(prices.items @ self.items.counts)
        scale = worth / (step + rents + MARGIN * max(1.0, step + rents))
        return paid * max(min(scale, 1e6), 1.0 + 1e-6)

    def step_below(self, value: float) -> float:
        """The largest cost that a plan can have below ``value``: to prove more than this is to prove the next."""
        if math.isinf(value):
            return value
        costs = np.unique(self.floor.of_type)
        if costs.size == 1:
            return float(math.ceil(value / costs[0] - 1e-6) - 1) * float(costs[0])
        low, high = 0.0, value
        if next_total(self.problem, self.floor.of_type, value * 0.999999) > value * (1 + EQUAL):
            return value * (1 - EQUAL)
        for _ in range(40):
            middle = (low + high) / 2
            if next_total(self.problem, self.floor.of_type, middle) < value * (1 - EQUAL):
                low = middle
            else:
                high = middle
        return low

    def rounded(self) -> float:
        """The least cost of at least the bound that GPUs of these types can have together."""
        value = self.value if self.branches is None else max(self.value, self.branches["most"])
        if not self.floor.exact or not math.isfinite(value):
            return value
        return next_total(self.problem, self.floor.of_type, value)

    def certificate(self) -> dict[str, Any] | None:
        """The prices as plain data, for `loraplan.certificate`; a little less where that proves no less in the end."""
        eased = self.eased()
        base = eased if self.branches is None and eased.rounded() >= self.rounded() else self
        if base.worth is None or base.rents is None:
            return None
        worth = base.worth[self.items.group_of]
        return {
            "kind": "prices",
            "bound": base.value,
            "worth": [float(one) for one in worth],
            "items": [int(one) for one in self.items.group_of],
            "rents": [float(one) for one in base.rents],
            "rent": float(base.rent),
            "branches": self.branches,
        }


def next_total(problem: Problem, of_type: Floats, value: float) -> float:
    """The least sum of costs of GPUs of the fleet that is at least ``value``, but for rounding errors."""
    least = value - 1e-6 * max(1.0, abs(value))
    distinct = np.unique(of_type)
    if distinct.size == 1:
        return float(math.ceil(least / distinct[0]) * distinct[0]) if distinct[0] > 0 else value
    counts = [min(gpu_type.count, len(problem.units)) for gpu_type in problem.fleet.types]
    if np.prod([float(count + 1) for count in counts]) > MOST_TOTALS:
        return value
    *others, last = (np.arange(count + 1) * cost for count, cost in zip(counts, of_type, strict=True))
    best = math.inf
    for chosen in product(*others):
        totals = sum(chosen) + last
        fine = totals[totals >= least]
        best = min(best, float(fine.min(initial=math.inf)))
    return max(best, value) if math.isfinite(best) else value
