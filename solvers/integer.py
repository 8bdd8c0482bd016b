"""Integer programs by Pyomo and HiGHS."""

from __future__ import annotations

import math
import time
from typing import Any

import numpy as np
import pyomo.environ as pyo
from pyomo.contrib.appsi.base import TerminationCondition
from pyomo.contrib.appsi.solvers import Highs

from solvers.base import Search
from solvers.enumeration import Chosen, Loads

NO_LIMIT_S = 1e7


def choose(search: Search, loads: Loads, most_s: float = NO_LIMIT_S) -> Chosen:
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
        model.limits.add(placed == int(wanted) if loads.exactly else placed >= int(wanted))
    for t, gpu_type in enumerate(problem.fleet.types):
        mine = np.flatnonzero(loads.gpu_type == t)
        if mine.size:
            model.limits.add(pyo.quicksum(model.times[int(n)] for n in mine) <= gpu_type.count)
    model.limits.add(pyo.quicksum(model.times[n] for n in model.loads) <= problem.gpus)
    values, bound = solve_model(search, model, list(model.times.values()), most_s)
    return Chosen(None if values is None else [round(value) for value in values], bound)


def solve_model(
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
