"""The regression gate: results set against older ones, cell by cell, by ratios."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pandas as pd

from benchmarks.paired import Spread, geometric
from benchmarks.results import COMPLETE, KEY
from loraplan.errors import BadInputError

QUALITY = 1.005
"""The geometric mean of (new cost / old cost) may be so high ..."""
LOST = 0
"""... and so many cells may have lost their plan."""
TIME, TIME_SURELY = 1.5, 1.25
"""The same for seconds, and for the lower end of its interval: machines are never quite alike."""
LEAST_S = 0.02
"""Cells that took less are too quick to be timed."""
FEWEST = 3
"""Cells below which no time is judged."""


@dataclass(frozen=True)
class Checked:
    """A solver's cells against the older ones.

    Attributes:
        n: cells compared.
        quality: new cost / old cost; below 1 is better.
        time: new seconds / old seconds, both by the machine's speed at the time; None if too few can be timed.
        lost: cells with a plan before, and none now.
        complaints: what is wrong; empty if nothing is.
    """

    solver: str
    n: int
    quality: Spread | None
    time: Spread | None
    lost: tuple[str, ...]
    complaints: tuple[str, ...]


def check(table: pd.DataFrame, before: pd.DataFrame) -> list[Checked]:
    """Compare ``table`` with ``before``, solver by solver.

    Raises:
        BadInputError: they have no cell in common.
    """
    both = table.merge(before, on=[*KEY, "problem"], suffixes=("", "_old"))
    if both.empty:
        raise BadInputError("check: the older results have none of these cells (with the same problems)")
    return [_checked(str(solver), part) for solver, part in both.groupby("solver", sort=False)]


def _checked(solver: str, both: pd.DataFrame) -> Checked:
    had = both["status_old"].isin(COMPLETE) & (both["value_old"] > 0)
    has = both["status"].isin(COMPLETE) & (both["value"] > 0)
    lost = both[had & ~has]
    names = tuple(f"{row.suite}/{row.instance}: {row.status}" for row in lost.itertuples())
    kept = both[had & has]
    quality = geometric((kept["value"] / kept["value_old"]).to_numpy(float)) if len(kept) else None
    slow = kept[(kept["solver_s_old"] >= LEAST_S) & (kept["solver_s"] > 0)]
    speed = (slow["solver_s"] / slow["loop_s"]) / (slow["solver_s_old"] / slow["loop_s_old"])
    time = geometric(speed.to_numpy(float)) if len(slow) >= FEWEST else None
    complaints = []
    if len(names) > LOST:
        complaints.append(f"{len(names)} cells lost their plan ({names[0]})")
    if quality is not None and quality.mean > QUALITY:
        worst = kept.iloc[int((kept["value"] / kept["value_old"]).to_numpy(float).argmax())]
        complaints.append(
            f"plans cost {quality.mean:.3f} times what they did (worst: {worst['suite']}/{worst['instance']}, "
            f"{worst['value']:g} instead of {worst['value_old']:g})"
        )
    if time is not None and time.mean > TIME and time.low > TIME_SURELY:
        complaints.append(f"it takes {time.mean:.2f} times as long ({time.low:.2f} to {time.high:.2f})")
    return Checked(solver, len(both), quality, time, names, tuple(complaints))


def ok(found: list[Checked]) -> bool:
    """Whether nothing has become worse."""
    return not any(one.complaints for one in found)


def ratio(spread: Spread | None) -> tuple[float, float, float]:
    """Mean, low and high; nan if there is none."""
    return (np.nan,) * 3 if spread is None else (spread.mean, spread.low, spread.high)
