"""A dataset that the twin makes in seconds, and a model with weights that nothing has trained."""

from __future__ import annotations

from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np

from surrogate.calibration import Calibration
from surrogate.dataset import generate, read_dataset
from surrogate.design import Design
from surrogate.examples import Examples, examples_of
from surrogate.model import INPUTS, SHAPES, Card, Model

DESIGN = Design(seed=5, workloads=60, loads=2, most_adapters=12, horizon_s=5.0)


def make_dataset(folder: Path) -> Path:
    generate(DESIGN, folder, workers=1)
    return folder


@cache
def small_examples() -> Examples:
    with TemporaryDirectory() as folder:
        return examples_of(read_dataset(make_dataset(Path(folder) / "data")))


def model_of(tensors: dict[str, np.ndarray]) -> Model:
    """A model with a calibration and a card that are made up."""
    scores = np.linspace(-2.0, 2.0, 50)
    calibration = Calibration(scores, 1.0 / (1.0 + np.exp(scores)), scores[:0], scores[:0])
    card = Card(
        name="made up",
        loraplan="0",
        created="2026-01-01T00:00:00+00:00",
        weights_sha256="",
        data={},
        settings={},
        errors={},
        low=(-1.0,) * INPUTS,
        high=(1.0,) * INPUTS,
    )
    return Model(tensors, calibration, card)


def random_tensors(seed: int) -> dict[str, np.ndarray]:
    draws = np.random.default_rng(seed)
    tensors = {
        name: draws.normal(0.0, 0.2, shape).astype(np.float32)
        for name, shape in SHAPES.items()
        if not name.startswith("calibration.")
    }
    for name in ("context_scale", "inputs_scale"):
        tensors[name] = np.abs(tensors[name]) + 1.0
    return tensors
