"""Branch and bound over how many GPUs are of which bin types, where prices leave a gap.

A linear program may mix bin types, a GPU is of one. At the best prices few bin types are left that a cheaper plan could
use, those whose best load is worth nearly what it costs. Of some box of these the linear program uses, say, 1.4: a plan
uses at most one, or at least two. Both are solved again, with a rent for the limit, until it costs too much, or all
bin types are used whole numbers of times; then an integer program places whole adapters. What is proven is a tree with
prices for each leaf (`loraplan.branches` checks it).

Branching on sets of columns is by Vance, Barnhart, Johnson and Nemhauser (1994).
"""

from __future__ import annotations

import math
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import Any

import highspy
import numpy as np
from numpy.typing import NDArray

from loraplan.bin_types import BinType
from loraplan.workload import Floats, Ints
from solvers.base import Search
from solvers.bounds import Bound
from solvers.filling import FULL
from solvers.master import Prices, quiet
from solvers.mixture import Limit, Mixed, Mixture, best_loads
from solvers.pricing import Pricing
from solvers.spread import add_parts, add_rows

Tree = dict[str, Any]
"""A node as `loraplan.branches` reads it."""
Box = tuple[Ints, Ints]
"""Bin types whose places are, in every coordinate, between these."""

MOST_ITEMS, MOST_BINS, MOST_LOOKS = 64, 1500, 60_000
"""Items, bin types, and bin types looked at to find these, beyond which it would take too long; by trial.

Problems of three GPUs have 200 to 600 such bin types, and 8,000 were looked at for them."""
CLOSE, HARDLY, TORN = 1e-6, 1e-5, 0.1
"""How far from whole a number is that counts as whole; and one that counts as torn, if there is any such.

The latter by trial: .4 took three times as long on problems of three GPUs, and more."""
GAINS = 0.02
"""The part of the gap that better prices must close for another search of the bin types that are left."""
SAFE = 1e-5
"""By how much more than that bin types may miss what they cost, so that no rounding error matters."""
PACK_S = 10.0
"""For one integer program."""


@dataclass(frozen=True, eq=False)
class _Node:
    """A linear program that costs little enough, its limits and its place in the tree."""

    limits: tuple[Limit, ...]
    tree: Tree
    mixed: Mixed


