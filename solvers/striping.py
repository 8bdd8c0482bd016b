"""Plans of many adapters: each GPU takes as many of one order as it carries, and what an order is decides what mixes.

Among thousands of adapters each is a small part of a GPU, so that hardly anything is lost where one does not fit any
more. What matters is which are together. Where busy ones with many requests and rare ones are best apart, it is the
order of falling rates; where every GPU is best given a like share of both, a permutation any part of which is a like
sample of all (multiples of the golden section, Weyl 1916); and between the two, that of all but the rarest, which fill
GPUs of their own by the thousand. Ranks descend in all: a server pays for its largest.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from loraplan.problem import GPULoad, Problem
from loraplan.workload import Floats, Ints
from solvers.base import Search
from solvers.construction import SlotChoices, Stock

GOLDEN = 0.5 * (5.0**0.5 - 1.0)
TAILS = (0.0, 0.005, 0.01, 0.02)
"""Parts of the traffic: the rarest adapters with so much of it are left out of the mix. Of 100,000 adapters by a
Dirichlet law (suite popularity) .5 to 1.5 % saved two of 162 GPUs, 5 % and more none."""
SLOTS = tuple(sorted({round(2.0 ** (k / 20)) for k in range(180)}))
"""Numbers of slots that are tried, in steps of 3.5 %: each GPU is one of many alike, so that a little counts."""
NEAR = 5
"""So many numbers of slots above and below those of the GPU before are tried first."""


def orders(problem: Problem) -> list[Ints]:
    """Adapters by falling rank and, of one rank, by falling rate; and of one rank in a mix, but for each of ``TAILS``.

    Shape (adapters,) each.
    """
    falling = np.lexsort((-problem.offered, -problem.ranks))
    found = [falling]
    for tail in TAILS:
        parts = []
        for rank in sorted(set(problem.ranks.tolist()), reverse=True):
            one = falling[problem.ranks[falling] == rank]
            traffic = np.cumsum(problem.offered[one])
            rest = int(np.searchsorted(traffic, (1.0 - tail) * traffic[-1], "right"))
            parts += [_mixed(one[:rest]), _mixed(one[rest:])]
        found.append(np.concatenate(parts) if parts else falling)
    return found


def _mixed(adapters: Ints) -> Ints:
    """These in an order any part of which is a like sample of all."""
    return adapters[np.argsort((np.arange(1, adapters.size + 1) * GOLDEN) % 1.0, kind="stable")]


def pour(search: Search, order: Ints, of_type: Floats, stock: Stock) -> list[GPULoad] | None:
    """Fill GPUs with adapters in this order, each with as many as it takes.

    Args:
        search: judges the loads.
        order: the adapters, shape (adapters,).
        of_type: what a GPU of each type costs, shape (types,); of several the cheapest for what it takes is used.
        stock: of GPUs, which are taken from it.

    Returns:
        The loads; None if the GPUs are used up before all adapters are placed.
    """
    fillers = {t: _Filler(search, t) for t in range(of_type.size)}
    loads: list[GPULoad] = []
    waiting = order
    while waiting.size:
        options = [load for t in stock.types() if (load := fillers[t].fill(waiting)) is not None]
        if not options:
            return None
        best = min(options, key=lambda load: (of_type[load.gpu_type] / len(load.adapters), load.gpu_type))
        stock.take(best.gpu_type)
        loads.append(best)
        waiting = waiting[len(best.adapters) :]
    return loads


class _Filler:
    """Fills GPUs of one type; remembers how many adapters and slots the one before had."""

    def __init__(self, search: Search, gpu_type: int) -> None:
        self._search, self._type = search, gpu_type
        self._choices = SlotChoices(search.problem, SLOTS)
        self._size, self._slots = 64, 0

    def fill(self, waiting: Ints) -> GPULoad | None:
        """A load of as many of the first of ``waiting`` as an empty GPU takes; None if it does not take the first."""
        best = self._most(waiting, None, near=True)
        best = self._most(waiting, best, near=False)
        if best is not None:
            self._size, self._slots = len(best.adapters), best.slots
        return best

    def _most(self, waiting: Ints, best: GPULoad | None, near: bool) -> GPULoad | None:
        """The largest load, no smaller than ``best``, with slots near those of the GPU before or with any."""
        low = len(best.adapters) if best is not None else 0
        size, top = (self._size if near else max(low, 1) + max(1, low // 64)), waiting.size + 1
        while top - low > 1:
            size = min(max(size, low + 1), top - 1)
            load = self._fits(waiting[:size], near)
            if load is None:
                top = size
            else:
                low, best = size, load
            size = 2 * low if top > waiting.size and low else (low + top) // 2
        return best

    def _fits(self, adapters: Ints, near: bool) -> GPULoad | None:
        """These adapters on a GPU, with as few slots as will do; None if it does not take them."""
        problem = self._search.problem
        members = tuple(np.sort(adapters).tolist())
        values = self._choices.on(self._type, int(problem.ranks[adapters].max()), len(members))
        if near and self._slots and values:
            place = int(np.searchsorted(values, self._slots))
            values = values[max(0, place - NEAR) : place + NEAR + 1] or values[-1:]
        loads = [GPULoad(self._type, members, slots) for slots in values]
        if not loads:
            return None
        kept, _ = self._search.judge(loads)
        return loads[int(kept.argmax())] if kept.any() else None


def poured(search: Search, of_type: Floats) -> list[list[GPULoad]]:
    """The plans of all orders that place all adapters, the cheapest first."""
    found: list[list[GPULoad]] = []
    for order in orders(search.problem):
        loads = pour(search, order, of_type, Stock(search.problem))
        if loads is not None:
            found.append(loads)
            found.sort(key=lambda plan: cost_of(plan, of_type))
            search.publish(found[0], cost_of(found[0], of_type))
    return found


def cost_of(loads: Sequence[GPULoad], of_type: Floats) -> float:
    """What loads cost whose types say it all."""
    return float(of_type[[load.gpu_type for load in loads]].sum())
