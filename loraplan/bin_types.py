"""Bin types: what a GPU takes, as a choice among small knapsacks; what exact solvers and certificates rest on.

An oracle whose accepted loads have this form says so by ``Oracle.bin_types``. A bin type is a GPU type, a max rank, a
range of slots, and a few rows of non-negative weights: a load satisfies it if, in every row, the weights of its
adapters add up to at most 1. **Outer**: every load that the oracle accepts satisfies some bin type, so that a bound
over all bin types is a bound over all loads. Coarse bin types satisfy more than the oracle accepts; each can be split
into finer ones that together still cover all accepted loads that satisfy it.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np

from loraplan.problem import Problem
from loraplan.workload import Floats, Ints

EXCLUDED = 2.0
"""The weight of an adapter that a bin type does not take at all."""


@dataclass(frozen=True, eq=False)
class BinType:
    """One knapsack of the union.

    Attributes:
        gpu_type, max_rank: of its loads (adapters of a higher rank are excluded).
        slots: the least and the most slots of its loads.
        rows: shape (rows, items), weights >= 0; one above 1 excludes the item.
        floor_ms: accepted loads that satisfy it have at least this ITL.
        box: what ``BinTypes.split`` needs to know.
        place: of one that cannot be split, if the union is exact: numbers that tell it from all others.
    """

    gpu_type: int
    max_rank: int
    slots: tuple[int, int]
    rows: Floats
    floor_ms: float
    box: Any
    place: tuple[int, ...] = ()


class BinTypes(ABC):
    """The union of knapsacks in which an oracle's accepted loads lie.

    Items are the adapters, or groups of adapters of which each has at least the item's weights (as if it were the
    lightest of all of them in every respect).
    """

    exact: ClassVar[bool] = False
    """Whether a load that satisfies a bin type which cannot be split is always accepted."""

    rows: ClassVar[int]
    """Rows of every bin type."""

    @abstractmethod
    def roots(self) -> list[BinType]:
        """Bin types that cover all accepted loads."""

    @abstractmethod
    def split(self, bin_type: BinType, counts: Floats) -> list[BinType]:
        """Finer bin types that together cover the accepted loads of ``bin_type``; itself alone where none are.

        Args:
            bin_type: of this union.
            counts: shape (items,), how much of each item a load has whose judgement is to become sharper.
        """


class Groups:
    """Adapters in groups: the least, the largest or the sum of a figure in each.

    >>> groups = Groups(np.array([0, 1, 0]))
    >>> groups.least(np.array([3.0, 5.0, 2.0])).tolist()
    [2.0, 5.0]
    """

    def __init__(self, group_of: Ints) -> None:
        """``group_of``, shape (adapters,): numbers from 0 without gaps; adapters of no group have -1."""
        self.order = np.argsort(group_of, kind="stable")[int((group_of < 0).sum()) :]
        self.starts = np.flatnonzero(np.diff(group_of[self.order], prepend=-1))
        self.sizes = np.diff(np.append(self.starts, self.order.size))

    def least(self, figure: Floats) -> Floats:
        """Shape (groups,)."""
        return np.asarray(np.minimum.reduceat(figure[self.order], self.starts), dtype=np.float64)

    def most(self, figure: Floats) -> Floats:
        """Shape (groups,)."""
        return np.asarray(np.maximum.reduceat(figure[self.order], self.starts), dtype=np.float64)


def server_ranks(problem: Problem, gpu_type: int) -> Floats:
    """The max rank that each adapter needs on this GPU type, shape (adapters,); inf where it takes none that large."""
    allowed = np.array(sorted(problem.fleet.types[gpu_type].profile.limits.lora_ranks), dtype=np.float64)
    place = np.searchsorted(allowed, problem.ranks)
    return np.append(allowed, np.inf)[place]


def covers(bin_types: Sequence[BinType], counts: Floats, gpu_type: int) -> bool:
    """Whether items ``counts`` satisfy one of the bin types of this GPU type."""
    return any(
        one.gpu_type == gpu_type
        and bool((one.rows @ counts <= 1.0).all())
        and not bool((one.rows[:, counts > 0] > 1.0).any())
        for one in bin_types
    )
