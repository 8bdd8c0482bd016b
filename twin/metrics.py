"""What a run means: the figures vLLM's benchmark reports, and why they are what they are."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np

from loraplan.profiles import Frontend
from loraplan.workload import Floats, Ints, Requests
from twin import state
from twin.drift import Drift, measure_drift
from twin.server import Resource, Run

BLOCKED_SHARE = 0.01
"""A resource binds if requests waited for it during at least this share of the time."""


@dataclass(frozen=True)
class Spread:
    """A distribution in four numbers; nan where nothing was observed."""

    mean: float
    p50: float
    p95: float
    p99: float


@dataclass(frozen=True, eq=False)
class PerAdapter:
    """What each adapter got; arrays of shape (adapters,).

    Attributes:
        arrived: requests that arrived.
        completed: requests completed.
        served_fraction: its tokens in completed requests / its tokens that arrived; nan if none arrived.
        ttft_s: mean time to first token of its completed requests; nan if none.
    """

    arrived: Ints
    completed: Ints
    served_fraction: Floats
    ttft_s: Floats


@dataclass(frozen=True, eq=False)
class Metrics:
    """Figures of one run, over completed requests, as ``vllm bench serve`` defines them.

    Times are the engine's: what the HTTP frontend and the client add is not in them. The percentiles of ITL are over
    the gaps of all requests. ``binding`` is the resource that requests waited for longest, or ``none``; ``drift`` says
    whether the server keeps up.
    """

    arrived: int
    completed: int
    rejected: int
    offered_tok_s: float
    throughput_tok_s: float
    served_fraction: float
    itl_ms: Spread
    ttft_s: Spread
    running: float
    waiting: float
    max_waiting: int
    kv_utilisation: float
    max_kv_utilisation: float
    loads_from_cpu: int
    loads_from_disk: int
    preemptions: int
    steps: int
    busy_fraction: float
    binding: Resource | Literal["none"]
    blocked_fraction: dict[Resource, float]
    drift: Drift
    per_adapter: PerAdapter


@dataclass(frozen=True)
class Client:
    """What the client of a server with a frontend sees.

    Attributes:
        itl_ms: mean gap between two chunks of an answer; tokens that come out together are one chunk.
        ttft_s: mean time to the first of them.
    """

    itl_ms: float
    ttft_s: float


def client_side(run: Run, frontend: Frontend | None) -> Client:
    """The client's means over the completed requests of ``run``, a simulation with ``frontend``; nan if there are none.

    The delay of the first tokens is a mean over all that came out. Without a frontend the engine's means are the
    client's.
    """
    done = np.flatnonzero(np.isfinite(run.finish_s))
    if done.size == 0:
        return Client(np.nan, np.nan)
    first_token_s = run.first_token_s[done]
    gaps = int((run.requests.tokens_out[done] - 1).sum()) - run.merged_gaps
    begun = int(np.isfinite(run.first_token_s).sum())
    on_the_way_s = 0.0
    if frontend is not None:
        on_the_way_s = 1e-3 * (frontend.ttft + frontend.ttft_per_request * run.running_s / run.horizon_s)
    return Client(
        itl_ms=1e3 * float((run.finish_s[done] - first_token_s).sum()) / gaps if gaps > 0 else np.nan,
        ttft_s=float((first_token_s - run.requests.arrival_s[done]).mean())
        + run.first_token_delay_s / begun
        + on_the_way_s,
    )


def measure(run: Run, n_adapters: int) -> Metrics:
    """Compute the figures of ``run``, whose requests name adapters 0 to ``n_adapters`` - 1."""
    asked = run.requests
    done = np.flatnonzero(np.isfinite(run.finish_s))
    answers, first_token_s = asked.tokens_out[done], run.first_token_s[done]
    tokens, ttft_s = asked.tokens_in[done] + answers, first_token_s - asked.arrival_s[done]
    offered = float(asked.tokens_in.sum() + asked.tokens_out.sum()) / run.horizon_s
    throughput = float(tokens.sum()) / run.horizon_s
    gaps = int((answers - 1).sum())
    decoding_s = float((run.finish_s[done] - first_token_s).sum())
    blocked = {resource: seconds / run.horizon_s for resource, seconds in run.blocked_s.items()}
    worst = max(blocked, key=lambda resource: blocked[resource])
    return Metrics(
        arrived=len(asked),
        completed=done.size,
        rejected=run.rejected,
        offered_tok_s=offered,
        throughput_tok_s=throughput,
        served_fraction=throughput / offered if offered > 0 else 1.0,
        itl_ms=_itl_spread(run.itl_counts, 1e3 * decoding_s / gaps if gaps else np.nan),
        ttft_s=_spread(ttft_s),
        running=run.running_s / run.horizon_s,
        waiting=run.waiting_s / run.horizon_s,
        max_waiting=run.max_waiting,
        kv_utilisation=run.kv_token_s / run.horizon_s / run.kv_capacity_tokens,
        max_kv_utilisation=run.max_kv_tokens / run.kv_capacity_tokens,
        loads_from_cpu=run.loads_from_cpu,
        loads_from_disk=run.loads_from_disk,
        preemptions=run.preemptions,
        steps=run.steps,
        busy_fraction=run.busy_s / run.horizon_s,
        binding=worst if blocked[worst] >= BLOCKED_SHARE else "none",
        blocked_fraction=blocked,
        drift=_drift(run),
        per_adapter=_per_adapter(asked, n_adapters, asked.adapter[done], tokens, ttft_s),
    )


def _drift(run: Run) -> Drift:
    """Rejected requests keep nobody busy: they are left out."""
    if run.rejected == 0:
        return measure_drift(run.requests, run.first_token_s, run.finish_s, run.horizon_s)
    taken = run.requests.tokens_in < run.max_len
    return measure_drift(run.requests.select(taken), run.first_token_s[taken], run.finish_s[taken], run.horizon_s)


def _per_adapter(asked: Requests, n_adapters: int, owner: Ints, tokens: Ints, ttft_s: Floats) -> PerAdapter:
    """Of those completed: whose each was, its tokens and its time to first token."""
    completed = np.bincount(owner, minlength=n_adapters)
    offered = np.bincount(asked.adapter, asked.tokens_in + asked.tokens_out, n_adapters)
    with np.errstate(invalid="ignore", divide="ignore"):
        return PerAdapter(
            arrived=np.bincount(asked.adapter, minlength=n_adapters),
            completed=completed,
            served_fraction=np.bincount(owner, tokens, n_adapters) / offered,
            ttft_s=np.bincount(owner, ttft_s, n_adapters) / completed,
        )


def _spread(values: Floats) -> Spread:
    if values.size == 0:
        return Spread(np.nan, np.nan, np.nan, np.nan)
    p50, p95, p99 = np.percentile(values, [50, 95, 99])
    return Spread(float(values.mean()), float(p50), float(p95), float(p99))


def _itl_spread(counts: Floats, mean_ms: float) -> Spread:
    """Percentiles from the histogram: the geometric middle of the bin in which each lies."""
    cumulated = np.cumsum(counts)
    if cumulated[-1] == 0:
        return Spread(mean_ms, np.nan, np.nan, np.nan)
    bins = np.searchsorted(cumulated, np.array([0.50, 0.95, 0.99]) * cumulated[-1])
    p50, p95, p99 = np.exp(state.ITL_BIN_START + (bins + 0.5) * state.ITL_BIN_WIDTH)
    return Spread(mean_ms, float(p50), float(p95), float(p99))
