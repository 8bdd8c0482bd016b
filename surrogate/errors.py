"""How wrong a model is on examples that it was not trained on."""

from __future__ import annotations

import numpy as np

from surrogate.examples import TARGETS, Examples
from surrogate.model import Model
from twin.agreement import STARVED_BELOW, errors, labels, mean

RISK = 0.01
"""At which the accepted share is told."""


def errors_of(model: Model, examples: Examples) -> dict[str, float]:
    """Errors in percent, by name; those that have no value, such as ITL errors where nothing was served, are left out.

    Labels are right if the score is above 0 exactly where the served fraction is below 0.9. The accepted share is that
    of loads with a score below the threshold of risk 0.01; the starved share is what starves of those.
    """
    said = model.judge_examples(examples)
    seen = dict(zip(TARGETS, examples.targets.T, strict=True))
    starved = seen["served_fraction"] < STARVED_BELOW
    found = labels(said.score > 0.0, starved, seen["served_fraction"])
    accepted = said.score <= model.calibration.threshold(STARVED_BELOW, RISK)
    throughput = said.median("served_fraction") * examples.offered_tok_s
    known = np.isfinite(seen["ttft_s"]) & (seen["ttft_s"] > 0.0)
    ttft = np.abs(said.median("ttft_s")[known] / seen["ttft_s"][known] - 1.0)
    values = {
        "accuracy": found.agreement,
        "macro_f1": found.macro_f1,
        "throughput_mape": errors(throughput, examples.throughput_tok_s).mape,
        "itl_mape": errors(said.median("itl_ms"), seen["itl_ms"]).mape,
        "ttft_median_ape": 100.0 * float(np.median(ttft)) if ttft.size else np.nan,
        "accepted_at_risk_0.01": 100.0 * mean(accepted),
        "starved_of_accepted": 100.0 * mean(starved[accepted]),
    }
    return {name: value for name, value in values.items() if np.isfinite(value)}
