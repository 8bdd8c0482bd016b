"""Random servers, request lengths, rates and ranks: what the design of a dataset draws from."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache
from typing import Any

import numpy as np

from loraplan.profiles import KVLaw, Limits, LoadTimes, Profile, RuleSet, StepLaw
from loraplan.sources import skewed_lengths
from loraplan.workload import Floats, Ints, Lengths
from twin.measured import sharegpt

PUBLISHED_RATES = (3.2, 1.6, 0.8, 0.4, 0.1, 0.05, 0.025, 0.0125, 0.00625, 0.003125)
"""Requests/s of the twin data of arXiv 2602.24044: each of its loads deals three of them."""
PUBLISHED_SIZES = (8, 16, 32, 64, 96, 128, 160, 192, 256, 320, 384)
"""Adapters and slots of the same data."""
RANK_MIXES = ((8,), (16,), (32,), (8, 16), (8, 32), (16, 32), (8, 16, 32), (8, 8, 16), (8, 8, 32), (8, 16, 64), (64,))

MOST_IN, MOST_OUT = 8000, 4000
"""Tokens of the longest prompt and answer: below every ``max_model_len`` that is drawn, so that none is refused."""

CONSTANT_SPREAD = 0.45
"""Standard deviation of the logarithm of a random profile's constants around those of its base."""
LOAD_SPREAD = 0.7

RULES: Mapping[RuleSet, float] = {"vllm-0.8.5": 0.6, "vllm-0.32": 0.2, "vllm-0.32-async": 0.2}


def random_profile(rng: np.random.Generator, base: Profile, name: str) -> Profile:
    """A server like no other: constants of ``base`` times lognormal factors, other memory, limits and rules."""

    def around(part: Any, spread: float) -> dict[str, float]:
        return {key: float(f"{value * np.exp(spread * rng.standard_normal()):.4g}") for key, value in part}

    pace = float(np.exp(rng.uniform(np.log(0.4), np.log(2.5))))
    step = {key: pace * value for key, value in around(base.step_ms, CONSTANT_SPREAD).items()}
    max_len = int(rng.choice([16_384, 32_768, 131_072]))
    kv = KVLaw(
        tokens=max_len * 1.02 + float(np.exp(rng.uniform(np.log(4e4), np.log(1.2e6)))),
        per_slot=base.kv.per_slot,
        per_slot_rank=base.kv.per_slot_rank * float(np.exp(0.4 * rng.standard_normal())),
        block_tokens=base.kv.block_tokens,
    )
    max_tokens = int(rng.choice([2048, 4096, 8192]))
    limits = Limits(
        max_model_len=max_len,
        max_num_seqs=min(int(rng.choice([128, 256, 512, 1024, 2048])), max_tokens),
        max_num_batched_tokens=max_tokens,
        lora_ranks=base.limits.lora_ranks,
    )
    return base.model_copy(
        update={
            "name": name,
            "kv": kv,
            "step_ms": StepLaw(**step),
            "load_ms": LoadTimes(**around(base.load_ms, LOAD_SPREAD)),
            "frontend": None,
            "limits": limits,
            "rules": rng.choice(list(RULES), p=list(RULES.values())).item(),
            "sources": (f"random constants around {base.name}",),
        }
    )


def published_lengths(rng: np.random.Generator) -> Lengths:
    """Those of the measured runs of arXiv 2508.08343; the mean answer depends on the model's tokenizer."""
    return _sharegpt(float(rng.choice([188.0, 192.0, 196.0, 200.0])))


@cache
def _sharegpt(mean_out: float) -> Lengths:
    return sharegpt(222.7, mean_out)


def random_lengths(rng: np.random.Generator) -> Lengths:
    """Request lengths: those of ShareGPT half of the time, else laws from near constant to very skewed ones."""
    if rng.random() < 0.5:
        if rng.random() < 0.5:
            return published_lengths(rng)
        law = skewed_lengths(222.7, 196.5)
    else:
        mean_in, mean_out = np.exp(rng.uniform(np.log([20.0, 8.0]), np.log([4000.0, 800.0])))
        input_cv, output_cv = rng.uniform(0.0, [1.5, 1.3])
        law = skewed_lengths(float(mean_in), float(mean_out), float(input_cv), float(output_cv), 0.0)
    return Lengths(np.minimum(law.tokens_in, MOST_IN), np.minimum(law.tokens_out, MOST_OUT))


def random_rates(rng: np.random.Generator, count: int) -> Floats:
    """Rates (requests/s) of ``count`` adapters, whose sum means nothing yet: dealt, drawn or by a law of popularity."""
    law = rng.random()
    if law < 0.4:
        return rng.permutation(np.resize(rng.choice(PUBLISHED_RATES, 3), count))
    if law < 0.7:
        rates = rng.gamma(np.exp(rng.uniform(np.log(0.3), np.log(5.0))), size=count)
    elif law < 0.9:
        rates = rng.permutation(np.arange(1, count + 1) ** -rng.uniform(0.3, 1.5))
    else:
        rates = np.ones(count)
    # A request in 28 hours: below, an hour cannot tell it from an adapter that nobody asks for.
    return np.maximum(rates * np.exp(rng.uniform(np.log(0.003), np.log(0.5))) / rates.mean(), 1e-5)


def random_ranks(rng: np.random.Generator, count: int) -> Ints:
    """Ranks of ``count`` adapters: a mix, dealt in random order."""
    mix = RANK_MIXES[int(rng.integers(len(RANK_MIXES)))]
    return rng.permutation(np.resize(np.array(mix, dtype=np.int64), count))
