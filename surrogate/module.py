"""Training of the surrogate's networks with PyTorch Lightning."""

from __future__ import annotations

from typing import Any

import lightning.pytorch as pl
import torch
from torch import Tensor
from torch.nn import functional

from surrogate.examples import STARVED_BELOW, Examples
from surrogate.network import Surrogate, tensors_of
from surrogate.settings import TrainSettings
from surrogate.weights import QUANTILES

Batch = dict[str, Tensor]


class SurrogateModule(pl.LightningModule):
    """Margin and predictions, trained together: starvation labels, served fractions, quantiles of all figures."""

    def __init__(self, settings: TrainSettings, examples: Examples | None = None) -> None:
        """Networks that normalise by ``examples``; without them, to be filled from a checkpoint."""
        super().__init__()
        self.settings = settings
        self.surrogate = Surrogate(examples)
        self.register_buffer("levels", torch.tensor(QUANTILES))

    def training_step(self, batch: Batch, _: int) -> Tensor:
        """The loss; minimum and maximum of the margin harden as training goes on."""
        done = min(self.global_step / max(1, int(self.trainer.estimated_stepping_batches)), 1.0)
        first, last = self.settings.temperatures
        losses = self._losses(batch, first * (last / first) ** done)
        self.log_dict({f"train_{name}": value.detach() for name, value in losses.items()}, on_step=False, on_epoch=True)
        return sum(losses.values(), torch.zeros(()))

    def validation_step(self, batch: Batch, _: int) -> None:
        """The same losses with the margin as it is used, and how many labels are wrong."""
        losses = self._losses(batch, 0.0)
        losses["loss"] = sum(losses.values(), torch.zeros(()))
        self.log_dict({f"val_{name}": value for name, value in losses.items()}, batch_size=len(batch["served"]))

    def _losses(self, batch: Batch, temperature: float) -> dict[str, Tensor]:
        said = self.surrogate(batch, temperature)
        starved = (batch["served"] < STARVED_BELOW).to(said["score"].dtype)
        off = batch["relative"][..., None] - said["quantiles"]
        known = torch.isfinite(off)
        off = torch.where(known, off, 0.0)
        levels: Any = self.levels
        pinball = torch.maximum(levels * off, (levels - 1.0) * off).sum((0, 2)) / known[..., 0].sum(0).clamp_min(1)
        return {
            "labels": functional.binary_cross_entropy_with_logits(said["score"], starved),
            "served": self.settings.served_weight * (said["served"] - batch["served"]).abs().mean(),
            "figures": pinball.sum(),
        }

    def configure_optimizers(self) -> Any:
        """Adam, one cycle of the learning rate."""
        optimizer = torch.optim.Adam(self.parameters(), lr=self.settings.learning_rate)
        schedule = torch.optim.lr_scheduler.OneCycleLR(
            optimizer, self.settings.learning_rate, total_steps=int(self.trainer.estimated_stepping_batches)
        )
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}


class SurrogateData(pl.LightningDataModule):
    """Examples, split by workload: rows of one workload are alike."""

    def __init__(self, examples: Examples, settings: TrainSettings) -> None:
        """Split: of every ``HELD_OUT`` workloads one is for validation and one for calibration."""
        super().__init__()
        self.settings = settings
        self.training, self.validation, self.calibration = split(examples)

    def train_dataloader(self) -> Any:
        """Shuffled batches."""
        return self._loader(self.training, shuffle=True)

    def val_dataloader(self) -> Any:
        """Batches in order."""
        return self._loader(self.validation, shuffle=False)

    def _loader(self, examples: Examples, shuffle: bool) -> Any:
        tensors = tensors_of(examples)
        size = min(self.settings.batch_size, len(examples))
        return Batches(tensors, size, shuffle)
