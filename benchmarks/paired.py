"""Paired statistics: two solvers on the same instances, by the ratio of what their plans cost."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from itertools import combinations

import numpy as np
import pandas as pd
from scipy import stats

from benchmarks.best_known import SAME
from benchmarks.results import COMPLETE
from loraplan.workload import Floats

DRAWS = 2000
LEVEL = 0.95


@dataclass(frozen=True)
class Spread:
    """Geometric mean of ratios, with a bootstrap interval of 95 % (percentiles); low = high = mean for one ratio."""

    mean: float
    low: float
    high: float


@dataclass(frozen=True)
class Pair:
    """Solver ``a`` against solver ``b``.

    Attributes:
        n: instances for which both have complete plans; means over seeds are compared.
        ratio: cost of a / cost of b; below 1, a is better.
        wins, ties, losses: of a.
        p: of Wilcoxon's signed-rank test that neither is better (ties are split); nan for less than 6 differences.
        verdict: ``better``, ``worse``, or ``not told apart``: whether the interval holds 1.
    """

    objective: str
    oracle: str
    a: str
    b: str
    n: int
    ratio: Spread
    wins: int
    ties: int
    losses: int
    p: float
    verdict: str


def geometric(ratios: Floats, seed: int = 0) -> Spread:
    """The geometric mean of ``ratios``, shape (n,), n at least 1."""
    logs = np.log(ratios)
    mean = float(np.exp(logs.mean()))
    if len(logs) == 1:
        return Spread(mean, mean, mean)
    rng = np.random.default_rng(seed)
    drawn = np.exp(logs[rng.integers(len(logs), size=(DRAWS, len(logs)))].mean(axis=1))
    low, high = np.quantile(drawn, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    return Spread(mean, float(low), float(high))


def pairs(table: pd.DataFrame) -> list[Pair]:
    """All pairs of solvers, for each objective and oracle, in the order of the table."""
    found = []
    plans = table[table["status"].isin(COMPLETE) & (table["value"] > 0)]
    for (objective, oracle), part in plans.groupby(["objective", "oracle"], sort=False):
        values = part.groupby(["suite", "instance", "solver"], sort=False)["value"].mean().unstack("solver")
        names = [name for name in part["solver"].unique() if name in values.columns]
        for a, b in combinations(names, 2):
            both = values[[a, b]].dropna()
            if len(both):
                found.append(_pair(str(objective), str(oracle), a, b, both))
    return found


def pair_table(table: pd.DataFrame) -> pd.DataFrame:
    """The pairs of ``table`` as a table; the columns of `Pair`, the ratio in three."""
    rows = []
    for pair in pairs(table):
        data = asdict(pair)
        spread = data.pop("ratio")
        rows.append(data | {"ratio": spread["mean"], "ratio_low": spread["low"], "ratio_high": spread["high"]})
    return pd.DataFrame(rows)


def _pair(objective: str, oracle: str, a: str, b: str, both: pd.DataFrame) -> Pair:
    mine, other = both[a].to_numpy(float), both[b].to_numpy(float)
    ratio = geometric(mine / other)
    same = np.abs(mine - other) <= SAME * other
    differing = int((~same).sum())
    p = float(stats.wilcoxon(np.log(mine / other), zero_method="zsplit").pvalue) if differing >= 6 else np.nan
    verdict = "better" if ratio.high < 1 else "worse" if ratio.low > 1 else "not told apart"
    wins = int((~same & (mine < other)).sum())
    return Pair(
        objective, oracle, a, b, len(both), ratio, wins, int(same.sum()), differing - wins, p, verdict
    )  # fmt: skip
