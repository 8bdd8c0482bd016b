"""The fluid oracle's accepted loads as a union of knapsacks (`loraplan.bin_types`).

A load is accepted if some exposure u within its limits has u >= L * f(u), f being the least step time and L the limit
on the served fraction (`twin.fluid`). Take the smallest such u: there u = L * f(u). If it lies in [u1, u2], every
figure of the load at u1 is no larger than at u, so the limits hold at u1. And f lies above a concave function with the
same value at u1 or less (all its terms are concave, but for distinct adapters x requests running, whose first factor is
taken at u1), so that u / f(u) still rises: L * f(u2) <= u2. At fixed u1 and u2 all but a few terms of f are sums over
the adapters; those are held from below by linear ones over a box:

- products of two sums (distinct adapters x requests running, x adapters registered) by their convex envelope
  (McCormick): ``x*y >= x1*y + y1*x - x1*y1`` and the same with the upper ends, where x <= x2 and y <= y2 are rows too;
- the eager term, concave in the tokens of a step, by its chord;
- the exposure v at which all slots are busy by an interval of its own: ``A(v1) <= slots``, and misses at v2;
- the loads, a minimum of two, by one box for each; so is whether the max rank is that of all adapters.

Rows that say that a sum is at least the box's lower end are left out, which only lets more loads in.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np

from loraplan.bin_types import EXCLUDED, BinType, BinTypes, Groups, server_ranks
from loraplan.problem import Problem
from loraplan.profiles import EXPAND_TILE, GRAPH_TOKENS, LARGE_STEP_SPLIT, SHRINK_TILE, rank_tiles
from loraplan.workload import Floats, Ints

Range = tuple[float, float]
Family = Literal["resident", "filling", "full"]
"""All adapters asked for have a slot; some have not, and at this exposure slots are to spare; or all slots are busy."""

SLACK = 1e-7
"""Relative, on every row: the oracle computes in floating point."""
FINEST = 2e-4
"""Boxes whose terms are held closer than this part of a step are not split."""
ROWS = 8


@dataclass(frozen=True)
class _Box:
    """Intervals of what is not linear.

    Attributes:
        gpu_type, max_rank, family: as they say.
        mixed: whether some adapter's rank is below the max rank (matters to loads only).
        all_load: whether as many loads are made as slots allow.
        slots: S; of ``resident``, of the adapters asked for (more slots than that serve nobody).
        exposure: u, s.
        tokens: tokens per s of exposure, prompt and output.
        busy: distinct adapters at u1.
        asked: adapters asked for.
        turn: v, the exposure at which all slots are busy, s.
    """

    gpu_type: int
    max_rank: int
    family: Family
    mixed: bool
    all_load: bool
    slots: tuple[int, int]
    exposure: Range
    tokens: Range
    busy: Range
    asked: Range
    turn: Range


@dataclass(frozen=True)
class _Costs:
    """ms of a server's step with ``slots``: ``base``, and per request running, KV token, prompt token, token, ..."""

    base: float
    request: float
    kv: float
    prefill: float
    token: float
    eager: float
    adapter: float
    adapter_request: float
    registered: float
    load: float


class _Items:
    """What items weigh, shape (items,) each: the least of their adapters, and where it falls with rates the most."""

    def __init__(self, problem: Problem, group_of: Ints) -> None:
        groups = Groups(group_of)
        rate, out = problem.rates, problem.mean_out
        running = rate * out
        self.rate, self.running = groups.least(rate), groups.least(running)
        self.most_running = groups.most(running)
        self.kv, self.prefill = groups.least(running * problem.mean_kv), groups.least(rate * problem.mean_in)
        self.asked = groups.least((rate > 0).astype(np.float64))
        self.tokens = groups.least(running + rate * problem.mean_in)
        inside = (group_of >= 0) & (rate > 0)
        self.count = int(inside.sum())
        share = running[inside] / (running + rate * problem.mean_in)[inside] if self.count else np.ones(1)
        self.running_share = float(share.min()), float(share.max())
        self.out = (float(out[inside].min()), float(out[inside].max())) if self.count else (1.0, 1.0)
        self.total_tokens = float((running + rate * problem.mean_in)[inside].sum())
        self.groups = groups

    def busy(self, exposure: float) -> Floats:
        """Distinct adapters that run in a step of this exposure (s)."""
        return -np.expm1(-self.running * exposure)

    def misses(self, exposure: float) -> Floats:
        """Requests/s of adapters that were not asked for in this time (s)."""
        if math.isinf(exposure):
            return np.zeros_like(self.rate)
        return self.rate * np.exp(-self.most_running * exposure)


