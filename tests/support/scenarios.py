"""Small servers and request streams for the twin's tests, each built to press on one of the scheduler's limits."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from loraplan.profiles import Profile
from loraplan.workload import Floats, Ints, Requests

REGIMES = ("slots", "kv", "tokens", "seqs", "loads", "slots+kv", "kv+tokens", "mixed")
RULES = ("vllm-0.8.5", "vllm-0.32", "vllm-0.32-async", "vllm-0.32-async-ignore-eos")

MAX_RANK = 16
NEXT_TO_NOTHING = 1e-9  # a profile takes no zero here


def make_profile(
    *,
    rules: str = "vllm-0.8.5",
    step_ms: dict[str, float] | None = None,
    load_ms: dict[str, float] | None = None,
    kv_tokens: float = 1e6,
    per_slot: float = 0.0,
    per_slot_rank: float = NEXT_TO_NOTHING,
    block_tokens: int = 16,
    max_model_len: int = 2048,
    max_num_seqs: int = 256,
    max_num_batched_tokens: int = 2048,
) -> Profile:
    """A profile in which every step takes 10 ms and loads are free, except for what is given."""
    free = dict.fromkeys(
        (
            "per_request",
            "per_kv_token",
            "per_adapter",
            "per_small_adapter",
            "per_prefill_token",
        ),
        0.0,
    )
    return Profile.model_validate(
        {
            "name": "test",
            "gpu": "none",
            "base_model": "none",
            "engine": "none",
            "rules": rules,
            "kv": {
                "tokens": kv_tokens + 0.01,  # so that NEXT_TO_NOTHING does not cost a block
                "per_slot": per_slot,
                "per_slot_rank": per_slot_rank,
                "block_tokens": block_tokens,
            },
            "step_ms": {"base": 10.0, **free, **(step_ms or {})},
            "load_ms": {"to_gpu": 0.0, "disk": 0.0, **(load_ms or {})},
            "limits": {
                "max_model_len": max_model_len,
                "max_num_seqs": max_num_seqs,
                "max_num_batched_tokens": max_num_batched_tokens,
            },
            "sources": ["made up for tests"],
        }
    )


def make_requests(arrival_s: Any, adapter: Any, tokens_in: Any, tokens_out: Any) -> Requests:
    """Requests from anything list-like; scalars are repeated."""
    arrivals = np.asarray(arrival_s, dtype=np.float64)

    def column(values: Any) -> Ints:
        return np.ascontiguousarray(np.broadcast_to(np.asarray(values, dtype=np.int64), arrivals.shape))

    return Requests(arrivals, column(adapter), column(tokens_in), column(tokens_out))


@dataclass(frozen=True, eq=False)
class Scenario:
    """The arguments of one run."""

    profile: Profile
    slots: int
    max_rank: int
    adapter_ranks: Ints
    requests: Requests
    horizon_s: float
    cpu_slots: int | None

    @property
    def longest(self) -> int:
        """Tokens, in and out, of the longest request that the server takes."""
        blocks = self.profile.kv_blocks(self.slots, self.max_rank)
        return min(self.profile.limits.max_model_len, blocks * self.profile.kv.block_tokens)

    def run_by(self, simulator: Any) -> Any:
        """Run it on the twin or on the reference."""
        return simulator(
            self.profile,
            self.slots,
            self.max_rank,
            self.adapter_ranks,
            self.requests,
            self.horizon_s,
            cpu_slots=self.cpu_slots,
        )

    def with_requests(self, requests: Requests) -> Scenario:
        """The same server with other requests."""
        return replace(self, requests=requests)


def random_scenario(regime: str, rules: str, seed: int) -> Scenario:
    """A small scenario in which the resources that ``regime`` names are scarce; ``mixed``: slots and random others."""
    rng = np.random.default_rng([REGIMES.index(regime), RULES.index(rules), seed])

    def scarce(name: str) -> bool:
        return name in regime.split("+") or (regime == "mixed" and (name == "slots" or bool(rng.random() < 0.4)))

    n_adapters = int(rng.integers(1, 5))
    slots = int(rng.integers(n_adapters, 7))
    cpu_slots = None
    if scarce("slots") or regime == "loads":
        slots = int(rng.integers(1, 5))
        n_adapters = int(rng.integers(slots + 1, 13))
    if scarce("loads"):
        cpu_slots = int(rng.integers(slots, max(slots, n_adapters) + 1))
    adapter_ranks = rng.choice([4, 8, MAX_RANK], size=n_adapters)

    max_model_len = int(rng.integers(60, 300))
    if scarce("tokens"):
        budget = int(rng.choice([1, 7, 16, 33]))
    else:
        budget = int(rng.integers(max_model_len, 3 * max_model_len))
    max_num_seqs = min(budget, int(rng.integers(1, 6)) if scarce("seqs") else 256)

    block = int(rng.integers(4, 17))
    per_slot, per_slot_rank = float(rng.uniform(0, 9)), float(rng.uniform(0.01, 1))
    # vLLM starts when the cache holds one request of the full length, but keeps one block for itself: -1 is that case.
    blocks = math.ceil(max_model_len / block) + (int(rng.integers(-1, 20)) if scarce("kv") else 4000)
    kv_tokens = (blocks + 1.5) * block + slots * (per_slot + per_slot_rank * MAX_RANK)

    profile = make_profile(
        rules=rules,
        step_ms={
            "base": rng.uniform(4, 12),
            "per_request": rng.uniform(0, 0.5),
            "per_kv_token": rng.uniform(0, 0.01),
            "per_adapter": rng.uniform(0, 2),
            "per_small_adapter": rng.uniform(0, 2),
            "per_small_adapter_rank": rng.uniform(0, 0.05),
            "per_registered": rng.uniform(0, 0.1),
            "per_adapter_request": rng.uniform(0, 0.1),
            "per_slot_shrink": rng.uniform(0, 0.2),
            "per_slot_expand": rng.uniform(0, 0.1),
            "eager": rng.uniform(0, 5),
            "per_prefill_token": rng.uniform(0, 0.05),
            "per_waiting": rng.uniform(0, 0.1),
        },
        load_ms={
            "to_gpu": rng.uniform(0, 20),
            "smaller_rank": rng.uniform(0, 5),
            "disk": rng.uniform(0, 30),
            "disk_per_rank": rng.uniform(0, 1),
        },
        kv_tokens=kv_tokens,
        per_slot=per_slot,
        per_slot_rank=per_slot_rank,
        block_tokens=block,
        max_model_len=max_model_len,
        max_num_seqs=max_num_seqs,
        max_num_batched_tokens=budget,
    )
    horizon = float(rng.uniform(1.0, 20.0))
    arrivals = _arrivals(rng, horizon)
    n = arrivals.size
    tokens_in = rng.integers(1, max(2, max_model_len // 2), size=n)
    tokens_out = rng.integers(1, max(2, max_model_len // int(rng.choice([2, 8]))), size=n)
    tokens_out[rng.random(n) < 0.15] = 1
    odd = rng.random(n) < 0.06  # at, just below and above the longest prompt that is served
    tokens_in[odd] = rng.integers(max_model_len - 2, max_model_len + 3, size=int(odd.sum()))
    tokens_out[rng.random(n) < 0.05] = 3 * max_model_len
    popularity = rng.dirichlet(np.full(n_adapters, 1.5))
    adapter = rng.choice(n_adapters, size=n, p=popularity)
    requests = make_requests(arrivals, adapter, tokens_in, tokens_out)
    return Scenario(profile, slots, MAX_RANK, adapter_ranks, requests, horizon, cpu_slots)


def _arrivals(rng: np.random.Generator, horizon: float) -> Floats:
    """Poisson, sparse, in bursts of equal times, or all at once; some come after the horizon."""
    kind = rng.choice(["steady", "sparse", "bursts", "at once"], p=[0.4, 0.1, 0.4, 0.1])
    if kind == "at once":
        return np.zeros(int(rng.integers(1, 200)))
    count = {"steady": rng.uniform(8, 40) * horizon, "sparse": 3.0, "bursts": rng.uniform(0.5, 2) * horizon}[str(kind)]
    times = rng.uniform(0, 1.05 * horizon, size=rng.poisson(count))
    if kind == "bursts":
        times = np.repeat(times, rng.integers(1, 30, size=times.size))
    return np.sort(times)
