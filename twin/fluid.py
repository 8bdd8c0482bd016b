"""The fluid oracle: the steady state of a server in closed form, by a fixed point of its step time.

In the steady state a request stays for ``tokens_out`` steps. Let every adapter get the same share of its rate, and call
share x step time the exposure u (s): then the server holds B = sum(rate * out) * u running requests and
sum(rate * out * kv) * u KV tokens, each step prefills sum(rate * in) * u tokens, and an adapter has something running
with probability 1 - exp(-rate * out * u), which gives the distinct adapters A. So u says what a step contains, the step
law what it lasts, f(u), and the share that such steps carry is u / f(u). The limits (A within the slots, KV and B
within theirs, B + prefill within the token budget) bound u. The largest share below that bound is what the server
carries: all of the traffic if it reaches 1, with the fixed point f(u) = u as its step time.

Exact where queues are short; too optimistic where many adapters share few slots, since nobody waits for a slot here.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
from numba import njit

from loraplan.oracle import Oracle, Predictions
from loraplan.problem import GPULoad, Problem

MAX_PASSES = 100
TOLERANCE = 1e-9
GOLDEN_STEPS = 30


def _record(names: str) -> np.dtype[np.void]:
    return np.dtype([(name, np.float64) for name in names.split()])


ADAPTER = _record("rate tokens_in tokens_out kv")
SERVER = _record(
    "slots kv max_seqs max_tokens base per_request per_kv per_adapter per_adapter_request per_token per_prefill load"
)
STEADY = _record("share step_ms ttft_s kv")


@dataclass(frozen=True)
class FluidParams:
    """No settings."""


class FluidOracle(Oracle):
    """Closed form, microseconds per load, hereditary: taking an adapter away never makes a load infeasible."""

    Params: ClassVar[type[Any]] = FluidParams
    hereditary = True

    def __init__(self, problem: Problem, params: FluidParams) -> None:
        """Prepare for loads of ``problem``."""
        self._problem = problem
        self._adapters = np.zeros(len(problem.adapters), dtype=ADAPTER)
        self._adapters["rate"] = problem.rates
        self._adapters["tokens_in"] = problem.mean_in
        self._adapters["tokens_out"] = problem.mean_out
        self._adapters["kv"] = problem.mean_kv
        lengths = {id(adapter.lengths): adapter.lengths for adapter in problem.adapters}
        self._accepted = []
        for gpu_type in problem.fleet.types:
            part = {key: law.accepted(gpu_type.profile.limits.max_model_len) for key, law in lengths.items()}
            self._accepted.append(np.array([part[id(adapter.lengths)] for adapter in problem.adapters]))

    def predict(self, loads: Sequence[GPULoad]) -> Predictions:
        """Solve every load's steady state; TTFT is inf where the queue grows without end."""
        starts = np.array([self._problem.starts(load) for load in loads], dtype=np.bool_)
        servers = np.zeros(len(loads), dtype=SERVER)
        for row, load in enumerate(loads):
            if starts[row]:
                servers[row] = self._server(load)
        sizes = np.array([len(load.adapters) for load in loads], dtype=np.int64)
        members = np.array([i for load in loads for i in load.adapters], dtype=np.int64)
        states = np.zeros(len(loads), dtype=STEADY)
        _solve_all(self._adapters, members, np.cumsum(sizes), starts, servers, states)
        offered = np.bincount(np.repeat(np.arange(len(loads)), sizes), self._problem.offered[members], len(loads))
        share = states["share"] * np.array([self._accepted_part(load) for load in loads])
        serves = starts & (offered > 0)
        return Predictions(
            starts=starts,
            served_fraction=share,
            throughput_tok_s=share * offered,
            itl_ms=np.where(serves, states["step_ms"], np.nan),
            ttft_s=np.where(serves, states["ttft_s"], np.nan),
            kv_utilisation=states["kv"].copy(),
        )

    def _accepted_part(self, load: GPULoad) -> float:
        """Share of the tokens that a server takes on, of the adapter whose requests are most often too long for it.

        Of the worst adapter, not of all together: so that taking another one away never makes it worse.
        """
        asked = [i for i in load.adapters if self._adapters["rate"][i] > 0]
        return float(self._accepted[load.gpu_type][asked].min()) if asked else 1.0

    def _server(self, load: GPULoad) -> tuple[float, ...]:
        """The server of ``load`` as a SERVER record."""
        problem = self._problem
        profile = problem.profile(load)
        law, max_rank = profile.step_ms, problem.max_rank(load.gpu_type, load.adapters)
        padded = (problem.ranks[list(load.adapters)] < max_rank).any()
        return (
            load.slots,
            profile.kv_blocks(load.slots, max_rank) * profile.kv.block_tokens,
            profile.limits.max_num_seqs,
            profile.limits.max_num_batched_tokens,
            law.base + law.per_rank * max_rank + law.per_slot * load.slots,
            law.per_request,
            law.per_kv_token,
            law.per_adapter + law.per_adapter_rank * max_rank,
            law.per_adapter_request,
            law.per_slot_token * load.slots,
            law.per_prefill_token,
            profile.load_ms.to_gpu + (profile.load_ms.smaller_rank if padded else 0.0),
        )


@njit(cache=True, nogil=True)
def _sum_up(adapters, members):  # type: ignore[no-untyped-def]
    """Running requests, KV tokens and prefill tokens of ``members``, each per second of exposure; who is asked at all.

    An adapter that nobody asks for loses its slot once and for all: it does not compete.
    """
    requests, kv, prefill, asked = 0.0, 0.0, 0.0, 0
    for i in members:
        a = adapters[i]
        requests += a.rate * a.tokens_out
        kv += a.rate * a.tokens_out * a.kv
        prefill += a.rate * a.tokens_in
        asked += a.rate > 0.0
    return requests, kv, prefill, asked


