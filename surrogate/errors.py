"""How wrong a model is on examples that it was not trained on."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from loraplan.workload import Floats
from surrogate.examples import STARVED_BELOW, TARGETS, Examples
from surrogate.model import Model

RISK = 0.01
"""At which the accepted share is told."""


def errors_of(model: Model, examples: Examples) -> dict[str, float]:
    """Errors in percent, by name; those that have no value, such as ITL errors where nothing was served, are left out.

    Labels are right if the score is above 0 exactly where the served fraction is below 0.9. The accepted share is that
    of loads with a score below the threshold of risk 0.01; the starved share is what starves of those.
    """
    said = model.judge_examples(examples)
    served = examples.targets[:, TARGETS.index("served_fraction")]
    starved, called = served < STARVED_BELOW, said.score > 0.0
    accepted = said.score <= model.calibration.threshold(STARVED_BELOW, RISK)
    throughput = said.median("served_fraction") * examples.offered_tok_s
    itl, ttft = (_off(said.median(name), examples.targets[:, TARGETS.index(name)]) for name in ("itl_ms", "ttft_s"))
    found = {
        "accuracy": np.mean(starved == called),
        "macro_f1": np.mean([_f1(starved, called), _f1(~starved, ~called)]),
        "throughput_mape": _mean(_off(throughput, examples.throughput_tok_s)),
        "itl_mape": _mean(itl),
        "ttft_median_ape": np.median(ttft) if ttft.size else np.nan,
        "accepted_at_risk_0.01": np.mean(accepted),
        "starved_of_accepted": _mean(starved[accepted]),
    }
    return {name: 100.0 * float(value) for name, value in found.items() if np.isfinite(value)}


def _off(said: Floats, true: Floats) -> Floats:
    """abs(said - true) / true where it is known and not 0."""
    known = np.isfinite(true) & (true > 0.0)
    return np.asarray(np.abs(said[known] / true[known] - 1.0))


def _mean(values: Floats | NDArray[np.bool_]) -> float:
    return float(np.mean(values)) if values.size else float("nan")


def _f1(true: NDArray[np.bool_], said: NDArray[np.bool_]) -> float:
    """F1 score of a label; 1 if there is none of it, and none was said."""
    either = int(true.sum() + said.sum())
    return 2.0 * int((true & said).sum()) / either if either else 1.0
