"""Running the twin once, on the GPUs of a plan or on a single one, to look at what happens there."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from loraplan.config import Config, build
from loraplan.errors import BadInputError, did_you_mean
from loraplan.plan import Plan, PlannedGPU
from loraplan.profiles import Profile
from loraplan.validation import recorded_workload, route
from loraplan.workload import Requests
from twin.metrics import Metrics, measure
from twin.recording import Recording
from twin.server import NOTHING_RECORDED, Run, simulate


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
        (gpu, requests)
        for gpu, requests in zip(plan.gpus, route(plan, workload, seed), strict=True)
        if gpu_id in (None, gpu.id)
    ]
    reports = []
    for done, (gpu, requests) in enumerate(chosen, start=1):
        reports.append(_planned(plan, gpu, requests, workload.horizon_s, cpu_slots, recording))
        if on_progress is not None:
            on_progress(done, len(chosen))
    return reports


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
    names = tuple(adapter.name for adapter in workload.adapters)
    max_rank = case.problem.max_rank(0, range(len(names)))
    return _report(
        "gpu-0",
        case.problem.fleet.types[0].profile,
        slots,
        max_rank,
        names,
        case.problem.ranks,
        workload.requests(seed),
        workload.horizon_s,
        cpu_slots,
        recording,
    )


def _planned(
    plan: Plan,
    gpu: PlannedGPU,
    requests: Requests,
    horizon_s: float,
    cpu_slots: int | None,
    recording: Recording | None,
) -> GPUReport:
    names = tuple(adapter.name for adapter in gpu.adapters)
    ranks = np.array([adapter.rank for adapter in gpu.adapters], dtype=np.int64)
    profile = plan.provenance.profiles[gpu.profile]
    if not profile.starts(gpu.slots, gpu.max_rank):
        return GPUReport(gpu.id, profile.name, gpu.slots, gpu.max_rank, names, horizon_s, starts=False, metrics=None)
    try:
        return _report(
            gpu.id, profile, gpu.slots, gpu.max_rank, names, ranks, requests, horizon_s, cpu_slots, recording
        )
    except BadInputError as error:
        raise BadInputError(f"GPU {gpu.id}: {error}") from None


def _report(
    gpu_id: str,
    profile: Profile,
    slots: int,
    max_rank: int,
    names: tuple[str, ...],
    ranks: np.ndarray[tuple[int, ...], np.dtype[np.int64]],
    requests: Requests,
    horizon_s: float,
    cpu_slots: int | None,
    recording: Recording | None,
) -> GPUReport:
    run = simulate(
        profile, slots, max_rank, ranks, requests, horizon_s, cpu_slots, recording=recording or NOTHING_RECORDED
    )
    return GPUReport(
        gpu_id,
        profile.name,
        slots,
        max_rank,
        names,
        horizon_s,
        starts=True,
        metrics=measure(run, len(names)),
        run=None if recording is None else run,
    )
