"""What the surrogate knows of a GPU load: sums over its adapters, and the server's constants.

Every adapter has an embedding of ``EMBEDDING`` non-negative numbers that depend on its own traffic and on the server's
pace only; those of a load are the sums over its adapters. So whatever grows with the sums grows with every adapter.
With rho = rate * tokens out (running requests per second of step time) and t0 = the step law's base, they are:

- 1, and 1 - exp(-rate * hour): adapters registered, and those asked for;
- rate, rho, rho * KV tokens (three means: `length_means`), rate * tokens in, rate * E[(tokens in)^2] (in thousands of
  tokens), rate * E[(tokens out)^2], each times t0;
- 1 - exp(-rho * t) at ``POINTS`` step times t, a geometric series: adapters that run in such steps; and the same over
  tokens out: how often per step an adapter comes that ran no more, and has to be loaded if slots are short;
- ramps one octave wide in rho * t0: a general non-decreasing function of the rate, which queues for slots need.

The steady state of placement at a fixed step time is linear in these sums (the fluid model); `twin/fluid.py` has it in
full, and ``steady`` is its short form, computed from the sums alone.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from loraplan.profiles import EXPAND_TILE, GRAPH_TOKENS, LARGE_STEP_SPLIT, SHRINK_TILE, Profile, rank_tiles
from loraplan.workload import Floats, Lengths
from surrogate.kernel import LAW, PACE_FACTORS, PACES, POINTS, RAMPS, ROWS, SERVER, SERVER_TERMS

CONTEXT = 21
COUNTS = ("registered", "asked")
TRAFFIC_NAMES = ("arrivals", "running", "kv", "kv_root", "kv_most", "prefill", "in_squared", "squared")
"""Terms of an embedding before its ramps. Those of the traffic grow with the pace in the fluid model."""
WAYS_TO_SERVE = ((True, 1.0), (True, 0.5), (False, 1.0), (False, 0.5))
"""Ways to serve a load: whether all its adapters have a slot, and which part of the slots is busy at most."""
BENDS = 2
"""Powers of the pace by which training may bend a row."""
PACE_POWERS = np.linspace(0.0, 1.0, PACES)[:, None] ** np.arange(1, BENDS + 1)
FAINT = 0.05
"""Weight of what does not belong to a row, as a part of what it would be if it did: fainter ones are learned late."""
MIDDLE_PACE = 8.0
"""A step time, over the base, amid the paces: there a faint weight that grows is as large as one that does not."""
UNEVEN = 0.2
"""Per root of a thousand tokens: how much more room uneven requests ask of the KV cache; a guess, for training."""
LEAST_SPARE = 0.05
"""Of a step, left for requests at least: a pace that slots alone outlast counts as twenty times too slow, not never."""
REGISTERED_GUESS = 100
"""Adapters in CPU memory, in the first guess of what each running adapter costs."""
HYPER, SHARPNESS = 48, 16
"""Widths of the hidden layers of the networks that read the context."""
USUAL_SHARPNESS = 20.0
LEAST_SLOTS = 4
"""The fewest in the default dataset."""
RANK_AT = 8
"""The max rank whose octaves count as none."""
QUANTILES = (0.05, 0.5, 0.95)
"""Of the predictions."""


def length_means(lengths: Lengths) -> dict[str, float]:
    """Means of a law of lengths, by the names of `kernel.LAW`.

    Tokens in and out; KV tokens that a running request holds, mean over its steps; the same weighted by the root of the
    most that the request will hold, and by that most itself (both in thousands of tokens): how uneven the cache's use
    is; means of the squared tokens in and out. In tokens, kv_root in tokens * sqrt(1,000 tokens), kv_most in tokens *
    1,000 tokens, squares in tokens^2.
    """
    tokens_in, tokens_out = lengths.tokens_in.astype(np.float64), lengths.tokens_out.astype(np.float64)
    held = tokens_in * tokens_out + tokens_out * (tokens_out + 1.0) / 2.0
    most = 1e-3 * (tokens_in + tokens_out)
    steps = tokens_out.mean()
    means = (
        *(tokens_in.mean(), steps, held.mean() / steps),
        *((held * np.sqrt(most)).mean() / steps, (held * most).mean() / steps),
        *((tokens_in**2).mean(), (tokens_out**2).mean()),
    )
    return dict(zip(LAW, map(float, means), strict=True))


def server(profile: Profile, slots: int, max_rank: int) -> Floats:
    """The constants of one server, shape (len(SERVER_TERMS),): times in ms but for ``base_s``."""
    law = profile.step_ms
    tile = law.per_slot_shrink * rank_tiles(max_rank) * slots
    shrink, expand = LARGE_STEP_SPLIT * tile, law.per_slot_expand * slots
    small = law.small_adapter_ms(0, max_rank)
    values = {
        "base_s": 1e-3 * law.base,
        "steps_ms": law.base + 0.5 * (shrink + expand),
        "per_request": law.per_request,
        "per_kv": law.per_kv_token,
        "per_prefill": law.per_prefill_token,
        "per_token": shrink / SHRINK_TILE + expand / EXPAND_TILE,
        "per_adapter": law.per_adapter,
        "per_small_adapter": small,
        "per_adapter_request": law.per_adapter_request,
        "per_registered": law.per_registered,
        "small_tile": tile - shrink,
        "eager": law.eager,
        "load_ms": profile.load_ms.to_gpu,
        "slots": slots,
        "kv_tokens": max(1, profile.kv_blocks(slots, max_rank) * profile.kv.block_tokens),
        "max_tokens": profile.limits.max_num_batched_tokens,
        "max_seqs": profile.limits.max_num_seqs,
        "rank": max_rank,
    }
    return np.array([values[name] for name in SERVER_TERMS], dtype=np.float64)


def context(profile: Profile, slots: int, cv: float) -> Floats:
    """What kind of server it is, shape (CONTEXT,): ratios of its constants, in logarithms; not its max rank.

    Without the max rank, so that what depends on the context stays as it is when an adapter of a higher rank comes;
    the KV cache is as if slots had the smallest rank. Few slots count as ``LEAST_SLOTS``: the rows know better.
    """
    law, limits = profile.step_ms, profile.limits
    least, known = min(limits.lora_ranks), max(slots, LEAST_SLOTS)
    ratios = (
        law.per_request * 256,
        law.per_kv_token * 1e5,
        law.per_prefill_token * 1e3,
        law.per_adapter * 64,
        law.per_small_adapter * 64,
        law.per_small_adapter_rank * 64 * 16,
        law.per_registered * 64 * 256,
        law.per_adapter_request * 64 * 256,
        law.per_slot_shrink * known * 8,
        law.per_slot_expand * known * 8,
        law.eager,
        law.per_waiting * 1e3,
        profile.load_ms.to_gpu,
        profile.load_ms.smaller_rank,
    )
    sizes = (
        known / 64,
        max(profile.kv_tokens(slots, least), 1.0) / 1e5,
        limits.max_num_batched_tokens / 2048,
        limits.max_num_seqs / 1024,
        law.base / 12,
    )
    logs = np.concatenate((np.log(np.array(ratios) / law.base + 1e-3), np.log(np.array(sizes))))
    return np.concatenate((logs, [math.log(cv), float(profile.rules != "vllm-0.8.5")]))


def term_logs(terms: Any, xp: Any) -> Any:
    """Logarithms of what the rows of the fluid model weigh each term by, shape (..., WAYS, ROWS, TERMS).

    Terms are those of an embedding that do not depend on the pace, the same growing with the pace, busy adapters and
    those that come. Rows are a step's time (ms), adapters per slot, KV tokens, tokens and sequences per what the server
    takes, and busy adapters per slot. In some families every adapter has a slot; in the others those that run have one,
    and those that come have to be loaded and evict others (docs/twin.md). What does not belong to a row has a faint
    weight, for training to change. Only grows with the max rank.

    Args:
        terms: servers, shape (..., len(SERVER_TERMS)).
        xp: ``numpy`` or ``torch``: the same code makes the weights in training and after it.
    """

    def of(name: str) -> Any:
        return terms[..., SERVER[name]]

    slot, sequence, kv, token = (1.0 / of(name) for name in ("slots", "max_seqs", "kv_tokens", "max_tokens"))
    nothing = 0.0 * slot
    traffic = [slot, sequence, kv, kv, kv, token, token, sequence / 400]
    counts, ramps = [slot] * len(COUNTS), [slot] * RAMPS
    grown = [part / MIDDLE_PACE for part in (*counts, *traffic, *ramps)]
    faint = FAINT * xp.stack([*counts, *traffic, *ramps, *grown, slot, slot], -1)

    def row(unit: Any = 1.0, **own: Any) -> Any:
        still = [own.get(name, nothing) for name in COUNTS] + [nothing] * (len(TRAFFIC_NAMES) + RAMPS)
        growing = [nothing] * len(COUNTS) + [own.get(name, nothing) for name in TRAFFIC_NAMES] + [nothing] * RAMPS
        weights = [*still, *growing, own.get("busy", nothing), own.get("turn", nothing)]
        return xp.stack(weights, -1) + unit * faint

    token_ms = of("per_token") + of("eager") / (2 * GRAPH_TOKENS)
    step = {
        "busy": of("per_adapter") + REGISTERED_GUESS * of("per_registered"),
        "running": of("per_request") + token_ms,
        "kv": of("per_kv"),
        "prefill": of("per_prefill") + token_ms,
    }
    load_ms = of("load_ms") * (1.0 + of("slots") / 6)
    base_ms = 1e3 * of("base_s")[..., None]
    limits = [row(kv=kv, kv_root=UNEVEN * kv), row(running=token, prefill=token), row(running=sequence)]

    def family(all_resident: bool, busy: float) -> Any:
        own = step | ({} if all_resident else {"turn": load_ms})
        places = row(asked=slot) if all_resident else row()
        return xp.stack([row(base_ms, **own), places, *limits, row(busy=slot / busy)], -2)

    return xp.log(xp.stack([family(*one) for one in WAYS_TO_SERVE], -3))


def pace_logs(terms: Any, stretch: Any, xp: Any) -> Any:
    """Logarithms of what rows are divided by at each pace, shape (..., WAYS, PACES, ROWS).

    That is, the time that the step row may take: pace - ``stretch`` * the time of a step of no requests; 1 elsewhere.

    Args:
        terms: as in ``term_logs``.
        stretch: shape (..., WAYS).
        xp: ``numpy`` or ``torch``.
    """
    pace_ms = 1e3 * terms[..., SERVER["base_s"], None, None] * xp.asarray(PACE_FACTORS, dtype=terms.dtype)
    idle_ms = stretch[..., None] * terms[..., SERVER["steps_ms"], None, None]
    spare = xp.log(xp.maximum(pace_ms - idle_ms, LEAST_SPARE * pace_ms))
    return xp.stack([spare, *[0.0 * spare] * (ROWS - 1)], -1)


INPUT_NAMES = (
    *("share", "step time", "exposure", "KV use", "token use", "sequence use", "slot use", "running", "TTFT", "load"),
    *(f"busy adapters per slot at pace {pace}" for pace in range(POINTS)),
    *("adapters", "adapters per slot", "adapters asked for per slot", "mean tokens out", "mean tokens in"),
    *("mean KV tokens", "unevenness of the KV tokens", "the same, squared", "mean squared tokens in"),
    "mean squared tokens out",
    *("per_request", "per_kv_token", "per_prefill_token", "per_adapter", "per_small_adapter", "per_small_adapter_rank"),
    *("per_registered", "per_adapter_request", "per_slot_shrink", "per_slot_expand", "eager", "per_waiting", "to_gpu"),
    *("smaller_rank", "slots", "KV tokens", "max_num_batched_tokens", "max_num_seqs", "base", "cv", "rules"),
)
"""What the inputs of the predictions are about: `kernel.head_inputs`, then `context`."""
