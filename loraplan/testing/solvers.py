"""What every solver must do, whatever its method and whatever the oracle."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from loraplan.oracle import ORACLES, Oracle
from loraplan.problem import GPULoad, Problem
from loraplan.registry import Chosen
from loraplan.run import Run
from loraplan.testing.brute_force import fewest_gpus, fits_nowhere, least_cost
from loraplan.testing.contract import Settings, chosen, require
from loraplan.testing.problems import TokenBudgetOracle, random_problem, server, small_problem
from objectives import OBJECTIVES, Objective
from solvers import SOLVERS, Search, Solution, Solver
from solvers.base import SearchStoppedError, complaint

CLOSE = 1e-9
COMPLETE = ("feasible", "optimal")

LIMITS: dict[str, dict[str, Any]] = {
    "pins": {"pins": {"a0": ("type1",), "a1": ("type0",)}},
    "separate": {"separate": (("a0", "a1", "a2"),)},
    "together": {"together": (("a0", "a4"), ("a4", "a2"))},
    "together_and_separate": {"together": (("a0", "a4"),), "separate": (("a0", "a1"), ("a4", "a3"))},
    "max_adapters": {"max_adapters": 2},
    "max_gpus": {"max_gpus": 2},
    "itl_ms": {"itl_ms": 60.0},
}
"""Constraints that every solver must keep."""


@dataclass(frozen=True)
class SolverSubject:
    """A solver under test.

    Attributes:
        chosen: the plugin and its settings.
        oracle, objective: what it is tried with.
        strict: whether it must also do what all solvers of loraplan do but published baselines: prove that an adapter
            which fits nowhere does not, find a plan where there is plenty of room, keep the limits on every GPU of a
            plan that is not complete, too, and stop when the time is up.
    """

    chosen: Chosen
    oracle: Chosen
    objective: Chosen
    strict: bool = True

    @property
    def owner(self) -> str:
        """Whom complaints are about."""
        return f"solver {self.chosen.name} with oracle {self.oracle.name}"

    def search(self, problem: Problem, deadline: float | None = None) -> Search:
        """A search that has not begun."""
        run = Run(self.chosen, self.objective, self.oracle, seed=0, deadline=deadline)
        return run.prepare(problem)

    def solve(self, search: Search) -> Solution:
        """Solve with a new instance, and check the form of what comes back."""
        solution: Solution = self.chosen.kind(self.chosen.params).solve(search)
        where = search if solution.replicas is None else search.on(solution.replicas.problem)
        flaw = complaint(where.problem, solution)
        require(not flaw, f"{self.owner}: {flaw}")
        complete = solution.status in COMPLETE
        if complete:
            require(not solution.reason, f"{self.owner}: a plan needs no reason (got {solution.reason!r})")
            published = search.incumbent == solution.loads or where is not search
            require(published, f"{self.owner}: the plan was not published")
        else:
            fine = solution.reason and "\n" not in solution.reason
            require(fine, f"{self.owner}: {solution.status} needs a reason of one line (got {solution.reason!r})")
        if complete or self.strict:
            check_loads(self.owner, where, solution.loads)
        return solution


def solver_subject(
    solver: str | type[Solver],
    settings: Settings | None = None,
    oracle: str | type[Oracle] = TokenBudgetOracle,
    oracle_settings: Settings | None = None,
    objective: str | type[Objective] = "gpu_count",
    strict: bool = True,
) -> SolverSubject:
    """A solver by its registered name or its class, and what it is tried with."""
    if oracle is TokenBudgetOracle and oracle_settings is None:
        oracle_settings = {"capacity_tok_s": (10_000.0, 5_000.0)}
    return SolverSubject(
        chosen(SOLVERS, solver, settings),
        chosen(ORACLES, oracle, oracle_settings),
        chosen(OBJECTIVES, objective, None),
        strict,
    )


def check_solver(
    solver: str | type[Solver],
    settings: Settings | None = None,
    oracles: Sequence[str | type[Oracle]] = (TokenBudgetOracle, "fluid"),
    seeds: int = 4,
    strict: bool = False,
) -> None:
    """Check plans, bounds and proofs against brute force, constraints, and that the seed decides everything.

    Args:
        solver: its registered name, or its class.
        settings: to make it faster than its defaults, say.
        oracles: what it is tried with; they must be hereditary.
        seeds: random problems, each with many and with few requests.
        strict: whether it must also do what all solvers of loraplan do (`SolverSubject`).

    Raises:
        ContractError: it does not keep its contract.
        BadInputError: a name or a setting is unknown or wrong.
    """
    for oracle in oracles:
        subject = solver_subject(solver, settings, oracle, strict=strict)
        for check in SOLVER_CHECKS:
            check(subject)
        for seed in range(seeds):
            for typical_rate in (2.0, 8.0):
                beside_brute_force(subject, seed, typical_rate)
        for limit in LIMITS:
            keeps_limits(subject, limit)


def check_loads(owner: str, search: Search, loads: Sequence[GPULoad]) -> None:
    """No load breaks a limit."""
    for load in loads:
        require(load.adapters == tuple(sorted(load.adapters)), f"{owner}: adapters of a load must ascend (got {load})")
        require(search.problem.starts(load), f"{owner}: a server does not start ({load})")
        require(search.problem.allows(load), f"{owner}: a load breaks a constraint ({load})")
    kept = search.oracle.predict(loads).keeps(search.problem.constraints)
    broken = [load for load, fine in zip(loads, kept, strict=True) if not fine]
    require(not broken, f"{owner}: a GPU starves or breaks a limit ({broken})")


def beside_brute_force(subject: SolverSubject, seed: int, typical_rate: float) -> None:
    """On up to seven adapters: no fewer GPUs than there must be, bounds that hold, proofs that are right."""
    problem = random_problem(seed, typical_rate)
    search = subject.search(problem)
    solution = subject.solve(search)
    fewest = fewest_gpus(problem, search.oracle)
    _compare(subject, search, solution, f"random_problem({seed}, {typical_rate})")
    if solution.status in COMPLETE and solution.replicas is None:
        require(fewest is not None and len(solution.loads) >= fewest, f"{subject.owner}: a plan that cannot be")
    if subject.strict and fits_nowhere(problem, search.oracle):
        require(
            solution.status == "infeasible",
            f"{subject.owner}: an adapter fits nowhere, but it is not called infeasible",
        )


def keeps_limits(subject: SolverSubject, limit: str) -> None:
    """A plan keeps this one of `LIMITS`; `SolverSubject.solve` looks at it."""
    problem = small_problem([(8, 4.0), (16, 2.0), (8, 0.5), (32, 5.0), (8, 7.0)], counts=(2, 3), **LIMITS[limit])
    search = subject.search(problem)
    _compare(subject, search, subject.solve(search), f"constraint {limit}")


def _compare(subject: SolverSubject, search: Search, solution: Solution, where: str) -> None:
    """With the cheapest of all plans."""
    least = least_cost(search)
    bound = solution.lower_bound
    if solution.status == "infeasible":
        require(
            least is None, f"{subject.owner}, {where}: it is called infeasible, but there is a plan that costs {least}"
        )
    if bound is not None and least is not None:
        fine = bound <= least + CLOSE * abs(least)
        require(fine, f"{subject.owner}, {where}: the lower bound is {bound}, but a plan costs {least}")
    if solution.status in COMPLETE and solution.replicas is None:  # divided adapters may cost less than whole ones
        cost = float(search.costs(solution.loads, search.oracle.predict(solution.loads)).sum())
        fine = least is not None and cost >= least - CLOSE * abs(least)
        require(fine, f"{subject.owner}, {where}: it costs {cost}, but no plan costs less than {least}")
        if solution.status == "optimal" and least is not None:
            fine = cost <= least + CLOSE * abs(least)
            require(fine, f"{subject.owner}, {where}: it is called optimal at {cost}, but a plan costs {least}")


def _a_dozen() -> Problem:
    """Twelve adapters that take several GPUs, with many ways to place them."""
    return small_problem([(8 if i % 3 else 16, 1.0 + 0.7 * i) for i in range(12)], counts=(3, 8))


def _facts(solution: Solution) -> tuple[object, ...]:
    """All of a solution that can be compared."""
    divided = solution.replicas
    parts = None if divided is None else (divided.origin, divided.shares.tolist())
    return solution.status, solution.loads, solution.lower_bound, solution.reason, parts


def the_seed_decides(subject: SolverSubject) -> None:
    """The same search gives the same solution."""
    problem = _a_dozen()
    first, again = (_facts(subject.solve(subject.search(problem))) for _ in range(2))
    require(first == again, f"{subject.owner}: the same seed gives other loads")


def instances_can_be_used_again(subject: SolverSubject) -> None:
    """A solver depends on nothing but the search."""
    solver = subject.chosen.kind(subject.chosen.params)
    first = _facts(solver.solve(subject.search(_a_dozen())))
    solver.solve(subject.search(random_problem(0, 1.0)))
    again = _facts(solver.solve(subject.search(_a_dozen())))
    require(first == again, f"{subject.owner}: what it finds depends on what it was asked before")


def one_adapter(subject: SolverSubject) -> None:
    """It goes on one GPU."""
    solution = subject.solve(subject.search(small_problem([(16, 1.0)], counts=(2,))))
    require([load.adapters for load in solution.loads] == [(0,)], f"{subject.owner}: one adapter needs one GPU")


def many_equal_adapters(subject: SolverSubject, count: int = 1000) -> None:
    """They find a place on 64 GPUs."""
    solution = subject.solve(subject.search(small_problem([(8, 0.05)] * count, counts=(64,))))
    fine = solution.status in COMPLETE or not subject.strict
    require(fine, f"{subject.owner}: no plan for {count} adapters and plenty of GPUs: {solution.reason}")


def adapters_without_requests(subject: SolverSubject, busy: Sequence[tuple[int, float]] = ()) -> None:
    """They are placed, too."""
    solution = subject.solve(subject.search(small_problem([(8, 0.0)] * 40 + list(busy), counts=(8,))))
    fine = solution.status in COMPLETE or not subject.strict
    require(fine, f"{subject.owner}: no plan for adapters that nobody asks for: {solution.reason}")


def an_adapter_that_fits_nowhere(subject: SolverSubject) -> None:
    """There is no plan; a strict solver proves it, and says which adapter and which limit."""
    solution = subject.solve(subject.search(small_problem([(8, 0.1), (8, 5_000.0), (8, 0.1)], counts=(2, 2))))
    require(
        solution.status not in COMPLETE, f"{subject.owner}: 5,000 req/s of one adapter are called {solution.status}"
    )
    if subject.strict:
        fine = solution.status == "infeasible" and "a1 " in solution.reason and "served fraction 0." in solution.reason
        require(fine, f"{subject.owner}: no proof that adapter a1 fits nowhere: {solution.status}, {solution.reason}")


def no_memory_for_a_slot(subject: SolverSubject) -> None:
    """There is no plan for an adapter whose rank takes all memory."""
    problem = small_problem([(8, 0.1), (256, 0.1)], counts=(2,), profiles=[server(max_slots=8)])
    solution = subject.solve(subject.search(problem))
    require(solution.status not in COMPLETE, f"{subject.owner}: a server without memory is called {solution.status}")
    if subject.strict:
        fine = solution.status == "infeasible" and "a1 " in solution.reason and "memory" in solution.reason
        require(fine, f"{subject.owner}: no proof that adapter a1 fits nowhere: {solution.status}, {solution.reason}")


def a_fleet_that_is_too_small(subject: SolverSubject) -> None:
    """There is no plan; the reason names an adapter that is left."""
    problem = small_problem([(8, 0.5)] * 400, counts=(2,))
    solution = subject.solve(subject.search(problem))
    require(solution.status not in COMPLETE, f"{subject.owner}: two GPUs for 400 adapters are called {solution.status}")
    if subject.strict:
        named = any(adapter.name in solution.reason for adapter in problem.adapters)
        require(named, f"{subject.owner}: the reason names no adapter: {solution.reason}")


def no_time_stops_the_search(subject: SolverSubject) -> None:
    """A deadline that has passed ends the search by SearchStoppedError, before anything is found."""
    search = subject.search(random_problem(1, 1.0), deadline=time.monotonic())
    try:
        subject.solve(search)
    except SearchStoppedError:
        require(not search.incumbent, f"{subject.owner}: the time was up, but it published {search.incumbent}")
        return
    require(
        not subject.strict, f"{subject.owner}: it does not stop when the time is up: ask search.check or search.judge"
    )


SOLVER_CHECKS = (
    the_seed_decides,
    instances_can_be_used_again,
    one_adapter,
    many_equal_adapters,
    adapters_without_requests,
    an_adapter_that_fits_nowhere,
    no_memory_for_a_slot,
    a_fleet_that_is_too_small,
    no_time_stops_the_search,
)
