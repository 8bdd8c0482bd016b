"""Solvers of a third party that misbehave, and a package of theirs that other processes find."""

from __future__ import annotations

import os
import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from loraplan.problem import GPULoad
from solvers import Search, Solution, Solver


@dataclass(frozen=True)
class NoParams:
    """No settings."""


class Base(Solver):
    """Puts every adapter on a GPU of its own."""

    Params: ClassVar[type[Any]] = NoParams

    def __init__(self, params: NoParams) -> None: ...

    def solve(self, search: Search) -> Solution:
        return Solution("feasible", tuple(GPULoad(0, (i,), 1) for i in range(len(search.problem.adapters))))


class Raises(Base):
    """Has a bug."""

    def solve(self, search: Search) -> Solution:
        raise ZeroDivisionError("a bug,\nof two lines")


class Hangs(Base):
    """Never looks at the time."""

    def solve(self, search: Search) -> Solution:
        while True:
            time.sleep(0.01)


class Eats(Base):
    """Takes more and more memory."""

    def solve(self, search: Search) -> Solution:
        eaten = []
        while True:
            eaten.append(np.ones(2**25))


class Dies(Base):
    """Takes its process with it."""

    def solve(self, search: Search) -> Solution:
        os.kill(os.getpid(), 11)
        return Solution("unknown")


class Wrong(Base):
    """Leaves an adapter out."""

    def solve(self, search: Search) -> Solution:
        return Solution("feasible", super().solve(search).loads[1:])


class Starves(Base):
    """Puts all on one GPU."""

    def solve(self, search: Search) -> Solution:
        return Solution("feasible", (GPULoad(0, tuple(range(len(search.problem.adapters))), 1),))


class Lies(Base):
    """Proves too much."""

    def solve(self, search: Search) -> Solution:
        return replace(super().solve(search), lower_bound=8.5)


class GivesUp(Base):
    """Says that there is no plan."""

    def solve(self, search: Search) -> Solution:
        return Solution("infeasible", reason="it looks hard")


class Slow(Base):
    """Takes a while."""

    def solve(self, search: Search) -> Solution:
        time.sleep(0.3)
        return super().solve(search)


NAMES = {
    "one_each": "Base", "raises": "Raises", "hangs": "Hangs", "eats": "Eats", "dies": "Dies", "wrong": "Wrong",
    "starves": "Starves", "lies": "Lies", "gives_up": "GivesUp", "slow": "Slow",
}  # fmt: skip


def install(folder: Path) -> None:
    """Have ``folder``, once it is on the path of modules, hold the package that offers these solvers."""
    info = folder / "bad_solvers-1.0.dist-info"
    info.mkdir(parents=True)
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: bad-solvers\nVersion: 1.0\n")
    points = "\n".join(f"{name} = support.bad_solvers:{kind}" for name, kind in NAMES.items())
    (info / "entry_points.txt").write_text(f"[loraplan.solvers]\n{points}\n")
