"""Running the twin once, on the GPUs of a plan or on a single one, to look at what happens there."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from loraplan.config import Config, build
from loraplan.errors import BadInputError, did_you_mean
from loraplan.plan import Plan
from loraplan.validation import recorded_workload, route, simulation
from twin.batch import Simulation, spread
from twin.metrics import Metrics


@dataclass(frozen=True)
class GPUReport:
    """What the twin saw on one GPU; nothing (``metrics`` is None) where its server does not start (memory error)."""

    id: str
    profile: str
    slots: int
    max_rank: int
    adapters: tuple[str, ...]
    horizon_s: float
    starts: bool
    metrics: Metrics | None


def simulate_plan(
    plan: Plan,
    gpu_id: str | None = None,
    seed: int = 1,
    cpu_slots: int | None = None,
    on_progress: Callable[[int, int], None] | None = None,
) -> list[GPUReport]:
    """Replay the plan's workload on its GPUs, or on the one called ``gpu_id``, once.

    Raises:
        BadInputError: there is no such GPU, or ``cpu_slots`` is too small for one. A server that would not start is no
            error: its report says so.
    """
    ids = [gpu.id for gpu in plan.gpus]
    if gpu_id is not None and gpu_id not in ids:
        raise BadInputError(f"the plan has no GPU {gpu_id!r}{did_you_mean(gpu_id, ids)}")
    workload = recorded_workload(plan)
    chosen = [
        (gpu, simulation(plan, gpu, requests, workload.horizon_s, f"GPU {gpu.id}", cpu_slots))
        for gpu, requests in zip(plan.gpus, route(plan, workload, seed), strict=True)
        if gpu_id in (None, gpu.id)
    ]
    metrics = spread(_metrics_if_it_starts, [run for _, run in chosen], on_progress)
    return [
        _report(gpu.id, [adapter.name for adapter in gpu.adapters], run, seen)
        for (gpu, run), seen in zip(chosen, metrics, strict=True)
    ]


def simulate_config(config: Config, slots: int, seed: int = 1, cpu_slots: int | None = None) -> GPUReport:
    """Replay the config's whole workload on one GPU, the first type of its fleet, with ``slots`` slots.

    Raises:
        BadInputError: the config is wrong, or the server would not start.
    """
    case = build(config)
    workload = case.replay
    names = [adapter.name for adapter in workload.adapters]
    run = Simulation.of(workload, case.problem.fleet.types[0].profile, slots, seed, cpu_slots)
    return _report("gpu-0", names, run, run.metrics())


def _metrics_if_it_starts(run: Simulation) -> Metrics | None:
    return run.metrics() if run.profile.starts(run.slots, run.max_rank) else None


def _report(gpu_id: str, adapters: Sequence[str], run: Simulation, metrics: Metrics | None) -> GPUReport:
    return GPUReport(
        id=gpu_id,
        profile=run.profile.name,
        slots=run.slots,
        max_rank=run.max_rank,
        adapters=tuple(adapters),
        horizon_s=run.horizon_s,
        starts=metrics is not None,
        metrics=metrics,
    )
