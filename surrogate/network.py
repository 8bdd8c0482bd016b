"""The two networks of the surrogate: a monotone margin to starvation, and predictions beside the fluid model's.

The margin is a min-max network (Sill, 1997) on the sums of the adapters' embeddings: the smallest, over the paces, of
the largest of a few non-negative rows. Its weights are those of the fluid model, times factors that a hyper-network
makes of the server's context and that training finds. They do not depend on the adapters, but for the max rank, with
which they only grow; so a load's margin never shrinks when an adapter is added.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from surrogate import features, kernel
from surrogate.examples import TARGETS, Examples, base_figures
from surrogate.features import HALVES, HEAD, HYPER, QUANTILES, RANK_AT, SHAPE, SHARPNESS, USUAL_SHARPNESS
from surrogate.kernel import LARGEST, LEAST_ROW


def _three_layers(inputs: int, hidden: int, outputs: int) -> nn.Sequential:
    """A network that says 0 to begin with."""
    last = nn.Linear(hidden, outputs)
    nn.init.zeros_(last.weight)
    nn.init.zeros_(last.bias)
    return nn.Sequential(nn.Linear(inputs, hidden), nn.Tanh(), nn.Linear(hidden, hidden), nn.Tanh(), last)


class Margin(nn.Module):
    """Load -> logarithm of its share of what the server can carry, and those of the rows at each pace."""

    def __init__(self) -> None:
        """Begin with the fluid model's rows."""
        super().__init__()
        paces, rows, terms = SHAPE
        self.by_pace = nn.Parameter(torch.zeros(paces, rows))
        self.by_term = nn.Parameter(torch.zeros(HALVES, rows, terms))
        self.rank_slope = nn.Parameter(torch.full((HALVES, rows, terms), -5.0))
        self.hyper = _three_layers(features.CONTEXT, HYPER, paces * rows + HALVES * rows * terms)
        self.sharpness = _three_layers(features.CONTEXT, SHARPNESS, 1)
        self.bend = nn.Parameter(torch.tensor([-2.0, -1.0]))

    def weights(self, context: Tensor, server: Tensor) -> Tensor:
        """Rows' weights, shape (n, paces, rows, embedding); context (n, CONTEXT) normalised, server (n, terms)."""
        octaves = torch.log2(server[:, kernel.SERVER["rank"]] / RANK_AT).clamp_min(0.0)[:, None, None, None]
        paces, rows, terms = SHAPE
        by_pace, by_term = self.hyper(context).split((paces * rows, HALVES * rows * terms), 1)
        by_pace = self.by_pace + by_pace.reshape(-1, paces, rows)
        by_term = self.by_term + by_term.reshape(-1, HALVES, rows, terms)
        by_term = by_term + functional.softplus(self.rank_slope) * octaves
        factor = by_pace[..., None] + by_term.repeat_interleave(paces // HALVES, 1)
        with server.device:  # where its constants are to be made
            logs = features.row_logs(server, torch)
        return torch.exp(logs + factor)

    def forward(self, sums: Tensor, context: Tensor, server: Tensor, temperature: float) -> tuple[Tensor, Tensor]:
        """Log of the share, shape (n,), with minimum and maximum softened by ``temperature`` (0: none); log of rows."""
        weights = self.weights(context, server).flatten(1, 2)
        rows = torch.bmm(weights, sums[..., None]).clamp_min(LEAST_ROW).log().reshape(-1, *SHAPE[:2])
        if temperature == 0.0:
            return rows.amax(-1).amin(-1), rows
        worst = temperature * torch.logsumexp(rows / temperature, -1)
        return -temperature * torch.logsumexp(-worst / temperature, -1), rows

    def beta(self, context: Tensor) -> Tensor:
        """How sharply this kind of server starves around a share of 1, shape (n,)."""
        return USUAL_SHARPNESS * torch.exp(self.sharpness(context)[:, 0])

    def served(self, log_share: Tensor) -> Tensor:
        """A guess of the served fraction from the share alone, shape (n,): it ties the scale of the share to it."""
        width = functional.softplus(self.bend[0])
        return torch.exp(-width * functional.softplus(log_share / width + self.bend[1]))


class Head(nn.Module):
    """Inputs of a load -> quantiles of the logarithms of its figures, relative to the fluid model's."""

    def __init__(self) -> None:
        """Begin near the fluid model's figures."""
        super().__init__()
        inputs = kernel.HEAD_INPUTS + features.CONTEXT + 1 + features.ROWS + 1
        self.net = nn.Sequential(
            nn.Linear(inputs, HEAD),
            nn.SiLU(),
            nn.Linear(HEAD, HEAD),
            nn.SiLU(),
            nn.Linear(HEAD, len(TARGETS) * len(QUANTILES)),
        )

    def forward(self, inputs: Tensor) -> Tensor:
        """Shape (n, targets, quantiles), ascending in the quantiles."""
        low, middle, high = self.net(inputs).reshape(-1, len(QUANTILES), len(TARGETS)).unbind(1)
        return torch.stack((middle - functional.softplus(low), middle, middle + functional.softplus(high)), -1)


class Surrogate(nn.Module):
    """Both, with the normalisation of their inputs."""

    context_mean: Tensor
    context_scale: Tensor
    inputs_mean: Tensor
    inputs_scale: Tensor

    def __init__(self, examples: Examples | None = None) -> None:
        """Normalise by the means and standard deviations of ``examples``."""
        super().__init__()
        self.margin, self.head = Margin(), Head()
        for name, width in (("context", features.CONTEXT), ("inputs", kernel.HEAD_INPUTS)):
            values = np.zeros((1, width)) if examples is None else getattr(examples, name)
            scale = values.std(0)
            self.register_buffer(f"{name}_mean", torch.tensor(values.mean(0), dtype=torch.float32))
            self.register_buffer(f"{name}_scale", torch.tensor(np.where(scale > 1e-4, scale, 1.0), dtype=torch.float32))

    def forward(self, batch: dict[str, Tensor], temperature: float) -> dict[str, Tensor]:
        """``log_share``, ``score`` (its logarithm times the sharpness), ``served`` and ``quantiles`` of a batch."""
        context = (batch["context"] - self.context_mean) / self.context_scale
        log_share, rows = self.margin(batch["sums"], context, batch["server"], temperature)
        with torch.no_grad():  # predictions must not bend the margin
            pace = rows.amax(-1).argmin(-1)
            at = rows[torch.arange(len(rows)), pace].clamp(-LARGEST, LARGEST)
            rank = torch.log2(batch["server"][:, kernel.SERVER["rank"]] / RANK_AT)[:, None]
            inputs = (batch["inputs"] - self.inputs_mean) / self.inputs_scale
            inputs = torch.cat((inputs, context, rank, at, at.amax(-1, keepdim=True)), 1)
        return {
            "log_share": log_share,
            "score": self.margin.beta(context) * log_share,
            "served": self.margin.served(log_share),
            "quantiles": self.head(inputs),
        }


def tensors_of(examples: Examples) -> dict[str, Tensor]:
    """All that training reads of examples, each of shape (n, ...)."""
    relative = np.log(np.maximum(examples.targets, 1e-6)) - base_figures(examples.inputs, examples.server)
    arrays = {
        "sums": examples.sums,
        "server": examples.server,
        "context": examples.context,
        "inputs": examples.inputs,
        "served": examples.targets[:, TARGETS.index("served_fraction")],
        "relative": relative,
    }
    return {name: torch.tensor(array, dtype=torch.float32) for name, array in arrays.items()}
