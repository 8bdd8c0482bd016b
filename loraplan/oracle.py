"""Oracles: what predicts the behaviour of a GPU load. One batched interface for all of them."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from loraplan.bin_types import BinTypes
from loraplan.constraints import Constraints
from loraplan.problem import GPULoad, Problem
from loraplan.registry import Registry
from loraplan.workload import Floats, Ints


@dataclass(frozen=True, eq=False)
class Predictions:
    """What an oracle says of n GPU loads; every array has shape (n,).

    Attributes:
        starts: the server starts (no memory error); where it does not, nothing is served and the rest is 0, inf or nan.
        served_fraction: tokens served / tokens that arrive, 0 to 1; a load that gets no requests has 1.
        throughput_tok_s: prompt and output tokens/s of requests completed.
        itl_ms: mean inter-token latency; nan if nothing was served.
        ttft_s: mean time to first token; nan if nothing was served.
        kv_utilisation: time-mean of the share of KV cache in use, 0 to 1.
        ttft_p95_s: 95th percentile of the time to first token. Of an oracle that predicts only the mean, what it is if
            waits are exponential: ln(20) times the mean, more than of waits that vary less.
        itl_p95_ms: 95th percentile of the gaps between tokens; nan of an oracle that predicts only the mean.
        adapter_served_fraction: served fraction of the adapter served worst; that of the load if the oracle does not
            tell adapters apart.
        headroom: the factor on all rates up to which the load is not starved; nan unless it was asked for.
    """

    starts: NDArray[np.bool_]
    served_fraction: Floats
    throughput_tok_s: Floats
    itl_ms: Floats
    ttft_s: Floats
    kv_utilisation: Floats
    ttft_p95_s: Floats = None  # type: ignore[assignment] # filled in below
    itl_p95_ms: Floats = None  # type: ignore[assignment]
    adapter_served_fraction: Floats = None  # type: ignore[assignment]
    headroom: Floats = None  # type: ignore[assignment]

    def __post_init__(self) -> None:
        """Fill in what the oracle does not say."""
        unknown = np.full(self.starts.shape, np.nan)
        for name, value in (
            ("ttft_p95_s", math.log(20.0) * self.ttft_s),
            ("itl_p95_ms", unknown),
            ("adapter_served_fraction", self.served_fraction),
            ("headroom", unknown),
        ):
            if getattr(self, name) is None:
                object.__setattr__(self, name, value)

    def __len__(self) -> int:
        """Number of GPU loads."""
        return int(self.starts.size)

    def starved(self, limit: float) -> NDArray[np.bool_]:
        """Which loads serve less than ``limit`` of what arrives, or do not start; shape (n,)."""
        return ~self.starts | (self.served_fraction < limit)

    def keeps(self, limits: Constraints) -> NDArray[np.bool_]:
        """Which loads keep all limits on predicted figures; shape (n,). Nobody waits where nothing comes."""
        kept = ~self.starved(limits.served_fraction)
        if limits.adapter_served_fraction is not None:
            kept &= ~(self.adapter_served_fraction < limits.adapter_served_fraction)
        if limits.itl_ms is not None:
            kept &= ~(self.itl_ms > limits.itl_ms)
        if limits.ttft_p95_s is not None:
            kept &= ~(self.ttft_p95_s > limits.ttft_p95_s)
        return kept

    @classmethod
    def none(cls) -> Predictions:
        """What an oracle says of no load."""
        nothing = np.zeros(0)
        return cls(np.zeros(0, np.bool_), *[nothing] * 5)

    def select(self, rows: NDArray[np.intp]) -> Predictions:
        """Those loads."""
        return Predictions(*(getattr(self, field.name)[rows] for field in fields(self)))


class Oracle(ABC):
    """Judges GPU loads of one problem.

    Life cycle: made once per problem with its params; then ``predict`` is called any number of times, with any number
    of loads, and must give the same answer for the same load every time.
    """

    Params: ClassVar[type[Any]]
    """Frozen dataclass of the oracle's settings."""

    hereditary: ClassVar[bool] = False
    """Whether taking an adapter away never makes a load break a constraint; proofs rest on it."""

    @abstractmethod
    def __init__(self, problem: Problem, params: Any) -> None:
        """Prepare for GPU loads of ``problem``; ``params`` is an instance of ``Params``."""

    @abstractmethod
    def predict(self, loads: Sequence[GPULoad]) -> Predictions:
        """Judge ``loads``, each on its own; a load that does not start is an answer, not an error."""

    def outside(self, load: GPULoad) -> tuple[str, ...]:
        """What of ``load`` is out of the range that the oracle knows, in words: its answer is extrapolated there."""
        return ()

    def bin_types(self, group_of: Ints | None = None) -> BinTypes | None:
        """The union of knapsacks in which all accepted loads lie; None where the oracle knows of none.

        Args:
            group_of: shape (adapters,), the item that stands for each adapter, -1 for none; None for one of its own.
        """
        return None


DEFAULT_ORACLE = "surrogate"
"""The twin's answer at the price of the fluid model, which takes full servers for faster than they are."""

ORACLES: Registry[type[Oracle]] = Registry("oracle", "loraplan.oracles")
ORACLES.register(
    "fluid", "twin.fluid:FluidOracle", "closed-form steady state; microseconds per GPU load, no randomness"
)
ORACLES.register(
    "surrogate", "surrogate.oracle:SurrogateOracle", "neural network distilled from the twin; microseconds per GPU load"
)
ORACLES.register(
    "twin", "twin.oracle:TwinOracle", "simulates each GPU load step by step; milliseconds per simulated hour"
)
