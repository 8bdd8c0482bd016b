"""How simulated figures and labels agree with measured ones.

Every error has a name, since the usual ones are easily confused: a published SMAPE of 5 % may be half of what others
call SMAPE, and neither tells on which side the twin errs.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from loraplan.workload import Floats

STARVED_BELOW = 0.9
"""A run is starved if it serves less than this share of the tokens asked for, as the measured label has it."""

CLEAR = (0.87, 0.93)
"""A measured share between these is too close to the limit for its label to tell much: noise decides it."""


@dataclass(frozen=True)
class Errors:
    """How far simulated figures ``a`` are from measured ones ``b``; nan if there are none.

    Attributes:
        mape: mean of ``|a - b| / b``, percent.
        smape_half: mean of ``|a - b| / (a + b)``, percent: what the published twin calls SMAPE.
        smape: mean of ``2 |a - b| / (a + b)``, percent: the usual SMAPE.
        bias: mean of ``a / b - 1``, percent.
        n: runs compared: those that have both figures.
    """

    mape: float
    smape_half: float
    smape: float
    bias: float
    n: int


@dataclass(frozen=True)
class Labels:
    """How simulated starvation labels agree with the measured ones.

    Attributes:
        agreement: share of runs with the same label, percent; nan if there are none.
        agreement_clear: the same over runs whose measured share of tokens served is not close to the limit.
        macro_f1: mean of the F1 scores of both labels (of one, where the other never occurs), percent.
        missed: runs that starved and are said not to: the dangerous error.
        false_alarm: runs that did not starve and are said to.
        n: runs compared.
    """

    agreement: float
    agreement_clear: float
    macro_f1: float
    missed: int
    false_alarm: int
    n: int


def errors(simulated: Floats, seen: Floats) -> Errors:
    """Compare figures of shape (runs,) where both exist and the measured one is above 0."""
    fair = np.isfinite(simulated) & np.isfinite(seen) & (seen > 0)
    a, b = simulated[fair], seen[fair]
    if a.size == 0:
        return Errors(math.nan, math.nan, math.nan, math.nan, 0)
    off = np.abs(a - b)
    half = 100.0 * float(np.mean(off / (np.abs(a) + np.abs(b))))
    return Errors(
        mape=100.0 * float(np.mean(off / b)),
        smape_half=half,
        smape=2.0 * half,
        bias=100.0 * float(np.mean(a / b - 1.0)),
        n=int(a.size),
    )


def labels(said: NDArray[np.bool_], true: NDArray[np.bool_], served: Floats) -> Labels:
    """Compare starvation labels of shape (runs,); ``served`` is the measured share of tokens served."""
    clear = (served < CLEAR[0]) | (served > CLEAR[1])
    right = said == true
    f1 = []
    for label in (True, False):
        hits = int((right & (true == label)).sum())
        occurs = int((said == label).sum() + (true == label).sum())
        if occurs:
            f1.append(2.0 * hits / occurs)
    return Labels(
        agreement=100.0 * mean(right),
        agreement_clear=100.0 * mean(right[clear]),
        macro_f1=100.0 * mean(f1),
        missed=int((true & ~said).sum()),
        false_alarm=int((~true & said).sum()),
        n=int(true.size),
    )


def mean(values: Sequence[float] | Floats | NDArray[np.bool_]) -> float:
    """The mean; nan of nothing."""
    return float(np.mean(values)) if len(values) else math.nan
