"""The compiled part of the surrogate: embeddings of adapters, their sums, and the fluid model's short form on the sums.

All that is compiled stands in this file, with the layout of its arrays: Numba's cache does not see changes elsewhere.
"""

from __future__ import annotations

import math

import numpy as np
from numba import njit

from loraplan.profiles import GRAPH_TOKENS, SHRINK_TILE, SMALL_TOKENS

HOUR_S = 3600.0
POINTS = 12
FIRST_PACE, POINT_RATIO = 1.25, 1.38
"""Step times at which embeddings say who runs: from a quarter more than the base to 43 times as long."""
PACES = 40
PACE_FACTORS = FIRST_PACE * np.geomspace(1.0, POINT_RATIO ** (POINTS - 1), PACES)
"""Step times, over the base, at which rows are looked at."""
POINT_OF_PACE = np.minimum(
    np.searchsorted(FIRST_PACE * POINT_RATIO ** np.arange(POINTS), PACE_FACTORS, "right") - 1, POINTS - 2
)
PART_OF_PACE = (PACE_FACTORS / (FIRST_PACE * POINT_RATIO**POINT_OF_PACE) - 1.0) / (POINT_RATIO - 1.0)
"""Which points a pace lies between, and where: who runs at a pace is interpolated."""
RAMPS = 19
FIRST_RAMP = -14
"""Octaves of rho * t0: from an adapter that runs a few times in a day to one that fills a server."""

REGISTERED, ASKED, ARRIVALS, RUNNING, KV, PREFILL, SQUARED = range(7)
FIRST_BUSY = 7
FIRST_TURN = FIRST_BUSY + POINTS
FIRST_RAMP_TERM = FIRST_TURN + POINTS
BUSY_WEIGHT, TURN_WEIGHT, FIRST_RAMP_WEIGHT = 7, 8, 9
"""Places in a row's weights, which have one for who runs and one for who comes, whatever the pace."""
EMBEDDING = FIRST_RAMP_TERM + RAMPS

TRAFFIC = np.dtype([(name, np.float64) for name in ("rate", "tokens_in", "tokens_out", "kv", "out_squared")])
"""An adapter's traffic: requests/s and its lengths' means."""

SERVER_TERMS = (
    *("base_s", "steps_ms", "per_request", "per_kv", "per_prefill", "per_token", "per_adapter", "per_small_adapter"),
    *("per_adapter_request", "per_registered", "small_tile", "eager", "load_ms"),
    *("slots", "kv_tokens", "max_tokens", "max_seqs", "rank"),
)
"""A server's constants: t0 (s), ms of a step without requests (base and half a tile of the slots' kernels), other costs
(ms), and its limits."""
SERVER = {name: place for place, name in enumerate(SERVER_TERMS)}
BASE_S, STEPS, SLOTS, KV_TOKENS, MAX_TOKENS, MAX_SEQS = (
    SERVER[name] for name in ("base_s", "steps_ms", "slots", "kv_tokens", "max_tokens", "max_seqs")
)

STEADY = 10
"""Figures of ``steady``: logarithms of share, step time / t0, exposure / t0, use of KV, tokens, sequences and slots,
running requests, TTFT / t0, and step time / exposure at the first limit."""
HEAD_INPUTS = STEADY + POINTS + 7


@njit(cache=True, nogil=True)
def embed(traffic, base_s, into):  # type: ignore[no-untyped-def]
    """Fill ``into``, shape (adapters, EMBEDDING), for adapters of ``TRAFFIC`` on a server of base ``base_s`` (s)."""
    for i in range(traffic.size):
        a, row = traffic[i], into[i]
        rho = a.rate * a.tokens_out
        row[REGISTERED] = 1.0
        row[ASKED] = 1.0 - math.exp(-a.rate * HOUR_S)
        row[ARRIVALS] = a.rate * base_s
        row[RUNNING] = rho * base_s
        row[KV] = rho * a.kv * base_s
        row[PREFILL] = a.rate * a.tokens_in * base_s
        row[SQUARED] = a.rate * a.out_squared * base_s
        pace = FIRST_PACE * base_s
        for g in range(POINTS):
            row[FIRST_BUSY + g] = 1.0 - math.exp(-rho * pace)
            row[FIRST_TURN + g] = row[FIRST_BUSY + g] / a.tokens_out
            pace *= POINT_RATIO
        octave = math.log2(rho * base_s) - FIRST_RAMP if rho > 0.0 else -1.0
        for j in range(RAMPS):
            row[FIRST_RAMP_TERM + j] = min(max(octave - j, 0.0), 1.0)


