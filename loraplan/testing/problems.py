"""An oracle simple enough to be worked out by hand, and small problems for it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np

from loraplan.oracle import Oracle, Predictions
from loraplan.problem import GPULoad, Problem, ProblemBuilder
from loraplan.profiles import Profile, load_profile

TOKENS = 200
"""Prompt tokens, and produced tokens, of every request of ``small_problem``."""


def server(name: str = "server", max_slots: int | None = None) -> Profile:
    """A server that starts with up to ``max_slots`` slots of rank 8 (half as many, about, of rank 16)."""
    profile = load_profile("h100-64gb/llama-3.1-8b")
    kv = profile.kv
    if max_slots is not None:
        tokens = profile.limits.max_model_len + (max_slots + 0.5) * (kv.per_slot + 8 * kv.per_slot_rank)
        kv = kv.model_copy(update={"tokens": tokens})
    return profile.model_copy(update={"name": name, "kv": kv})


def small_problem(
    adapters: Sequence[tuple[int, float]],
    counts: Sequence[int] = (8,),
    profiles: Sequence[Profile] | None = None,
    **limits: Any,
) -> Problem:
    """Adapters a0, a1, ... given as (rank, rate), and ``counts`` GPUs of each type, type0, type1, ..., with prices."""
    builder = ProblemBuilder()
    for i, (rank, rate) in enumerate(adapters):
        builder.adapter(f"a{i}", rank, rate, tokens_in=TOKENS, tokens_out=TOKENS)
    for profile, count in zip(profiles or [server(f"type{t}") for t in range(len(counts))], counts, strict=True):
        builder.gpus(profile, count, price_per_hour=3.0 if count % 2 else 2.0)
    return builder.constraints(**limits).build()


def random_problem(seed: int, typical_rate: float, **limits: Any) -> Problem:
    """Two to seven adapters of mixed ranks and rates, some without requests, on one GPU type or on two."""
    rng = np.random.default_rng(seed)
    n = int(rng.integers(2, 8))
    rates = typical_rate * rng.lognormal(sigma=1.0, size=n) * (rng.random(n) > 0.1)
    adapters = [(int(rng.choice([8, 16, 32])), float(rate)) for rate in rates]
    return small_problem(adapters, counts=(8,) if seed % 2 else (1, 3), **limits)


@dataclass(frozen=True)
class TokenBudgetParams:
    """Tokens/s of each GPU type (the last for all further types), and what share of it is lost to what.

    Attributes:
        capacity_tok_s: with no slots and rank 0.
        per_slot: lost for each slot.
        per_rank: lost for each unit of the largest rank.
        swapping: lost when all busy adapters but one slot's worth have to swap.
    """

    capacity_tok_s: tuple[float, ...] = (10_000.0,)
    per_slot: float = 0.01
    per_rank: float = 0.002
    swapping: float = 0.3


class TokenBudgetOracle(Oracle):
    """A GPU serves tokens up to a capacity that slots, rank and swapping lower; ITL rises with use and slots.

    Hereditary: every one of the three losses, and the tokens offered, can only fall when an adapter is removed.
    """

    Params: ClassVar[type[Any]] = TokenBudgetParams
    hereditary = True

    def __init__(self, problem: Problem, params: TokenBudgetParams) -> None:
        """Prepare for loads of ``problem``."""
        self._problem = problem
        self._params = params

    def predict(self, loads: Sequence[GPULoad]) -> Predictions:
        """Judge every load."""
        offered = np.array([self._problem.offered[list(load.adapters)].sum() for load in loads])
        capacity = np.array([self._capacity(load) for load in loads])
        starts = np.array([self._problem.starts(load) for load in loads], dtype=np.bool_)
        throughput = np.where(starts, np.minimum(offered, capacity), 0.0)
        used = np.divide(offered, capacity, out=np.full(len(loads), np.inf), where=capacity > 0)
        served = np.where(offered > 0, throughput / np.where(offered > 0, offered, 1.0), 1.0)
        busy = np.minimum(used, 1.0)
        slots = np.array([load.slots for load in loads])
        itl_ms = np.where(offered > 0, 10 + 100 * busy + 0.1 * slots, np.nan)
        return Predictions(starts, np.where(starts, served, 0.0), throughput, itl_ms, itl_ms / 1e3, busy)

    def _capacity(self, load: GPULoad) -> float:
        p = self._params
        adapters = list(load.adapters)
        busy = int((self._problem.rates[adapters] > 0).sum())
        swapped = max(0, busy - load.slots) / max(1, busy)
        lost = p.per_slot * load.slots + p.per_rank * int(self._problem.ranks[adapters].max()) + p.swapping * swapped
        capacity = p.capacity_tok_s[min(load.gpu_type, len(p.capacity_tok_s) - 1)]
        return capacity * max(0.0, 1.0 - lost)
