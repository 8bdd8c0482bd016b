"""One simulated server: set it up from a profile, run it on a stream of requests, keep what happened."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike, NDArray

from loraplan.errors import BadInputError
from loraplan.profiles import Frontend, Profile, RuleSet, rank_tiles
from loraplan.workload import Floats, Ints, Requests
from twin import core
from twin.frontend import tokenized
from twin.recording import MOST_STEPS, Recording, read_series, read_steps
from twin.state import (
    ADAPTER,
    CPU,
    FEATURES,
    GPU,
    ITL_BINS,
    KV,
    NO_KEY,
    NONE,
    REQUEST,
    SENT,
    SEQS,
    SERIES,
    SLOTS,
    STEP_LOG,
    TOKENS,
    TOTALS,
    Setup,
    State,
)

MOST_LABELS = 1 << 17
"""Places for labels of running and waiting adapters; more than half of them are never seen in an hour."""

Resource = Literal["slots", "kv", "tokens", "seqs"]

NOTHING_RECORDED = Recording()

ASYNC: dict[RuleSet, bool] = {"vllm-0.32-async": False, "vllm-0.32-async-ignore-eos": True}
"""Rule sets with async scheduling, and whether the end of every answer is foreseen, not only at ``max_model_len``."""


@dataclass(frozen=True, eq=False)
class Run:
    """What happened on one server from time 0 to the horizon; times are seconds since the start.

    Attributes:
        horizon_s: seconds simulated.
        requests: what was asked, with answers cut where they reach ``max_model_len``.
        first_token_s: shape (requests,), when the first token came out; nan if not within the horizon.
        finish_s: shape (requests,), when the last one did.
        preempted: shape (requests,), times the request was preempted.
        steps: engine steps.
        loads_from_cpu, loads_from_disk: adapter loads into a slot, by where the adapter was.
        preemptions: requests preempted, in all.
        rejected: requests whose prompt is as long as ``max_model_len``, or as all KV blocks, or longer.
        max_len: tokens, in and out, of the longest request that the server takes.
        lost: requests never sent because too many were unanswered.
        kv_capacity_tokens: tokens that the KV blocks hold.
        max_kv_tokens, max_waiting: largest value in any step.
        busy_s: seconds in which a step ran.
        running_s, waiting_s, kv_token_s: integrals over time of running requests, waiting requests and KV tokens held.
        blocked_s: seconds in which requests waited, by what ended the step's admissions: no KV blocks (or a
            preemption), the step's token budget, ``max_num_seqs``, or, if nothing did, no slot for those left.
        itl_counts: shape (ITL_BINS,), inter-token gaps of all requests by logarithmic bins.
        features: shape (2, FEATURES), what the step law is linear in, summed over the steps, and over the tokens
            that decoding requests got.
        merged_gaps: gaps between tokens that clients do not see, as the frontend handed several tokens on at once.
        first_token_delay_s: seconds that first tokens waited in the frontend's pauses, all together.
        label_count, label_names: different labels of the frontend's metrics (sets of adapters that run, and that
            wait), and adapters named in them; counted only with a frontend, and up to MOST_LABELS / 2.
        series: time series with columns recording.SERIES_COLUMNS, if one was asked for.
        steps_log: steps with columns state.STEP_LOG, if they were asked for.
    """

    horizon_s: float
    requests: Requests
    first_token_s: Floats
    finish_s: Floats
    preempted: Ints
    steps: int
    loads_from_cpu: int
    loads_from_disk: int
    preemptions: int
    rejected: int
    max_len: int
    lost: int
    kv_capacity_tokens: int
    max_kv_tokens: int
    max_waiting: int
    busy_s: float
    running_s: float
    waiting_s: float
    kv_token_s: float
    blocked_s: dict[Resource, float]
    itl_counts: Floats
    features: Floats
    merged_gaps: int
    first_token_delay_s: float
    label_count: int
    label_names: int
    series: pd.DataFrame | None = None
    steps_log: pd.DataFrame | None = None


def simulate(
    profile: Profile,
    slots: int,
    max_rank: int,
    adapter_ranks: Ints,
    requests: Requests,
    horizon_s: float,
    cpu_slots: int | None = None,
    max_outstanding: int | None = None,
    frontend: Frontend | None = None,
    recording: Recording = NOTHING_RECORDED,
) -> Run:
    """Replay ``requests`` on one server of ``profile`` for ``horizon_s`` seconds.

    The server has loaded its adapters in order of index at start, so the last ones are in its slots and, if they do
    not all fit there, in CPU memory.

    Args:
        profile: the server's constants and rules.
        slots: GPU slots (``--max-loras``).
        max_rank: ``--max-lora-rank``.
        adapter_ranks: shape (adapters,), rank of each adapter; requests name them by index.
        requests: in order of arrival.
        horizon_s: seconds to simulate.
        cpu_slots: adapters that CPU memory holds (``--max-cpu-loras``); None for all of them.
        max_outstanding: the client sends no request while so many are unanswered; None for no limit.
        frontend: the HTTP server before the engine; None for one that takes no time.
        recording: what to keep of the course of the run, beside its totals; nothing unless asked for.

    Raises:
        BadInputError: the server would not start, a setting is out of range, or more is to be recorded than can be.
    """
    in_cpu = max(slots, adapter_ranks.size) if cpu_slots is None else cpu_slots
    _check(profile, slots, max_rank, adapter_ranks, in_cpu)
    # A request that fills every block still fits: without the second limit one could preempt itself for ever.
    max_len = min(profile.limits.max_model_len, profile.kv_blocks(slots, max_rank) * profile.kv.block_tokens)
    fits = _below(requests.tokens_in, max_len)
    taken = requests if fits is None else requests.select(fits)
    outstanding = len(requests) + 1 if max_outstanding is None else max_outstanding
    setup = _setup(
        profile, slots, max_rank, adapter_ranks.size, in_cpu, horizon_s, outstanding, max_len, frontend, recording
    )
    state = _state(profile, setup, max_rank, adapter_ranks, taken, max_len, frontend, recording)
    (core.run_overlapped if profile.rules in ASYNC else core.run)(state, setup)
    run = _collect(
        state, requests, fits, max_len, horizon_s, profile.kv_blocks(slots, max_rank) * profile.kv.block_tokens
    )
    return _with_recording(run, state, recording)


def _with_recording(run: Run, state: State, recording: Recording) -> Run:
    if recording.series_s is not None:
        run = replace(run, series=read_series(state, recording.series_s, run.horizon_s, run.finish_s))
    if recording.steps_s is not None:
        run = replace(run, steps_log=read_steps(state, recording.steps_s))
    return run


def _check(profile: Profile, slots: int, max_rank: int, adapter_ranks: Ints, cpu_slots: int) -> None:
    if slots < 1:
        raise BadInputError(f"slots must be at least 1 (got {slots})")
    if adapter_ranks.size and adapter_ranks.max() > max_rank:
        raise BadInputError(f"max_rank is {max_rank}, but an adapter has rank {adapter_ranks.max()}")
    if not profile.starts(slots, max_rank):
        raise BadInputError(
            f"memory error: {slots} slots of rank {max_rank} leave {profile.kv_tokens(slots, max_rank):.0f} KV tokens "
            f"on {profile.name}, below its max_model_len of {profile.limits.max_model_len}"
        )
    if cpu_slots < slots:
        raise BadInputError(f"cpu_slots must be at least slots, {slots} (got {cpu_slots})")


def _collect(
    state: State, asked: Requests, fits: NDArray[np.bool_] | None, max_len: int, horizon_s: float, kv_tokens: int
) -> Run:
    """What happened, with the requests that were too long back in their places."""
    totals = state.totals[0]
    tokens_out = _expand(state.tokens_out, fits, asked.tokens_out)
    return Run(
        horizon_s=horizon_s,
        requests=asked if tokens_out is asked.tokens_out else replace(asked, tokens_out=tokens_out),
        first_token_s=_expand(state.first_token, fits, np.nan),
        finish_s=_expand(state.finish, fits, np.nan),
        preempted=_expand(state.preempted, fits, 0),
        rejected=0 if fits is None else int((~fits & (asked.arrival_s < horizon_s)).sum()),
        max_len=max_len,
        lost=int(totals["arrived"] - totals["sent"]),
        steps=int(totals["step"]),
        loads_from_cpu=int(totals["from_cpu"]),
        loads_from_disk=int(totals["from_disk"]),
        preemptions=int(totals["preemptions"]),
        kv_capacity_tokens=kv_tokens,
        max_kv_tokens=int(totals["max_kv"]),
        max_waiting=int(totals["max_waiting"]),
        busy_s=float(totals["busy_s"]),
        running_s=float(totals["running_s"]),
        waiting_s=float(totals["waiting_s"]),
        kv_token_s=float(totals["kv_token_s"]),
        blocked_s={
            "slots": float(state.blocked_s[SLOTS]),
            "kv": float(state.blocked_s[KV]),
            "tokens": float(state.blocked_s[TOKENS]),
            "seqs": float(state.blocked_s[SEQS]),
        },
        itl_counts=state.itl,
        features=state.features,
        merged_gaps=int(totals["merged"]),
        first_token_delay_s=float(totals["delay_s"]),
        label_count=int(totals["label_count"]),
        label_names=int(totals["label_names"]),
    )


def _below(values: Ints, limit: int) -> NDArray[np.bool_] | None:
    """Where ``values`` are below ``limit``; None if everywhere, which is found out faster."""
    return values < limit if values.size and values.max() >= limit else None


def _expand(values: NDArray[Any], where: NDArray[np.bool_] | None, other: ArrayLike) -> NDArray[Any]:
    """``values`` at the places where ``where`` is true, ``other`` elsewhere."""
    if where is None:
        return values
    whole = np.broadcast_to(np.asarray(other, dtype=values.dtype), where.shape).copy()
    whole[where] = values
    return whole


def _setup(
    profile: Profile,
    slots: int,
    max_rank: int,
    adapters: int,
    cpu_slots: int,
    horizon_s: float,
    max_outstanding: int,
    max_len: int,
    frontend: Frontend | None,
    recording: Recording,
) -> Setup:
    log_from, log_to = recording.window()
    registered = min(adapters, cpu_slots)
    law, limits, block = profile.step_ms, profile.limits, profile.kv.block_tokens
    return Setup(
        slots=slots,
        cpu_slots=cpu_slots,
        max_tokens=limits.max_num_batched_tokens,
        max_seqs=limits.max_num_seqs,
        block=block,
        whole_prompt=profile.rules != "vllm-0.8.5",
        foreseen_from=0 if ASYNC.get(profile.rules) else max_len,
        max_outstanding=max_outstanding,
        horizon=float(horizon_s),
        step_base=law.base,
        per_request=law.per_request,
        per_kv=law.per_kv_token,
        per_adapter=law.adapter_ms(registered),
        per_small_adapter=law.small_adapter_ms(registered, max_rank),
        per_adapter_request=law.per_adapter_request,
        per_shrink_tile=law.per_slot_shrink * slots * rank_tiles(max_rank),
        per_expand_tile=law.per_slot_expand * slots,
        eager=law.eager,
        per_prefill=law.per_prefill_token,
        per_waiting=law.per_waiting,
        scrape=math.inf if frontend is None else frontend.scrape_s,
        per_series=0.0 if frontend is None else 1e-3 * frontend.per_series,
        per_name=0.0 if frontend is None else 1e-3 * frontend.per_name,
        series_s=recording.series_s or math.inf,
        log_from=log_from,
        log_to=log_to,
    )


def _state(
    profile: Profile,
    setup: Setup,
    max_rank: int,
    ranks: Ints,
    requests: Requests,
    max_len: int,
    frontend: Frontend | None,
    recording: Recording,
) -> State:
    n_requests, n_adapters = len(requests), int(ranks.size)
    unanswered = min(n_requests, setup.max_outstanding)
    scarce = setup.slots < n_adapters
    leaves = _power_of_two(n_adapters) if scarce else 1
    tokens_out = _cut(requests, max_len)
    longest = int(tokens_out.max()) if n_requests else 1
    arrival, stops = tokenized(requests, n_adapters, frontend)

    totals = _totals(profile, setup, max_rank, n_adapters)
    adapters = np.zeros(n_adapters + 2, dtype=ADAPTER)
    adapters["first"] = NONE
    turns = order_of_use(n_adapters)
    adapters["last_used"][turns] = np.arange(n_adapters) - n_adapters - 1
    adapters["load_ms"][turns] = profile.load_ms.to_gpu + profile.load_ms.smaller_rank * (ranks < max_rank)
    adapters["disk_ms"][turns] = profile.load_ms.disk + profile.load_ms.disk_per_rank * ranks
    _fill_caches(adapters, turns, int(totals["on_gpu"][0]), int(totals["in_cpu"][0]))

    return State(
        totals=totals,
        arrival=arrival,
        stops=stops,
        adapter=np.ascontiguousarray(requests.adapter, dtype=np.int64),
        turns=turns,
        marks=np.random.default_rng(1).integers(1 << 62, size=n_adapters),
        labels=np.zeros(MOST_LABELS if setup.scrape < math.inf else 0, dtype=np.int64),
        tokens_in=np.ascontiguousarray(requests.tokens_in, dtype=np.int64),
        tokens_out=tokens_out,
        first_token=np.full(n_requests, np.nan),
        finish=np.full(n_requests, np.nan),
        preempted=np.zeros(n_requests, dtype=np.int64),
        sent=np.empty(unanswered, dtype=SENT),
        requests=np.empty(unanswered, dtype=REQUEST),
        adapters=adapters,
        bucket=np.full(_power_of_two(longest + 1), NONE, dtype=np.int64),
        residue=np.zeros(setup.block, dtype=np.int64),
        joined=np.zeros(setup.max_seqs, dtype=np.int64),
        starting=np.zeros(n_adapters, dtype=np.int64),
        evicted=np.zeros(n_adapters, dtype=np.int64),
        tree_all=np.full(2 * leaves, NO_KEY, dtype=np.int64),
        tree_running=np.full(2 * leaves if scarce else 0, NO_KEY, dtype=np.int64),
        itl=np.zeros(ITL_BINS),
        blocked_s=np.zeros(4),
        features=np.zeros((2, len(FEATURES))),
        series=np.zeros((recording.intervals(setup.horizon), len(SERIES))),
        log=np.empty((0 if recording.steps_s is None else MOST_STEPS, len(STEP_LOG))),
    )


def _totals(profile: Profile, setup: Setup, max_rank: int, n_adapters: int) -> NDArray[np.void]:
    totals = np.zeros(1, dtype=TOTALS)
    totals["answered"] = totals["tail"] = totals["partial"] = NONE
    totals["pause_from"] = totals["pause_to"] = math.inf if setup.scrape == math.inf else 0.0
    totals["scrape_at"] = setup.scrape
    totals["free"] = profile.kv_blocks(setup.slots, max_rank)
    totals["on_gpu"] = min(n_adapters, setup.slots)
    totals["in_cpu"] = min(n_adapters, setup.cpu_slots)
    totals["mark"] = setup.series_s
    totals["watch"] = min(setup.series_s, setup.log_from)
    return totals


def _cut(requests: Requests, max_len: int) -> Ints:
    """Tokens that come out before a request reaches ``max_len``; the very array if none is cut."""
    asked = np.ascontiguousarray(requests.tokens_out, dtype=np.int64)
    if not asked.size or requests.tokens_in.max() + asked.max() <= max_len:
        return asked
    return np.minimum(asked, max_len - requests.tokens_in)


def _power_of_two(at_least: int) -> int:
    return 1 << max(0, at_least - 1).bit_length()


def order_of_use(n_adapters: int) -> Ints:
    """Shape (adapters,): the place of each in the order in which a step uses its adapters.

    vLLM goes through a set of them, hashed by name: an order that stays, and has to do with nothing else.
    """
    return np.random.default_rng(n_adapters).permutation(n_adapters)


def _fill_caches(adapters: NDArray[np.void], turns: Ints, on_gpu: int, in_cpu: int) -> None:
    """Put the adapters loaded last into the slots, those before them into CPU memory, and link both by last use."""
    n = turns.size
    for anchor, where, held in ((n, GPU, turns[n - on_gpu :]), (n + 1, CPU, turns[n - in_cpu : n - on_gpu])):
        adapters["place"][held] = where
        ring = np.concatenate(([anchor], held, [anchor]))
        adapters["lru_next"][ring[:-1]] = ring[1:]
        adapters["lru_prev"][ring[1:]] = ring[:-1]
