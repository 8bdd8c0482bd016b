"""Surrogates that nobody has trained: they say what the fluid model does, and cost nothing."""

from __future__ import annotations

import hashlib
from typing import Any

import numpy as np

from surrogate.calibration import NAMES, Calibration
from surrogate.model import INPUTS, SHAPES, Card, Model


def untrained_model(data: dict[str, Any] | None = None, score: Any = (), served: Any = ()) -> Model:
    """A model whose networks say 0, with these calibration loads, and ``data`` in its card."""
    tensors = {name: np.zeros(shape) for name, shape in SHAPES.items() if not name.startswith("calibration.")}
    for name in ("context_scale", "inputs_scale"):
        tensors[name] = np.ones(SHAPES[name])
    tensors["margin.rank_slope"] = np.full(SHAPES["margin.rank_slope"], -5.0)
    loads = {"score": np.array(score, dtype=np.float64), "served": np.array(served, dtype=np.float64)}
    calibration = Calibration(*(loads.get(name, np.zeros(0)) for name in NAMES))
    card = Card(
        name="untrained",
        loraplan="0.0.0",
        created="2026-01-01T00:00:00Z",
        weights_sha256="",
        data=data or {},
        settings={},
        errors={},
        low=(-1e9,) * INPUTS,
        high=(1e9,) * INPUTS,
    )
    model = Model(tensors, calibration, card)
    digest = hashlib.sha256(model.to_bytes()).hexdigest()
    return Model(tensors, calibration, card.model_copy(update={"weights_sha256": digest}))
