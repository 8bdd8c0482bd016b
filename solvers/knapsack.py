"""Knapsacks of a few rows: linear relaxation by the simplex method, whole solutions by branch and bound; compiled.

Maximise ``values @ x`` with ``rows @ x <= 1`` in each row and ``0 <= x <= counts``; all weights are non-negative. Any
prices y >= 0 of the rows give a bound, ``sum(y) + sum(counts * max(0, values - y @ rows))``: that of the simplex
method's last basis is what `relax` returns, so that no rounding error makes it less than a bound.
"""

from __future__ import annotations

import numpy as np
from numba import njit

TINY = 1e-9
CORE = 40
"""Items that are solved for at a time."""


@njit(cache=True, nogil=True)
def price_bound(rows, values, counts, prices):  # type: ignore[no-untyped-def]
    """The bound that ``prices``, shape (rows,), give."""
    m, n = rows.shape
    bound = 0.0
    for r in range(m):
        bound += prices[r]
    for j in range(n):
        if values[j] <= 0.0:
            continue
        left = values[j]
        for r in range(m):
            left -= prices[r] * rows[r, j]
        if left > 0.0:
            fits = True
            for r in range(m):
                if rows[r, j] > 1.0:
                    fits = False
            if fits:
                bound += counts[j] * left
    return bound


@njit(cache=True, nogil=True)
def relax(rows, values, counts, prices, x):  # type: ignore[no-untyped-def]
    """Solve the linear relaxation; fill ``prices`` and ``x``, shape (items,), and return the bound.

    If prices are known, items of which they leave little doubt are taken or left, and only the others are solved for;
    and again, with the new prices, if that was too rash.
    """
    m, n = rows.shape
    upper = np.zeros(n)
    for j in range(n):
        if values[j] > 0.0:
            upper[j] = counts[j]
            for r in range(m):
                if rows[r, j] > 1.0:
                    upper[j] = 0.0
    room = np.ones(m)
    if n > 2 * CORE and prices.sum() > 0.0:
        doubt, best = np.empty(n), np.inf
        known = prices.copy()
        for _ in range(4):
            for j in range(n):
                doubt[j] = np.inf
                if upper[j] > 0.0:
                    cost = 0.0
                    for r in range(m):
                        cost += known[r] * rows[r, j]
                    doubt[j] = 1.0 - cost / values[j]
            least = np.sort(np.abs(doubt))[CORE]
            core = np.flatnonzero(np.abs(doubt) < least)
            room[:] = 1.0
            x[:] = 0.0
            for j in range(n):
                if doubt[j] >= least and upper[j] > 0.0:
                    x[j] = upper[j]
                    for r in range(m):
                        room[r] -= upper[j] * rows[r, j]
            if core.size == 0 or room.min() < 0.0:
                break
            own = np.empty((m, core.size))
            for r in range(m):
                for k in range(core.size):
                    own[r, k] = rows[r, core[k]]
            part = np.empty(core.size)
            _simplex(own, values[core], upper[core], room, known, part)
            worth = 0.0
            for k in range(core.size):
                x[core[k]] = part[k]
            for j in range(n):
                worth += values[j] * x[j]
            bound = price_bound(rows, values, counts, known)
            if bound < best:
                best = bound
                prices[:] = known
            if bound <= worth * (1.0 + 1e-4) + 1e-12:
                return best
    room[:] = 1.0
    _simplex(rows, values, upper, room, prices, x)
    return price_bound(rows, values, counts, prices)


@njit(cache=True, nogil=True)
def _entering(rows, values, upper, prices, state):  # type: ignore[no-untyped-def]
    """The column, of items and then of slack, that gains most, and whether it grows (1) or shrinks; -1 if none does."""
    m, n = rows.shape
    enter, best, sign = -1, TINY, 1.0
    for j in range(n + m):
        if state[j] == 2 or (j < n and upper[j] == 0.0):
            continue
        if j < n:
            gain = values[j]
            for r in range(m):
                gain -= prices[r] * rows[r, j]
        else:
            gain = -prices[j - n]
        if state[j] == 0 and gain > best:
            enter, best, sign = j, gain, 1.0
        elif state[j] == 1 and -gain > best:
            enter, best, sign = j, -gain, -1.0
    return enter, sign


@njit(cache=True, nogil=True)
def _pivot(inverse, column, leave, sign):  # type: ignore[no-untyped-def]
    """Take ``sign`` * ``column`` into the basis in the place of ``leave``."""
    m = column.size
    pivot = sign * column[leave]
    for k in range(m):
        inverse[leave, k] /= pivot
    for r in range(m):
        if r != leave:
            factor = sign * column[r]
            for k in range(m):
                inverse[r, k] -= factor * inverse[leave, k]


