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
PART, PACE = PART_OF_PACE.astype(np.float32), PACE_FACTORS.astype(np.float32)
LANES = 8
"""The least of all paces is the least of so many at a time: ``PACES`` is a multiple."""
WAYS, ROWS = 4, 6
"""Ways to serve a load (`features.WAYS_TO_SERVE` says which), and rows of each (`features.term_logs`)."""
RAMPS = 19
FIRST_RAMP = -14
"""Octaves of rho * t0: from an adapter that runs a few times in a day to one that fills a server."""

REGISTERED, ASKED, ARRIVALS, RUNNING, KV, KV_ROOT, KV_MOST, PREFILL, IN_SQUARED, SQUARED = range(10)
FIRST_RAMP_TERM = 10
STILL = FIRST_RAMP_TERM + RAMPS
"""Terms of an embedding that do not depend on the pace; those of who runs and of who comes follow."""
STILL_PLACES = 32
"""Places for them in an embedding, and twice in a server's weights (some grow with the pace); those left over are 0."""
FIRST_BUSY = STILL_PLACES
FIRST_TURN = FIRST_BUSY + POINTS
EMBEDDING = FIRST_TURN + POINTS
BUSY_WEIGHT, TURN_WEIGHT, TERMS = 2 * STILL, 2 * STILL + 1, 2 * STILL + 2
"""Places in a row's weights: one for each still term, one more that grows with the pace, and one for who runs and for
who comes, whatever the pace."""

LAW = ("tokens_in", "tokens_out", "kv", "kv_root", "kv_most", "in_squared", "out_squared")
"""Means of a law of lengths: see `features.length_means`."""
TRAFFIC = np.dtype([(name, np.float64) for name in ("rate", *LAW)])
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
HEAD_INPUTS = STEADY + POINTS + 10
HEAD = 64
"""Width of the hidden layers that make predictions of the inputs."""
SIXTH = np.float32(1.0 / 6.0)


@njit(cache=True, nogil=True, error_model="numpy")
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
        row[KV_ROOT] = rho * a.kv_root * base_s
        row[KV_MOST] = rho * a.kv_most * base_s
        row[PREFILL] = a.rate * a.tokens_in * base_s
        row[IN_SQUARED] = 1e-3 * a.rate * a.in_squared * base_s
        row[SQUARED] = a.rate * a.out_squared * base_s
        pace = FIRST_PACE * base_s
        for g in range(POINTS):
            row[FIRST_BUSY + g] = 1.0 - math.exp(-rho * pace)
            row[FIRST_TURN + g] = row[FIRST_BUSY + g] / a.tokens_out
            pace *= POINT_RATIO
        octave = math.log2(rho * base_s) - FIRST_RAMP if rho > 0.0 else -1.0
        for j in range(RAMPS):
            row[FIRST_RAMP_TERM + j] = min(max(octave - j, 0.0), 1.0)


@njit(cache=True, nogil=True, error_model="numpy")
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


@njit(cache=True, nogil=True, error_model="numpy")
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


@njit(cache=True, nogil=True, error_model="numpy")
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
    at_top, busy_at_top = _at(sums, server, top, g_top)
    low, high = -1, g_top + 1
    left, right, seconds, busy, short = base_s, top, at_top, busy_at_top, 0.0
    while high - low > 1:
        middle = (low + high) // 2
        pace = first * POINT_RATIO**middle
        at_pace, busy_at_pace = _at(sums, server, pace, middle)
        if at_pace > pace:
            low, left, short = middle, pace, pace - at_pace
        else:
            high, right, seconds, busy = middle, pace, at_pace, busy_at_pace
    exposure = right
    if seconds < right:
        if low < 0:
            short = left - _at(sums, server, left, low)[0]
        spare = right - seconds
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


@njit(cache=True, nogil=True, error_model="numpy")
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
    into[at + 6] = math.log(max(sums[KV_ROOT], 1e-9) / max(sums[KV], 1e-9))
    into[at + 7] = math.log(max(sums[KV_MOST], 1e-9) / max(sums[KV], 1e-9))
    into[at + 8] = math.log(max(sums[IN_SQUARED], 1e-12) / requests)
    into[at + 9] = math.log(max(sums[SQUARED], 1e-9) / answers) - 6.0