@njit(cache=True, nogil=True)
def _step_ms(sums, server, exposure, busy, turn):  # type: ignore[no-untyped-def]
    """Mean step time (ms) at an exposure (s) at which ``busy`` adapters would run and ``turn`` come.

    A short form of that of `twin.fluid`: small steps are told from large ones by a logistic curve, and where slots are
    short those that come are loaded, and evict others that run (docs/twin.md).
    """
    part = exposure / server[BASE_S]
    running, prefill = sums[RUNNING] * part, sums[PREFILL] * part
    tokens = running + prefill
    small = math.exp(-sums[ARRIVALS] * part) / (
        1.0 + math.exp(1.7 * (running - SMALL_TOKENS) / math.sqrt(running + 1.0))
    )
    ms = server[STEPS] + server[2] * running + server[3] * sums[KV] * part + server[4] * prefill
    ms += server[5] * tokens + server[11] * min(1.0, tokens / (2 * GRAPH_TOKENS))
    each = server[6] + small * (server[7] - server[6]) + server[9] * sums[REGISTERED]
    slots = server[SLOTS]
    missing = max(0.0, 1.0 - slots / max(sums[ASKED], 1e-9))
    ms += missing * server[12] * (1.0 + min(busy, slots) / 6.0) * turn * min(1.0, slots / max(busy, 1e-9))
    return ms + (each + server[8] * running) * min(busy, slots) + small * server[10] * (running / SHRINK_TILE + 0.5)


@njit(cache=True, nogil=True)
def _at(sums, server, exposure, g):  # type: ignore[no-untyped-def]
    """Step seconds at an exposure between pace ``g`` and the next (-1: below the first), and busy adapters there."""
    if g < 0:
        part = exposure / (FIRST_PACE * server[BASE_S])
        busy, turn = part * sums[FIRST_BUSY], part * sums[FIRST_TURN]
    else:
        low = FIRST_PACE * server[BASE_S] * POINT_RATIO**g
        part = min((exposure - low) / ((POINT_RATIO - 1.0) * low), 1.0)
        busy = sums[FIRST_BUSY + g] + part * (sums[FIRST_BUSY + g + 1] - sums[FIRST_BUSY + g])
        turn = sums[FIRST_TURN + g] + part * (sums[FIRST_TURN + g + 1] - sums[FIRST_TURN + g])
    return 1e-3 * _step_ms(sums, server, exposure, busy, turn), busy


@njit(cache=True, nogil=True)
def steady(sums, server, into):  # type: ignore[no-untyped-def]
    """Fill ``into``, shape (STEADY,), with the steady state that the fluid model sees in these sums.

    The largest pace that is shorter than its step, by bisection, then false position between it and the next.
    """
    base_s = server[BASE_S]
    first = FIRST_PACE * base_s
    running, kv, tokens = max(sums[RUNNING], 1e-12), max(sums[KV], 1e-9), max(sums[RUNNING] + sums[PREFILL], 1e-12)
    top = base_s * min(server[KV_TOKENS] / kv, server[MAX_SEQS] / running, server[MAX_TOKENS] / tokens)
    top = max(top, 1.001 * base_s)
    g_top = min(max(math.floor(math.log(top / first) / math.log(POINT_RATIO)), -1), POINTS - 2)
    at_top = _at(sums, server, top, g_top)[0]
    low, high = -1, g_top + 1
    while high - low > 1:
        middle = (low + high) // 2
        pace = first * POINT_RATIO**middle
        if _at(sums, server, pace, middle)[0] > pace:
            low = middle
        else:
            high = middle
    left = first * POINT_RATIO**low if low >= 0 else base_s
    right = top if high > g_top else first * POINT_RATIO**high
    exposure = right
    seconds, busy = _at(sums, server, right, low)
    if seconds < right:
        short, spare = left - _at(sums, server, left, low)[0], right - seconds
        for _ in range(3):
            if short >= 0.0:
                break
            exposure = (left * spare - right * short) / (spare - short)
            seconds, busy = _at(sums, server, exposure, low)
            if exposure < seconds:
                left, short = exposure, exposure - seconds
            else:
                right, spare = exposure, exposure - seconds
    part = exposure / base_s
    into[0] = math.log(exposure / seconds)
    into[1] = math.log(seconds / base_s)
    into[2] = math.log(part)
    into[3] = math.log(kv * part / server[KV_TOKENS])
    into[4] = math.log(tokens * part / server[MAX_TOKENS])
    into[5] = math.log(running * part / server[MAX_SEQS])
    into[6] = math.log(busy / server[SLOTS] + 1e-6)
    into[7] = math.log(running * part)
    prompt_s = 1e-3 * (server[4] + server[5]) * sums[PREFILL] / max(sums[ARRIVALS], 1e-12)
    into[8] = math.log((prompt_s + 1.5 * seconds) / base_s)
    into[9] = math.log(at_top / top)


