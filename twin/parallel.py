"""Many simulations at once."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from os import cpu_count
from typing import TypeVar

T = TypeVar("T")
R = TypeVar("R")


def spread(
    function: Callable[[T], R], items: Sequence[T], on_progress: Callable[[int, int], None] | None = None
) -> list[R]:
    """Apply ``function`` to ``items`` on all cores (the twin holds no lock while it runs), in order."""
    pool = ThreadPoolExecutor(max_workers=cpu_count())
    results = []
    try:
        for result in pool.map(function, items):
            results.append(result)
            if on_progress is not None:
                on_progress(len(results), len(items))
    finally:
        pool.shutdown(wait=True, cancel_futures=True)
    return results
