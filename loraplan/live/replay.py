"""Replaying a plan's workload on the servers that it describes: predicted, simulated and measured side by side."""

from __future__ import annotations

import asyncio
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np

from loraplan.errors import BadInputError, ServerError
from loraplan.export import Server
from loraplan.live.client import Answer, Target, client
from loraplan.live.measured import Figures, figures
from loraplan.plan import Plan, PlannedGPU
from loraplan.profiles import Profile
from loraplan.validation import route, simulation
from loraplan.workload import Ints, RateWorkload, Requests, TraceWorkload, Workload
from twin.metrics import Metrics


@dataclass(frozen=True)
class Side:
    """One opinion of a GPU: the oracle's, the twin's or the measurement; nan where it has none."""

    served_fraction: float
    throughput_tok_s: float
    itl_ms: float
    ttft_s: float
    ttft_p95_s: float


@dataclass(frozen=True)
class AdapterReplay:
    """What one adapter got on one GPU: requests sent and finished, and what the twin says of the same requests."""

    name: str
    measured: Figures
    simulated_served: float
    simulated_ttft_s: float


@dataclass(frozen=True)
class GPUReplay:
    """A GPU of the plan.

    Attributes:
        id, url: in the plan, and where its server is.
        predicted, simulated, measured: the oracle of the plan, the twin on the requests that were sent, the server.
        figures: all that was measured.
        elsewhere: requests of its adapters that a server answered which the plan does not name for them.
        adapters: one by one.
    """

    id: str
    url: str
    predicted: Side
    simulated: Side
    measured: Side
    figures: Figures
    elsewhere: int
    adapters: tuple[AdapterReplay, ...]


@dataclass(frozen=True)
class Replay:
    """A replay.

    Attributes:
        seconds: measured; fewer than asked for if a server failed.
        seed: of the requests.
        gpus: one by one, in the plan's order.
        too_long: requests that no server takes, which were not sent.
        error: what failed; empty if nothing did.
    """

    seconds: float
    seed: int
    gpus: tuple[GPUReplay, ...]
    too_long: int
    error: str


@dataclass(frozen=True, eq=False)
class Stream:
    """All requests of the plan's servers in one stream, and whose they are.

    Attributes:
        requests: their adapter is an index of ``owners``.
        owners: (GPU, adapter on it), by their places in the plan.
        too_long: how many were left out, as no server takes them.
        per_gpu: what each GPU gets, as the twin replays it.
    """

    requests: Requests
    owners: tuple[tuple[int, int], ...]
    too_long: int
    per_gpu: tuple[Requests, ...]


def first_seconds(workload: Workload, seconds: float | None) -> Workload:
    """The beginning of a workload, at its own rates.

    Raises:
        BadInputError: it is of a kind that cannot be cut.
    """
    if seconds is None or seconds >= workload.horizon_s:
        return workload
    if isinstance(workload, RateWorkload):
        return replace(workload, horizon_s=seconds)
    if isinstance(workload, TraceWorkload):
        start = workload.window_s[0]
        return replace(workload, window_s=(start, start + seconds))
    raise BadInputError("--duration: this workload cannot be cut")


def stream_of(plan: Plan, workload: Workload, seed: int) -> Stream:
    """One draw of the workload, dealt to the plan's GPUs as validation deals it."""
    owners = tuple((row, place) for row, gpu in enumerate(plan.gpus) for place in range(len(gpu.adapters)))
    first = np.cumsum([0, *(len(gpu.adapters) for gpu in plan.gpus)])
    parts, too_long = [], 0
    for gpu, requests in zip(plan.gpus, route(plan, workload, seed), strict=True):
        longest = _longest(plan.provenance.profiles[gpu.profile], gpu)
        taken = requests.select(requests.tokens_in < longest)
        too_long += len(requests) - len(taken)
        parts.append(replace(taken, tokens_out=np.minimum(taken.tokens_out, longest - taken.tokens_in)))
    arrival = np.concatenate([part.arrival_s for part in parts])
    order = np.argsort(arrival, kind="stable")

    def column(name: str) -> Ints:
        values: Ints = np.concatenate([getattr(part, name) for part in parts])[order]
        return values

    adapter = np.concatenate([part.adapter + shift for part, shift in zip(parts, first[:-1], strict=True)])[order]
    merged = Requests(arrival[order], adapter.astype(np.int64), column("tokens_in"), column("tokens_out"))
    return Stream(merged, owners, too_long, tuple(parts))


def _longest(profile: Profile, gpu: PlannedGPU) -> int:
    """Tokens, in and out, of the longest request that the server takes."""
    blocks = profile.kv_blocks(gpu.slots, gpu.max_rank)
    return min(profile.limits.max_model_len, blocks * profile.kv.block_tokens)


@dataclass(frozen=True)
class Proxy:
    """A gateway before the servers: where it is, and the key it asks for."""

    url: str
    key: str | None