@njit(cache=True, nogil=True, error_model="numpy")
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


@njit(cache=True, nogil=True, error_model="numpy")
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


@njit(cache=True, nogil=True, error_model="numpy")
def fixed_embeddings(traffic, base_s, table):  # type: ignore[no-untyped-def]
    """Fill ``table``, shape (adapters, EMBEDDING), int64, with the embeddings in fixed point."""
    each = np.zeros((traffic.size, EMBEDDING))
    embed(traffic, base_s, each)
    for i in range(traffic.size):
        for j in range(EMBEDDING):
            table[i, j] = np.int64(math.ceil(each[i, j] * FIXED_POINT))


COLUMNS = ROWS * WAYS
"""Of a server's weights: the ways of a row stand side by side."""
BUSY_TERM, TURN_TERM = 2 * STILL_PLACES, 2 * STILL_PLACES + 1
WEIGHT_TERMS = TURN_TERM + 1


@njit(cache=True, nogil=True, fastmath={"contract"}, error_model="numpy")
def _times(matrix, first, vector, out, at):  # type: ignore[no-untyped-def]
    """``out[at : at + COLUMNS]`` = vector @ as many rows of matrix from ``first`` on, a multiple of four."""
    for c in range(COLUMNS):
        out[at + c] = np.float32(0.0)
    for j in range(0, vector.size, 4):
        x0, x1, x2, x3 = vector[j], vector[j + 1], vector[j + 2], vector[j + 3]
        m0, m1, m2, m3 = matrix[first + j], matrix[first + j + 1], matrix[first + j + 2], matrix[first + j + 3]
        for c in range(COLUMNS):
            out[at + c] += (m0[c] * x0 + m1[c] * x1) + (m2[c] * x2 + m3[c] * x3)


@njit(cache=True, nogil=True, fastmath={"contract"}, error_model="numpy")
def _shares(sums, terms, factors, busy, turn, shares):  # type: ignore[no-untyped-def]
    """Fill ``shares``, shape (WAYS, PACES), with each way's largest row at each pace, as `_margin` has them.

    ``busy`` and ``turn``, shape (PACES,), become who runs and who comes.
    """
    for k in range(PACES):
        g, part, rest = POINT_OF_PACE[k], PART[k], np.float32(1.0) - PART[k]
        busy[k] = rest * sums[FIRST_BUSY + g] + part * sums[FIRST_BUSY + g + 1]
        turn[k] = rest * sums[FIRST_TURN + g] + part * sums[FIRST_TURN + g + 1]
    shares[:] = np.float32(0.0)
    for c in range(COLUMNS):
        fixed, grown = terms[c], terms[COLUMNS + c]
        by_busy, by_turn = terms[2 * COLUMNS + c], terms[3 * COLUMNS + c]
        factor, largest = factors[c], shares[c % WAYS]
        for k in range(PACES):
            value = ((fixed + PACE[k] * grown) + busy[k] * by_busy + turn[k] * by_turn) * factor[k]
            largest[k] = max(largest[k], value)


@njit(cache=True, nogil=True, error_model="numpy")
def _least(shares, lanes):  # type: ignore[no-untyped-def]
    """The smallest of shares, shape (PACES,); ``lanes``, shape (LANES,), is scratch space."""
    for j in range(LANES):
        lanes[j] = shares[j]
    for k in range(LANES, PACES, LANES):
        for j in range(LANES):
            lanes[j] = min(lanes[j], shares[k + j])
    least = lanes[0]
    for j in range(1, LANES):
        least = min(least, lanes[j])
    return least


