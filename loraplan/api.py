"""Solving a problem: from names to a plan."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any, TypeVar

from pydantic import ValidationError

from loraplan.config import Config, PluginSpec, build
from loraplan.errors import BadInputError, PluginError
from loraplan.files import sha256
from loraplan.oracle import ORACLES, Oracle, Predictions
from loraplan.plan import (
    ObjectiveValue,
    OracleRecord,
    Plan,
    PlannedAdapter,
    PlannedGPU,
    Predicted,
    Provenance,
    SolverRecord,
    finite,
)
from loraplan.problem import GPULoad, Problem
from loraplan.registry import Registry, make_params, params_dict
from objectives import OBJECTIVES, Objective
from solvers import SOLVERS, Search, Solution, Solver
from solvers.base import SearchStoppedError, complaint

Spec = str | Mapping[str, Any]
"""A registered name, or a mapping of ``name`` and the settings of what it names."""

Progress = Callable[[int, int, int], None]
"""Called with (adapters placed, adapters in all, GPUs in use)."""

P = TypeVar("P", type[Solver], type[Objective], type[Oracle])


@dataclass(frozen=True)
class Chosen:
    """A plugin that a name stood for: its class and its settings."""

    name: str
    kind: Any
    params: Any

    @property
    def settings(self) -> dict[str, Any]:
        """The settings as plain data."""
        return params_dict(self.params)


def choose(registry: Registry[P], spec: Spec) -> Chosen:
    """Look ``spec`` up and check its settings.

    Raises:
        BadInputError: the name or a setting is unknown, or a setting has the wrong type.
    """
    try:
        plugin = PluginSpec.model_validate(spec)
    except ValidationError:
        raise BadInputError(f"{registry.kind}: expected a name, or a mapping with a name (got {spec!r:.80})") from None
    kind = registry.get(plugin.name)
    return Chosen(plugin.name, kind, make_params(kind.Params, plugin.params, f"{registry.kind} {plugin.name!r}"))


def solve(
    problem: Problem,
    solver: Spec = "greedy",
    objective: Spec = "gpu_count",
    oracle: Spec = "fluid",
    seed: int = 0,
    time_limit_s: float | None = None,
    on_progress: Progress | None = None,
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

    Raises:
        BadInputError: a name or setting is unknown or wrong.
        PluginError: the solver returned something that is no plan of this problem.
    """
    if time_limit_s is not None and not time_limit_s >= 0:
        raise BadInputError(f"time_limit_s must be at least 0 (got {time_limit_s})")
    chosen_solver, chosen_objective = choose(SOLVERS, solver), choose(OBJECTIVES, objective)
    chosen_oracle = choose(ORACLES, oracle)
    judge: Oracle = chosen_oracle.kind(problem, chosen_oracle.params)
    started = time.monotonic()
    search = Search(
        problem=problem,
        objective=chosen_objective.kind(chosen_objective.params),
        oracle=judge,
        seed=seed,
        deadline=None if time_limit_s is None else started + time_limit_s,
        on_progress=on_progress,
    )
    try:
        solution = chosen_solver.kind(chosen_solver.params).solve(search)
    except SearchStoppedError as stopped:
        solution = _best_so_far(search, str(stopped))
    except KeyboardInterrupt:
        solution = _best_so_far(search, "the search was interrupted")
    runtime_s = time.monotonic() - started
    flaw = complaint(problem, solution)
    if flaw:
        raise PluginError(f"solver {chosen_solver.name!r} returned a wrong plan: {flaw}")
    predicted = judge.predict(solution.loads)
    if solution.status in ("optimal", "feasible"):
        starved = predicted.starved(problem.constraints.served_fraction)
        if starved.any():
            raise PluginError(
                f"solver {chosen_solver.name!r} returned a wrong plan: it is called {solution.status}, but the oracle "
                f"says that GPU {int(starved.argmax())} does not start or starves"
            )
    placed = {i for load in solution.loads for i in load.adapters}
    return Plan(
        status=solution.status,
        reason=solution.reason,
        objective=_value(search, chosen_objective, solution, predicted),
        gpus=_planned(problem, solution.loads, judge, predicted),
        unplaced=tuple(a.name for i, a in enumerate(problem.adapters) if i not in placed),
        solver=SolverRecord(
            name=chosen_solver.name, params=chosen_solver.settings, seed=seed, runtime_s=round(runtime_s, 6)
        ),
        oracle=OracleRecord(name=chosen_oracle.name, params=chosen_oracle.settings),
        provenance=Provenance(
            loraplan=version("loraplan"),
            created=datetime.now(UTC).isoformat(timespec="seconds"),
            profiles={gpu_type.profile.name: gpu_type.profile for gpu_type in problem.fleet.types},
            served_fraction=problem.constraints.served_fraction,
        ),
    )


def solve_config(config: Config, on_progress: Progress | None = None) -> Plan:
    """Build the config's problem, solve it as the config says, and record the config in the plan.

    Raises:
        BadInputError: the config names something unknown, or one of its files is wrong.
    """
    plan = solve(
        build(config).problem,
        solver=_spec(config.solver),
        objective=_spec(config.objective),
        oracle=_spec(config.oracle),
        seed=config.seed,
        time_limit_s=config.time_limit_s,
        on_progress=on_progress,
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


def _spec(plugin: PluginSpec) -> dict[str, Any]:
    return {"name": plugin.name, **plugin.params}


def _best_so_far(search: Search, why: str) -> Solution:
    placed = sum(len(load.adapters) for load in search.incumbent)
    total = len(search.problem.adapters)
    if placed == total:
        return Solution("feasible", search.incumbent)
    return Solution("unknown", search.incumbent, reason=f"{why} when {placed} of {total} adapters were placed")


def _value(search: Search, chosen: Chosen, solution: Solution, predicted: Predictions) -> ObjectiveValue:
    value = float(search.objective.gpu_costs(search.problem, solution.loads, predicted).sum())
    complete = solution.status in ("optimal", "feasible")
    bound = solution.lower_bound
    return ObjectiveValue(
        name=chosen.name,
        params=chosen.settings,
        unit=search.objective.unit,
        value=value if complete else None,
        lower_bound=bound,
        gap=(value - bound) / value if complete and bound is not None and value > 0 else None,
    )


def _planned(
    problem: Problem, loads: tuple[GPULoad, ...], judge: Oracle, predicted: Predictions
) -> tuple[PlannedGPU, ...]:
    gpus = []
    for row, load in enumerate(loads):
        adapters = [problem.adapters[i] for i in load.adapters]
        gpus.append(
            PlannedGPU(
                id=f"gpu-{row}",
                profile=problem.profile(load).name,
                slots=load.slots,
                max_rank=problem.max_rank(load.gpu_type, load.adapters),
                adapters=tuple(PlannedAdapter(name=a.name, rank=a.rank, rate=a.rate) for a in adapters),
                predicted=Predicted(
                    served_fraction=float(predicted.served_fraction[row]),
                    throughput_tok_s=float(predicted.throughput_tok_s[row]),
                    itl_ms=finite(predicted.itl_ms[row]),
                    ttft_s=finite(predicted.ttft_s[row]),
                    kv_utilisation=float(predicted.kv_utilisation[row]),
                    outside=judge.outside(load),
                ),
            )
        )
    return tuple(gpus)
