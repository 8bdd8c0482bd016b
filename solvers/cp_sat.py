"""Constraint programming with OR-Tools CP-SAT."""

from __future__ import annotations

import math
import time
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
from ortools.sat.python import cp_model

from loraplan.errors import BadInputError
from solvers.base import Search, Solution, Solver
from solvers.compact import Answer, Compact, solve_compact
from solvers.enumeration import Chosen, Loads, conclude_choice, enumerate_loads

LARGEST = 2.0**44
"""Costs are whole numbers to CP-SAT: the dearest plan gets about this one."""
UNIT = 1_000_000
"""Weights of a row are whole parts of this one, rounded down, which lets more in, never less."""


@dataclass(frozen=True)
class CPSATParams:
    """Settings of constraint programming.

    Attributes:
        enumerate: up to so many loads all are listed and chosen among, which is exact for any oracle and objective.
        workers: threads of CP-SAT.
    """

    enumerate: int = 20_000
    workers: int = 1

    def __post_init__(self) -> None:
        """Check the numbers."""
        if self.enumerate < 0 or self.workers < 1:
            raise BadInputError("cp_sat: enumerate must be at least 0 and workers at least 1")


class CPSAT(Solver):
    """Chooses among all loads if they are few, else generated ones; then assigns adapter classes to bin types."""

    Params: ClassVar[type[Any]] = CPSATParams

    def __init__(self, params: CPSATParams) -> None:
        """Take the settings."""
        self._params = params

    def solve(self, search: Search) -> Solution:
        """Solve to the end, or until the time is up."""
        search.check()
        loads = enumerate_loads(search, self._params.enumerate)
        if loads is not None:
            return conclude_choice(search, loads, self._choose(search, loads), "cp_sat")
        return solve_compact(search, "cp_sat", self._choose, self._assign)

    def _choose(self, search: Search, loads: Loads, most_s: float = math.inf) -> Chosen:
        """How often to use each load so that all units are placed at least cost."""
        problem, model = search.problem, cp_model.CpModel()
        wanted = loads.wanted
        most = [problem.gpus] * len(loads.costs)
        if loads.exactly:
            most = [int(min((wanted[k] // row[k] for k in np.flatnonzero(row)), default=0)) for row in loads.counts]
        times = [model.new_int_var(0, top, "") for top in most]
        for kind, count in enumerate(wanted):
            having = np.flatnonzero(loads.counts[:, kind])
            if not having.size:
                return Chosen(None, math.inf)
            placed = sum(int(loads.counts[n, kind]) * times[n] for n in having)
            model.add(placed == int(count) if loads.exactly else placed >= int(count))
        for t, gpu_type in enumerate(problem.fleet.types):
            mine = np.flatnonzero(loads.gpu_type == t)
            if mine.size:
                model.add(sum(times[n] for n in mine) <= gpu_type.count)
        model.add(sum(times) <= problem.gpus)
        scale = _scale(float(loads.costs.max(initial=0.0)) * problem.gpus)
        model.minimize(sum(round(cost * scale) * one for cost, one in zip(loads.costs.tolist(), times, strict=True)))
        solver, bound = self._run(search, model, scale, problem.gpus, most_s)
        return Chosen(None if solver is None else [solver.value(one) for one in times], bound)

    def _assign(self, search: Search, compact: Compact) -> Answer:
        """Bin type and counts of each GPU of the assignment model."""
        model = cp_model.CpModel()
        gpus, bins, items = range(compact.gpus), range(len(compact.bins)), range(compact.counts.size)
        used = [[model.new_bool_var("") for _ in bins] for _ in gpus]
        holds = [[model.new_int_var(0, int(compact.counts[c]), "") for c in items] for _ in gpus]
        for j in gpus:
            model.add_at_most_one(used[j])
            model.add(sum(holds[j]) == 0).only_enforce_if([one.negated() for one in used[j]])
            if j:  # the order of the GPUs means nothing
                model.add(sum((k + 1) * used[j][k] for k in bins) <= sum((k + 1) * used[j - 1][k] for k in bins))
            for k in bins:
                for c in items:
                    top = compact.most(k, c)
                    if top < compact.counts[c]:
                        model.add(holds[j][c] <= top).only_enforce_if(used[j][k])
                for row in compact.bins[k]:
                    weights = [(c, math.floor(float(row[c]) * UNIT)) for c in items if compact.most(k, c)]
                    model.add(sum(w * holds[j][c] for c, w in weights if w) <= UNIT).only_enforce_if(used[j][k])
            if compact.shares is not None:  # what is proven of every load
                shares = [(c, math.floor(float(compact.shares[c]) * UNIT)) for c in items]
                model.add(sum(d * holds[j][c] for c, d in shares if d) <= UNIT * sum(used[j]))
        for c in items:
            model.add(sum(holds[j][c] for j in gpus) == int(compact.counts[c]))
        for t, count in enumerate(compact.stock):
            model.add(sum(used[j][k] for j in gpus for k in bins if compact.types[k] == t) <= int(count))
        scale = _scale(compact.dearest)
        costs = [
            *(math.floor(float(compact.of_bin[k]) * scale) * used[j][k] for j in gpus for k in bins),
            *self._of_items(model, compact, used, holds, scale),
        ]
        model.minimize(sum(costs))
        solver, bound = self._run(search, model, scale, len(costs), compact.seconds)
        if solver is None:
            return Answer(None, bound)
        found = []
        for j in gpus:
            chosen = [k for k in bins if solver.value(used[j][k])]
            counts = np.array([solver.value(one) for one in holds[j]], dtype=np.float64)
            if chosen and counts.any():
                found.append((chosen[0], counts))
        return Answer(found, bound)

    @staticmethod
    def _of_items(
        model: cp_model.CpModel, compact: Compact, used: list[list[Any]], holds: list[list[Any]], scale: float
    ) -> list[Any]:
        """For each GPU a variable, at least what its items cost given its bin type; none if they cost nothing."""
        if not compact.of_item.any():
            return []
        found = []
        for j in range(compact.gpus):
            cost = model.new_int_var(0, math.ceil(compact.dearest * scale), "")
            for k in range(len(compact.bins)):
                parts = [math.floor(float(one) * scale) for one in compact.of_item[k]]
                total = sum(part * holds[j][c] for c, part in enumerate(parts) if part)
                model.add(cost >= total).only_enforce_if(used[j][k])
            found.append(cost)
        return found

    def _run(
        self, search: Search, model: cp_model.CpModel, scale: float, terms: int, most_s: float = math.inf
    ) -> tuple[cp_model.CpSolver | None, float]:
        """The solver, None if it found nothing, and its bound; inf if it proved that there is nothing."""
        solver = cp_model.CpSolver()
        solver.parameters.num_workers = self._params.workers
        solver.parameters.random_seed = search.seed % 2**31
        left = math.inf if search.deadline is None else max(0.1, search.deadline - time.monotonic())
        if min(left, most_s) < math.inf:
            solver.parameters.max_time_in_seconds = min(left, most_s)
        status = solver.solve(model)
        if status == cp_model.INFEASIBLE:
            return None, math.inf
        bound = solver.best_objective_bound / scale - 0.5 * terms / scale  # costs were rounded
        return (solver if status in (cp_model.OPTIMAL, cp_model.FEASIBLE) else None), bound


def _scale(dearest: float) -> float:
    return LARGEST / dearest if dearest > 0 else 1.0