@njit(cache=True, nogil=True)
def _busy(adapters, members, exposure):  # type: ignore[no-untyped-def]
    """Distinct adapters that run and adapters that start to run in a step, both with their slopes in the exposure."""
    active, active_slope, starting, starting_slope = 0.0, 0.0, 0.0, 0.0
    for i in members:
        a = adapters[i]
        if a.rate > 0.0:
            rate = a.rate * a.tokens_out
            idle = math.exp(-rate * exposure)
            active += 1.0 - idle
            active_slope += rate * idle
            starting += (1.0 - idle) / a.tokens_out
            starting_slope += a.rate * idle
    return active, active_slope, starting, starting_slope


@njit(cache=True, nogil=True)
def _step_seconds(adapters, members, server, sums, exposure):  # type: ignore[no-untyped-def]
    """Step time at this exposure, and its slope."""
    requests, kv, prefill, asked = sums
    active, active_slope, starting, starting_slope = _busy(adapters, members, exposure)
    per_exposure = (
        server.per_request * requests
        + server.per_kv * kv
        + server.per_prefill * prefill
        + server.per_token * (requests + prefill)
    )
    ms = server.base + per_exposure * exposure + server.per_adapter * active
    slope = per_exposure + server.per_adapter * active_slope
    ms += server.per_adapter_request * active * requests * exposure
    slope += server.per_adapter_request * requests * (active + active_slope * exposure)
    spare = asked - active
    if asked > server.slots and spare > 0.0:
        missing = (asked - server.slots) / spare
        ms += server.load * starting * missing
        slope += server.load * missing * (starting_slope + starting * active_slope / spare)
    return 1e-3 * ms, 1e-3 * slope


@njit(cache=True, nogil=True)
def _largest_exposure(adapters, members, server, sums):  # type: ignore[no-untyped-def]
    """The exposure at which the first limit is met; a hair less, so that it is kept there."""
    requests, kv, prefill, asked = sums
    top = min(server.kv / kv, server.max_seqs / requests, server.max_tokens / (requests + prefill))
    if asked > server.slots:
        # Distinct adapters grow concavely, so Newton's steps come from below; where they cannot reach, nothing binds.
        exposure = 0.0
        for _ in range(MAX_PASSES):
            active, slope, _, _ = _busy(adapters, members, exposure)
            if server.slots - active <= TOLERANCE * server.slots or exposure >= top:
                break
            exposure = min(top, exposure + (server.slots - active) / slope) if slope > 0.0 else top
        top = min(top, exposure)
    return top * (1.0 - TOLERANCE)


@njit(cache=True, nogil=True)
def _best_share(adapters, members, server, sums, low, high):  # type: ignore[no-untyped-def]
    """Largest exposure / step time between two exposures, where it rises and then, at most, falls; and where it is."""
    seconds, slope = _step_seconds(adapters, members, server, sums, high)
    if seconds >= high * slope:  # still rising at the upper end
        return high / seconds, high
    ratio = 0.5 * (math.sqrt(5.0) - 1.0)
    for _ in range(GOLDEN_STEPS):
        left, right = high - ratio * (high - low), low + ratio * (high - low)
        share_left = left / _step_seconds(adapters, members, server, sums, left)[0]
        share_right = right / _step_seconds(adapters, members, server, sums, right)[0]
        if share_left < share_right:
            low = left
        else:
            high = right
    middle = 0.5 * (low + high)
    return middle / _step_seconds(adapters, members, server, sums, middle)[0], middle


@njit(cache=True, nogil=True)
def _fixed_point(adapters, members, server, sums, top):  # type: ignore[no-untyped-def]
    """The exposure at which the step time equals it, by Newton's method held within [0, top]."""
    exposure = min(1e-3 * server.base, top)
    for _ in range(MAX_PASSES):
        seconds, slope = _step_seconds(adapters, members, server, sums, exposure)
        if abs(seconds - exposure) <= TOLERANCE * exposure:
            break
        change = (seconds - exposure) / (1.0 - slope) if slope < 1.0 else seconds - exposure
        following = min(max(exposure + change, 0.5 * exposure), top)
        if following == exposure:
            break
        exposure = following
    return exposure


@njit(cache=True, nogil=True)
def _solve_all(adapters, members, ends, starts, servers, states):  # type: ignore[no-untyped-def]
    """Find the steady state of each load that starts."""
    for row in range(ends.size):
        if not starts[row]:
            continue
        mine, server, state = members[(ends[row - 1] if row > 0 else 0) : ends[row]], servers[row], states[row]
        sums = _sum_up(adapters, mine)
        requests, kv, prefill, _ = sums
        exposure, share = 1e-3 * server.base, 1.0
        if requests > 0.0:
            top = _largest_exposure(adapters, mine, server, sums)
            share, exposure = _best_share(adapters, mine, server, sums, 0.0, top)
            if share >= 1.0:
                share, exposure = 1.0, _fixed_point(adapters, mine, server, sums, top)
        seconds = _step_seconds(adapters, mine, server, sums, exposure)[0]
        state.share = share
        state.step_ms = 1e3 * seconds
        state.kv = kv * exposure / server.kv
        if share < 1.0:
            state.ttft_s = np.inf
            continue
        own_tokens = max(0.0, prefill / requests - prefill * exposure) if requests > 0.0 else 0.0
        state.ttft_s = 1.5 * seconds + 1e-3 * (server.per_prefill + server.per_token) * own_tokens
