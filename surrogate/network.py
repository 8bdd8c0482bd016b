"""The two networks of the surrogate: a monotone margin to starvation, and predictions beside the fluid model's.

The margin is a min-max network (Sill, 1997) on the sums of the adapters' embeddings: the smallest, over the paces, of
the largest of a few non-negative rows. Its weights are those of the fluid model, times factors that a hyper-network
makes of the server's context and that training finds. They do not depend on the adapters, but for the max rank, with
which they only grow; so a load's margin never shrinks when an adapter is added.
"""

from __future__ import annotations

from functools import partial

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from surrogate.examples import TARGETS, Examples, base_figures
from surrogate.features import (
    BENDS,
    CONTEXT,
    HYPER,
    PACE_POWERS,
    QUANTILES,
    RANK_AT,
    SHARPNESS,
    USUAL_SHARPNESS,
    pace_logs,
    term_logs,
)
from surrogate.kernel import (
    BUSY_WEIGHT,
    FIRST_BUSY,
    FIRST_TURN,
    HEAD,
    HEAD_INPUTS,
    LARGEST,
    LEAST_ROW,
    PACE_FACTORS,
    PACES,
    PART_OF_PACE,
    POINT_OF_PACE,
    ROWS,
    SERVER,
    STILL,
    TERMS,
    TURN_WEIGHT,
    WAYS,
)

FIRST_LOOK, LOOKS = 1, 4
"""In training every fourth pace is looked at first."""


def _three_layers(inputs: int, hidden: int, outputs: int) -> nn.Sequential:
    """A network that says 0 to begin with."""
    last = nn.Linear(hidden, outputs)
    nn.init.zeros_(last.weight)
    nn.init.zeros_(last.bias)
    return nn.Sequential(nn.Linear(inputs, hidden), nn.Tanh(), nn.Linear(hidden, hidden), nn.Tanh(), last)


def _least(values: Tensor, temperature: float) -> Tensor:
    """Minimum over the last axis, softened by ``temperature`` (0: not at all)."""
    if temperature == 0.0:
        return values.amin(-1)
    return -temperature * torch.logsumexp(-values / temperature, -1)


