"""How long the surrogate takes for a GPU load, as solvers ask: adapters' embeddings are known, and so are servers."""

from __future__ import annotations

import time
from collections.abc import Callable
from functools import partial

import numpy as np

from loraplan.profiles import Profile
from loraplan.sources import skewed_lengths
from loraplan.workload import Floats, Ints
from surrogate import features, kernel
from surrogate.model import Model, Servers, aligned

BATCH = 10_000
ADAPTERS, PER_LOAD = 1_000, 100
"""In all, and on each GPU."""
SLOTS, RANKS = (8, 16, 32, 64, 96, 128), (8, 16, 32)
REPEATS, SINGLES, SINGLES_OF_OTHERS = 5, 300, 10


def surrogate_speed(model: Model, profile: Profile, per_load: int = PER_LOAD) -> dict[str, float]:
    """Microseconds of CPU time, the best of ``REPEATS`` for batches, the median of ``SINGLES`` for single loads.

    Args:
        model: the surrogate.
        profile: of the servers, which have each of ``SLOTS`` and ``RANKS``.
        per_load: adapters of a load.

    Returns:
        ``batch`` and ``single`` per load; ``batch_sums`` without adding up embeddings; ``server``: preparing one, which
        is done once for all loads with its slots and max rank.
    """
    rng, batch = np.random.default_rng(0), BATCH
    traffic = np.zeros(ADAPTERS, dtype=kernel.TRAFFIC)
    traffic["rate"] = np.exp(rng.uniform(np.log(0.003), np.log(0.3), ADAPTERS))
    for name, mean in features.length_means(skewed_lengths(222.7, 196.5)).items():
        traffic[name] = mean
    table = aligned(np.zeros((1, ADAPTERS, kernel.EMBEDDING), dtype=np.int64))
    kernel.fixed_embeddings(traffic, 1e-3 * profile.step_ms.base, table[0])

    pairs = [(slots, rank) for slots in SLOTS for rank in RANKS]
    terms = np.array([features.server(profile, slots, rank) for slots, rank in pairs])
    context = np.array([features.context(profile, slots, 1.0) for slots, _ in pairs])
    servers = model.servers(terms, context)
    members = rng.integers(ADAPTERS, size=batch * per_load)
    server_of = rng.integers(len(pairs), size=batch)
    ends, types = per_load * np.arange(1, batch + 1), np.zeros(batch, dtype=np.int64)
    adapters = np.zeros((1, ADAPTERS), dtype=kernel.ADAPTER)
    sums, totals = np.zeros((batch, kernel.EMBEDDING)), np.zeros(batch, dtype=kernel.ADAPTER)

    def judge(count: int) -> None:
        some = types[:count], members[: count * per_load], ends[:count], sums[:count], totals[:count]
        kernel.add_up(table, adapters, *some)
        _judge(model, sums[:count], servers, server_of[:count])

    judge(1)  # compiles
    return {
        "batch": _best(lambda: judge(batch)) / batch,
        "batch_sums": _best(lambda: _judge(model, sums, servers, server_of)) / batch,
        "single": float(np.median([_microseconds(lambda: judge(1)) for _ in range(SINGLES)])),
        "server": _best(lambda: model.servers(terms, context)) / len(pairs),
    }


def rows_speed(predict: Callable[[Floats], object], rows: Floats) -> dict[str, float]:
    """Microseconds of CPU time per row of ``predict``: a ``batch`` made of ``rows``, and a ``single`` row at a time."""
    many = np.resize(rows, (BATCH, rows.shape[1]))
    singles = [_microseconds(partial(predict, row)) for row in many[:SINGLES_OF_OTHERS, None]]
    return {"batch": _microseconds(lambda: predict(many)) / BATCH, "single": float(np.median(singles))}


def _judge(model: Model, sums: Floats, servers: Servers, server_of: Ints) -> None:
    model.judge(sums, servers, server_of)


def _best(call: Callable[[], object]) -> float:
    return min(_microseconds(call) for _ in range(REPEATS))


def _microseconds(call: Callable[[], object]) -> float:
    started = time.process_time()  # of all threads: what one core would take, whatever else runs on it
    call()
    return 1e6 * (time.process_time() - started)
