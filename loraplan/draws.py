"""Drawing streams of requests, compiled: an hour of an overloaded server is millions of them.

Numba takes a while to import, so this module is imported when a stream is drawn.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numba import njit
from numpy.typing import NDArray

Ints = NDArray[np.int64]
Floats = NDArray[np.float64]


def compiled(function: Any) -> Any:
    """Compile on first use, keep the result on disk, and let other threads run meanwhile."""
    return njit(cache=True, nogil=True)(function)


def poisson(rng: np.random.Generator, rates: Floats, horizon_s: float) -> tuple[Floats, Ints]:
    """Superposed Poisson processes of these rates: (arrivals in order, index of the rate that each belongs to).

    Given their number, arrivals are uniform order statistics, and whose each is does not depend on the others. Order
    statistics come sorted as partial sums of exponentials over their total.
    """
    total = float(rates.sum())
    times = np.empty(rng.poisson(total * horizon_s))
    owner = np.empty(times.size, dtype=np.int64)
    if times.size:
        times *= horizon_s / _fill_sums(rng, times)
        _fill_owners(rng, *_alias_table(rates / total), owner)
    return times, owner


def pairs(
    rng: np.random.Generator, first: Ints, count: Ints, known: NDArray[np.int32], owner: Ints
) -> tuple[Ints, Ints]:
    """Draw a row of ``known`` for every owner, with replacement, of the ``count`` rows of its own from ``first`` on.

    Returns the two columns, each of the shape of ``owner``.
    """
    left, right = np.empty(owner.size, dtype=np.int64), np.empty(owner.size, dtype=np.int64)
    _fill_pairs(rng, first, count, known, owner, left, right)
    return left, right


@compiled
def _fill_sums(rng, sums):  # type: ignore[no-untyped-def]
    """Fill in partial sums of exponentials; returns the sum of one more."""
    total = 0.0
    for i in range(sums.size):
        total += rng.standard_exponential()
        sums[i] = total
    return total + rng.standard_exponential()


def _alias_table(weights: Floats) -> tuple[Floats, Ints]:
    """Walker's tables: a uniform number falls into column i and belongs, by the part of it that is below ``keep[i]``,
    to ``owners[2 * i]``, and above to ``owners[2 * i + 1]``.
    """
    keep = (weights * weights.size).tolist()
    owners = np.arange(2 * weights.size) // 2
    short = [i for i, part in enumerate(keep) if part < 1.0]
    ample = [i for i, part in enumerate(keep) if part >= 1.0]
    while short and ample:
        column, giver = short.pop(), ample[-1]
        owners[2 * column + 1] = giver
        keep[giver] -= 1.0 - keep[column]
        if keep[giver] < 1.0:
            short.append(ample.pop())
    return np.array(keep), owners


@compiled
def _fill_owners(rng, keep, owners, drawn):  # type: ignore[no-untyped-def]
    """Draw from Walker's tables; without a branch, as it would be mispredicted half of the time."""
    for i in range(drawn.size):
        u = rng.random() * keep.size
        column = np.uint64(u)
        drawn[i] = owners[column + column + np.uint64(u - column >= keep[column])]


@compiled
def _fill_pairs(rng, first, count, known, owner, left, right):  # type: ignore[no-untyped-def]
    for i in range(owner.size):
        a = owner[i]
        row = np.uint64(first[a] + np.int64(rng.random() * count[a]))
        left[i] = known[row, 0]
        right[i] = known[row, 1]