class Margin(nn.Module):
    """Load -> logarithms of its share of what the server can carry, by ways to serve it, and of the rows."""

    def __init__(self) -> None:
        """Begin with the fluid model's rows."""
        super().__init__()
        self.by_term = nn.Parameter(torch.zeros(WAYS, ROWS, TERMS))
        self.rank_slope = nn.Parameter(torch.full((WAYS, ROWS, TERMS), -5.0))
        self.bend = nn.Parameter(torch.zeros(WAYS, ROWS, BENDS))
        self.stretch = nn.Parameter(torch.zeros(WAYS))
        self.hyper = _three_layers(CONTEXT, HYPER, WAYS * (ROWS * (TERMS + BENDS) + 1))
        self.sharpness = _three_layers(CONTEXT, SHARPNESS, WAYS)
        self.scale = nn.Parameter(torch.tensor([-2.0, -1.0]))

    def weights(self, context: Tensor, server: Tensor) -> tuple[Tensor, Tensor]:
        """Rows' weights, shape (n, ways, rows, terms), and their factors at each pace, (n, ways, paces, rows).

        Args:
            context: normalised, shape (n, CONTEXT).
            server: shape (n, terms of a server).
        """
        octaves = torch.log2(server[:, SERVER["rank"]] / RANK_AT).clamp_min(0.0)[:, None, None, None]
        sizes = (WAYS * ROWS * TERMS, WAYS * ROWS * BENDS, WAYS)
        by_term, bend, stretch = self.hyper(context).split(sizes, 1)
        by_term = self.by_term + by_term.reshape(-1, WAYS, ROWS, TERMS)
        by_term = by_term + functional.softplus(self.rank_slope) * octaves
        bend = self.bend + bend.reshape(-1, WAYS, ROWS, BENDS)
        powers = torch.as_tensor(PACE_POWERS, dtype=context.dtype, device=context.device)
        factors = torch.einsum("nhrb,kb->nhkr", bend, powers)
        stretched = torch.exp(self.stretch + stretch)
        with server.device:  # where its constants are to be made
            at_pace = pace_logs(server, stretched, torch)
        return torch.exp(term_logs(server, torch) + by_term), torch.exp(factors - at_pace)

    def forward(self, sums: Tensor, context: Tensor, server: Tensor, temperature: float) -> tuple[Tensor, Tensor]:
        """Logs of the shares, shape (n, ways), and of the rows, (n, ways, paces, rows).

        ``temperature`` softens minimum and maximum (0: not at all); then rows are only those at the paces around the
        best of each way.
        """
        weights, factors = self.weights(context, server)
        at_pace = partial(self._rows, sums, weights, factors)
        pace = torch.arange(PACES, device=sums.device).expand(len(sums), WAYS, PACES)
        if temperature > 0.0:
            with torch.no_grad():
                some = pace[..., FIRST_LOOK::LOOKS]
                best = at_pace(some).amax(-1).argmin(-1, keepdim=True)
            near = torch.arange(2 * LOOKS - 1, device=sums.device)
            pace = (some.gather(-1, best) + 1 - LOOKS).clamp(0, PACES - near.numel()) + near
        rows = at_pace(pace).clamp_min(LEAST_ROW).log()
        return _least(-_least(-rows, temperature), temperature), rows

    @staticmethod
    def _rows(sums: Tensor, weights: Tensor, factors: Tensor, pace: Tensor) -> Tensor:
        """Rows at numbers of paces, shape (n, ways, paces): (n, ways, paces, rows)."""
        pick = partial(torch.as_tensor, device=sums.device)
        place, part = pick(POINT_OF_PACE)[pace], pick(PART_OF_PACE, dtype=sums.dtype)[pace]
        grown = pick(PACE_FACTORS, dtype=sums.dtype)[pace][..., None]

        def between(of: Tensor) -> Tensor:
            at = of[:, None].expand(-1, WAYS, -1)
            return ((1.0 - part) * at.gather(-1, place) + part * at.gather(-1, place + 1))[..., None]

        busy, turn = between(sums[:, FIRST_BUSY:FIRST_TURN]), between(sums[:, FIRST_TURN:])
        still = sums[:, None, :STILL, None]
        fixed = (weights[..., :STILL] @ still).mT
        growing = (weights[..., STILL:BUSY_WEIGHT] @ still).mT
        rows = fixed + grown * growing
        rows = rows + weights[..., BUSY_WEIGHT][:, :, None] * busy + weights[..., TURN_WEIGHT][:, :, None] * turn
        return rows * factors.gather(2, pace[..., None].expand(-1, -1, -1, ROWS))

    def beta(self, context: Tensor) -> Tensor:
        """How sharply this kind of server starves around a share of 1, shape (n, ways)."""
        return USUAL_SHARPNESS * torch.exp(self.sharpness(context))

    def served(self, log_share: Tensor) -> Tensor:
        """A guess of the served fraction from the share alone, shape (n,): it ties the scale of the share to it."""
        width = functional.softplus(self.scale[0])
        return torch.exp(-width * functional.softplus(log_share / width + self.scale[1]))


class Head(nn.Module):
    """Inputs of a load -> quantiles of the logarithms of its figures, relative to the fluid model's."""

    def __init__(self) -> None:
        """Begin near the fluid model's figures."""
        super().__init__()
        inputs = HEAD_INPUTS + CONTEXT + 1 + ROWS + 1
        self.net = nn.Sequential(
            nn.Linear(inputs, HEAD),
            nn.Hardswish(),
            nn.Linear(HEAD, HEAD),
            nn.Hardswish(),
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
        for name, width in (("context", CONTEXT), ("inputs", HEAD_INPUTS)):
            values = np.zeros((1, width)) if examples is None else getattr(examples, name)
            scale = values.std(0)
            self.register_buffer(f"{name}_mean", torch.tensor(values.mean(0), dtype=torch.float32))
            self.register_buffer(f"{name}_scale", torch.tensor(np.where(scale > 1e-4, scale, 1.0), dtype=torch.float32))

    def forward(self, batch: dict[str, Tensor], temperature: float) -> dict[str, Tensor]:
        """``score`` (the least, over ways, of log share times sharpness) and that way's ``log_share`` of a batch.

        And ``served``, and ``quantiles`` of the figures.
        """
        context = (batch["context"] - self.context_mean) / self.context_scale
        shares, rows = self.margin(batch["sums"], context, batch["server"], temperature)
        scores = self.margin.beta(context) * shares
        way, every = scores.argmin(-1), torch.arange(len(rows), device=rows.device)
        log_share = shares[every, way]
        with torch.no_grad():  # predictions must not bend the margin
            own = rows[every, way]
            at = own[every, own.amax(-1).argmin(-1)].clamp(-LARGEST, LARGEST)
            rank = torch.log2(batch["server"][:, SERVER["rank"]] / RANK_AT)[:, None]
            inputs = (batch["inputs"] - self.inputs_mean) / self.inputs_scale
            inputs = torch.cat((inputs, context, rank, at, at.amax(-1, keepdim=True)), 1)
        return {
            "log_share": log_share,
            "score": _least(scores, USUAL_SHARPNESS * temperature),
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
