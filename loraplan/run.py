"""One run of a solver: what was chosen, and what keeps it honest."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace

from loraplan.errors import PluginError
from loraplan.headroom import Headroom
from loraplan.oracle import Oracle, Predictions
from loraplan.plan import Plan
from loraplan.problem import GPULoad, Problem
from loraplan.registry import Chosen
from objectives import Objective
from solvers import Search, Solution
from solvers.base import Excluded, SearchStoppedError, complaint

Progress = Callable[[int, int, int], None]
"""Called with (adapters placed, adapters in all, GPUs in use)."""


INTERRUPTED = "the search was interrupted"


@dataclass(frozen=True)
class Run:
    """What was chosen for a run; ``search`` runs it.

    Attributes:
        solver, objective, oracle: the plugins.
        seed: of everything random in the solver.
        deadline: ``time.monotonic()`` after which the search stops; None for no limit.
        on_progress: as ``Search`` takes it.
    """

    solver: Chosen
    objective: Chosen
    oracle: Chosen
    seed: int
    deadline: float | None = None
    on_progress: Progress | None = None
    _oracles: dict[Problem, Oracle] = field(default_factory=dict, init=False)

    def oracle_of(self, problem: Problem) -> Oracle:
        """The oracle of a problem, made when it is first asked for."""
        if problem not in self._oracles:
            self._oracles[problem] = self.oracle.kind(problem, self.oracle.params)
        return self._oracles[problem]

    @property
    def timed_out(self) -> bool:
        """Whether the deadline has passed."""
        return self.deadline is not None and time.monotonic() >= self.deadline

    def for_half_the_time(self) -> Run:
        """The same with half of what is left until the deadline."""
        if self.deadline is None:
            return self
        return replace(self, deadline=self.deadline - max(0.0, self.deadline - time.monotonic()) / 2)

    def prepare(self, problem: Problem, start: tuple[GPULoad, ...] = (), cuts: Excluded | None = None) -> Search:
        """A search that has not begun."""
        objective: Objective = self.objective.kind(self.objective.params)
        return Search(
            problem=problem,
            objective=objective,
            oracle=self.oracle_of(problem),
            seed=self.seed,
            deadline=self.deadline,
            on_progress=self.on_progress,
            headroom=Headroom(problem, self.oracle.kind, self.oracle.params).of if objective.needs_headroom else None,
            start=start,
            oracle_of=self.oracle_of,
            cuts=cuts,
        )

    def search(
        self, problem: Problem, start: Plan | None = None, cuts: Excluded | None = None
    ) -> tuple[Search, Solution]:
        """Solve ``problem``; Ctrl-C and the deadline end it with the best found so far.

        Raises:
            BadInputError: the problem lacks what the objective needs.
            PluginError: the solver returned something that is no plan of this problem.
        """
        search = self.prepare(problem, loads_of(start, problem) if start else (), cuts)
        search.costs([], Predictions.none())  # what an objective lacks is said before the search
        try:
            solution = self.solver.kind(self.solver.params).solve(search)
        except SearchStoppedError as stopped:
            solution = best_so_far(search, str(stopped))
        except KeyboardInterrupt:
            solution = best_so_far(search)
        if solution.replicas is not None:
            search = self.prepare(solution.replicas.problem)
        flaw = complaint(search.problem, solution) or _broken_limit(search, solution)
        if flaw:
            raise PluginError(f"solver {self.solver.name!r} returned a wrong plan: {flaw}")
        return search, solution


def loads_of(plan: Plan, problem: Problem) -> tuple[GPULoad, ...]:
    """The GPU loads of a plan, as far as its adapters and profiles are those of ``problem``."""
    types = {gpu_type.profile.name: t for t, gpu_type in enumerate(problem.fleet.types)}
    loads, seen = [], set[int]()
    for gpu in plan.gpus:
        mine = {problem.index[a.name] for a in gpu.adapters if a.name in problem.index} - seen
        seen |= mine
        if mine and gpu.profile in types:
            loads.append(GPULoad(types[gpu.profile], tuple(sorted(mine)), gpu.slots))
    return tuple(loads)


def _broken_limit(search: Search, solution: Solution) -> str:
    """Which GPU of a plan breaks a limit, in words; empty if none does. What no plan is may be anything."""
    if solution.status not in ("optimal", "feasible"):
        return ""
    predicted = search.oracle.predict(solution.loads)
    limits = search.problem.constraints
    starved = predicted.starved(limits.served_fraction)
    if starved.any():
        return (
            f"it is called {solution.status}, but the oracle says that GPU {starved.argmax()} does not start or starves"
        )
    for row, (load, kept) in enumerate(zip(solution.loads, predicted.keeps(limits), strict=True)):
        if not kept or not search.problem.allows(load):
            return f"it is called {solution.status}, but GPU {row} does not keep the constraints"
    return ""


def best_so_far(search: Search, why: str = INTERRUPTED) -> Solution:
    """What a search has to show that has been stopped."""
    placed = sum(len(load.adapters) for load in search.incumbent)
    total = len(search.problem.adapters)
    if placed == total:
        return Solution("feasible", search.incumbent, search.bound)
    return Solution(
        "unknown", search.incumbent, search.bound, reason=f"{why} when {placed} of {total} adapters were placed"
    )
