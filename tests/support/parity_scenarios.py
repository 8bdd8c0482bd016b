"""Named small servers, each made to press on one of vLLM's scheduling rules; plain data, for any Python.

Times are counted in engine steps: every step takes one tick, and a request that arrives at tick k is there when the
first step that begins at k or later is scheduled.
"""

from __future__ import annotations

import random
from dataclasses import dataclass, field

Row = tuple[int, int, int, int]
"""A request: tick of its arrival, adapter, tokens in, tokens out."""


@dataclass(frozen=True)
class ParityScenario:
    """A server, as vLLM's arguments call it, and its requests in order of arrival."""

    name: str
    requests: tuple[Row, ...]
    adapters: int = 4
    slots: int = 4
    cpu_slots: int = 8
    max_num_seqs: int = 16
    max_num_batched_tokens: int = 256
    max_model_len: int = 256
    block: int = 32
    blocks: int = 1000
    note: str = field(default="", compare=False)


def _random(seed: int, n: int, adapters: int, every: float, tokens_in: int, tokens_out: int) -> tuple[Row, ...]:
    """``n`` requests, one per ``every`` ticks in the mean, lengths uniform up to the given ones."""
    rng = random.Random(seed)  # noqa: S311 - no secret
    tick = 0.0
    rows = []
    for _ in range(n):
        tick += rng.expovariate(1 / every)
        rows.append(
            (int(tick), rng.randrange(adapters), rng.randint(1, tokens_in), rng.randint(1, tokens_out)),
        )
    return tuple(rows)


SCENARIOS = (
    ParityScenario("one request", ((0, 0, 5, 4),)),
    ParityScenario(
        "arrivals between steps",
        tuple((3 * n, n % 4, 10 + n, 6) for n in range(20)),
        note="a pause without requests too",
    ),
    ParityScenario(
        "slots scarce",
        tuple((0, n % 4, 20, 5 + n) for n in range(12)),
        slots=2,
        note="two adapters run, two wait until every request of one of those is done",
    ),
    ParityScenario(
        "skip and overtake",
        ((0, 0, 20, 30), (1, 1, 20, 12), (2, 2, 20, 5), (3, 0, 20, 5), (4, 1, 20, 20), (5, 3, 20, 5), (6, 0, 9, 9)),
        slots=2,
        note="later requests of running adapters overtake one that finds no slot",
    ),
    ParityScenario(
        "prefill in chunks",
        ((0, 0, 200, 5), (0, 1, 150, 5), (1, 2, 90, 5), (2, 3, 10, 12), (3, 0, 255, 1)),
        max_num_batched_tokens=64,
    ),
    ParityScenario(
        "decodes leave little budget",
        (*((0, n % 4, 3, 40) for n in range(12)), (2, 0, 120, 8), (3, 1, 60, 8)),
        max_num_batched_tokens=16,
    ),
    ParityScenario(
        "max_num_seqs",
        tuple((n // 3, n % 4, 12, 4 + n % 5) for n in range(30)),
        max_num_seqs=4,
        note="a place per request",
    ),
    ParityScenario(
        "KV scarce",
        tuple((n, n % 4, 30, 60) for n in range(10)),
        blocks=13,
        note="answers grow until the last admitted are preempted and start over",
    ),
    ParityScenario(
        "KV gate at admission",
        ((0, 0, 100, 40), (0, 1, 100, 40), (1, 2, 150, 5), (2, 3, 10, 5), (3, 0, 10, 5)),
        blocks=12,
        max_num_batched_tokens=64,
        note="who does not fit blocks those behind, unlike one without a slot",
    ),
    ParityScenario(
        "answers end at max_model_len", ((0, 0, 100, 40), (1, 1, 120, 40), (2, 2, 20, 400)), max_model_len=128
    ),
    ParityScenario(
        "CPU tier smaller than the adapters",
        tuple((20 * n, adapter, 10, 4) for n, adapter in enumerate((0, 1, 2, 0, 3, 4, 5, 0, 5, 1, 1, 4, 2, 3, 0))),
        adapters=6,
        slots=2,
        cpu_slots=3,
        note="one adapter at a time: which are loaded, and from where, does not depend on an order within a step",
    ),
    ParityScenario("slots scarce, random", _random(1, 60, 6, 2.0, 40, 20), adapters=6, slots=2),
    ParityScenario("KV scarce, random", _random(2, 60, 4, 1.5, 60, 60), blocks=17),
    ParityScenario(
        "everything scarce, random",
        _random(3, 80, 8, 2.0, 90, 50),
        adapters=8,
        slots=3,
        max_num_seqs=6,
        max_num_batched_tokens=48,
        blocks=14,
    ),
)
