"""Plans a step away from a plan: what local search chooses from."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.random import Generator

from loraplan.problem import GPULoad, Problem
from solvers.base import Search
from solvers.construction import SlotChoices, Stock

Unit = tuple[int, ...]
CLOSE = 1e-9
"""Costs that differ less, relatively, are equal."""


@dataclass(frozen=True)
class Move:
    """GPUs that change: by row, what becomes of each (None: it is no longer used); and GPUs that are added."""

    changed: dict[int, GPULoad | None]
    added: tuple[GPULoad, ...] = ()

    @property
    def loads(self) -> list[GPULoad]:
        """The loads that have to be judged."""
        return [load for load in (*self.changed.values(), *self.added) if load is not None]


class Placement:
    """A complete placement, and how good it is.

    Better is, in this order: fewer GPUs than the stock allows for (a search may begin with too many), a lower cost, and
    adapters less evenly spread, which leads to an empty GPU in the end.
    """

    def __init__(self, search: Search, loads: Sequence[GPULoad]) -> None:
        """Take ``loads``, which keep the constraints."""
        self.search, self.loads = search, list(loads)
        self.costs = list(search.costs(self.loads, search.oracle.predict(self.loads)))
        problem = search.problem
        part = problem.offered / max(float(problem.offered.sum()), 1e-300) + 1.0 / len(problem.adapters)
        self._part = part
        self._unit = {unit[0]: unit for unit in problem.units}

    def units(self, load: GPULoad) -> list[Unit]:
        """What can be moved from a GPU."""
        return [self._unit[i] for i in load.adapters if i in self._unit]

    def size(self, load: GPULoad | None) -> float:
        """How much is on a GPU: its part of the traffic and of the adapters."""
        return 0.0 if load is None else float(self._part[list(load.adapters)].sum())

    def excess(self, move: Move | None = None) -> int:
        """By how many GPUs the placement, after ``move``, exceeds the stock."""
        problem = self.search.problem
        counts = [0] * len(problem.fleet.types)
        for load in self.loads:
            counts[load.gpu_type] += 1
        if move is not None:
            for row in move.changed:
                counts[self.loads[row].gpu_type] -= 1
            for load in move.loads:
                counts[load.gpu_type] += 1
        over = sum(max(0, used - t.count) for used, t in zip(counts, problem.fleet.types, strict=True))
        return max(over, sum(counts) - problem.gpus)

    @property
    def cost(self) -> float:
        """What the placement costs."""
        return float(sum(self.costs))

    def best(self, moves: Sequence[Move], slack: float = 0.0) -> Move | None:
        """Make the best of ``moves`` and return it; None if none is better.

        Args:
            moves: to choose from.
            slack: how much less uneven the placement may become at equal cost.
        """
        moves = [move for move in moves if move.loads]
        if not moves:
            return None
        ends = np.cumsum([len(move.loads) for move in moves])
        asked = [load for move in moves for load in move.loads]
        kept, predicted = self.search.judge(asked)
        costs = self.search.costs(asked, predicted)
        now, excess = self.cost, self.excess()
        chosen: tuple[Move, list[float]] | None = None
        least = (0, 0.0, slack)
        for move, end in zip(moves, ends, strict=True):
            rows = slice(int(end) - len(move.loads), int(end))
            if not kept[rows].all():
                continue
            change = float(costs[rows].sum()) - sum(self.costs[row] for row in move.changed)
            change = 0.0 if abs(change) <= CLOSE * max(now, 1e-12) else change
            value = (self.excess(move) - excess, change, self._evenness(move))
            if value < least:
                chosen, least = (move, list(costs[rows])), value
        if chosen is None:
            return None
        self._make(*chosen)
        return chosen[0]

    def _evenness(self, move: Move) -> float:
        before = sum(self.size(self.loads[row]) ** 2 for row in move.changed)
        after = sum(self.size(load) ** 2 for load in (*move.changed.values(), *move.added))
        return 0.0 if abs(before - after) <= CLOSE * before else before - after

    def _make(self, move: Move, costs: Sequence[float]) -> None:
        new = dict(zip(move.loads, costs, strict=True))
        for row, load in move.changed.items():
            if load is not None:
                self.loads[row], self.costs[row] = load, new[load]
        gone = {row for row, load in move.changed.items() if load is None}
        keep = [row for row in range(len(self.loads)) if row not in gone]
        self.loads = [self.loads[row] for row in keep] + list(move.added)
        self.costs = [self.costs[row] for row in keep] + [new[load] for load in move.added]


class Neighbours:
    """Draws moves of a placement."""

    def __init__(self, problem: Problem, rng: Generator) -> None:
        """Prepare for placements of ``problem``."""
        self._problem, self._rng = problem, rng
        self._choices = SlotChoices(problem)

    def draw(self, at: Placement, count: int) -> list[Move]:
        """Up to ``count`` moves, of all kinds."""
        kinds: list[tuple[float, Callable[[Placement], Move | None]]] = [
            (0.35, self._relocate),
            (0.35, self._swap),
            (0.1, self._merge),
            (0.1, self._open),
            (0.1, self._refit),
        ]
        if len(self._problem.fleet.types) > 1:
            kinds = [(0.35, self._relocate), (0.25, self._swap), *kinds[2:], (0.1, self._retype)]
        weights, makers = zip(*kinds, strict=True)
        drawn = self._rng.choice(len(makers), size=count, p=weights)
        return [move for kind in drawn if (move := makers[kind](at)) is not None]

    def refits(self, load: GPULoad) -> list[GPULoad]:
        """The load with every other number of slots."""
        rank = int(self._problem.ranks[list(load.adapters)].max())
        return [
            replace(load, slots=slots)
            for slots in self._choices.on(load.gpu_type, rank, len(load.adapters))
            if slots != load.slots
        ]

    def _pair(self, at: Placement) -> tuple[int, int] | None:
        if len(at.loads) < 2:
            return None
        a, b = self._rng.choice(len(at.loads), size=2, replace=False)
        return int(a), int(b)

    def _some(self, at: Placement, row: int) -> list[Unit]:
        """One unit of a GPU, or a few."""
        units = at.units(at.loads[row])
        count = min(len(units), int(self._rng.geometric(0.6)))
        return [units[k] for k in self._rng.choice(len(units), size=count, replace=False)]

    def _with(self, load: GPULoad, add: Sequence[Unit], drop: Sequence[Unit]) -> GPULoad | None:
        """A GPU with other adapters; now and then with other slots as well."""
        gone = {i for unit in drop for i in unit}
        adapters = tuple(sorted([i for i in load.adapters if i not in gone] + [i for unit in add for i in unit]))
        if not adapters:
            return None
        slots = min(load.slots, len(adapters)) if load.slots >= len(load.adapters) else load.slots
        if self._rng.random() < 0.3 or load.slots >= len(load.adapters):
            rank = int(self._problem.ranks[list(adapters)].max())
            choices = self._choices.on(load.gpu_type, rank, len(adapters))
            if not choices:
                return None
            near = sorted(choices, key=lambda s: abs(np.log(s / slots)))[:4]
            slots = near[int(self._rng.integers(len(near)))]
        return GPULoad(load.gpu_type, adapters, slots)

    def _relocate(self, at: Placement) -> Move | None:
        pair = self._pair(at)
        if pair is None:
            return None
        a, b = pair
        units = self._some(at, a)
        taker = self._with(at.loads[b], units, ())
        return None if taker is None else Move({a: self._with(at.loads[a], (), units), b: taker})

    def _swap(self, at: Placement) -> Move | None:
        pair = self._pair(at)
        if pair is None:
            return None
        a, b = pair
        gives, takes = self._some(at, a), self._some(at, b)
        left, right = self._with(at.loads[a], takes, gives), self._with(at.loads[b], gives, takes)
        return None if left is None or right is None else Move({a: left, b: right})

    def _merge(self, at: Placement) -> Move | None:
        pair = self._pair(at)
        if pair is None:
            return None
        a, b = pair
        taker = self._with(at.loads[b], at.units(at.loads[a]), ())
        return None if taker is None else Move({a: None, b: taker})

    def _open(self, at: Placement) -> Move | None:
        """A part of a GPU's adapters onto a new one."""
        stock = Stock(self._problem)
        for load in at.loads:
            stock.take(load.gpu_type)
        types = stock.types()
        a = int(self._rng.integers(len(at.loads)))
        units = at.units(at.loads[a])
        if not types or len(units) < 2:
            return None
        part = self._rng.random(len(units)) < self._rng.random()
        moved = [unit for unit, go in zip(units, part, strict=True) if go]
        if not moved or len(moved) == len(units):
            return None
        new = GPULoad(types[int(self._rng.integers(len(types)))], (), sum(map(len, moved)))
        opened, rest = self._with(new, moved, ()), self._with(at.loads[a], (), moved)
        return None if opened is None or rest is None else Move({a: rest}, (opened,))

    def _retype(self, at: Placement) -> Move | None:
        """Another type of GPU, which gives a part of its adapters away: a cheaper one may not carry them all."""
        pair = self._pair(at)
        if pair is None:
            return None
        a, b = pair
        load, units = at.loads[a], at.units(at.loads[a])
        types = [t for t in range(len(self._problem.fleet.types)) if t != load.gpu_type]
        new = replace(load, gpu_type=types[int(self._rng.integers(len(types)))])
        part = self._rng.random(len(units)) < self._rng.random()
        moved = [unit for unit, go in zip(units, part, strict=True) if go]
        if not moved or len(moved) == len(units):
            return None
        taker, rest = self._with(at.loads[b], moved, ()), self._with(new, (), moved)
        return None if taker is None or rest is None else Move({a: rest, b: taker})

    def _refit(self, at: Placement) -> Move | None:
        """Another number of slots, or another type of GPU."""
        a = int(self._rng.integers(len(at.loads)))
        load = at.loads[a]
        types = [t for t in range(len(self._problem.fleet.types)) if t != load.gpu_type]
        if types and self._rng.random() < 0.5:
            load = replace(load, gpu_type=types[int(self._rng.integers(len(types)))])
        rank = int(self._problem.ranks[list(load.adapters)].max())
        choices = self._choices.on(load.gpu_type, rank, len(load.adapters))
        if not choices:
            return None
        new = replace(load, slots=choices[int(self._rng.integers(len(choices)))])
        return None if new == at.loads[a] else Move({a: new})