@njit(cache=True, nogil=True, error_model="numpy")
def _margin(weights, factors, beta, sums, work, rows):  # type: ignore[no-untyped-def]
    """The least, over ways to serve, of their sharpness times the logarithm of their share, and that logarithm.

    A way's share is the smallest, over paces, of its largest row; ``rows`` becomes the logarithms of the rows there.

    Args:
        weights: shape (WEIGHT_TERMS, COLUMNS).
        factors: shape (COLUMNS, PACES).
        beta: shape (WAYS,).
        sums: shape (EMBEDDING,).
        work: arrays of shapes (4 * COLUMNS,), (PACES,), (PACES,), (WAYS, PACES), (LANES,): scratch space.
        rows: shape (ROWS,), filled in.
    """
    terms, busy, turn, shares, lanes = work  # terms: what is still, what grows, the weights of who runs and who comes
    _times(weights, 0, sums[:STILL_PLACES], terms, 0)
    _times(weights, STILL_PLACES, sums[:STILL_PLACES], terms, COLUMNS)
    for c in range(COLUMNS):
        terms[2 * COLUMNS + c] = weights[BUSY_TERM, c]
        terms[3 * COLUMNS + c] = weights[TURN_TERM, c]
    _shares(sums, terms, factors, busy, turn, shares)
    best, best_way, best_share = np.inf, 0, np.float32(np.inf)
    for way in range(WAYS):
        share = _least(shares[way], lanes)
        score = beta[way] * math.log(max(float(share), LEAST_ROW))
        if score < best:
            best, best_way, best_share = score, way, share
    k = 0
    while shares[best_way, k] > best_share:
        k += 1
    for row in range(ROWS):
        c = row * WAYS + best_way
        still = terms[c] + PACE[k] * terms[COLUMNS + c]
        value = (still + busy[k] * terms[2 * COLUMNS + c] + turn[k] * terms[3 * COLUMNS + c]) * factors[c, k]
        rows[row] = min(max(math.log(max(value, LEAST_ROW)), -LARGEST), LARGEST)
    return best, math.log(max(float(best_share), LEAST_ROW))


@njit(cache=True, nogil=True, fastmath={"contract"}, error_model="numpy")
def _layer(matrix, bias, inputs, outputs, bend):  # type: ignore[no-untyped-def]
    """A linear layer; then, if ``bend``, hard swish: value * min(max(value + 3, 0), 6) / 6.

    Matrix has shape (inputs, outputs). One load at a time: in a product by BLAS, what a load comes to depends on which
    others stand beside it.
    """
    size, width = matrix.shape
    fours = size // 4 * 4
    for j in range(width):
        outputs[j] = bias[j]
    for k in range(0, fours, 4):
        x0, x1, x2, x3 = inputs[k], inputs[k + 1], inputs[k + 2], inputs[k + 3]
        m0, m1, m2, m3 = matrix[k], matrix[k + 1], matrix[k + 2], matrix[k + 3]
        for j in range(width):
            outputs[j] += (m0[j] * x0 + m1[j] * x1) + (m2[j] * x2 + m3[j] * x3)
    for k in range(fours, size):
        x0, m0 = inputs[k], matrix[k]
        for j in range(width):
            outputs[j] += m0[j] * x0
    if bend:
        for j in range(width):
            outputs[j] *= min(max(outputs[j] + np.float32(3.0), np.float32(0.0)), np.float32(6.0)) * SIXTH