@njit(cache=True, nogil=True)
def head_inputs(sums, server, into):  # type: ignore[no-untyped-def]
    """Fill ``into``, shape (HEAD_INPUTS,), with what predictions are made of, beside context and margin.

    The steady state, how busy slots would be at each point, and logarithms of adapters (in all, per slot, asked for per
    slot) and of the requests' mean lengths.
    """
    steady(sums, server, into)
    for i in range(STEADY):
        into[i] = min(max(into[i], -12.0), 12.0)
    slots = server[SLOTS]
    for g in range(POINTS):
        into[STEADY + g] = sums[FIRST_BUSY + g] / (sums[FIRST_BUSY + g] + slots)
    at = STEADY + POINTS
    requests, answers = max(sums[ARRIVALS], 1e-12), max(sums[RUNNING], 1e-12)
    into[at] = math.log(max(sums[REGISTERED], 1.0)) - 4.0
    into[at + 1] = math.log(max(sums[REGISTERED], 1.0) / slots)
    into[at + 2] = math.log(max(sums[ASKED], 1e-6) / slots)
    into[at + 3] = math.log(answers / requests) - 5.0
    into[at + 4] = math.log(max(sums[PREFILL], 1e-12) / requests) - 5.0
    into[at + 5] = math.log(max(sums[KV], 1e-9) / answers) - 6.0
    into[at + 6] = math.log(max(sums[SQUARED], 1e-9) / answers) - 6.0


@njit(cache=True, nogil=True)
def sum_up(traffic, ends, base_s, sums):  # type: ignore[no-untyped-def]
    """Fill ``sums``, shape (loads, EMBEDDING), with the sums of the embeddings of each load's adapters."""
    start = 0
    for row in range(ends.size):
        mine = traffic[start : ends[row]]
        each = np.zeros((mine.size, EMBEDDING))
        embed(mine, base_s[row], each)
        for i in range(mine.size):
            sums[row] += each[i]
        start = ends[row]


@njit(cache=True, nogil=True)
def all_head_inputs(sums, server, inputs):  # type: ignore[no-untyped-def]
    """`head_inputs` of every load."""
    for row in range(sums.shape[0]):
        head_inputs(sums[row], server[row], inputs[row])


FIXED_POINT = 2.0**32
"""Embeddings are added as whole numbers of 1 / FIXED_POINT: sums that do not depend on the order of the adapters, so
that one adapter more never makes a sum smaller, not even by a last bit."""
LARGEST = 5.0
"""Logarithms of rows are clipped here before predictions are made of them."""
LEAST_ROW = 1e-9


@njit(cache=True, nogil=True)
def fixed_embeddings(traffic, base_s, table):  # type: ignore[no-untyped-def]
    """Fill ``table``, shape (adapters, EMBEDDING), int64, with the embeddings in fixed point."""
    each = np.zeros((traffic.size, EMBEDDING))
    embed(traffic, base_s, each)
    for i in range(traffic.size):
        for j in range(EMBEDDING):
            table[i, j] = np.int64(math.ceil(each[i, j] * FIXED_POINT))


COUNT_TERMS, TRAFFIC_TERMS = 24, 8
"""Places for the counts (registered, asked, ramps) and the traffic in a server's weights: multiples of four."""
BUSY_TERM, TURN_TERM = COUNT_TERMS + TRAFFIC_TERMS, COUNT_TERMS + TRAFFIC_TERMS + 1
WEIGHT_TERMS = TURN_TERM + 1


