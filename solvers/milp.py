"""Integer programming with Pyomo and HiGHS."""

from __future__ import annotations

import math
import time
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import pyomo.environ as pyo

from loraplan.errors import BadInputError
from solvers.base import Search, Solution, Solver
from solvers.compact import Answer, Compact, solve_compact
from solvers.enumeration import conclude_choice, enumerate_loads
from solvers.integer import choose, solve_model


@dataclass(frozen=True)
class MILPParams:
    """Settings of integer programming.

    Attributes:
        enumerate: up to so many loads all are listed and chosen among, which is exact for any oracle and objective.
    """

    enumerate: int = 20_000

    def __post_init__(self) -> None:
        """Check the number."""
        if self.enumerate < 0:
            raise BadInputError(f"enumerate must be at least 0 (got {self.enumerate})")


class MILP(Solver):
    """Chooses among all loads if they are few, else generated ones; then assigns adapter classes to bin types."""

    Params: ClassVar[type[Any]] = MILPParams

    def __init__(self, params: MILPParams) -> None:
        """Take the settings."""
        self._enumerate = params.enumerate

    def solve(self, search: Search) -> Solution:
        """Solve to the end, or until the time is up."""
        search.check()
        loads = enumerate_loads(search, self._enumerate)
        if loads is not None:
            return conclude_choice(search, loads, choose(search, loads), "milp")
        return solve_compact(search, "milp", choose, _assign)


def _assign(search: Search, compact: Compact) -> Answer:
    """Bin type and counts of each GPU of the assignment model."""
    begun = time.monotonic()
    model = pyo.ConcreteModel()
    gpus, bins, items = range(compact.gpus), range(len(compact.bins)), range(compact.counts.size)
    model.used = pyo.Var(gpus, bins, domain=pyo.Binary)
    model.holds = pyo.Var(gpus, bins, items, domain=pyo.NonNegativeIntegers)
    model.cost = pyo.Objective(
        expr=pyo.quicksum(
            float(compact.of_bin[k]) * model.used[j, k]
            + pyo.quicksum(float(compact.of_item[k, c]) * model.holds[j, k, c] for c in items if compact.of_item[k, c])
            for j in gpus
            for k in bins
        )
    )
    model.limits = pyo.ConstraintList()
    for j in gpus:
        model.limits.add(pyo.quicksum(model.used[j, k] for k in bins) <= 1)
        if j:  # the order of the GPUs means nothing
            model.limits.add(
                pyo.quicksum((k + 1) * model.used[j, k] for k in bins)
                <= pyo.quicksum((k + 1) * model.used[j - 1, k] for k in bins)
            )
        for k in bins:
            search.check()
            rows = compact.bins[k]
            for c in items:
                most = compact.most(k, c)
                if most:
                    model.limits.add(model.holds[j, k, c] <= most * model.used[j, k])
                else:
                    model.holds[j, k, c].fix(0)
            for row in rows:
                weights = [(c, float(row[c])) for c in items if row[c] > 0 and compact.most(k, c)]
                if weights:
                    model.limits.add(pyo.quicksum(w * model.holds[j, k, c] for c, w in weights) <= model.used[j, k])
    for c in items:
        placed = pyo.quicksum(model.holds[j, k, c] for j in gpus for k in bins)
        model.limits.add(placed == int(compact.counts[c]))
    for t, count in enumerate(compact.stock):
        mine = [k for k in bins if compact.types[k] == t]
        if mine:
            model.limits.add(pyo.quicksum(model.used[j, k] for j in gpus for k in mine) <= int(count))
    now = time.monotonic()
    if search.deadline is not None and search.deadline - now < now - begun:
        return Answer(None, -math.inf)  # to hand the model over takes about as long as to build it
    flat = [*model.used.values(), *model.holds.values()]
    values, bound = solve_model(search, model, flat, compact.seconds)
    if values is None:
        return Answer(None, bound)
    used = np.round(values[: len(gpus) * len(bins)]).reshape(len(gpus), len(bins))
    holds = np.round(values[len(gpus) * len(bins) :]).reshape(len(gpus), len(bins), len(items))
    found = [(int(used[j].argmax()), holds[j].sum(axis=0)) for j in gpus if used[j].any() and holds[j].any()]
    return Answer(found, bound)
