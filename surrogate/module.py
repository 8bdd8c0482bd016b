"""What is trained, and by which losses: the surrogate's networks as a LightningModule."""

from __future__ import annotations

import copy
from typing import Any

import pytorch_lightning as pl
import torch
from torch import Tensor
from torch.nn import functional

from surrogate.batches import Batch, generator
from surrogate.examples import Examples
from surrogate.features import QUANTILES
from surrogate.network import Surrogate
from surrogate.settings import TrainSettings
from twin.agreement import STARVED_BELOW

DECAYING = ("margin.hyper.", "margin.sharpness.")
"""Networks of the context: few servers are known, so their weights are kept small."""
AVERAGED_STEPS = 500.0


class SurrogateModule(pl.LightningModule):
    """Margin and predictions, trained together: starvation labels, served fractions, quantiles of all figures."""

    levels: Tensor
    noise: torch.Generator

    def __init__(self, settings: TrainSettings, examples: Examples) -> None:
        """Networks that normalise by ``examples``."""
        super().__init__()
        self.settings = settings
        self.surrogate = Surrogate(examples)
        self.averaged = copy.deepcopy(self.surrogate).requires_grad_(False)
        self.register_buffer("levels", torch.tensor(QUANTILES), persistent=False)

    def on_train_epoch_start(self) -> None:
        """Noise of its own for every epoch, so that it does not depend on where training was interrupted."""
        self.noise = generator(self.settings.seed, 1, self.current_epoch, device=self.device)

    def training_step(self, batch: Batch, _: int) -> Tensor:
        """The loss; minimum and maximum of the margin harden as training goes on."""
        done = min(self.global_step / int(self.trainer.estimated_stepping_batches), 1.0)
        first, last = self.settings.temperatures
        losses = self._losses(self.surrogate, self._noisy(batch), first * (last / first) ** done)
        self._log("train", losses, batch)
        return torch.stack(tuple(losses.values())).sum()

    def on_train_batch_end(self, *_: Any) -> None:
        """Average the weights over the last steps, which errs less than the last ones do: they are what is exported."""
        part = 1.0 / min(self.global_step + 1.0, AVERAGED_STEPS)
        with torch.no_grad():
            for mean, new in zip(self.averaged.parameters(), self.surrogate.parameters(), strict=True):
                mean.lerp_(new, part)

    def validation_step(self, batch: Batch, _: int) -> None:
        """The same losses with averaged weights and the margin as it is used."""
        losses = self._losses(self.averaged, batch, 0.0)
        self._log("val", losses | {"loss": torch.stack(tuple(losses.values())).sum()}, batch)

    def configure_optimizers(self) -> Any:
        """AdamW, one cycle of the learning rate."""
        decaying = [
            tensor
            for name, tensor in self.surrogate.named_parameters()
            if name.startswith(DECAYING) and name.endswith(".weight")
        ]
        chosen = {id(tensor) for tensor in decaying}
        others = [tensor for tensor in self.surrogate.parameters() if id(tensor) not in chosen]
        groups = [
            {"params": decaying, "weight_decay": self.settings.weight_decay},
            {"params": others, "weight_decay": 0.0},
        ]
        optimizer = torch.optim.AdamW(groups, lr=self.settings.learning_rate)
        schedule = torch.optim.lr_scheduler.OneCycleLR(
            optimizer, self.settings.learning_rate, total_steps=int(self.trainer.estimated_stepping_batches)
        )
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}

    def _noisy(self, batch: Batch) -> Batch:
        context = batch["context"]
        draws = torch.randn(context.shape, generator=self.noise, device=context.device)
        return batch | {"context": context + self.settings.context_noise * self.surrogate.context_scale * draws}

    def _losses(self, network: Surrogate, batch: Batch, temperature: float) -> dict[str, Tensor]:
        said = network(batch, temperature)
        starved = (batch["served"] < STARVED_BELOW).to(said["score"].dtype)
        off = batch["relative"][..., None] - said["quantiles"]
        known = torch.isfinite(off)  # where nothing was served there is no latency
        off = torch.where(known, off, 0.0)
        pinball = torch.maximum(self.levels * off, (self.levels - 1.0) * off).sum((0, 2))
        return {
            "labels": functional.binary_cross_entropy_with_logits(said["score"], starved),
            "served": self.settings.served_weight * (said["served"] - batch["served"]).abs().mean(),
            "figures": (pinball / known[..., 0].sum(0).clamp_min(1)).sum(),
        }

    def _log(self, stage: str, losses: dict[str, Tensor], batch: Batch) -> None:
        named = {f"{stage}_{name}": value.detach() for name, value in losses.items()}
        self.log_dict(named, on_step=False, on_epoch=True, batch_size=len(batch["served"]))
