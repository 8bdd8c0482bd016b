"""Solving a problem: from names to a plan."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

from loraplan.assembly import assemble
from loraplan.config import Config, PluginSpec, build, planned_workload
from loraplan.errors import BadInputError
from loraplan.files import sha256
from loraplan.oracle import DEFAULT_ORACLE, ORACLES
from loraplan.plan import Plan, Verification
from loraplan.problem import Problem
from loraplan.registry import Spec, choose
from loraplan.replicas import split, whole
from loraplan.reserve import Fallback, with_reserve
from loraplan.run import Progress, Run, best_so_far
from loraplan.verification import Verifier, with_twin
from objectives import OBJECTIVES
from solvers import SOLVERS


def solve(
    problem: Problem,
    solver: Spec = "auto",
    objective: Spec = "gpu_count",
    oracle: Spec = DEFAULT_ORACLE,
    seed: int = 0,
    time_limit_s: float | None = None,
    on_progress: Progress | None = None,
    start: Plan | None = None,
    verifier: Verifier | None = None,
) -> Plan:
    """Search a placement of the problem's adapters and return it as a plan.

    A plan always comes back; its status says what it is. Ctrl-C and the time limit end the search with the best found
    so far: ``feasible`` if that places every adapter, ``unknown`` if not.

    Args:
        problem: adapters, fleet and constraints.
        solver, objective, oracle: registered names, or mappings of ``name`` and settings.
        seed: of everything random in the solver.
        time_limit_s: seconds after which the search stops; None for no limit.
        on_progress: called now and then with (adapters placed, adapters in all, GPUs in use).
        start: a plan to begin with, for solvers that improve one; of the same adapters and profiles.
        verifier: asks the twin of every GPU; what starves there is cut off, and the solver goes on.

    Raises:
        BadInputError: a name or setting is unknown or wrong, or the problem lacks what the objective needs.
        PluginError: the solver returned something that is no plan of this problem.
    """
    if time_limit_s is not None and not time_limit_s >= 0:
        raise BadInputError(f"time_limit_s must be at least 0 (got {time_limit_s})")
    if verifier is not None and problem.constraints.reserve:
        raise BadInputError(
            "a plan with a reserve cannot be verified while it is made; use `loraplan validate --lose each`"
        )
    started = time.monotonic()
    run = Run(
        solver=choose(SOLVERS, solver),
        objective=choose(OBJECTIVES, objective),
        oracle=choose(ORACLES, oracle),
        seed=seed,
        deadline=None if time_limit_s is None else started + time_limit_s,
        on_progress=on_progress,
    )
    fallbacks: tuple[Fallback, ...] = ()
    record: Verification | None = None
    try:
        if problem.constraints.reserve:
            reserved = with_reserve(problem, run)
            parts, search, solution, fallbacks = reserved.parts, reserved.search, reserved.solution, reserved.fallbacks
        elif verifier is not None:
            checked = with_twin(problem, split(problem, run.oracle_of), run, verifier, start)
            parts, search, solution, record = checked.parts, checked.search, checked.solution, checked.record
        else:
            parts = split(problem, run.oracle_of)
            search, solution = run.search(parts.problem, start)
    except KeyboardInterrupt:  # before the search, which itself ends with what there is
        parts, search = whole(problem), run.prepare(problem)
        solution = best_so_far(search)
    plan = assemble(problem, parts, run, search, solution, fallbacks, time.monotonic() - started)
    return plan.model_copy(update={"verification": record})


def solve_config(config: Config, on_progress: Progress | None = None, start: Plan | None = None) -> Plan:
    """Build the config's problem, solve it as the config says, and record the config in the plan.

    Raises:
        BadInputError: the config names something unknown, or one of its files is wrong.
    """
    plan = solve(
        build(config).problem,
        solver=spec(config.solver),
        objective=spec(config.objective),
        oracle=spec(config.oracle),
        seed=config.seed,
        time_limit_s=config.time_limit_s,
        on_progress=on_progress,
        start=start,
        verifier=None if config.verify == "none" else Verifier(planned_workload(config), config.verify_seeds),
    )
    record = {
        "config": config.model_dump(mode="json"),
        "inputs": {str(path): sha256(path) for path in input_files(config)},
    }
    return plan.model_copy(update={"provenance": plan.provenance.model_copy(update=record)})


def input_files(config: Config) -> list[Path]:
    """The files that the config's workload reads."""
    workload = config.workload
    return [path for path in (workload.trace, workload.adapters) if isinstance(path, Path)]


def spec(plugin: PluginSpec) -> dict[str, Any]:
    """As ``solve`` takes it."""
    return {"name": plugin.name, **plugin.params}
