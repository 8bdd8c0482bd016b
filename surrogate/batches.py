"""Examples as batches of tensors: all stay in memory, a batch is an index into them."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy as np
import pytorch_lightning as pl
import torch
from torch import Tensor

from surrogate.examples import Examples
from surrogate.network import tensors_of
from surrogate.settings import TrainSettings

Batch = dict[str, Tensor]


def generator(seed: int, *purpose: int, device: torch.device | str = "cpu") -> torch.Generator:
    """Random numbers for a purpose (an epoch, say): the same ones whether training was interrupted or not."""
    state = np.random.SeedSequence([seed, *purpose]).generate_state(1, np.uint64)
    return torch.Generator(device).manual_seed(int(state[0]))


class Batches:
    """Iterates over batches of (nearly) the same size, anew each time."""

    def __init__(self, tensors: Batch, size: int, order: Callable[[int], Tensor]) -> None:
        """Batches of at most ``size`` examples; ``order`` says for n examples which come after which, shape (n,)."""
        self.tensors, self.order = tensors, order
        self.examples = len(next(iter(tensors.values())))
        self.batches = -(-self.examples // size)

    def __len__(self) -> int:
        """Batches of a pass."""
        return self.batches

    def __iter__(self) -> Iterator[Batch]:
        """One pass over all examples."""
        for which in self.order(self.examples).tensor_split(len(self)):
            yield {name: tensor[which] for name, tensor in self.tensors.items()}


class SurrogateData(pl.LightningDataModule):
    """Examples to train on and to validate with, of different workloads (`surrogate.split`)."""

    def __init__(self, training: Examples, validation: Examples, settings: TrainSettings) -> None:
        """Take the examples."""
        super().__init__()
        self.settings = settings
        self.training, self.validation = tensors_of(training), tensors_of(validation)

    def train_dataloader(self) -> Batches:
        """Batches in an order that depends on seed and epoch only."""
        return self._batches(self.training, self._shuffled)

    def val_dataloader(self) -> Batches:
        """Batches as they come."""
        return self._batches(self.validation, torch.arange)

    def _shuffled(self, size: int) -> Tensor:
        return torch.randperm(size, generator=generator(self.settings.seed, 0, self._trainer.current_epoch))

    def _batches(self, tensors: Batch, order: Callable[[int], Tensor]) -> Batches:
        device = self._trainer.strategy.root_device
        there = {name: tensor.to(device) for name, tensor in tensors.items()}
        return Batches(there, self.settings.batch_size, lambda size: order(size).to(device))

    @property
    def _trainer(self) -> pl.Trainer:
        if self.trainer is None:
            raise RuntimeError("a trainer asks for batches")
        return self.trainer
