"""Laws of generated workloads: request lengths, popularity, how rates and ranks are dealt."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import cache
from typing import TypeVar

import numpy as np
from scipy.special import ndtri

from loraplan.errors import BadInputError
from loraplan.workload import MOST_TOKENS, Adapter, Floats, Ints, Lengths

T = TypeVar("T")

LengthsLaw = Callable[[float, float], Lengths]
"""Makes request lengths of a mean number of prompt and of produced tokens, each at least 1."""

PAIRS = 1024
"""Pairs that stand for a law of lengths; every adapter of a table may need its own (16 kB each)."""

MOST_CV = 20.0
"""Coefficients of variation above this say that almost all requests are 1 token long."""

# Streams of one seed that must not depend on each other.
_POPULARITY, _RANKS = 1, 2


def skewed_lengths(
    tokens_in: float, tokens_out: float, input_cv: float = 1.12, output_cv: float = 1.07, correlation: float = -0.3
) -> Lengths:
    """Lognormal pairs of the given means (tokens), coefficients of variation and (Pearson) correlation.

    The pairs are evenly spread quantiles joined by a Gaussian copula, not a sample: no seed, and the means are exact to
    1 %. The defaults are the ShareGPT requests of the runs published with arXiv 2508.08343: sd / mean of 249 / 222.7
    and 210 / 196.5; the correlation is what the KV cache held per running request needs.

    Raises:
        BadInputError: a mean is below 1 token or absurdly large, so is a coefficient of variation, or no lognormal
            pairs have that correlation.
    """
    for what, mean in (("tokens_in", tokens_in), ("tokens_out", tokens_out)):
        if not (math.isfinite(mean) and mean >= 1):
            raise BadInputError(f"lengths: the mean of {what} must be at least 1 (got {mean})")
        if mean > MOST_TOKENS:
            raise BadInputError(f"lengths: the mean of {what} must be at most {MOST_TOKENS} tokens (got {mean})")
    for what, cv in (("input_cv", input_cv), ("output_cv", output_cv)):
        if not 0 <= cv <= MOST_CV:
            raise BadInputError(f"lengths: {what} must be between 0 and {MOST_CV:g} (got {cv})")
    sd_in, sd_out = (math.sqrt(math.log1p(cv**2)) for cv in (input_cv, output_cv))
    joint = _normal_correlation(sd_in, sd_out, input_cv * output_cv, correlation)
    first, second = normal_points()
    second = joint * first + math.sqrt(1.0 - joint**2) * second
    return Lengths(_whole_tokens(np.exp(sd_in * first), tokens_in), _whole_tokens(np.exp(sd_out * second), tokens_out))


def _normal_correlation(sd_in: float, sd_out: float, cvs: float, correlation: float) -> float:
    """The correlation of two normals whose exponentials correlate by ``correlation``."""
    if cvs < 1e-12:  # constant, to the last bit: whatever the correlation
        return 0.0
    lowest, highest = math.expm1(-sd_in * sd_out) / cvs, math.expm1(sd_in * sd_out) / cvs
    if not lowest <= correlation <= highest:
        raise BadInputError(
            f"lengths: lognormal lengths of these CVs correlate by {lowest:.2f} to {highest:.2f} (got {correlation})"
        )
    joint = math.log1p(correlation * cvs) / (sd_in * sd_out)
    return min(max(joint, -1.0), 1.0)


@cache
def normal_points() -> tuple[Floats, Floats]:
    """Two independent standard normals, as ``PAIRS`` points of the R2 low-discrepancy sequence (M. Roberts, 2018)."""
    golden = 1.324717957244746  # root of x**3 = x + 1
    steps = np.arange(1, PAIRS + 1)
    return ndtri((0.5 + steps / golden) % 1.0), ndtri((0.5 + steps / golden**2) % 1.0)


def _whole_tokens(shape: Floats, mean: float) -> Ints:
    """Whole tokens >= 1 in proportion to ``shape``, scaled so that their mean is ``mean``."""

    def scaled(factor: float) -> Floats:
        return np.maximum(np.rint(shape * factor), 1.0)

    # Rounding and the floor of 1 move the mean; it still grows with the factor, so bisect.
    low, high = 0.0, 2.0 * mean / float(shape.mean())
    for _ in range(40):
        middle = (low + high) / 2
        low, high = (middle, high) if scaled(middle).mean() < mean else (low, middle)
    return scaled(high).astype(np.int64)


def dirichlet_popularity(count: int, alpha: float, seed: int) -> Floats:
    """Shares of the requests drawn from a symmetric Dirichlet law; shape (count,), sum 1."""
    return np.random.default_rng([seed, _POPULARITY]).dirichlet(np.full(count, alpha))


def zipf_popularity(count: int, exponent: float, seed: int) -> Floats:
    """Shares of the requests in proportion to 1 / place**exponent, places dealt at random; shape (count,), sum 1."""
    weights = np.arange(1, count + 1, dtype=np.float64) ** -exponent
    shares: Floats = weights / weights.sum()
    np.random.default_rng([seed, _POPULARITY]).shuffle(shares)
    return shares


def uniform_popularity(count: int) -> Floats:
    """Equal shares of the requests; shape (count,), sum 1."""
    return np.full(count, 1.0 / count)


def deal(values: Sequence[T], count: int) -> list[T]:
    """``count`` values, dealt round-robin."""
    return [values[i % len(values)] for i in range(count)]


def numbered_names(count: int) -> list[str]:
    """Names ``a0000``, ``a0001``, ...; wide enough to sort as they count."""
    width = max(4, len(str(count - 1)))
    return [f"a{i:0{width}d}" for i in range(count)]


def generate_adapters(rates: Floats, ranks: Sequence[int], lengths: Lengths, seed: int) -> tuple[Adapter, ...]:
    """One adapter per rate (requests/s); ``ranks`` are dealt round-robin over the adapters in random order.

    The random order keeps ranks and rates apart: dealt in the same order, lists of three ranks and three rates would
    give every rank one rate.
    """
    rank_of = np.empty(len(rates), dtype=np.int64)
    rank_of[np.random.default_rng([seed, _RANKS]).permutation(len(rates))] = deal(ranks, len(rates))
    names = numbered_names(len(rates))
    return tuple(
        Adapter(name, int(rank), float(rate), lengths) for name, rank, rate in zip(names, rank_of, rates, strict=True)
    )


def nested_adapters(
    rates: Sequence[float], ranks: Sequence[int], lengths: Lengths, count: int, seed: int
) -> tuple[Adapter, ...]:
    """The first ``count`` adapters of an endless deal: adapter i has the same rate and rank whatever the count.

    ``rates`` (requests/s) are dealt round-robin; ``ranks`` likewise, but in random order within every
    len(rates) * len(ranks) adapters: so rates and ranks stay apart, and both are dealt evenly.
    """
    block = deal(ranks, len(rates) * len(ranks))
    rng = np.random.default_rng([seed, _RANKS])
    rank_of = np.concatenate([rng.permutation(block) for _ in range(0, count, len(block))])
    dealt = zip(numbered_names(count), rank_of.tolist(), deal(rates, count), strict=False)
    return tuple(Adapter(name, rank, rate, lengths) for name, rank, rate in dealt)
