"""What column generation tells apart: items, that is classes of like adapters, and the prices it may give them."""

from __future__ import annotations

import heapq
import math
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from loraplan.problem import Problem
from loraplan.workload import Floats, Ints
from solvers.construction import length_laws

MOST_KINDS, MOST_ITEMS = 3000, 900
"""Kinds of adapters beyond which those that are nearly alike are priced as one item, as light as the lightest of them,
so that there are so many items."""
MOST_PRICES, MERGED_PRICES = 60, 120
"""Items beyond which prices are linear between so many knots: fewer to be found, and bounds all the same; and knots of
items that were merged."""
MOST_LAWS = 8
"""Length laws beyond which adapters are told apart by their tokens/s only."""


@dataclass(frozen=True, eq=False)
class Items:
    """Adapters in classes.

    Attributes:
        group_of: shape (adapters,), each one's item.
        members: of each item, its adapters by falling rate.
        family: shape (items,): items of one family differ in size only, and are numbered by falling size.
        counts: shape (items,).
        allowed: shape (types, items): whether the GPU type may have it.
        basis: shape (prices, items): the item's price is a mean of these, in these proportions.
        coarse: the same with two prices for each family, of its largest and its smallest.
        alike: whether the adapters of an item are all the same.
    """

    group_of: Ints
    members: tuple[tuple[int, ...], ...]
    family: Ints
    counts: Floats
    allowed: NDArray[np.bool_]
    basis: Floats
    coarse: Floats
    alike: bool

    @property
    def totals(self) -> Floats:
        """Shape (prices,): how much of every price all adapters take."""
        return self.basis @ self.counts


def make_items(problem: Problem) -> Items:
    """Group the adapters of ``problem``; pins and separate groups keep adapters apart."""
    families, size = _families(problem)
    kinds: dict[tuple[int, float], list[int]] = defaultdict(list)
    for i, family in enumerate(families):
        kinds[family, size[i]].append(i)
    keys = sorted(kinds, key=lambda key: (key[0], -key[1]))
    cells = [[key] for key in keys] if len(keys) <= MOST_KINDS else _merged(keys, kinds)
    members = [sorted((i for key in cell for i in kinds[key]), key=lambda i: -problem.rates[i]) for cell in cells]
    group_of = np.empty(len(families), dtype=np.int64)
    for item, mine in enumerate(members):
        group_of[mine] = item
    family_of = np.array([cell[0][0] for cell in cells], dtype=np.int64)
    counts = np.array([len(mine) for mine in members], dtype=np.float64)
    types = range(len(problem.fleet.types))
    unit_of = {i: unit for unit in problem.units for i in unit}
    allowed = np.array([[t in problem.types_of(unit_of[mine[0]]) for mine in members] for t in types])
    sizes = np.array([np.mean([size[i] for i in mine]) for mine in members])
    laws_merged = len(set(length_laws(problem))) > MOST_LAWS
    return Items(
        group_of,
        tuple(map(tuple, members)),
        family_of,
        counts,
        allowed,
        _basis(family_of, sizes, counts, MOST_PRICES if len(cells) == len(keys) else MERGED_PRICES),
        _ends(family_of, sizes),
        alike=len(cells) == len(keys) and not laws_merged,
    )


def _families(problem: Problem) -> tuple[list[int], Floats]:
    """Each adapter's family (rank, length law, what constrains it), and its size there, tokens/s."""
    laws = length_laws(problem)
    if len(set(laws)) > MOST_LAWS:
        laws = [0] * len(laws)
    unit_of = {i: unit for unit in problem.units for i in unit}
    apart = {i for group in problem.separate for i in group}
    pinned = bool(problem.constraints.pins)
    seen: dict[tuple[object, ...], int] = {}
    families = []
    for i, law in enumerate(laws):
        own = i if i in apart or len(unit_of[i]) > 1 else -1
        types = problem.types_of(unit_of[i]) if pinned else ()
        key = int(problem.ranks[i]), law, own, types, bool(problem.rates[i] > 0)
        families.append(seen.setdefault(key, len(seen)))
    return families, problem.offered


def _merged(
    keys: Sequence[tuple[int, float]], kinds: dict[tuple[int, float], list[int]]
) -> list[list[tuple[int, float]]]:
    """Neighbouring sizes of a family in cells, so that little is lost if every member counts as the smallest.

    Cells are halved, each time the one that loses most.
    """
    total = sum(size * len(kinds[family, size]) for family, size in keys) or 1.0
    roots = sum(math.sqrt(size) * len(kinds[family, size]) for family, size in keys) or 1.0

    def weight(size: float) -> float:
        """Part of what all adapters weigh, in rows that are linear in the size and in those that rise more slowly."""
        return size / total + math.sqrt(size) / roots

    def lost(cell: list[tuple[int, float]]) -> list[float]:
        least = weight(cell[-1][1])
        return [(weight(size) - least) * len(kinds[family, size]) for family, size in cell]

    def entry(cell: list[tuple[int, float]]) -> tuple[float, int, list[tuple[int, float]]]:
        return -sum(lost(cell)), id(cell), cell

    by_family: dict[int, list[tuple[int, float]]] = defaultdict(list)
    for key in keys:
        by_family[key[0]].append(key)
    heap = [entry(cell) for cell in by_family.values()]
    heapq.heapify(heap)
    while len(heap) < MOST_ITEMS and heap[0][0] < 0:
        _, _, cell = heapq.heappop(heap)
        loss = np.cumsum(lost(cell))
        middle = min(max(int(np.searchsorted(loss, loss[-1] / 2)) + 1, 1), len(cell) - 1)
        heapq.heappush(heap, entry(cell[:middle]))
        heapq.heappush(heap, entry(cell[middle:]))
    return sorted((cell for _, _, cell in heap), key=lambda cell: (cell[0][0], -cell[0][1]))


def _basis(family: Ints, sizes: Floats, counts: Floats, most: int) -> Floats:
    """Proportions in which an item's price is made of the prices of the knots around its size."""
    items = family.size
    if items <= most:
        return np.eye(items)
    rows = []
    families = np.unique(family)
    total = float((sizes * counts).sum()) or 1.0
    for one in families:
        mine = np.flatnonzero(family == one)
        share = float((sizes * counts)[mine].sum()) / total
        knots = min(mine.size, max(3, round(most * share)))
        load = np.cumsum(np.sqrt(sizes[mine] * counts[mine] + 1e-300))
        at = np.interp(np.linspace(load[0], load[-1], knots), load, sizes[mine])
        at = np.unique(np.append(at, [sizes[mine][0], sizes[mine][-1]]))
        for k in range(at.size):
            row = np.zeros(items)
            row[mine] = np.interp(sizes[mine], at, np.eye(at.size)[k])
            rows.append(row)
    return np.array(rows)


def _ends(family: Ints, sizes: Floats) -> Floats:
    """Proportions of the prices of the largest and the smallest of an item's family, by its size."""
    rows = []
    for one in np.unique(family):
        mine = np.flatnonzero(family == one)
        least, most = sizes[mine].min(), sizes[mine].max()
        part = (sizes[mine] - least) / (most - least) if most > least else np.ones(mine.size)
        for weights in (part, 1.0 - part):
            row = np.zeros(family.size)
            row[mine] = weights
            if row.any():
                rows.append(row)
    return np.array(rows)