@njit(cache=True, nogil=True, fastmath={"contract"})
def _times(matrix, vector, out):  # type: ignore[no-untyped-def]
    """``out`` = vector @ matrix, whose first axis is a multiple of four: in vectors along the second."""
    for r in range(out.size):
        out[r] = np.float32(0.0)
    for j in range(0, matrix.shape[0], 4):
        x0, x1, x2, x3 = vector[j], vector[j + 1], vector[j + 2], vector[j + 3]
        m0, m1, m2, m3 = matrix[j], matrix[j + 1], matrix[j + 2], matrix[j + 3]
        for r in range(out.size):
            out[r] += (m0[r] * x0 + m1[r] * x1) + (m2[r] * x2 + m3[r] * x3)


@njit(cache=True, nogil=True, fastmath={"contract"})
def _margin(weights, factors, sums, work, rows):  # type: ignore[no-untyped-def]
    """The smallest, over ways to serve and paces, of the largest row; ``rows`` becomes the logarithms of its rows.

    Columns of weights, shape (WEIGHT_TERMS, rows * ways), and factors, (PACES, rows * ways), have the ways of a row
    side by side. ``work``, shape (4, rows * ways), is scratch space.
    """
    counts, traffic, value, terms = work[0], work[1], work[2], work[3]
    ways = value.size // rows.size
    terms[0], terms[1] = sums[REGISTERED], sums[ASKED]
    for j in range(RAMPS):
        terms[2 + j] = sums[FIRST_RAMP_TERM + j]
    for j in range(2 + RAMPS, COUNT_TERMS):
        terms[j] = np.float32(0.0)
    _times(weights[:COUNT_TERMS], terms, counts)
    for j in range(TRAFFIC_TERMS):
        terms[j] = sums[ARRIVALS + j] if ARRIVALS + j <= SQUARED else np.float32(0.0)
    _times(weights[COUNT_TERMS:BUSY_TERM], terms, traffic)
    of_busy, of_turn = weights[BUSY_TERM], weights[TURN_TERM]
    best = np.float32(np.inf)
    for k in range(PACES):
        g, part, pace, own = POINT_OF_PACE[k], np.float32(PART_OF_PACE[k]), np.float32(PACE_FACTORS[k]), factors[k]
        busy = (np.float32(1.0) - part) * sums[FIRST_BUSY + g] + part * sums[FIRST_BUSY + g + 1]
        turn = (np.float32(1.0) - part) * sums[FIRST_TURN + g] + part * sums[FIRST_TURN + g + 1]
        for r in range(value.size):
            value[r] = (counts[r] + pace * traffic[r] + of_busy[r] * busy + of_turn[r] * turn) * own[r]
        for way in range(ways):
            worst = np.float32(LEAST_ROW)
            for row in range(rows.size):
                worst = max(worst, value[row * ways + way])
            if worst < best:
                best = worst
                for row in range(rows.size):
                    rows[row] = value[row * ways + way]
    for row in range(rows.size):
        rows[row] = min(max(math.log(max(rows[row], LEAST_ROW)), -LARGEST), LARGEST)
    return math.log(best)


@njit(cache=True, nogil=True)
def _layer(matrix, bias, inputs, outputs, bend):  # type: ignore[no-untyped-def]
    """A linear layer; then, if ``bend``, hard swish: value * min(max(value + 3, 0), 6) / 6."""
    _times(matrix, inputs, outputs)
    for j in range(outputs.size):
        value = outputs[j] + bias[j]
        if bend:
            value *= min(max(value + np.float32(3.0), np.float32(0.0)), np.float32(6.0)) * np.float32(1.0 / 6.0)
        outputs[j] = value


@njit(cache=True, nogil=True)
def _softplus(value):  # type: ignore[no-untyped-def]
    return max(value, 0.0) + math.log1p(math.exp(-abs(value)))


