"""Oracles: what predicts the behaviour of a GPU load. One batched interface for all of them."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from loraplan.problem import GPULoad, Problem
from loraplan.registry import Registry
from loraplan.workload import Floats


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
    """

    starts: NDArray[np.bool_]
    served_fraction: Floats
    throughput_tok_s: Floats
    itl_ms: Floats
    ttft_s: Floats
    kv_utilisation: Floats

    def __len__(self) -> int:
        """Number of GPU loads."""
        return int(self.starts.size)

    def starved(self, limit: float) -> NDArray[np.bool_]:
        """Which loads serve less than ``limit`` of what arrives, or do not start; shape (n,)."""
        return ~self.starts | (self.served_fraction < limit)


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
