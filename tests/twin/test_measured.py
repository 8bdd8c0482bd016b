"""The replay of measured runs: the lengths that requests have in it, how many there are, who sends them."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from support.measured_runs import unmeasured
from support.scenarios import make_profile

from loraplan.workload import Lengths, RateWorkload
from twin.measured import (
    LONGEST,
    LONGEST_INPUT,
    LONGEST_OUTPUT,
    MAX_OUTSTANDING,
    SHAREGPT,
    SHORTEST,
    lengths_of,
    replay,
)

MEANS = (222.7, 196.5)
"""Tokens in and out of ShareGPT as the runs asked them."""


def lengths(mean_in: float, mean_out: float, cut: float = 1.0) -> Lengths:
    """Of runs whose answers came to ``cut`` of what was asked."""
    seen = {
        "completed": 1000.0,
        "pool_mean_input": mean_in,
        "pool_mean_output": mean_out,
        "total_output_tokens": 1000.0 * mean_out * cut,
    }
    run = unmeasured(8, 8, 16, (1.0,))
    return lengths_of([replace(run, seen=run.seen | seen)])


@pytest.mark.parametrize("means", [MEANS, (120.0, 80.0), (300.0, 250.0)])
def test_lengths_are_within_the_published_bounds(means: tuple[float, float]) -> None:
    drawn = lengths(*means)
    assert drawn.tokens_in.min() >= SHORTEST
    assert drawn.tokens_in.max() <= LONGEST_INPUT
    assert drawn.tokens_out.min() >= SHORTEST
    assert drawn.tokens_out.max() <= LONGEST_OUTPUT
    assert (drawn.tokens_in + drawn.tokens_out).max() <= LONGEST


def test_lengths_have_the_published_shape() -> None:
    drawn = lengths(*MEANS)
    tokens_in, tokens_out = drawn.tokens_in, drawn.tokens_out
    assert (tokens_in.mean(), tokens_out.mean()) == pytest.approx(MEANS, rel=0.01)
    assert tokens_in.std() / tokens_in.mean() == pytest.approx(SHAREGPT["input_cv"], rel=0.02)
    assert tokens_out.std() / tokens_out.mean() == pytest.approx(SHAREGPT["output_cv"], rel=0.02)
    assert np.corrcoef(tokens_in, tokens_out)[0, 1] == pytest.approx(SHAREGPT["correlation"], abs=0.02)


def test_answers_that_end_early_are_shorter() -> None:
    assert lengths(*MEANS, cut=0.9).mean_out == pytest.approx(0.9 * MEANS[1], rel=0.01)
    assert lengths(*MEANS, cut=0.9).mean_in == pytest.approx(MEANS[0], rel=0.01)


@pytest.mark.parametrize(
    ("sent", "replayed"),
    [(1.01, 1.01), (0.97, 0.97), (0.8, 1.0)],
    ids=["more by chance", "fewer by chance", "fewer than it wanted to"],
)
def test_a_replay_has_the_load_that_was_sent_and_the_ranks_of_the_run_dealt_and_its_client(
    sent: float, replayed: float
) -> None:
    run = replace(unmeasured(3, 2, 16, (2.0, 1.0), seconds=100.0), ranks=(8, 32))
    asked = {"pool_mean_input": 200.0, "pool_mean_output": 100.0, "ideal_throughput": sent * (2.0 + 1.0 + 2.0) * 300.0}
    simulation = replay(replace(run, seen=run.seen | asked), make_profile(), lengths(*MEANS), seed=0)
    assert isinstance(simulation.workload, RateWorkload)
    rates = [adapter.rate for adapter in simulation.workload.adapters]
    assert rates == pytest.approx([replayed * each for each in (2.0, 1.0, 2.0)])
    assert simulation.ranks.tolist() == [8, 16, 8]  # no adapter is above the rank that the server was started with
    assert (simulation.slots, simulation.max_rank, simulation.horizon_s) == (2, 16, 100.0)
    assert simulation.max_outstanding == MAX_OUTSTANDING
