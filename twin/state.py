"""What the compiled simulator works on: its settings, its state as arrays of records, and what the numbers mean."""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import numpy as np

from loraplan.workload import Floats, Ints

NONE = -1
NO_KEY = np.iinfo(np.int64).max

# Where an adapter is.
DISK, CPU, GPU = range(3)
# What ended a step's admissions.
SLOTS, KV, TOKENS, SEQS = range(4)
CHANGED, NOTHING = -1, -2
OUTPUT_SLICE = 128
"""Outputs that vLLM's frontend handles without a break (VLLM_V1_OUTPUT_PROC_CHUNK_SIZE, v1/engine/async_llm.py): of
more, each step's reach the clients before the next step's are looked at."""
WAITING = 0x1E3779B97F4A7C15
"""Factor that tells the sets of adapters that wait from those of adapters that run."""

FEATURES = (
    "steps",
    "requests",
    "kv_tokens",
    "adapters",
    "small_adapters",
    "prefill_tokens",
    "shrink_tiles",
    "expand_tiles",
    "eager",
    "adapters_x_requests",
    "waiting",
    "load_ms",
    "tokens",
)
"""What the step law is linear in, and tokens; their sums over a run are what calibration needs of it."""

SERIES = ("running_s", "waiting_s", "kv_token_s", "adapter_s", "busy_s", "steps", "prefill_tokens", "tokens", "loads")
"""Totals that are written down at the end of every interval of a series."""

STEP_LOG = (
    "start_s",
    "ms",
    "running",
    "waiting",
    "adapters",
    "prefill_tokens",
    "decode_tokens",
    "loads",
    "kv_tokens",
)
"""What is written down of a step: who runs in it, who waits meanwhile, the tokens held after it."""

ITL_BIN_WIDTH = 0.01
"""Width of a bin of the inter-token histogram, in natural logarithm of milliseconds: percentiles are exact to 1 %."""
ITL_BIN_START = math.log(0.01)
ITL_BINS = 2000


def _record(**fields: str) -> np.dtype[np.void]:
    """Names by type; the compiler wants numbers where it can fetch them, hence aligned."""
    pairs = [(name, np.dtype(kind)) for kind, names in fields.items() for name in names.split()]
    return np.dtype(pairs, align=True)


TOTALS = _record(
    int64="step arrived sent records answered waiting running decoding held_back in_vain active free kv tail partial "
    "partial_done stopped front_key from_cpu from_disk preemptions on_gpu in_cpu max_kv max_waiting marked logged "
    "running_set waiting_set waiting_adapters label label_count label_names emitted merged",
    float64="now seen watch mark busy_s running_s waiting_s kv_token_s adapter_s pause_from pause_to scrape_at delay_s",
)
"""The server: requests ``arrived``, and ``sent`` of those; ``records`` ever used, and the first of those whose request
is ``answered``, to be used again; ``active`` adapters run; ``free`` blocks and ``kv`` tokens of the cache; ``tail`` was
admitted last; ``partial`` is in the middle of its prefill, with ``partial_done`` tokens computed; ``front_key`` is the
smallest queue key given out; arrivals until ``seen`` count; with async scheduling, ``in_vain`` of the decoding and
``held_back`` beside the running end in the step before the one that is scheduled; ``marked`` intervals of the series
and ``logged`` steps are written down, the next interval ends at ``mark``, and until ``watch`` there is nothing to write
down; the rest are counts and integrals over time.

The frontend: two sums of marks name the adapters that run and those with requests that wait; ``label`` is the last pair
seen, ``label_count`` pairs were different, with ``label_names`` names in them; it pauses from ``pause_from`` to
``pause_to``, and has ``emitted`` tokens of a step to come out after that; ``stopped`` tokenizers were loaded by then,
and the metrics are read next at ``scrape_at``; the client does not see ``merged`` gaps between tokens, and its first
tokens are ``delay_s`` late, all together."""

SENT = _record(int32="place key adapter tokens_in tokens_out produced behind")
"""A request that was sent; small, as tens of thousands may wait: its ``place`` in the stream; the ``key`` that orders
those who wait: its place, or less than all others once preempted; what it asks; tokens ``produced`` when it last
waited; the one ``behind`` it in its queue, or among those answered."""

REQUEST = _record(int32="older newer bucket_prev bucket_next", int64="offset", float64="last_token")
"""The same request once admitted: ``older`` and ``newer`` neighbours among the running; neighbours in its finish
bucket; ``offset`` = tokens computed - step, while it decodes; the second of a preempted one's last token."""

ADAPTER = _record(int64="first last waits runs place last_used lru_prev lru_next", float64="load_ms disk_ms")
"""An adapter: the first and last of its requests that wait; how many wait and how many run; where it is; the last step
that used it; neighbours by last use; milliseconds to load it into a slot, and from disk before that."""


class Setup(NamedTuple):
    """What does not change during a run: limits (tokens, requests), step law (ms), horizon (s); see Profile."""

    slots: int
    cpu_slots: int
    max_tokens: int
    max_seqs: int
    block: int
    whole_prompt: bool
    foreseen_from: int  # tokens, in and out, from which on a request is known to end by its length
    max_outstanding: int
    horizon: float
    step_base: float
    per_request: float
    per_kv: float
    per_adapter: float
    per_small_adapter: float
    per_adapter_request: float
    per_shrink_tile: float
    per_expand_tile: float
    eager: float
    per_prefill: float
    per_waiting: float
    scrape: float
    per_series: float
    per_name: float
    series_s: float  # length of an interval of the series
    log_from: float  # the steps that start from here on are logged
    log_to: float  # up to here


class State(NamedTuple):
    """Everything that changes; arrays of records and of integers, shapes in parentheses."""

    totals: Any  # (1) TOTALS
    arrival: Floats  # (requests) seconds, non-decreasing
    stops: Floats  # (stops, 2) seconds from and to which the frontend loads a tokenizer, non-decreasing
    adapter: Ints  # (requests)
    turns: Ints  # (adapters) where each is in all other arrays of adapters: in the order in which steps use them
    marks: Ints  # (adapters) random numbers, whose sums modulo two name sets of adapters
    labels: Ints  # (a power of two, or none) the sets seen: a hash table, 0 where it is empty
    tokens_in: Ints  # (requests)
    tokens_out: Ints  # (requests)
    first_token: Floats  # (requests) seconds; nan if not within the horizon
    finish: Floats  # (requests) seconds
    preempted: Ints  # (requests) times
    sent: Any  # (as many as can be unanswered) SENT
    requests: Any  # (the same) REQUEST
    adapters: Any  # (adapters + 2) ADAPTER; the last two anchor the lists by last use: on the GPU, in CPU memory only
    bucket: Ints  # (ring, a power of two) first of the requests that finish in a step
    residue: Ints  # (block) decoding requests by offset modulo the block size
    joined: Ints  # (max_seqs) requests whose prefill ends in this step
    starting: Ints  # (adapters) adapters that run from this step on
    evicted: Ints  # (adapters) adapters that run and lost their slot in this step
    tree_all: Ints  # (2 * leaves) whose first request goes first; of one queue if every adapter has a slot
    tree_running: Ints  # (2 * leaves) the same among adapters that run; empty if every adapter has a slot
    itl: Floats  # (ITL_BINS) inter-token gaps
    blocked_s: Floats  # (4) seconds in which requests waited, by what ended admissions
    features: Floats  # (2, FEATURES) sums over steps, and over the tokens that decoding requests got
    series: Floats  # (intervals, SERIES)
    log: Floats  # (steps, STEP_LOG)
