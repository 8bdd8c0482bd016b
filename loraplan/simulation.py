"""Running the twin once, on the GPUs of a plan or on a single one, to look at what happens there."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from loraplan.config import Config, build
from loraplan.errors import BadInputError, did_you_mean
from loraplan.plan import Plan
from loraplan.validation import recorded_workload, route, simulation
from twin.batch import Simulation, spread
from twin.metrics import Metrics, measure
from twin.recording import Recording
from twin.server import NOTHING_RECORDED, Run


@dataclass(frozen=True)
class GPUReport:
    """What the twin saw on one GPU; nothing (``metrics`` is None) where its server does not start (memory error).

    ``run`` is there, with what was recorded, if a recording was asked for.
    """

    id: str
    profile: str
    slots: int
    max_rank: int
    adapters: tuple[str, ...]
    horizon_s: float
    starts: bool
    metrics: Metrics | None
    run: Run | None = None


def simulate_plan(
    plan: Plan,
    gpu_id: str | None = None,
    seed: int = 1,
    cpu_slots: int | None = None,
    on_progress: Callable[[int, int], None] | None = None,
    recording: Recording | None = None,
) -> list[GPUReport]:
    """Replay the plan's workload on its GPUs, or on the one called ``gpu_id``, once.

    Raises:
        BadInputError: there is no such GPU, ``cpu_slots`` is too small for one, or more is to be recorded than can be.
            A server that would not start is no error: its report says so.
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
    runs = spread(lambda one: _observed(one, recording), [one for _, one in chosen], on_progress)
    return [
        _report(gpu.id, [adapter.name for adapter in gpu.adapters], one, *seen)
        for (gpu, one), seen in zip(chosen, runs, strict=True)
    ]


def simulate_config(
    config: Config,
    slots: int,
    seed: int = 1,
    cpu_slots: int | None = None,
    recording: Recording | None = None,
) -> GPUReport:
    """Replay the config's whole workload on one GPU, the first type of its fleet, with ``slots`` slots.

    Raises:
        BadInputError: the config is wrong, the server would not start, or more is to be recorded than can be.
    """
    case = build(config)
    workload = case.replay
    names = [adapter.name for adapter in workload.adapters]
    one = Simulation.of(workload, case.problem.fleet.types[0].profile, slots, seed, cpu_slots)
    return _report("gpu-0", names, one, *_run(one, recording))


def _observed(one: Simulation, recording: Recording | None) -> tuple[Metrics | None, Run | None]:
    return _run(one, recording) if one.profile.starts(one.slots, one.max_rank) else (None, None)


def _run(one: Simulation, recording: Recording | None) -> tuple[Metrics, Run | None]:
    """The figures of a simulation, and the run itself if it was recorded."""
    run = replace(one, recording=recording or NOTHING_RECORDED).run()
    return measure(run, one.ranks.size), None if recording is None else run


def _report(
    gpu_id: str, adapters: Sequence[str], one: Simulation, metrics: Metrics | None, run: Run | None
) -> GPUReport:
    return GPUReport(
        id=gpu_id,
        profile=one.profile.name,
        slots=one.slots,
        max_rank=one.max_rank,
        adapters=tuple(adapters),
        horizon_s=one.horizon_s,
        starts=metrics is not None,
        metrics=metrics,
        run=run,
    )
