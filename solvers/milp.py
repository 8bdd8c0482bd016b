"""Integer programming with Pyomo and HiGHS."""

from __future__ import annotations

import math
import time
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import pyomo.environ as pyo
from pyomo.contrib.appsi.base import TerminationCondition
from pyomo.contrib.appsi.solvers import Highs

from loraplan.errors import BadInputError
from solvers.base import Search, Solution, Solver
from solvers.compact import Answer, Compact, solve_compact
from solvers.enumeration import Chosen, Loads, conclude_choice, enumerate_loads

NO_LIMIT_S = 1e7


@dataclass(frozen=True)
class MILPParams:
    """Settings of integer programming.

    Attributes:
        enumerate: up to so many loads all are listed and chosen among, which is exact for any oracle and objective.
    """

    enumerate: int = 100_000

    def __post_init__(self) -> None:
        """Check the number."""
        if self.enumerate < 0:
            raise BadInputError(f"enumerate must be at least 0 (got {self.enumerate})")


class MILP(Solver):
    """Chooses among all loads where they are few; else assigns classes of adapters to GPUs of bin types."""

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
        return solve_compact(search, "milp", _assign)


def choose(search: Search, loads: Loads) -> Chosen:
    """How often to use each load so that all units are placed at least cost."""
    problem = search.problem
    model = pyo.ConcreteModel()
    model.loads = pyo.RangeSet(0, len(loads.costs) - 1)
    model.times = pyo.Var(model.loads, domain=pyo.NonNegativeIntegers)
    model.cost = pyo.Objective(expr=pyo.quicksum(float(c) * model.times[n] for n, c in enumerate(loads.costs)))
    model.limits = pyo.ConstraintList()
    for kind, wanted in enumerate(loads.wanted):
        having = np.flatnonzero(loads.counts[:, kind])
        if not having.size:
            return Chosen(None, math.inf)
        placed = pyo.quicksum(int(loads.counts[n, kind]) * model.times[int(n)] for n in having)
        model.limits.add(placed == int(wanted))
    for t, gpu_type in enumerate(problem.fleet.types):
        mine = np.flatnonzero(loads.gpu_type == t)
        if mine.size:
            model.limits.add(pyo.quicksum(model.times[int(n)] for n in mine) <= gpu_type.count)
    model.limits.add(pyo.quicksum(model.times[n] for n in model.loads) <= problem.gpus)
    values, bound = _solved(search, model, list(model.times.values()))
    return Chosen(None if values is None else [round(value) for value in values], bound)


def _assign(search: Search, compact: Compact) -> Answer:
    """Bin type and counts of each GPU of the assignment model."""
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
    flat = [*model.used.values(), *model.holds.values()]
    values, bound = _solved(search, model, flat, compact.seconds)
    if values is None:
        return Answer(None, bound)
    used = np.round(values[: len(gpus) * len(bins)]).reshape(len(gpus), len(bins))
    holds = np.round(values[len(gpus) * len(bins) :]).reshape(len(gpus), len(bins), len(items))
    found = [(int(used[j].argmax()), holds[j].sum(axis=0)) for j in gpus if used[j].any() and holds[j].any()]
    return Answer(found, bound)


def _solved(
    search: Search, model: pyo.ConcreteModel, variables: list[Any], most_s: float = NO_LIMIT_S
) -> tuple[list[float] | None, float]:
    """Values of the variables, None if nothing was found, and the bound; inf if it is infeasible."""
    solver = Highs()
    left = NO_LIMIT_S if search.deadline is None else max(0.1, search.deadline - time.monotonic())
    solver.config.time_limit = min(left, most_s)
    solver.config.mip_gap = 0.0
    solver.config.load_solution = False
    solver.highs_options = {"threads": 1, "random_seed": search.seed % 2**31, "mip_abs_gap": 1e-9}
    result = solver.solve(model)
    if result.termination_condition in (TerminationCondition.infeasible, TerminationCondition.infeasibleOrUnbounded):
        return None, math.inf
    bound = result.best_objective_bound
    bound = -math.inf if bound is None else float(bound)
    if result.best_feasible_objective is None:
        return None, bound
    result.solution_loader.load_vars()
    return [float(pyo.value(variable, exception=False) or 0.0) for variable in variables], bound