class FluidBinTypes(BinTypes):
    """Boxes of exposure, slots and traffic, split where a load shows that they are coarse."""

    rows = ROWS

    def __init__(self, problem: Problem, accepted: list[Floats], slot_wait_s: float, group_of: Ints | None) -> None:
        """``accepted``: of each GPU type, the share of the tokens of each adapter that it takes on."""
        group_of = np.arange(len(problem.adapters)) if group_of is None else group_of
        self._problem, self._slot_wait_s = problem, slot_wait_s
        self._limit = problem.constraints.served_fraction
        self._items = _Items(problem, group_of)
        groups, asked = self._items.groups, problem.rates > 0
        self._ranks, self._own, self._share = [], [], []
        for t, part in enumerate(accepted):
            ranks = server_ranks(problem, t)
            refused = np.where(asked & (part < self._limit), np.inf, ranks)
            self._ranks.append((groups.least(refused), groups.most(problem.ranks.astype(np.float64))))
            self._own.append(np.unique(refused[(group_of >= 0) & np.isfinite(refused)]).astype(int).tolist())
            best = float(part[asked & (group_of >= 0)].max(initial=0.0)) or 1.0
            self._share.append(self._limit / max(best, self._limit))

    def roots(self) -> list[BinType]:
        """For each GPU type and max rank, the ways to use slots."""
        found: list[BinType | None] = []
        for t, gpu_type in enumerate(self._problem.fleet.types):
            for rank in self._own[t]:
                most = min(gpu_type.profile.max_slots(rank), max(self._items.count, 1))
                while most and not gpu_type.profile.starts(most, rank):
                    most -= 1
                if not most:
                    continue
                found.append(self._make(self._whole(t, rank, most, "resident", False, False)))
                if most == self._items.count:
                    most -= 1
                if not most:
                    continue
                below, equal = (self._problem.ranks < rank).any(), (self._problem.ranks == rank).any()
                for mixed in [False] * bool(equal) + [True] * bool(below):
                    for all_load in (False, True):
                        for family in ("filling", "full"):
                            found.append(self._make(self._whole(t, rank, most, family, mixed, all_load)))
        return [one for one in found if one is not None]

    def _whole(self, t: int, rank: int, most: int, family: Family, mixed: bool, all_load: bool) -> _Box:
        limits, least = self._problem.fleet.types[t].profile.limits, self._costs(t, rank, 1, mixed)
        largest = self._costs(t, rank, most, mixed)
        longest_ms = largest.base + largest.request * limits.max_num_seqs + largest.eager
        longest_ms += (largest.prefill + largest.token) * limits.max_num_batched_tokens
        longest_ms += largest.kv * self._kv_tokens(t, rank, 1)
        each = largest.adapter + largest.registered * self._items.count + largest.adapter_request * limits.max_num_seqs
        longest_ms += (each + largest.load / self._items.out[0]) * most
        first = 1e-3 * self._share[t] * least.base
        exposure = (first * (1 - SLACK), 1e-3 * self._share[t] * longest_ms * (1 + SLACK))
        asked = (0.0, float(most)) if family == "resident" else (2.0, float(self._items.count))
        tokens = min(limits.max_num_batched_tokens / exposure[0], self._items.total_tokens) + 1e-9
        turn = (0.0, math.inf)
        slots = (0 if family == "resident" else 1, most)
        return _Box(t, rank, family, mixed, all_load, slots, exposure, (0.0, tokens), (0.0, float(most)), asked, turn)

    def _kv_tokens(self, t: int, rank: int, slots: int) -> float:
        profile = self._problem.fleet.types[t].profile
        return profile.kv_blocks(max(slots, 1), rank) * float(profile.kv.block_tokens)

    def _costs(self, t: int, rank: int, slots: int, mixed: bool) -> _Costs:
        profile = self._problem.fleet.types[t].profile
        law = profile.step_ms
        shrink = LARGE_STEP_SPLIT * law.per_slot_shrink * rank_tiles(rank) * slots
        expand = law.per_slot_expand * slots
        return _Costs(
            law.base + 0.5 * (shrink + expand),
            law.per_request,
            law.per_kv_token,
            law.per_prefill_token,
            shrink / SHRINK_TILE + expand / EXPAND_TILE,
            law.eager,
            min(law.adapter_ms(0), law.small_adapter_ms(0, rank)),
            law.per_adapter_request,
            law.per_registered,
            profile.load_ms.to_gpu + (profile.load_ms.smaller_rank if mixed else 0.0),
        )

    def _make(self, box: _Box) -> BinType | None:
        """The bin type of ``box``; None if no load is in it."""
        box = _tightened(box)
        u, v = box.exposure, box.turn
        if v[0] > v[1] or box.asked[0] > box.asked[1] or box.busy[0] > box.busy[1] or box.slots[0] > box.slots[1]:
            return None
        limits, items = self._problem.fleet.types[box.gpu_type].profile.limits, self._items
        kv_tokens = self._kv_tokens(box.gpu_type, box.max_rank, box.slots[0])
        rows = np.zeros((ROWS, items.rate.size))
        most_tokens = min(float(limits.max_num_batched_tokens), box.tokens[1] * u[0])
        if box.family == "resident":
            rows[0] = items.asked / max(box.slots[1], 1e-9)
        elif not (box.all_load and box.family == "full"):
            rows[0] = items.busy(v[0]) / box.slots[1]
        rows[1] = items.kv * (u[0] / kv_tokens)
        rows[2] = items.tokens * (u[0] / most_tokens)
        rows[3] = items.running * (u[0] / self._most_running(box))
        if box.family != "resident":
            rows[7] = items.asked / box.asked[1]
        if box.family != "full":
            rows[6] = items.busy(u[0]) / box.busy[1]
        for place in (4, 5) if box.family != "full" else (4,):
            weights, constant = self._step(box, place - 4)
            spare = 1e3 * u[1] / self._share[box.gpu_type] - constant
            if spare <= 0:
                return None
            rows[place] = weights / spare
        rows *= 1.0 - SLACK
        low, high = self._ranks[box.gpu_type]
        # max ranks are those that a server takes: the adapters' own may lie between them
        same = (high >= box.max_rank) | (box.mixed | (box.family == "resident"))
        rows[0][(low > box.max_rank) | ~same] = EXCLUDED
        return BinType(
            box.gpu_type,
            box.max_rank,
            (max(box.slots[0], 1), max(box.slots[1], 1)),
            rows,
            1e3 * u[0] * (1 - SLACK),
            box,
        )

    def _most_running(self, box: _Box) -> float:
        """Requests that may run at u1; with all slots busy as many as come while one waits as long as it may.

        That is, ``u <= S / r * n / (1 + log n)`` with n = max(1, r * k), solved for r, the tokens produced per s of
        exposure; k falls with the adapters asked for and grows with the slots.
        """
        most = float(self._problem.fleet.types[box.gpu_type].profile.limits.max_num_seqs)
        without = 1.0 - box.slots[1] / box.asked[0] if box.asked[0] else 0.0
        if box.family != "full" or without <= 0:
            return most
        k = 2.0 * self._slot_wait_s / (box.asked[0] * self._items.out[0] * without * without)
        u, beyond = box.exposure[0], box.slots[1] * k / box.exposure[0] - 1.0
        if k == 0.0 or beyond < 0:
            return min(most, float(box.slots[1]))
        return min(most, u * math.exp(beyond) / k) if beyond < 50 else most

    def _step(self, box: _Box, end: int) -> tuple[Floats, float]:
        """Weights and constant (ms) of a linear lower bound of the step time at u2, tight at one end of the box."""
        items, (u1, u) = self._items, box.exposure
        slots = max(box.slots[0], 1)
        costs = self._costs(box.gpu_type, box.max_rank, slots, box.mixed)
        running = items.running_share[end] * box.tokens[end] * u
        chord = _chord(box.tokens[0] * u, box.tokens[1] * u, 2.0 * GRAPH_TOKENS)
        weights = u * (costs.request * items.running + costs.kv * items.kv + costs.prefill * items.prefill)
        weights += (u * (costs.token + costs.eager * chord[0])) * items.tokens
        constant = costs.base + costs.eager * chord[1]
        if box.family == "full":
            weights += (u * costs.adapter_request * slots) * items.running + (costs.registered * slots) * items.asked
            constant += costs.adapter * slots
        else:
            busy, asked = box.busy[end], box.asked[end]
            weights += (u * costs.adapter_request * busy) * items.running + (costs.registered * busy) * items.asked
            weights += (costs.adapter_request * running) * items.busy(u1) + costs.adapter * items.busy(u)
            weights += (costs.registered * asked) * items.busy(u1 if end else u)
            constant -= costs.adapter_request * running * busy + costs.registered * asked * busy
        if box.family != "resident":
            if box.all_load:
                constant += costs.load * slots / items.out[1]
            else:
                weights += (costs.load * u) * items.misses(box.turn[1])
        return weights, constant

    def split(self, bin_type: BinType, counts: Floats) -> list[BinType]:
        """Halve the interval that lets the step of ``counts`` look shortest."""
        box: _Box = bin_type.box
        gaps = self._gaps(box, counts, bin_type.rows @ counts)
        widest = max(gaps, key=lambda name: gaps[name])
        if gaps[widest] <= FINEST * 1e3 * box.exposure[0]:
            return [bin_type]
        halves = [self._make(half) for half in _halves(box, widest)]
        return [half for half in halves if half is not None]

    def _gaps(self, box: _Box, counts: Floats, rows: Floats) -> dict[str, float]:
        """For each interval, how many ms a step of ``counts`` might look shorter for its width, about.

        ``rows``, shape (rows,), says how much of each is used.
        """
        items, (u1, u) = self._items, box.exposure
        slots = max(box.slots[0], 1)
        costs, most = (self._costs(box.gpu_type, box.max_rank, s, box.mixed) for s in (slots, max(box.slots[1], 1)))
        tokens, running, asked = (float(f @ counts) for f in (items.tokens, items.running, items.asked))
        busy = float(items.busy(u1) @ counts)
        chord = _chord(box.tokens[0] * u, box.tokens[1] * u, 2.0 * GRAPH_TOKENS)
        eager = costs.eager * max(0.0, min(1.0, tokens * u / (2 * GRAPH_TOKENS)) - chord[0] * tokens * u - chord[1])
        room = [self._kv_tokens(box.gpu_type, box.max_rank, s) for s in box.slots]
        known = max(asked, box.asked[0]), box.asked[1]
        later = running * u / self._most_running(replace(box, exposure=(u, u), asked=known, slots=(slots, slots)))
        uses = float(rows[1]) * u / u1, float(rows[2]) * u / u1, later
        limits = [_near(use) * 1e3 * min(u, 2 * u1) for use in uses]
        wider = box.slots[1] / slots - 1.0
        gaps = dict.fromkeys(("exposure", "slots", "tokens", "busy", "asked", "turn"), 0.0)
        gaps["exposure"] = min(u / u1 - 1.0, 1.0) * max(limits)
        gaps["slots"] = most.base - costs.base + (most.token - costs.token) * tokens * u
        gaps["slots"] += (1.0 - room[1] / room[0]) * limits[0]
        if box.family == "full":
            extra = costs.adapter + costs.adapter_request * running * u + costs.registered * asked
            extra += costs.load / items.out[1] if box.all_load else 0.0
            gaps["slots"] += (box.slots[1] - slots) * extra + wider * limits[2]
            gaps["asked"] = (max(asked, box.asked[0]) / box.asked[0] - 1.0) * limits[2] * 2.0
            gaps["tokens"] = eager
        else:
            b = [box.tokens[end] * items.running_share[end] * u for end in (0, 1)]
            product = costs.adapter_request * _envelope_gap(running * u, b, busy, box.busy)
            by_tokens = (b[1] - b[0]) / b[1] > (box.busy[1] - box.busy[0]) / box.busy[1]
            gaps["tokens"], gaps["busy"] = (product + eager, 0.0) if by_tokens else (eager, product)
            product = costs.registered * _envelope_gap(asked, list(box.asked), busy, box.busy)
            by_asked = (box.asked[1] - box.asked[0]) / box.asked[1] > (box.busy[1] - box.busy[0]) / box.busy[1]
            gaps["slots" if box.family == "resident" else "asked" if by_asked else "busy"] += product
            gaps["exposure"] += costs.adapter_request * running * u * (float(items.busy(u) @ counts) - busy)
        if box.family != "resident":
            gaps["slots"] += _near(float(rows[0])) * wider * costs.adapter * slots
        if box.family != "resident" and not box.all_load:
            v1, v2 = box.turn
            late = float(items.busy(v2) @ counts) if v2 < math.inf else asked
            gaps["turn"] = _near(float(rows[0])) * costs.adapter * (late - float(items.busy(v1) @ counts))
            gaps["turn"] += costs.load * u * float((items.misses(v1) - items.misses(v2)) @ counts)
        narrow = {"slots": box.slots[1] - box.slots[0] < 1, "asked": box.family == "resident"}
        return {name: 0.0 if narrow.get(name) else gap for name, gap in gaps.items()}