@njit(cache=True, nogil=True)
def _simplex(rows, values, upper, room, prices, x):  # type: ignore[no-untyped-def]
    """Fill ``prices`` and ``x`` for rows with this ``room``: bounded primal simplex from x = 0, best column first."""
    m, n = rows.shape
    x[:] = 0.0
    inverse, basis, of_basis, level = np.eye(m), np.arange(n, n + m), np.zeros(m), room.copy()
    state = np.zeros(n + m, dtype=np.int8)  # 0 at its lower bound, 1 at its upper, 2 in the basis
    state[n:] = 2
    column = np.empty(m)
    for _ in range(60 + 4 * n):
        for r in range(m):
            total = 0.0
            for k in range(m):
                total += of_basis[k] * inverse[k, r]
            prices[r] = total
        enter, sign = _entering(rows, values, upper, prices, state)
        if enter < 0:
            break
        for r in range(m):
            total = 0.0
            if enter < n:
                for k in range(m):
                    total += inverse[r, k] * rows[k, enter]
            else:
                total = inverse[r, enter - n]
            column[r] = sign * total
        step = upper[enter] if enter < n else np.inf
        leave, to_upper = -1, False
        for r in range(m):
            if column[r] > TINY:
                reach = level[r] / column[r]
                if reach < step:
                    step, leave, to_upper = max(reach, 0.0), r, False
            elif column[r] < -TINY and basis[r] < n:
                reach = (upper[basis[r]] - level[r]) / -column[r]
                if reach < step:
                    step, leave, to_upper = max(reach, 0.0), r, True
        if not step < np.inf:
            break
        for r in range(m):
            level[r] -= step * column[r]
        if leave < 0:
            state[enter] = 1 - state[enter]
            continue
        state[basis[leave]] = 1 if to_upper else 0
        level[leave] = step if sign > 0 else upper[enter] - step
        basis[leave], of_basis[leave] = enter, values[enter] if enter < n else 0.0
        state[enter] = 2
        _pivot(inverse, column, leave, sign)
    for j in range(n):
        if state[j] == 1:
            x[j] = upper[j]
    for r in range(m):
        prices[r] = max(prices[r], 0.0)
        if basis[r] < n:
            x[basis[r]] = min(max(level[r], 0.0), upper[basis[r]])


@njit(cache=True, nogil=True)
def relax_all(rows, values, floors, per_ms, counts, limits, prices, xs, bounds):  # type: ignore[no-untyped-def]
    """Bounds of many bin types, in ``bounds``, shape (bin types,); the known prices are tried first.

    Args:
        rows: shape (bin types, rows, items).
        values: shape (items,); in a bin type they are lower by its ``floors`` times ``per_ms``, shape (items,).
        limits: shape (bin types,): a bound below is good enough.
        prices: shape (bin types, rows), renewed where they are not good enough.
        xs: shape (bin types, items), then the solution, too.
    """
    own, x = np.empty(values.size), np.empty(values.size)
    for k in range(rows.shape[0]):
        for j in range(values.size):
            own[j] = values[j] - floors[k] * per_ms[j]
        bounds[k] = price_bound(rows[k], own, counts, prices[k])
        if bounds[k] > limits[k]:
            bounds[k] = min(bounds[k], relax(rows[k], own, counts, prices[k], x))
            for j in range(values.size):
                xs[k, j] = x[j]


@njit(cache=True, nogil=True)
def _filled(order, first, ratio, weight, counts, places, values, room):  # type: ignore[no-untyped-def]
    """What items from ``first`` on add at most to a knapsack of one row that has this ``room``."""
    bound = 0.0
    for place in range(first, order.size):
        k = order[place]
        amount = counts[places[k]]
        if weight[k] * amount > room and weight[k] > 1e-12:
            return bound + ratio[k] * room
        bound += values[places[k]] * amount
        room -= weight[k] * amount
    return bound


@njit(cache=True, nogil=True)
def pack(rows, values, counts, prices, limit, max_nodes, best_x):  # type: ignore[no-untyped-def]
    """Find a whole solution of more than ``limit``: the best of those that ``max_nodes`` steps of a search see.

    Depth first, items of most value per price first, pruned by the relaxation of the one row that ``prices`` make of
    all rows.

    Returns:
        The value found (``limit`` if none; ``best_x``, shape (items,), is filled in otherwise), and whether the search
        came to its end, so that there is no better one.
    """
    m, n = rows.shape
    places, ratio, weight = np.empty(n, dtype=np.int64), np.empty(n), np.empty(n)
    size = 0
    for j in range(n):
        if values[j] <= 0.0 or counts[j] < 1.0:
            continue
        fits, price = True, 0.0
        for r in range(m):
            price += prices[r] * rows[r, j]
            if rows[r, j] > 1.0:
                fits = False
        if fits:
            places[size], weight[size], ratio[size] = j, price, values[j] / max(price, 1e-12)
            size += 1
    order = np.argsort(-ratio[:size])
    spare, room = np.ones(m), 0.0
    for r in range(m):
        room += prices[r]
    taken, best, value, depth, nodes = np.zeros(size + 1), limit, 0.0, 0, 0
    down = True
    while nodes < max_nodes:
        nodes += 1
        if down:
            bound = value + _filled(order, depth, ratio, weight, counts, places, values, max(room, 0.0))
            if depth < size and bound > best + TINY:
                k = order[depth]
                j = places[k]
                amount = counts[j]
                for r in range(m):
                    if rows[r, j] > 0.0:
                        amount = min(amount, np.floor(spare[r] / rows[r, j] + 1e-12))
                amount = max(amount, 0.0)
                taken[depth] = amount
                for r in range(m):
                    spare[r] -= amount * rows[r, j]
                room -= amount * weight[k]
                value += amount * values[j]
                depth += 1
                if value > best + TINY:
                    best = value
                    best_x[:] = 0.0
                    for place in range(depth):
                        best_x[places[order[place]]] = taken[place]
                continue
            down = False
        # back to the last item of which less can be taken
        while depth > 0 and taken[depth - 1] == 0.0:
            depth -= 1
        if depth == 0:
            return best, True
        k = order[depth - 1]
        j = places[k]
        taken[depth - 1] -= 1.0
        for r in range(m):
            spare[r] += rows[r, j]
        room += weight[k]
        value -= values[j]
        down = True
    return best, False