@njit(cache=True, nogil=True, error_model="numpy")
def judge_sums(sums, server, server_of, margin, context, scaling, layers, shares, figures):  # type: ignore[no-untyped-def]
    """Margin and predictions of loads whose sums are known.

    Args:
        sums: shape (loads, EMBEDDING).
        server: shape (servers, terms); ``server_of``, shape (loads,), says which is whose.
        margin: weights, factors and beta, shape (servers, ...): see `_margin`.
        context: shape (servers, CONTEXT + 1), float32: normalised, and the octaves of the max rank.
        scaling: mean of the head's inputs, and one over their scale, each float32.
        layers: matrix, shape (inputs, outputs), and bias of its three layers, float32.
        shares: shape (2, loads), filled with what `_margin` returns.
        figures: shape (loads, quantiles, targets), filled with logarithms: in the middle of the figures' medians, on
            either side of how much more than 1 is between the median and that quantile.
    """
    weights, factors, beta = margin
    mean, inverse = scaling
    first, first_bias, second, second_bias, third, third_bias = layers
    raw, inputs = np.zeros(HEAD_INPUTS), np.zeros(first.shape[0], dtype=np.float32)
    hidden = np.empty(first.shape[1], dtype=np.float32)
    deeper = np.empty(second.shape[1], dtype=np.float32)
    out = np.empty(third.shape[1], dtype=np.float32)
    rows, own = np.empty(ROWS, dtype=np.float32), np.empty(EMBEDDING, dtype=np.float32)
    work = (
        np.empty(4 * COLUMNS, dtype=np.float32),
        np.empty(PACES, dtype=np.float32),
        np.empty(PACES, dtype=np.float32),
        np.empty((WAYS, PACES), dtype=np.float32),
        np.empty(LANES, dtype=np.float32),
    )
    widths = context.shape[1]
    for n in range(sums.shape[0]):
        m = server_of[n]
        for j in range(EMBEDDING):
            own[j] = sums[n, j]
        shares[0, n], shares[1, n] = _margin(weights[m], factors[m], beta[m], own, work, rows)
        head_inputs(sums[n], server[m], raw)
        for j in range(HEAD_INPUTS):
            inputs[j] = (raw[j] - mean[j]) * inverse[j]
        for j in range(widths):
            inputs[HEAD_INPUTS + j] = context[m, j]
        for j in range(ROWS):
            inputs[HEAD_INPUTS + widths + j] = rows[j]
        inputs[HEAD_INPUTS + widths + ROWS] = rows.max()
        _layer(first, first_bias, inputs, hidden, True)
        _layer(second, second_bias, hidden, deeper, True)
        _layer(third, third_bias, deeper, out, False)
        _figures(out, raw, server[m, BASE_S], figures[n])


@njit(cache=True, nogil=True, error_model="numpy")
def _figures(out, raw, base_s, figures):  # type: ignore[no-untyped-def]
    """Those of served fraction, ITL (ms), TTFT (s) and KV utilisation, shape (3, 4), as `judge_sums` has them."""
    targets = figures.shape[1]
    base = (min(raw[0], 0.0), math.log(1e3 * base_s) + raw[1], math.log(base_s) + raw[8], raw[3])
    for t in range(targets):
        figures[0, t] = out[t]
        figures[1, t] = base[t] + out[targets + t]
        figures[2, t] = out[2 * targets + t]


ADAPTER = np.dtype([("rank", np.int64), ("offered", np.float64), ("accepted", np.float64)])
"""An adapter on a GPU type: rank, tokens/s offered, and the share of them that a server takes on."""


@njit(cache=True, nogil=True, error_model="numpy")
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
        table, own, sum_of, end = tables[gpu_type[n]], adapters[gpu_type[n]], totals[n], ends[n]
        rank, offered, accepted = 1, 0.0, 1.0
        for place in range(start, end):
            one = own[members[place]]
            rank = max(rank, one.rank)
            offered += one.offered
            accepted = min(accepted, one.accepted)
        eights = start + (end - start) // 8 * 8
        for place in range(start, eights, 8):  # the total is read and written less often
            a, b = table[members[place]], table[members[place + 1]]
            c, d = table[members[place + 2]], table[members[place + 3]]
            e, f = table[members[place + 4]], table[members[place + 5]]
            g, h = table[members[place + 6]], table[members[place + 7]]
            for j in range(EMBEDDING):
                total[j] += ((a[j] + b[j]) + (c[j] + d[j])) + ((e[j] + f[j]) + (g[j] + h[j]))
        for place in range(eights, end):
            a = table[members[place]]
            for j in range(EMBEDDING):
                total[j] += a[j]
        start = end
        sum_of.rank, sum_of.offered, sum_of.accepted = rank, offered, accepted
        for j in range(EMBEDDING):
            sums[n, j] = total[j] / FIXED_POINT