def _near(use: float) -> float:
    """How much the width of a limit matters that is used so far."""
    return min(use, 1.0) ** 12


def _chord(low: float, high: float, full: float) -> tuple[float, float]:
    """Slope and value at 0 of the chord of ``min(1, x / full)`` over [low, high]."""
    at_low, at_high = min(1.0, low / full), min(1.0, high / full)
    slope = (at_high - at_low) / (high - low) if high > low else 0.0
    return slope, at_low - slope * low


def _envelope_gap(x: float, xs: list[float], y: float, ys: Range) -> float:
    """How far the product is above its convex envelope over the box."""
    return max(0.0, x * y - max(xs[end] * y + ys[end] * x - xs[end] * ys[end] for end in (0, 1)))


def _tightened(box: _Box) -> _Box:
    """The same loads in smaller intervals: slots bound busy adapters, and exposures one another."""
    slots, asked = box.slots, box.asked
    if box.family == "resident":
        asked = (float(slots[0]), float(slots[1]))
    else:
        asked = (max(asked[0], slots[0] + 1.0), asked[1])
        slots = (slots[0], min(slots[1], int(asked[1]) - 1))
    busy = (box.busy[0], min(box.busy[1], float(slots[1]), asked[1]) + 1e-9)
    turn = box.turn
    if box.family == "resident" or box.all_load:  # when slots become full makes no difference to what is held against u
        turn = (box.exposure[0], math.inf)
    elif box.family == "filling":
        turn = (max(turn[0], box.exposure[0]), turn[1])
    elif box.family == "full":
        turn = (turn[0], min(turn[1], box.exposure[1]))
    return replace(box, slots=slots, asked=asked, busy=busy, turn=turn)


def _halves(box: _Box, name: str) -> list[_Box]:
    """``box`` in two along one interval."""
    if name == "slots":
        first, last = box.slots
        half = (first + last) // 2
        return [replace(box, slots=(first, half)), replace(box, slots=(half + 1, last))]
    low, high = getattr(box, name)
    if name == "exposure":
        middle = math.sqrt(low * high)
        # what runs at a later exposure grows at most in proportion
        busy = (box.busy[0], box.busy[1] * middle / low)
        return [replace(box, exposure=(low, middle)), replace(box, exposure=(middle, high), busy=busy)]
    if name == "turn":
        if math.isinf(high):
            middle = max(2.0 * low, 4.0 * box.exposure[1])
        else:
            middle = math.sqrt(low * high) if low else high / 4.0
        return [replace(box, turn=(low, middle)), replace(box, turn=(middle, high))]
    if name == "asked":
        middle = float(math.floor((low + high) / 2.0))
        return [replace(box, asked=(low, middle)), replace(box, asked=(middle + 1.0, high))]
    middle = (low + high) / 2.0
    return [replace(box, **{name: (low, middle)}), replace(box, **{name: (middle, high)})]  # type: ignore[arg-type]