def replay(
    plan: Plan,
    workload: Workload,
    servers: Sequence[Server],
    seed: int = 1,
    proxy: Proxy | None = None,
    cpu_slots: int | None = None,
    into: list[Answer] | None = None,
    on_progress: Callable[[float], None] | None = None,
) -> Replay:
    """Send the workload to the servers, and compare.

    Args:
        plan: complete.
        workload: what is sent, for as long as it lasts.
        servers: of the plan, in its order, with their URLs.
        seed: of the requests; one that validation does not take.
        proxy: sent to instead of the servers; then it is the proxy that chooses.
        cpu_slots: ``--max-cpu-loras`` of the servers, for the twin.
        into: is filled with the answers as they come.
        on_progress: called with the seconds that have passed.

    Raises:
        BadInputError: the workload is not the plan's.
    """
    stream = stream_of(plan, workload, seed)
    answers = [] if into is None else into
    names = [(row, plan.gpus[row].adapters[place].name) for row, place in stream.owners]
    targets = [
        Target(servers[row].url, name) if proxy is None else Target(proxy.url, name, proxy.key) for row, name in names
    ]
    error, seconds = "", workload.horizon_s
    try:
        asyncio.run(
            _send(stream.requests, targets, seconds, seed, answers, proxy is not None, servers[0].url, on_progress)
        )
    except ServerError as failure:
        error = str(failure)
        times = [t for answer in answers for t in (answer.due_s, answer.last_s) if not math.isnan(t)]
        seconds = max(times, default=seconds)
    gpus = _compare(plan, servers, stream, answers, seconds, cpu_slots)
    return Replay(seconds, seed, gpus, stream.too_long, error)


async def _send(
    requests: Requests,
    targets: Sequence[Target],
    seconds: float,
    seed: int,
    answers: list[Answer],
    proxied: bool,
    asked: str,
    on_progress: Callable[[float], None] | None,
) -> None:
    async with client() as session:
        for url in sorted({target.url for target in targets}):
            await session.text(f"{url}/health/liveliness" if proxied else f"{url}/health")
        if proxied:
            words = await session.words(asked, targets[0].model)
            targets = [replace(target, words=words) for target in targets]
        await session.play(requests, lambda _, adapter: targets[adapter], seconds, seed, answers, on_progress)


def _compare(
    plan: Plan,
    servers: Sequence[Server],
    stream: Stream,
    answers: Sequence[Answer],
    seconds: float,
    cpu_slots: int | None,
) -> tuple[GPUReplay, ...]:
    mine: list[list[list[Answer]]] = [[[] for _ in gpu.adapters] for gpu in plan.gpus]
    elsewhere = [0] * len(plan.gpus)
    names = {server.name: row for row, server in enumerate(servers)}
    for answer in answers:
        row, place = stream.owners[answer.adapter]
        name = plan.gpus[row].adapters[place].name
        answered = names.get(answer.server.partition("/")[0], row)
        homes = {a.name: n for n, a in enumerate(plan.gpus[answered].adapters)}
        if name in homes:  # a proxy deals the requests of replicas itself
            mine[answered][homes[name]].append(answer)
        else:
            elsewhere[row] += 1
            mine[row][place].append(answer)
    found = []
    for row, gpu in enumerate(plan.gpus):
        seen = figures([answer for each in mine[row] for answer in each], seconds)
        one = simulation(plan, gpu, stream.per_gpu[row], seconds, f"GPU {gpu.id}", cpu_slots)
        twin = one.metrics() if one.profile.starts(one.slots, one.max_rank) else None
        adapters = tuple(
            AdapterReplay(
                name=adapter.name,
                measured=figures(mine[row][place], seconds),
                simulated_served=float(twin.per_adapter.served_fraction[place]) if twin else math.nan,
                simulated_ttft_s=float(twin.per_adapter.ttft_s[place]) if twin else math.nan,
            )
            for place, adapter in enumerate(gpu.adapters)
        )
        measured = Side(seen.served_fraction, seen.throughput_tok_s, seen.itl_ms, seen.ttft_s, seen.ttft_p95_s)
        found.append(
            GPUReplay(
                gpu.id, servers[row].url, _predicted(gpu), _simulated(twin), measured, seen, elsewhere[row], adapters
            )
        )
    return tuple(found)


def _predicted(gpu: PlannedGPU) -> Side:
    said = gpu.predicted

    def known(value: float | None) -> float:
        return math.nan if value is None else value

    return Side(
        said.served_fraction, said.throughput_tok_s, known(said.itl_ms), known(said.ttft_s), known(said.ttft_p95_s)
    )


def _simulated(twin: Metrics | None) -> Side:
    if twin is None:
        return Side(0.0, 0.0, math.nan, math.nan, math.nan)
    return Side(twin.served_fraction, twin.throughput_tok_s, twin.itl_ms.mean, twin.ttft_s.mean, twin.ttft_s.p95)
