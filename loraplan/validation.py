"""Validating a plan: replay its workload in the twin, GPU by GPU, on seeds that no oracle has seen."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from scipy import stats

from loraplan.config import build_workload, parse_config
from loraplan.errors import BadInputError
from loraplan.files import sha256
from loraplan.plan import Plan, PlannedGPU
from loraplan.profiles import Profile
from loraplan.workload import Requests, Workload
from twin.batch import Simulation, spread
from twin.drift import VERDICTS
from twin.metrics import Metrics

FIRST_FRESH_SEED = 1_000_000
"""Validation counts its seeds from here; oracles and workloads are given small ones."""

CONFIDENCE = 0.95


@dataclass(frozen=True)
class Interval:
    """A mean over seeds and its two-sided 95 % confidence interval (Student's t); low = high = mean for one seed."""

    mean: float
    low: float
    high: float


@dataclass(frozen=True)
class GPUVerdict:
    """What the twin says of one GPU of a plan; means over the seeds.

    Attributes:
        id: the GPU's id in the plan.
        starts: its server starts (no memory error).
        starved: it does not start, or its mean served fraction is below the limit.
        certain: the whole confidence interval lies on one side of the limit.
        served_fraction: tokens served / tokens that arrived.
        itl_ms, itl_p95_ms, ttft_s, ttft_p95_s, throughput_tok_s, kv_utilisation, waiting, loads, preemptions: see twin
            Metrics; nan where nothing was served.
        binding: the resource that requests waited for longest in most seeds, or ``none``.
        drift: share of what arrives in the second half of a replay by which unanswered work grows, mean over the
            seeds; nan if the server does not start.
        trend: what that means, the worst of the seeds: ``steady``, ``filling`` or ``starved`` (twin Drift); ``memory``
            if the server does not start.
    """

    id: str
    starts: bool
    starved: bool
    certain: bool
    served_fraction: Interval
    throughput_tok_s: float
    itl_ms: float
    itl_p95_ms: float
    ttft_s: float
    ttft_p95_s: float
    kv_utilisation: float
    waiting: float
    loads: float
    preemptions: float
    binding: str
    drift: float
    trend: str


@dataclass(frozen=True)
class Validation:
    """The twin's verdict on a plan.

    Attributes:
        starved_gpus: how many of its GPUs starve.
        gpus: one verdict per GPU.
        seeds: the seeds of the replays.
        horizon_s: seconds replayed.
        limit: the served fraction below which a GPU is starved.
    """

    starved_gpus: int
    gpus: tuple[GPUVerdict, ...]
    seeds: tuple[int, ...]
    horizon_s: float
    limit: float


def recorded_workload(plan: Plan) -> Workload:
    """The workload that validation replays, from the config recorded in the plan.

    Raises:
        BadInputError: the plan records no config, or an input file is missing or has changed.
    """
    if plan.provenance.config is None:
        raise BadInputError("this plan records no config, so its workload is not known; give one with --config")
    check_inputs(plan)
    # Only the workload is built: the profiles, as they were, are in the plan.
    return build_workload(parse_config(plan.provenance.config, source="the config that the plan records"))


def check_inputs(plan: Plan) -> None:
    """Check that the files from which a plan was made are there, and unchanged.

    Raises:
        BadInputError: one is not.
    """
    for name, digest in plan.provenance.inputs.items():
        if not Path(name).exists():
            raise BadInputError(f"{name}, from which the plan was made, is missing; restore it or give a --config")
        if sha256(Path(name)) != digest:
            raise BadInputError(f"{name} has changed since the plan was made; restore it or give a --config")


def validate(
    plan: Plan,
    workload: Workload | None = None,
    seeds: int | Sequence[int] = 3,
    on_progress: Callable[[int, int], None] | None = None,
) -> Validation:
    """Replay ``workload`` (default: the plan's own) on the plan's servers in the twin, once per seed.

    Args:
        plan: a complete plan.
        workload: its adapters must all be in the plan.
        seeds: how many fresh seeds, or the seeds themselves.
        on_progress: called with (replays done, replays in all).

    Raises:
        BadInputError: the plan is not complete, or an adapter of the workload is not in it.
    """
    if not plan.complete:
        raise BadInputError(f"there is no complete plan to validate: its status is {plan.status} ({plan.reason})")
    chosen = tuple(range(FIRST_FRESH_SEED, FIRST_FRESH_SEED + seeds)) if isinstance(seeds, int) else tuple(seeds)
    if not chosen:
        raise BadInputError("seeds: expected at least one")
    workload = workload or recorded_workload(plan)
    horizon_s = workload.horizon_s
    starting = [(row, gpu) for row, gpu in enumerate(plan.gpus) if starts(plan, gpu)]
    # Drawn as they are needed: the streams of all seeds together may be large.
    streams = ((seed, route(plan, workload, seed)) for seed in chosen)
    simulations = (
        simulation(plan, gpu, requests[row], horizon_s, f"GPU {gpu.id}, seed {seed}")
        for seed, requests in streams
        for row, gpu in starting
    )
    results = list(spread(Simulation.metrics, simulations, on_progress, total=len(chosen) * len(starting)))
    seen = {gpu.id: results[place :: len(starting)] for place, (_, gpu) in enumerate(starting)}
    limit = plan.provenance.served_fraction
    verdicts = tuple(verdict(gpu.id, seen.get(gpu.id, []), limit) for gpu in plan.gpus)
    return Validation(sum(v.starved for v in verdicts), verdicts, chosen, workload.horizon_s, limit)


def route(plan: Plan, workload: Workload, seed: int) -> list[Requests]:
    """Draw one stream of ``workload`` and deal it to the plan's GPUs by adapter, and by share where it has replicas.

    Returns one stream per GPU; its adapter indices count the GPU's own adapters.

    Raises:
        BadInputError: an adapter of the workload is on no GPU, or has another rank there.
    """
    homes: dict[str, list[tuple[int, int, float]]] = defaultdict(list)
    for row, gpu in enumerate(plan.gpus):
        for place, adapter in enumerate(gpu.adapters):
            homes[adapter.name].append((row, place, adapter.share))
    ranks = {adapter.name: adapter.rank for gpu in plan.gpus for adapter in gpu.adapters}
    for asked in workload.adapters:
        if asked.name not in homes:
            raise BadInputError(f"the workload asks for adapter {asked.name!r}, which the plan does not place")
        if asked.rank != ranks[asked.name]:
            raise BadInputError(
                f"adapter {asked.name!r} has rank {asked.rank} in the workload, {ranks[asked.name]} in the plan"
            )
    requests = workload.requests(seed)
    rng = np.random.default_rng([seed, len(plan.gpus)])
    first = np.array([homes[asked.name][0][:2] for asked in workload.adapters], dtype=np.int64)
    row_of, place_of = first[requests.adapter].T
    for index, asked in enumerate(workload.adapters):
        replicas = homes[asked.name]
        if len(replicas) > 1:
            mine = np.flatnonzero(requests.adapter == index)
            shares = np.array([share for _, _, share in replicas])
            drawn = rng.choice(len(replicas), size=mine.size, p=shares / shares.sum())
            row_of[mine], place_of[mine] = np.array([replica[:2] for replica in replicas], dtype=np.int64)[drawn].T
    streams = []
    for row in range(len(plan.gpus)):
        mine = np.flatnonzero(row_of == row)
        streams.append(
            Requests(requests.arrival_s[mine], place_of[mine], requests.tokens_in[mine], requests.tokens_out[mine])
        )
    return streams


def share_of(stream: Requests, asked: Sequence[str], placed: Sequence[tuple[str, float]]) -> Requests:
    """The requests that one GPU gets of a stream of all: those of its adapters, by chance as many as its shares.

    Args:
        stream: of all adapters.
        asked: their names; what index i of the stream means.
        placed: names and shares of the GPU's adapters, which the indices of the result count.
    """
    index = {name: i for i, name in enumerate(asked)}
    place, share = np.full(len(index), -1, dtype=np.int64), np.zeros(len(index))
    for n, (name, part) in enumerate(placed):
        place[index[name]], share[index[name]] = n, part
    mine = stream.select(np.random.default_rng(len(placed)).random(len(stream)) < share[stream.adapter])
    return Requests(mine.arrival_s, place[mine.adapter], mine.tokens_in, mine.tokens_out)


def starts(plan: Plan, gpu: PlannedGPU) -> bool:
    """Whether the GPU's server starts."""
    return _profile(plan, gpu).starts(gpu.slots, gpu.max_rank)


def simulation(
    plan: Plan, gpu: PlannedGPU, requests: Requests, horizon_s: float, name: str, cpu_slots: int | None = None
) -> Simulation:
    """One GPU of the plan in the twin, on ``requests`` that name its adapters by their place on it."""
    return Simulation(
        profile=_profile(plan, gpu),
        slots=gpu.slots,
        max_rank=gpu.max_rank,
        ranks=np.array([adapter.rank for adapter in gpu.adapters], dtype=np.int64),
        workload=requests,
        horizon_s=horizon_s,
        cpu_slots=cpu_slots,
        name=name,
    )


def _profile(plan: Plan, gpu: PlannedGPU) -> Profile:
    return plan.provenance.profiles[gpu.profile]


def verdict(gpu_id: str, runs: Sequence[Metrics], limit: float) -> GPUVerdict:
    """What replays of one GPU's load, a run per seed, say of it; no runs mean that its server does not start."""
    served = _interval([run.served_fraction for run in runs]) if runs else Interval(0.0, 0.0, 0.0)
    bindings: list[str] = [run.binding for run in runs] or ["memory"]

    def mean(values: list[float]) -> float:
        known = [value for value in values if not np.isnan(value)]
        return float(np.mean(known)) if known else float("nan")

    return GPUVerdict(
        id=gpu_id,
        starts=bool(runs),
        starved=served.mean < limit,
        certain=served.low >= limit or served.high < limit,
        served_fraction=served,
        throughput_tok_s=mean([run.throughput_tok_s for run in runs]),
        itl_ms=mean([run.itl_ms.mean for run in runs]),
        itl_p95_ms=mean([run.itl_ms.p95 for run in runs]),
        ttft_s=mean([run.ttft_s.mean for run in runs]),
        ttft_p95_s=mean([run.ttft_s.p95 for run in runs]),
        kv_utilisation=mean([run.kv_utilisation for run in runs]),
        waiting=mean([run.waiting for run in runs]),
        loads=mean([float(run.loads_from_cpu + run.loads_from_disk) for run in runs]),
        preemptions=mean([float(run.preemptions) for run in runs]),
        binding=max(set(bindings), key=lambda name: (bindings.count(name), name)),
        drift=mean([run.drift.work for run in runs]),
        trend=max((run.drift.verdict for run in runs), key=VERDICTS.index, default="memory"),
    )


def _interval(values: Sequence[float]) -> Interval:
    mean = float(np.mean(values))
    if len(values) == 1:
        return Interval(mean, mean, mean)
    half = float(stats.t.ppf(0.5 + CONFIDENCE / 2, len(values) - 1) * np.std(values, ddof=1) / np.sqrt(len(values)))
    return Interval(mean, max(0.0, mean - half), min(1.0, mean + half))
