"""From a solver's solution to the plan that is saved."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from datetime import UTC, datetime
from importlib.metadata import version

from loraplan.oracle import Predictions
from loraplan.plan import (
    AdapterWorth,
    Branches,
    Certificate,
    LogEntry,
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
from loraplan.problem import Problem
from loraplan.replicas import Split
from loraplan.reserve import Fallback
from loraplan.run import Run
from loraplan.workload import Floats
from solvers import Search, Solution


def assemble(
    problem: Problem,
    parts: Split,
    run: Run,
    search: Search,
    solution: Solution,
    fallbacks: Sequence[Fallback],
    runtime_s: float,
) -> Plan:
    """The plan of a solution.

    Args:
        problem: as the user gave it.
        parts: the same with replicas.
        run, search: what was run, and the search of the solution.
        solution: what the solver found, for the problem of ``parts`` or of its own replicas of that one's adapters.
        fallbacks: where the adapters of each GPU go if it is lost; empty without a reserve.
        runtime_s: how long all of it took.
    """
    if solution.replicas is not None:
        parts = parts.then(solution.replicas)
    predicted = search.oracle.predict(solution.loads)
    costs = search.costs(solution.loads, predicted)
    on_a_gpu = {i for load in solution.loads for i in load.adapters}
    lacking = {origin for i, origin in enumerate(parts.origin) if i not in on_a_gpu}
    names = [problem.adapters[i].name for i in parts.origin]
    return Plan(
        status=solution.status,
        reason=solution.reason,
        objective=_value(search, run, solution, costs),
        gpus=_planned(problem, parts, search, solution, predicted, costs),
        unplaced=tuple(a.name for i, a in enumerate(problem.adapters) if i in lacking),
        fallbacks={
            f"gpu-{row}": {names[i]: f"gpu-{taker}" for i, taker in sorted(fallback.items())}
            for row, fallback in enumerate(fallbacks)
        },
        solver=SolverRecord(
            name=run.solver.name, params=run.solver.settings, seed=run.seed, runtime_s=round(runtime_s, 6)
        ),
        oracle=OracleRecord(name=run.oracle.name, params=run.oracle.settings),
        certificate=_certificate(search.problem, names, solution),
        log=_log(search, solution, costs, runtime_s),
        provenance=Provenance(
            loraplan=version("loraplan"),
            created=datetime.now(UTC).isoformat(timespec="seconds"),
            profiles={gpu_type.profile.name: gpu_type.profile for gpu_type in problem.fleet.types},
            served_fraction=problem.constraints.served_fraction,
        ),
    )


def _certificate(problem: Problem, names: Sequence[str], solution: Solution) -> Certificate | None:
    """The solver's certificate, by names; ``names`` are those of the adapters of ``problem``, shape (adapters,)."""
    given = solution.certificate
    if given is None:
        return None
    if given["kind"] == "listing":
        return Certificate(kind="listing", bound=given["bound"])
    items = given.get("items") or [None] * len(names)
    adapters = (
        AdapterWorth(name=n, worth=max(0.0, w), item=item)
        for n, w, item in zip(names, given["worth"], items, strict=True)
    )
    types = [gpu_type.profile.name for gpu_type in problem.fleet.types]
    return Certificate(
        kind="prices",
        bound=given["bound"],
        adapters=tuple(adapters),
        rents=dict(zip(types, given["rents"], strict=True)),
        rent=given["rent"],
        branches=None if given.get("branches") is None else Branches.model_validate(given["branches"]),
    )


def _log(search: Search, solution: Solution, costs: Floats, runtime_s: float) -> tuple[LogEntry, ...]:
    """The better plans and bounds as they came; what a solver that tells nothing of them had in the end."""
    if search.events or solution.status not in ("optimal", "feasible"):
        return tuple(LogEntry(**asdict(event)) for event in search.events)
    end = LogEntry(seconds=runtime_s, gpus=len(solution.loads), value=float(costs.sum()), bound=solution.lower_bound)
    return (end,)


def _value(search: Search, run: Run, solution: Solution, costs: Floats) -> ObjectiveValue:
    value = float(costs.sum())
    complete = solution.status in ("optimal", "feasible")
    bound = solution.lower_bound
    return ObjectiveValue(
        name=run.objective.name,
        params=run.objective.settings,
        unit=search.objective.unit,
        value=value if complete else None,
        lower_bound=bound,
        gap=max(0.0, value - bound) / value if complete and bound is not None and value > 0 else None,
    )


def _planned(
    problem: Problem, parts: Split, search: Search, solution: Solution, predicted: Predictions, costs: Floats
) -> tuple[PlannedGPU, ...]:
    gpus = []
    for row, load in enumerate(solution.loads):
        adapters = [(problem.adapters[parts.origin[i]], float(parts.shares[i])) for i in load.adapters]
        gpus.append(
            PlannedGPU(
                id=f"gpu-{row}",
                profile=problem.profile(load).name,
                slots=load.slots,
                max_rank=search.problem.max_rank(load.gpu_type, load.adapters),
                adapters=tuple(PlannedAdapter(name=a.name, rank=a.rank, rate=a.rate, share=s) for a, s in adapters),
                cost=finite(costs[row]),
                predicted=figures(predicted, row, search.oracle.outside(load)),
            )
        )
    return tuple(gpus)


def figures(predicted: Predictions, row: int, outside: tuple[str, ...]) -> Predicted:
    """What an oracle says of one GPU, as a plan has it; ``outside`` is what is out of the oracle's range."""
    return Predicted(
        served_fraction=float(predicted.served_fraction[row]),
        throughput_tok_s=float(predicted.throughput_tok_s[row]),
        itl_ms=finite(predicted.itl_ms[row]),
        ttft_s=finite(predicted.ttft_s[row]),
        ttft_p95_s=finite(predicted.ttft_p95_s[row]),
        kv_utilisation=float(predicted.kv_utilisation[row]),
        outside=outside,
    )
