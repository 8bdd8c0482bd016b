"""Which loads to accept at a given risk: conformal thresholds on the margin's score."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from loraplan.workload import Floats

NAMES = ("score", "served", "packed_score", "packed_served")
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


@dataclass(frozen=True, eq=False)
class Calibration:
    """Loads that no training has seen, and what the twin said of them.

    Attributes:
        score, served: shape (n,), of loads drawn from the design.
        packed_score, packed_served: shape (m,), of loads that solvers packed to the limit; may be empty.
    """

    score: Floats
    served: Floats
    packed_score: Floats
    packed_served: Floats

    def threshold(self, limit: float, risk: float) -> float:
        """The score up to which loads are taken to serve ``limit``: at most ``risk`` of those taken do not.

        Among drawn loads; and among packed ones, where there are enough of them, at most ``PACKED_RISK`` times as many.
        """
        found = threshold(self.score, self.served < limit, risk)
        if self.packed_score.size >= 1.0 / (PACKED_RISK * risk):  # fewer tell nothing of so small a risk
            found = min(found, threshold(self.packed_score, self.packed_served < limit, PACKED_RISK * risk))
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
