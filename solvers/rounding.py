"""Plans from patterns: which adapters the GPUs of a solved master really get."""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from loraplan.problem import GPULoad, Problem
from loraplan.workload import Floats
from solvers.base import Search
from solvers.best_fit import OpenGPU, decreasing, fill
from solvers.classes import Items
from solvers.construction import SlotChoices, Stock, kinds_of_units
from solvers.master import Pattern

MANY = 3000
"""Adapters beyond which those that are left over are added in bulk."""


def realise(search: Search, items: Items, patterns: Sequence[Pattern], times: Floats) -> list[GPULoad] | None:
    """GPUs like these patterns, each so many times, with all adapters; None if they do not all find a place."""
    pools = [deque(members) for members in items.members]
    loads = []
    for place in sorted(map(int, np.flatnonzero(times)), key=lambda p: -float(patterns[p].counts.sum())):
        for _ in range(int(times[place])):
            adapters = _draw(items, pools, patterns[place].counts)
            if adapters:
                loads.append(replace(patterns[place].load, adapters=adapters))
    loads, dropped = _lightened(search, loads)
    left = sorted([*dropped, *(i for pool in pools for i in pool)])
    return complete(search, loads, left)


def _draw(items: Items, pools: list[deque[int]], counts: Floats) -> tuple[int, ...]:
    """Take adapters out of the pools; where an item's is empty, the next smaller of its family, or the next larger."""
    found: list[int] = []
    size = items.counts.size
    for item in np.flatnonzero(counts):
        for _ in range(int(counts[item])):
            place = _nearest(items, pools, int(item), size) if not pools[item] else int(item)
            if place is None:
                break
            found.append(pools[place].popleft())
    return tuple(sorted(found))


def _nearest(items: Items, pools: list[deque[int]], item: int, size: int) -> int | None:
    if items.alike and size <= 60:
        return None  # what is missing is missing: patterns cover more than there is
    for step in range(1, 25):
        for other in (item + step, item - step):
            if 0 <= other < size and items.family[other] == items.family[item] and pools[other]:
                return other
    return None


def _lightened(search: Search, loads: list[GPULoad]) -> tuple[list[GPULoad], list[int]]:
    """The loads without the adapters that are too many, and these: the smallest of each load."""
    kept, _ = search.judge(loads)
    fine, dropped = [], []
    for load, okay in zip(loads, kept, strict=True):
        if okay:
            fine.append(load)
            continue
        order = sorted(load.adapters, key=lambda i: (-search.problem.offered[i], i))
        low, high = 0, len(order)
        while high - low > 1:
            middle = (low + high) // 2
            part = replace(load, adapters=tuple(sorted(order[:middle])))
            low, high = (middle, high) if search.judge([part])[0][0] else (low, middle)
        dropped += order[low:]
        if low:
            fine.append(replace(load, adapters=tuple(sorted(order[:low]))))
    return fine, dropped


def complete(search: Search, loads: list[GPULoad], left: Sequence[int]) -> list[GPULoad] | None:
    """The loads with the adapters that are left added to them, or on further GPUs; None if there is no room."""
    problem = search.problem
    stock = Stock(problem)
    for t, count in Counter(load.gpu_type for load in loads).items():
        for _ in range(count):
            if t not in stock.types():
                return None
            stock.take(t)
    choices = SlotChoices(problem)
    missing = set(left)
    if not missing:
        return loads
    units = [unit for unit in decreasing(problem) if missing.issuperset(unit)]
    if sum(map(len, units)) < len(missing):
        return None  # units that were torn apart
    if len(missing) > MANY:
        return _poured(search, loads, [i for unit in units for i in unit], choices, stock)
    _, predicted = search.judge(loads) if loads else (None, None)
    used = [OpenGPU(load, max(int(problem.ranks[i]) for i in load.adapters)) for load in loads]
    for row, gpu in enumerate(used):
        gpu.itl_ms = float(np.nan_to_num(predicted.itl_ms[row])) if predicted is not None else 0.0
    kinds = dict(zip(problem.units, kinds_of_units(problem), strict=True))
    if fill(search, units, kinds, used, choices, stock):
        return None
    return [gpu.load for gpu in used]


def _poured(
    search: Search, loads: list[GPULoad], left: list[int], choices: SlotChoices, stock: Stock
) -> list[GPULoad] | None:
    """As many as fit of those that are left onto each GPU, large and small ones in turn, then onto new ones."""
    problem = search.problem
    full: list[GPULoad] = []
    waiting, open_ = left, deque(loads)
    while waiting:
        if not open_:
            types = stock.types()
            if not types:
                return None
            stock.take(types[0])
            open_.append(GPULoad(types[0], (), 0))
        load = open_.popleft()
        low, high, best = 0, 1, load
        while low < len(waiting) and high - low >= 1:
            size = min(high, len(waiting))
            grown = _grown(search, problem, best if low else load, load.adapters, waiting[:size], choices)
            if grown is None:
                break
            low, best = size, grown
            high = 2 * size
            if size == len(waiting):
                break
        top = min(high, len(waiting) + 1)
        while top - low > 1:
            middle = (low + top) // 2
            grown = _grown(search, problem, best, load.adapters, waiting[:middle], choices)
            if grown is None:
                top = middle
            else:
                low, best = middle, grown
        if not best.adapters:
            return None
        full.append(best)
        waiting = waiting[low:]
    return [*full, *open_]


def _grown(
    search: Search, problem: Problem, load: GPULoad, base: Sequence[int], more: Sequence[int], choices: SlotChoices
) -> GPULoad | None:
    adapters = tuple(sorted((*base, *more)))
    rank = int(problem.ranks[list(adapters)].max())
    tried = [s for s in (load.slots,) if s] or []
    options = [*tried, *(s for s in choices.on(load.gpu_type, rank, len(adapters)) if s not in tried)]
    loads = [GPULoad(load.gpu_type, adapters, slots) for slots in options]
    kept, _ = search.judge(loads)
    return loads[int(kept.argmax())] if kept.any() else None


def total_cost(search: Search, loads: Sequence[GPULoad]) -> float:
    """What the loads cost together; infinite if one of them breaks a limit."""
    kept, predicted = search.judge(loads)
    return float(search.costs(loads, predicted).sum()) if kept.all() else np.inf
