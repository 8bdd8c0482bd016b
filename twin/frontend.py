"""The HTTP server before the engine, as far as it depends on nothing but the requests: tokenizers of new adapters."""

from __future__ import annotations

import numpy as np

from loraplan.profiles import Frontend
from loraplan.workload import Floats, Ints, Requests

GLANCE = 1 << 16
"""Requests among which new adapters are looked for at a time."""


def tokenized(requests: Requests, n_adapters: int, frontend: Frontend | None) -> tuple[Floats, Floats]:
    """When requests have their tokens, shape (requests,), and from when to when a tokenizer was loaded, (loads, 2).

    The frontend takes requests one by one, in order, and loads a tokenizer for the first of every adapter.
    """
    arrival = np.ascontiguousarray(requests.arrival_s, dtype=np.float64)
    if frontend is None or frontend.tokenizer == 0 or not arrival.size:
        return arrival, np.empty((0, 2))
    first = _first_of_each(requests.adapter, n_adapters)
    load_s = 1e-3 * frontend.tokenizer
    loaded_s = load_s * np.arange(1, first.size + 1)
    free = loaded_s + np.maximum.accumulate(arrival[first] - loaded_s + load_s)
    behind = np.minimum(np.searchsorted(arrival, free), np.append(first[1:], arrival.size)) - first
    places = np.arange(behind.sum()) + np.repeat(first - np.cumsum(behind) + behind, behind)
    known = arrival.copy()
    known[places] = np.repeat(free, behind)
    return known, np.column_stack((free - load_s, free))


def _first_of_each(adapter: Ints, n_adapters: int) -> Ints:
    """The first request of each adapter that has one, in order; adapters are known early, so most are not looked at."""
    first = np.full(n_adapters, adapter.size)
    for start in range(0, adapter.size, GLANCE):
        some = adapter[start : start + GLANCE]
        new = np.flatnonzero(first[some] == adapter.size)[::-1]  # the last that is written stays
        first[some[new]] = start + new
        if first.max() < adapter.size:
            break
    return np.sort(first[first < adapter.size])