class Branching:
    """A search for a plan that costs ``most`` or less.

    Attributes:
        ended: whether there is no more to do.
        tree: proves that there is no such plan, on top of the prices of ``base``; None where that was not found out.
    """

    def __init__(self, search: Search, pricing: Pricing, bound: Bound, most: float, dearest: float) -> None:
        """Prepare; ``dearest`` is more than any adapter is worth."""
        self._search, self._pricing, self._bound, self._dearest = search, pricing, bound, dearest
        self.base = bound
        self._counts, self._of_type = bound.items.counts, bound.floor.of_type
        self.most = most
        self._gpus = min(search.problem.gpus, math.floor(most / float(self._of_type.min())))
        self.tree: Tree | None = None
        self._root: Tree = {}
        self._open: list[_Node] | None = None
        self.ended = False

    def run(self, nodes: int) -> Sequence[tuple[BinType, Floats]]:
        """Go on with the search, for so many nodes at most.

        Returns:
            GPUs of a plan that is cheap enough, as bin types and counts of items, if one was found.

        Raises:
            SearchStoppedError: the time is up.
        """
        if self._open is None:
            self.ended = not self._prepare()
            self._open = [] if self.ended else list(self._solve(self._always(), self._root))
        for _ in range(nodes):
            if self.ended or not self._open:
                break
            node = self._open[-1]
            gpus = self._gpus_of(node.mixed.used)
            split = self._torn(node.mixed.used)
            if split is None and not self._all(node, gpus):
                split = (self._places.min(axis=0), self._places.max(axis=0)), len(gpus)
            if split is not None:
                branches = list(self._children(node, *split))
            else:
                loads = self._pack(self._all_rows[gpus])
                if loads != []:
                    self.ended = True
                    return [] if loads is None else [(self._bins[b], x) for b, x in zip(gpus, loads, strict=True)]
                branches = list(self._without(node, Counter(gpus)))
            # only now: where time is up before, the node has yet to be solved
            self._open[-1:] = branches
        if not self.ended and not self._open:
            self.ended, self.tree = True, self._root
        return ()

    def _prepare(self) -> bool:
        """Find the bin types, better prices by these, fewer bin types by those, and so on; False if too many."""
        gains = math.inf
        while gains > GAINS * (self.most - self._bound.value):
            if self._counts.size > MOST_ITEMS or not self._find():
                return False
            before = self._bound.value
            self._better_prices()
            gains = self._bound.value - before
        return True

    def _find(self) -> bool:
        """All bin types that cannot be split and that a plan of ``most`` may use; False if they are too many."""
        base = self.base = self._bound.eased()
        if base.worth is None or base.rents is None:
            return False
        union, looks = self._pricing.union, MOST_LOOKS
        lowest = self._of_type + base.rents + base.rent - max(0.0, self.most - base.value)
        lowest -= SAFE * max(1.0, abs(self.most))
        waiting, found = union.roots(), list[BinType]()
        while waiting:
            self._search.check()
            values, loads = best_loads(self._rows(waiting), base.worth, self._counts)
            finer: list[BinType] = []
            for one, value, load in zip(waiting, values, loads, strict=True):
                if value >= lowest[one.gpu_type]:
                    parts = union.split(one, load)
                    (found if len(parts) == 1 and parts[0] is one else finer).extend(parts)
            looks -= len(waiting)
            waiting = finer
            if looks < 0 or len(found) > MOST_BINS:
                return False
        if not found:
            return False
        self._bins = found
        self._types = np.array([one.gpu_type for one in found], dtype=np.int64)
        self._places = np.array([one.place for one in found])
        self._costs, self._all_rows = self._of_type[self._types], self._rows(found)
        self._mixture = Mixture(self._search, self._all_rows, self._costs, self._counts, self._dearest)
        return True

    def _rows(self, bins: Sequence[BinType]) -> Floats:
        return np.array([self._pricing.rows_of(one) for one in bins])

    def _better_prices(self) -> None:
        """Offer the prices of these bin types to the bound, after a look at all others."""
        mixed = self._mixture.solve(self._always(), self.most)
        asked = Prices(mixed.value, mixed.worth, mixed.rents[1:], float(mixed.rents[0]), np.zeros(0), 0.0)
        priced = self._pricing.price(asked.items, self._bound.limits(asked, math.inf), 1, MOST_LOOKS)
        self._bound.priced(asked, priced.upper)

    def _always(self) -> tuple[Limit, ...]:
        """No more GPUs than a plan may have, nor of a type than there are."""
        stock = enumerate(gpu_type.count for gpu_type in self._search.problem.fleet.types)
        every = np.ones(len(self._bins), dtype=np.bool_)
        return Limit(every, 0, self._gpus), *(Limit(self._types == t, 0, count) for t, count in stock)

    def _solve(self, limits: tuple[Limit, ...], tree: Tree, before: Mixed | None = None) -> Iterator[_Node]:
        """The node of these limits; none if they cost too much, which then is in the tree."""
        mixed = self._mixture.solve(limits, self.most, before)
        if mixed.value > self.most:
            tree.update(worth=mixed.worth.tolist(), rents=mixed.rents.tolist())
        else:
            yield _Node(limits, tree, mixed)

    def _children(self, node: _Node, box: Box, times: int) -> Iterator[_Node]:
        """Those with at most so many GPUs of the box, and those with more."""
        fewer, more = self._fork(node.tree, box, times)
        inside = _inside(self._places, box)
        yield from self._solve((*node.limits, Limit(inside, 0, times)), fewer, node.mixed)
        yield from self._solve((*node.limits, Limit(inside, times + 1, self._gpus)), more, node.mixed)

    def _torn(self, used: Floats) -> tuple[Box, int] | None:
        """A box that is used in part, and how often it is, rounded down; None if all are used whole numbers of times.

        The one that has nearest to half of the bin types, among those that are far enough from whole; a single bin type
        where none else is.
        """
        active = np.flatnonzero(used > CLOSE)
        places, often = self._places[active], used[active]
        for boxes, least in (
            (self._halves(places), TORN),
            (self._quarters(places), TORN),
            (self._singles(places), HARDLY),
        ):
            most, chosen = -1, None
            for box in boxes:
                times = float(often[_inside(places, box)].sum())
                size = int(_inside(self._places, box).sum())
                balance = min(size, len(self._bins) - size)
                if abs(times - round(times)) > least and balance > most:
                    most, chosen = balance, (box, math.floor(times))
            if chosen is not None:
                return chosen
        return None

    def _singles(self, places: Ints) -> Iterator[Box]:
        for place in places:
            yield place, place

    def _halves(self, places: Ints) -> Iterator[Box]:
        """Boxes up to one value of a coordinate that these places have."""
        least, most = self._places.min(axis=0), self._places.max(axis=0)
        for axis, cut in self._cuts(places):
            high = most.copy()
            high[axis] = cut
            yield least, high

    def _cuts(self, places: Ints) -> list[tuple[int, int]]:
        return [(axis, cut) for axis in range(places.shape[1]) for cut in np.unique(places[:, axis])[:-1].tolist()]

    def _quarters(self, places: Ints) -> Iterator[Box]:
        """The same of two coordinates."""
        least, most = self._places.min(axis=0), self._places.max(axis=0)
        for (axis, cut), (other, second) in combinations(self._cuts(places), 2):
            if axis != other:
                for above in (False, True):
                    low, high = least.copy(), most.copy()
                    high[axis] = cut
                    (low if above else high)[other] = second + above
                    yield low, high

    def _gpus_of(self, used: Floats) -> list[int]:
        """Bin types, each as often as it is used."""
        times = np.round(used).astype(np.int64)
        return np.repeat(np.arange(times.size), times).tolist()

    def _all(self, node: _Node, gpus: Sequence[int]) -> bool:
        """Whether a plan of this branch with GPUs of these bin types has no others."""
        most = min(limit.most for limit in node.limits if limit.inside.all())
        return len(gpus) >= most or bool(self._costs[gpus].sum() + self._of_type.min() > self.most)

    def _pack(self, rows: Floats) -> list[Floats] | None:
        """Whole adapters on GPUs, shape (items,) each; none if they do not fit, None if that is not known.

        Bin types may be lighter than loads are: they are not filled to the brim where that can be avoided.

        Args:
            rows: of the GPUs' bin types, shape (gpus, rows, items).
        """
        loads = self._packed(rows, 1.0)
        if loads and (np.einsum("gri,gi->gr", rows, np.array(loads)) > FULL).any():
            return self._packed(rows, FULL) or loads
        return loads

    def _packed(self, rows: Floats, full: float) -> list[Floats] | None:
        gpus, height, n = rows.shape
        model = quiet()
        add_rows(model, self._counts, self._counts)
        add_rows(model, np.full(height * gpus, -highspy.kHighsInf), np.full(height * gpus, full))
        parts = [add_parts(model, own, n + height * g, np.zeros(n), self._counts) for g, own in enumerate(rows)]
        columns = np.arange(model.getNumCol(), dtype=np.int32)
        model.changeColsIntegrality(columns.size, columns, np.full(columns.size, highspy.HighsVarType.kInteger))
        left = math.inf if self._search.deadline is None else self._search.deadline - time.monotonic()
        model.setOptionValue("time_limit", min(PACK_S, max(left, 0.01)))
        model.run()
        solution = model.getSolution()
        if not solution.value_valid:
            return [] if model.getModelStatus() == highspy.HighsModelStatus.kInfeasible else None
        values = np.round(np.array(solution.col_value))
        return [np.bincount(items, values[start : start + items.size], n).astype(np.float64) for start, items in parts]

    def _without(self, node: _Node, gpus: Counter[int]) -> Iterator[_Node]:
        """Nodes that together have all plans but the one with these GPUs, so many of each bin type."""
        limits, tree = node.limits, node.tree
        for b, times in gpus.items():
            inside = np.arange(len(self._bins)) == b
            if any(one.least >= times and (one.inside == inside).all() for one in limits):
                continue
            fewer, more = self._fork(tree, (self._places[b], self._places[b]), times - 1)
            yield from self._solve((*limits, Limit(inside, 0, times - 1)), fewer, node.mixed)
            limits, tree = (*limits, Limit(inside, times, self._gpus)), more
        tree.update(packed=[[self._places[b].tolist(), times] for b, times in gpus.items()])

    def _fork(self, tree: Tree, box: Box, times: int) -> tuple[Tree, Tree]:
        """A fork in the tree: at most so many GPUs of the box, or more."""
        fewer: Tree = {}
        more: Tree = {}
        tree.update(least=box[0].tolist(), most=box[1].tolist(), gpus=times, fewer=fewer, more=more)
        return fewer, more


def _inside(places: Ints, box: Box) -> NDArray[np.bool_]:
    """Which places are in a box, shape (places,)."""
    return np.asarray(((places >= box[0]) & (places <= box[1])).all(axis=1))