@njit(cache=True, nogil=True)
def judge_sums(sums, server, server_of, weights, factors, context, scaling, layers, n_rows, log_share, figures):  # type: ignore[no-untyped-def]
    """Margin and predictions of loads whose sums are known.

    Args:
        sums: shape (loads, EMBEDDING).
        server: shape (servers, terms); ``server_of``, shape (loads,), says which is whose.
        weights, factors: shape (servers, ...), float32: see `_margin`.
        context: shape (servers, CONTEXT + 1), float32: normalised, and the octaves of the max rank.
        scaling: mean and scale of the head's inputs, each float32.
        layers: matrix, shape (inputs, outputs), padded with zeros to multiples of four inputs, and bias of its three
            layers, float32.
        n_rows: of the margin.
        log_share: shape (loads,), filled in.
        figures: shape (loads, quantiles, targets), filled with logarithms of the figures.
    """
    mean, scale = scaling
    first, first_bias, second, second_bias, third, third_bias = layers
    raw = np.empty(HEAD_INPUTS)
    inputs = np.zeros(first.shape[0], dtype=np.float32)
    hidden, deeper = np.empty(first.shape[1], dtype=np.float32), np.empty(second.shape[1], dtype=np.float32)
    out = np.empty(third.shape[1], dtype=np.float32)
    rows, own = np.empty(n_rows, dtype=np.float32), np.empty(EMBEDDING, dtype=np.float32)
    work = np.empty((4, weights.shape[2]), dtype=np.float32)
    widths = context.shape[1]
    for n in range(sums.shape[0]):
        m = server_of[n]
        for j in range(EMBEDDING):
            own[j] = sums[n, j]
        log_share[n] = _margin(weights[m], factors[m], own, work, rows)
        head_inputs(sums[n], server[m], raw)
        for j in range(HEAD_INPUTS):
            inputs[j] = (raw[j] - mean[j]) / scale[j]
        inputs[HEAD_INPUTS : HEAD_INPUTS + widths] = context[m]
        inputs[HEAD_INPUTS + widths : HEAD_INPUTS + widths + rows.size] = rows
        inputs[HEAD_INPUTS + widths + rows.size] = rows.max()
        _layer(first, first_bias, inputs, hidden, True)
        _layer(second, second_bias, hidden, deeper, True)
        _layer(third, third_bias, deeper, out, False)
        _figures(out, raw, server[m, BASE_S], figures[n])


@njit(cache=True, nogil=True)
def _figures(out, raw, base_s, figures):  # type: ignore[no-untyped-def]
    """Quantiles of the logarithms of served fraction, ITL (ms), TTFT (s) and KV utilisation, shape (3, 4)."""
    targets = figures.shape[1]
    base = (min(raw[0], 0.0), math.log(1e3 * base_s) + raw[1], math.log(base_s) + raw[8], raw[3])
    for t in range(targets):
        middle = base[t] + out[targets + t]
        figures[0, t] = middle - _softplus(out[t])
        figures[1, t] = middle
        figures[2, t] = middle + _softplus(out[2 * targets + t])


ADAPTER = np.dtype([("rank", np.int64), ("offered", np.float64), ("accepted", np.float64)])
"""An adapter on a GPU type: rank, tokens/s offered, and the share of them that a server takes on."""


@njit(cache=True, nogil=True)
def add_up(tables, adapters, gpu_type, members, ends, sums, totals):  # type: ignore[no-untyped-def]
    """Fill ``sums``, shape (loads, EMBEDDING), and ``totals``, shape (loads,), for loads of adapters.

    Args:
        tables: shape (types, adapters, EMBEDDING), of `fixed_embeddings`.
        adapters: shape (types, adapters), of ``ADAPTER``.
        gpu_type: shape (loads,).
        members: adapters of load after load, up to ``ends``, shape (loads,).
        sums, totals: filled in; a load's total is its largest rank, its offered tokens/s and its least accepted share.
    """
    total = np.empty(EMBEDDING, dtype=np.int64)
    start = 0
    for n in range(ends.size):
        total[:] = 0
        table, own, sum_of = tables[gpu_type[n]], adapters[gpu_type[n]], totals[n]
        rank, offered, accepted = 1, 0.0, 1.0
        for place in range(start, ends[n]):
            i = members[place]
            rank = max(rank, own[i].rank)
            offered += own[i].offered
            accepted = min(accepted, own[i].accepted)
            row = table[i]
            for j in range(EMBEDDING):
                total[j] += row[j]
        start = ends[n]
        sum_of.rank, sum_of.offered, sum_of.accepted = rank, offered, accepted
        for j in range(EMBEDDING):
            sums[n, j] = total[j] / FIXED_POINT
