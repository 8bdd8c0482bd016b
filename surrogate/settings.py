"""Settings of training, that a config or ``--set`` may change."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from loraplan.config.part import Count, Part, Seed
from loraplan.profiles import NonNegative, Positive


class TrainSettings(Part):
    """How the surrogate is trained."""

    seed: Seed = 0
    """Of the networks' first weights and the order of the examples."""
    epochs: Count = 48
    """Passes over the examples, at most."""
    patience: Count = 16
    """Passes without a better validation loss after which training stops."""
    batch_size: Count = 256
    """Loads per step."""
    learning_rate: Positive = 0.01
    """Peak of the one cycle of learning rates."""
    weight_decay: NonNegative = 0.05
    """On the weights that depend on the server's context: few servers are known."""
    context_noise: NonNegative = 0.1
    """Standard deviations of noise on the context in training, for the same reason."""
    served_weight: NonNegative = 0.3
    """Of the loss on the served fraction, beside that on the labels."""
    temperatures: tuple[Positive, Positive] = Field(default=(0.08, 0.004))
    """Softness of the margin's minimum and maximum at first and at last."""
    device: Literal["auto", "cpu", "gpu"] = "auto"
    """Where it is trained: on a GPU if there is one, unless set."""
