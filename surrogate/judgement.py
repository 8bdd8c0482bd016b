"""What examples that a model was not trained on say of it: thresholds, and how wrong it is."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from loraplan.workload import Floats
from surrogate.examples import TARGETS, Examples
from surrogate.model import Model
from twin.agreement import STARVED_BELOW, errors, labels, mean

RISK = 0.01
"""At which the accepted share is told."""


def calibrated(
    model: Model, validation: Examples, drawn: Examples | None = None, packed: Examples | None = None
) -> Model:
    """The model with thresholds from loads that it has not seen, and its errors on the card.

    Args:
        model: with any calibration.
        validation: what errors are computed on.
        drawn: loads drawn from the design; None keeps those known.
        packed: loads that a solver packed by this model; None keeps those known.
    """
    known: dict[str, Floats] = {}
    for prefix, examples in (("", drawn), ("packed_", packed)):
        if examples is not None:
            known[f"{prefix}score"] = model.judge_examples(examples).score
            known[f"{prefix}served"] = examples.targets[:, TARGETS.index("served_fraction")]
    found = Model(model.tensors, replace(model.calibration, **known), model.card)
    card = model.card.model_copy(update={"errors": errors_of(found, validation)})
    return Model(found.tensors, found.calibration, card).sealed()


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
