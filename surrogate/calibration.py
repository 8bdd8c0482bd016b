"""Which loads to accept at a given risk: conformal thresholds on the margin's score."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import brentq
from scipy.special import expit

from loraplan.workload import Floats

NAMES = ("score", "served", "packed_score", "packed_served")
FEWEST, NEWTON_STEPS = 10, 30
"""Loads of each kind below which no slope is fitted; steps of the fit."""
FULL = 0.95
"""Of packed loads, the part that has scores up to the threshold they were packed to; a few slots more lower a score."""
PACKED_RISK = 2.0
"""How much more often than of loads drawn at random it may happen that one starves which a solver has packed."""
LIMITS = np.concatenate((np.arange(0.3, 0.9, 0.05), np.arange(0.9, 0.995, 0.01), [0.995]))
"""Served fractions at which thresholds are computed; between them they are interpolated."""


def threshold(score: Floats, starved: NDArray[np.bool_], risk: float) -> float:
    """The largest score up to which at most ``risk`` of the loads starve; -inf if there is none.

    Split-conformal: counting the load that is to be judged as one more that starves, which makes the bound hold for
    a load of the same law, not just for these (Angelopoulos and Bates, arXiv 2107.07511, section 4).

    Args:
        score, starved: shape (n,), of loads that no training has seen.
        risk: 0 to 1.
    """
    order = np.argsort(score, kind="stable")
    bad = np.cumsum(starved[order])
    fine = np.flatnonzero((bad + 1.0) / (np.arange(bad.size) + 2.0) <= risk)
    return float(score[order][fine[-1]]) if fine.size else -np.inf


def logistic_slope(score: Floats, starved: NDArray[np.bool_]) -> float:
    """How the log-odds of starving grow with the score, by logistic regression with both; 1 if there is too little.

    A score is meant as log-odds, of loads like those of the training; on others they grow more slowly.
    """
    if starved.sum() < FEWEST or (~starved).sum() < FEWEST:
        return 1.0
    terms, weights = np.column_stack((np.ones(score.size), score)), np.zeros(2)
    for _ in range(NEWTON_STEPS):
        said = expit(terms @ weights)
        curvature = (terms * (said * (1.0 - said))[:, None]).T @ terms
        weights = weights + np.linalg.solve(curvature + 1e-6 * np.eye(2), terms.T @ (starved - said))
    return float(weights[1]) if 0.0 < weights[1] < 1.0 else 1.0


def packed_threshold(score: Floats, starved: NDArray[np.bool_], slope: float, risk: float) -> float:
    """The threshold at which ``risk`` of the loads starve that a solver packs up to it.

    A solver's choice makes a load worse than its score says: the log-odds are the score's, with its slope, and shifted.
    With another threshold the solver's loads would be as near to it as those it has packed are to theirs.

    Args:
        score, starved: shape (n,), of loads that a solver packed up to one threshold: most scores are close to it.
        slope: of the log-odds in the score.
        risk: 0 to 1.
    """
    seen = min(starved.sum() + 0.5, starved.size - 0.25)  # half a load more, for what chance has not shown yet

    def shift(wanted: float) -> float:
        """What has to be added to the log-odds for ``wanted`` loads to starve."""
        return float(brentq(lambda shift: expit(slope * score + shift).sum() - wanted, -1e3, 1e3))

    return float(np.quantile(score, FULL) + (shift(risk * score.size) - shift(seen)) / slope)


@dataclass(frozen=True, eq=False)
class Calibration:
    """Loads that no training has seen, and what the twin said of them.

    Attributes:
        score, served: shape (n,), of loads drawn from the design.
        packed_score, packed_served: shape (m,), of loads that a solver packed to the limit by this very model; may be
            empty.
    """

    score: Floats
    served: Floats
    packed_score: Floats
    packed_served: Floats

    def threshold(self, limit: float, risk: float) -> float:
        """The score up to which loads are taken to serve ``limit``: at most ``risk`` of those taken do not.

        Among drawn loads; and, where packed ones are known, among those that a solver packs up to it at most
        ``PACKED_RISK`` times as many.
        """
        starved = self.served < limit
        found = threshold(self.score, starved, risk)
        if self.packed_score.size:
            allowed = min(PACKED_RISK * risk, 0.5)
            slope = logistic_slope(self.score, starved)
            found = min(found, packed_threshold(self.packed_score, self.packed_served < limit, slope, allowed))
        return found

    def served_at(self, risk: float, limit: float) -> tuple[Floats, Floats]:
        """Scores, ascending, and the served fraction that loads of up to that score reach at this risk; for np.interp.

        Such that it is at least ``limit`` exactly up to ``threshold(limit, risk)``.
        """
        limits = np.union1d(LIMITS, [limit])
        scores = np.array([self.threshold(float(one), risk) for one in limits])
        scores = np.maximum.accumulate(scores[::-1])[::-1]  # a stricter limit never accepts more
        known = np.isfinite(scores)
        if not known.any():  # nothing can be accepted at this risk
            return np.zeros(1), np.zeros(1)
        return scores[known][::-1], limits[known][::-1]

    def tensors(self) -> dict[str, NDArray[np.float32]]:
        """As they are stored."""
        return {f"calibration.{name}": getattr(self, name).astype(np.float32) for name in NAMES}


NOTHING = Calibration(*(np.empty(0) for _ in NAMES))
"""Accepts no load at any risk."""
