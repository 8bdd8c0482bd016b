"""The fluid oracle: the steady state of a server in closed form, by a fixed point of its step time.

In the steady state a request stays for ``tokens_out`` steps. Let every adapter get the same share of its rate, and call
share x step time the exposure u (s): then the server holds B = sum(rate * out) * u running requests and
sum(rate * out * kv) * u KV tokens, each step prefills sum(rate * in) * u tokens, and an adapter has something running
with probability 1 - exp(-rate * out * u), which gives the distinct adapters A. So u says what a step contains, the step
law what it lasts, f(u), and the share that such steps carry is u / f(u). The limits (KV and B within theirs, B +
prefill within the token budget) bound u. The largest share below that bound is what the server carries: all of the
traffic if it reaches 1.

Slots bound A, not u: adapters that wait for a slot collect requests, and bring them all along once they have one. What
slots cost is loads. Where few wait, it is a cache's misses; where all slots are busy, each is given away about once per
answer, S / out times per step. (In the twin's replays of measured runs at capacity mostly 0.3 to 1.6 times as often:
requests that come along make an adapter stay for longer, but running adapters are evicted as well.)

Two laws. The share comes from one that only grows with adapters and traffic, which keeps the oracle hereditary: that of
large steps, with tiles of tokens as a mean. The step time that is told comes from small and large steps, as often as
each occurs; it falls where more traffic makes steps large.

Exact where queues are short. With ever longer waits for slots almost any traffic could be carried by one, but queues
take hours to become as long: so they bound u as well, by a mean wait (``slot_wait_s``).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
from numba import njit

from loraplan.bin_types import BinTypes
from loraplan.errors import BadInputError
from loraplan.oracle import Oracle, Predictions
from loraplan.problem import GPULoad, Problem
from loraplan.profiles import EXPAND_TILE, GRAPH_TOKENS, LARGE_STEP_SPLIT, SHRINK_TILE, SMALL_TOKENS, rank_tiles
from loraplan.workload import Ints
from twin.bin_types import FluidBinTypes

MAX_PASSES = 100
TOLERANCE = 1e-9
GOLDEN_STEPS = 30
GROWTH = 1.25  # of the exposure, in the search for the first steady state


def _record(names: str) -> np.dtype[np.void]:
    return np.dtype([(name, np.float64) for name in names.split()])


ADAPTER = _record("rate tokens_in tokens_out kv")
SERVER = _record(
    "slots kv max_seqs max_tokens base per_request per_kv per_adapter per_adapter_request per_token per_prefill eager"
    " load large_adapter small_adapter small_tile slot_wait"
)
STEADY = _record("share step_ms ttft_s kv")


@dataclass(frozen=True)
class FluidParams:
    """Settings of the fluid oracle.

    Attributes:
        slot_wait_s: mean seconds for which a request may wait for its adapter's slot.
    """

    slot_wait_s: float = 30.0

    def __post_init__(self) -> None:
        """Check the settings."""
        if not (math.isfinite(self.slot_wait_s) and self.slot_wait_s >= 0):
            raise BadInputError(f"oracle 'fluid': slot_wait_s must be at least 0 (got {self.slot_wait_s})")


class FluidOracle(Oracle):
    """Closed form, microseconds per load, hereditary: taking an adapter away never makes a load infeasible."""

    Params: ClassVar[type[Any]] = FluidParams
    hereditary = True

    def __init__(self, problem: Problem, params: FluidParams) -> None:
        """Prepare for loads of ``problem``."""
        self._problem = problem
        self._slot_wait_s = params.slot_wait_s
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
        self._takes_all = [bool((part == 1.0).all()) for part in self._accepted]

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

    def critical_rates(self, load: GPULoad, limit: float) -> float:
        """The factor on all rates of ``load`` at which its served fraction falls below ``limit``; 0 if it never serves.

        Found by bisection to 0.1 %, between a thousandth and a million.
        """
        if not self._problem.starts(load) or self._accepted_part(load) < limit:
            return 0.0
        members, starts = np.array(load.adapters, dtype=np.int64), np.array([True])
        servers, states = np.array([self._server(load)], dtype=SERVER), np.zeros(1, dtype=STEADY)
        adapters = self._adapters.copy()
        low, high = math.log(1e-3), math.log(1e6)
        while high - low > 1e-3:
            middle = (low + high) / 2
            adapters["rate"] = self._adapters["rate"] * math.exp(middle)
            _solve_all(adapters, members, np.array([members.size]), starts, servers, states)
            served = float(states["share"][0]) * self._accepted_part(load)
            low, high = (low, middle) if served < limit else (middle, high)
        return math.exp(low)

    def bin_types(self, group_of: Ints | None = None) -> BinTypes:
        """Boxes of exposure, slots and traffic, as fine as they are asked for."""
        return FluidBinTypes(self._problem, self._accepted, self._slot_wait_s, group_of)

    def _accepted_part(self, load: GPULoad) -> float:
        """Share of the tokens that a server takes on, of the adapter whose requests are most often too long for it.

        Of the worst adapter, not of all together: so that taking another one away never makes it worse.
        """
        if self._takes_all[load.gpu_type]:
            return 1.0
        asked = [i for i in load.adapters if self._adapters["rate"][i] > 0]
        return float(self._accepted[load.gpu_type][asked].min()) if asked else 1.0

    def _server(self, load: GPULoad) -> tuple[float, ...]:
        """The server of ``load`` as a SERVER record."""
        problem = self._problem
        profile = problem.profile(load)
        law, max_rank, registered = profile.step_ms, problem.max_rank(load.gpu_type, load.adapters), len(load.adapters)
        padded = (problem.ranks[list(load.adapters)] < max_rank).any()
        large, small = law.adapter_ms(registered), law.small_adapter_ms(registered, max_rank)
        tile = law.per_slot_shrink * rank_tiles(max_rank) * load.slots
        shrink, expand = LARGE_STEP_SPLIT * tile, law.per_slot_expand * load.slots
        return (
            load.slots,
            profile.kv_blocks(load.slots, max_rank) * profile.kv.block_tokens,
            profile.limits.max_num_seqs,
            profile.limits.max_num_batched_tokens,
            law.base + 0.5 * (shrink + expand),  # half of the last tile is empty
            law.per_request,
            law.per_kv_token,
            min(large, small),
            law.per_adapter_request,
            shrink / SHRINK_TILE + expand / EXPAND_TILE,
            law.per_prefill_token,
            law.eager,
            profile.load_ms.to_gpu + (profile.load_ms.smaller_rank if padded else 0.0),
            large - min(large, small),
            small - large,
            tile - shrink,
            self._slot_wait_s,
        )


@njit(cache=True, nogil=True)
def _sum_up(adapters, members):  # type: ignore[no-untyped-def]
    """What the adapters ask for, and their requests/s.

    That is, each per second of exposure: running requests, KV tokens and prefill tokens; then how many are asked at
    all (one that nobody asks for loses its slot once and for all: it does not compete), and their shortest and
    longest mean answer.
    """
    requests, kv, prefill, asked, shortest, longest, rate = 0.0, 0.0, 0.0, 0, math.inf, 0.0, 0.0
    for i in members:
        a = adapters[i]
        if a.rate > 0.0:
            requests += a.rate * a.tokens_out
            kv += a.rate * a.tokens_out * a.kv
            prefill += a.rate * a.tokens_in
            asked += 1
            shortest = min(shortest, a.tokens_out)
            longest = max(longest, a.tokens_out)
            rate += a.rate
    return requests, kv, prefill, rate, asked, shortest, longest


@njit(cache=True, nogil=True)
def _busy(adapters, members, exposure):  # type: ignore[no-untyped-def]
    """Distinct adapters that run in a step if all have a slot, and its slope in the exposure."""
    active, slope = 0.0, 0.0
    for i in members:
        rate = adapters[i].rate * adapters[i].tokens_out
        idle = math.exp(-rate * exposure)
        active += 1.0 - idle
        slope += rate * idle
    return active, slope


@njit(cache=True, nogil=True)
def _slots_full(adapters, members, server, asked):  # type: ignore[no-untyped-def]
    """The exposure at which all slots are busy, and the requests/s that find their adapter's slot given away.

    While slots are to spare, adapters leave theirs in order of last use. Such a cache forgets an adapter that was not
    used for a time that is the same for all, with which as many are remembered as it holds (Che's approximation): here
    that time, counted from the start of a mean request's answer, is the exposure at which all slots would be busy.
    """
    if asked <= server.slots:
        return math.inf, 0.0
    # Distinct adapters grow concavely, so Newton's steps come from below.
    exposure = 0.0
    for _ in range(MAX_PASSES):
        active, slope = _busy(adapters, members, exposure)
        if server.slots - active <= TOLERANCE * server.slots or slope == 0.0:
            break
        exposure += (server.slots - active) / slope
    misses = 0.0
    for i in members:
        a = adapters[i]
        misses += a.rate * math.exp(-a.rate * a.tokens_out * exposure)
    return exposure, misses


@njit(cache=True, nogil=True)
def _longest_wait(server, requests, asked, longest):  # type: ignore[no-untyped-def]
    """The exposure at which requests wait for a slot for as long as they may.

    A slot is an adapter's until the n requests that came along are answered: for about 1 + ln(n) answers if their
    lengths are exponential, during which n / (1 + ln(n)) run. Meanwhile the n of its next turn arrive; those who find
    it without a slot, 1 - slots / adapters of them, wait for half of the time that it has none.
    """
    without = 1.0 - server.slots / asked
    together = max(1.0, 2.0 * server.slot_wait * requests / (asked * longest * without * without))
    return server.slots / requests * together / (1.0 + math.log(together))


@njit(cache=True, nogil=True)
def _step_seconds(adapters, members, server, sums, exposure):  # type: ignore[no-untyped-def]
    """Least step time at this exposure, which grows with every adapter, and the distinct adapters that run."""
    requests, kv, prefill, misses, most_loads = sums
    active = min(_busy(adapters, members, exposure)[0], server.slots)
    tokens = (requests + prefill) * exposure
    ms = server.base + (server.per_request * requests + server.per_kv * kv + server.per_prefill * prefill) * exposure
    ms += server.per_token * tokens + server.eager * min(1.0, tokens / (2 * GRAPH_TOKENS))
    ms += (server.per_adapter + server.per_adapter_request * requests * exposure) * active
    ms += server.load * min(misses * exposure, most_loads)
    return 1e-3 * ms, active


@njit(cache=True, nogil=True)
def _real_seconds(adapters, members, server, sums, rate, exposure):  # type: ignore[no-untyped-def]
    """Mean step time at this exposure, of small and large steps; ``rate`` is the requests/s of all adapters.

    Small are those steps in which no request arrives and few enough run; how many run is close to Poisson.
    """
    seconds, active = _step_seconds(adapters, members, server, sums, exposure)
    running = sums[0] * exposure
    few = 0.5 * math.erfc((running - SMALL_TOKENS - 0.5) / math.sqrt(2.0 * running))
    small = few * math.exp(-rate * exposure)
    more_ms = server.large_adapter * active
    more_ms += small * (server.small_adapter * active + server.small_tile * (running / SHRINK_TILE + 0.5))
    return seconds + 1e-3 * more_ms


@njit(cache=True, nogil=True)
def _share(adapters, members, server, sums, exposure):  # type: ignore[no-untyped-def]
    return exposure / _step_seconds(adapters, members, server, sums, exposure)[0]


@njit(cache=True, nogil=True)
def _best_share(adapters, members, server, sums, full, top):  # type: ignore[no-untyped-def]
    """Largest exposure / step time, and where it is; one from 1 on is as good as the largest.

    Up to ``full``, where all slots are busy, it rises and then, at most, falls. Beyond, only what is concave grows in
    the step time, so that it rises up to ``top``.
    """
    best, at = _share(adapters, members, server, sums, top), top
    if best >= 1.0:
        return best, at
    if _share(adapters, members, server, sums, full * (1.0 - 1e-6)) <= _share(adapters, members, server, sums, full):
        return best, at
    ratio = 0.5 * (math.sqrt(5.0) - 1.0)
    low, high = 0.0, full
    left, right = high - ratio * (high - low), low + ratio * (high - low)
    share_left = _share(adapters, members, server, sums, left)
    share_right = _share(adapters, members, server, sums, right)
    for _ in range(GOLDEN_STEPS):
        if share_left < share_right:
            low, left, share_left = left, right, share_right
            right = low + ratio * (high - low)
            share_right = _share(adapters, members, server, sums, right)
        else:
            high, right, share_right = right, left, share_left
            left = high - ratio * (high - low)
            share_left = _share(adapters, members, server, sums, left)
    if max(share_left, share_right) > best:
        best, at = (share_left, left) if share_left > share_right else (share_right, right)
    return best, at


@njit(cache=True, nogil=True)
def _fixed_point(adapters, members, server, sums, rate, top):  # type: ignore[no-untyped-def]
    """The first exposure that steps do not outlast; ``top`` if they always do, as real steps may exceed the least.

    Found by steps upwards, then by false position (Illinois).
    """
    low, spare_low = 0.0, -1e-3 * server.base
    high = min(-spare_low, top)
    spare_high = high - _real_seconds(adapters, members, server, sums, rate, high)
    while spare_high < 0.0:
        if high == top:
            return top
        low, spare_low, high = high, spare_high, min(GROWTH * high, top)
        spare_high = high - _real_seconds(adapters, members, server, sums, rate, high)
    moved = 0
    for _ in range(MAX_PASSES):
        middle = (low * spare_high - high * spare_low) / (spare_high - spare_low)
        spare = middle - _real_seconds(adapters, members, server, sums, rate, middle)
        if abs(spare) <= TOLERANCE * middle:
            return middle
        if spare < 0.0:
            low, spare_low = middle, spare
            spare_high *= 0.5 if moved < 0 else 1.0
            moved = -1
        else:
            high, spare_high = middle, spare
            spare_low *= 0.5 if moved > 0 else 1.0
            moved = 1
    return high


@njit(cache=True, nogil=True)
def _solve_all(adapters, members, ends, starts, servers, states):  # type: ignore[no-untyped-def]
    """Find the steady state of each load that starts."""
    for row in range(ends.size):
        if not starts[row]:
            continue
        mine, server, state = members[(ends[row - 1] if row > 0 else 0) : ends[row]], servers[row], states[row]
        requests, kv, prefill, rate, asked, shortest, longest = _sum_up(adapters, mine)
        if requests == 0.0:
            state.share = 1.0
            continue
        full, misses = _slots_full(adapters, mine, server, asked)
        sums = requests, kv, prefill, misses, server.slots / shortest
        # A hair less than what meets the first limit, so that it is kept.
        top = min(server.kv / kv, server.max_seqs / requests, server.max_tokens / (requests + prefill))
        if asked > server.slots:
            top = min(top, max(full, _longest_wait(server, requests, asked, longest)))
        top *= 1.0 - TOLERANCE
        full = min(full, top)
        share, exposure = _best_share(adapters, mine, server, sums, full, top)
        if share >= 1.0:
            share, exposure = 1.0, _fixed_point(adapters, mine, server, sums, rate, top)
        seconds = _real_seconds(adapters, mine, server, sums, rate, exposure)
        state.share = share
        state.step_ms = 1e3 * seconds
        state.kv = kv * exposure / server.kv
        if share < 1.0:
            state.ttft_s = np.inf
            continue
        own_tokens = max(0.0, prefill / requests - prefill * exposure)
        state.ttft_s = 1.5 * seconds + 1e-3 * (server.per_prefill + server.per_token) * own_tokens
