"""What objectives are worth as the twin saw a plan, rather than as its oracle predicted it."""

from __future__ import annotations

import math
from collections.abc import Mapping

import numpy as np

from loraplan.config import Config
from loraplan.errors import BadInputError
from loraplan.headroom import Headroom
from loraplan.oracle import ORACLES, Predictions
from loraplan.plan import Plan
from loraplan.recorded import recorded
from loraplan.validation import Validation
from loraplan.workload import Floats
from objectives import Objective


def measured_values(
    plan: Plan, validation: Validation, objectives: Mapping[str, Objective], config: Config | None = None
) -> dict[str, float]:
    """The value of each objective, from the figures of a validation; nan where the plan lacks what it needs.

    Headroom is not in a validation: for objectives that ask for it, it is found by the twin, with Poisson arrivals.

    Args:
        plan: complete.
        validation: of ``plan``.
        objectives: by name.
        config: as ``recorded`` takes it.
    """
    made = recorded(plan, config)
    predicted = _as_predictions(validation)
    if any(objective.needs_headroom for objective in objectives.values()):
        twin = ORACLES.get("twin")
        headroom = Headroom(made.problem, twin, twin.Params()).of(made.loads)
        predicted = _as_predictions(validation, headroom)
    values = {}
    for name, objective in objectives.items():
        try:
            values[name] = float(objective.gpu_costs(made.problem, made.loads, predicted).sum())
        except BadInputError:  # no price, say
            values[name] = math.nan
    return values


def _as_predictions(validation: Validation, headroom: Floats | None = None) -> Predictions:
    gpus = validation.gpus
    return Predictions(
        starts=np.array([gpu.starts for gpu in gpus]),
        served_fraction=np.array([gpu.served_fraction.mean for gpu in gpus]),
        throughput_tok_s=np.array([gpu.throughput_tok_s for gpu in gpus]),
        itl_ms=np.array([gpu.itl_ms for gpu in gpus]),
        ttft_s=np.array([gpu.ttft_s for gpu in gpus]),
        kv_utilisation=np.array([gpu.kv_utilisation for gpu in gpus]),
        ttft_p95_s=np.array([gpu.ttft_p95_s for gpu in gpus]),
        itl_p95_ms=np.array([gpu.itl_p95_ms for gpu in gpus]),
        headroom=np.full(len(gpus), np.nan) if headroom is None else headroom,
    )
