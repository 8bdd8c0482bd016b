"""What every oracle must do."""

from __future__ import annotations

from dataclasses import fields

import numpy as np

from loraplan.oracle import ORACLES, Oracle, Predictions
from loraplan.problem import GPULoad, Problem
from loraplan.registry import Chosen
from loraplan.testing.brute_force import feasible_subsets
from loraplan.testing.contract import Settings, chosen, require
from loraplan.testing.problems import random_problem, server, small_problem

CLOSE = 1e-6
"""Relative difference of two answers that were computed in batches of different sizes."""

LOADS = (
    GPULoad(0, (0,), 1),
    GPULoad(1, (0, 1, 2), 2),
    GPULoad(0, (3,), 1),
    GPULoad(1, (1, 2, 3), 8),
    GPULoad(0, (2,), 100_000),
    GPULoad(1, (4,), 1),
)
"""Of `oracle_problem`: busy, few slots, nobody asks, slots to spare, too many slots for memory, overloaded."""
IDLE, NO_MEMORY = 2, 4


def oracle_problem() -> Problem:
    """Five adapters, the fourth without requests, the fifth with more than any server carries, and two GPU types."""
    return small_problem([(8, 1.0), (16, 2.0), (32, 0.5), (8, 0.0), (8, 3_000.0)], counts=(2, 3))


def check_oracle(oracle: str | type[Oracle], settings: Settings | None = None, seeds: int = 3) -> None:
    """Check all that solvers rely on: what predictions look like, that they repeat, and that they are hereditary.

    Args:
        oracle: its registered name, or its class.
        settings: to make it faster than its defaults, say.
        seeds: random problems on which the claim to be hereditary is checked, against every subset.

    Raises:
        ContractError: it does not keep its contract.
        BadInputError: the name or a setting is unknown or wrong.
    """
    picked = chosen(ORACLES, oracle, settings)
    for check in ORACLE_CHECKS:
        check(picked)
    for seed in range(seeds if picked.kind.hereditary else 0):
        feasibility_is_hereditary(picked, seed)


def _make(picked: Chosen, problem: Problem) -> Oracle:
    made: Oracle = picked.kind(problem, picked.params)
    return made


def predictions_have_their_shapes(picked: Chosen) -> None:
    """Every array is of shape (loads,); of no loads as well."""
    oracle = _make(picked, oracle_problem())
    for loads in ((), LOADS[:1], LOADS):
        predicted = oracle.predict(loads)
        require(isinstance(predicted, Predictions), f"oracle {picked.name}: predict must return Predictions")
        for field in fields(predicted):
            shape, n = getattr(predicted, field.name).shape, len(loads)
            require(
                shape == (n,), f"oracle {picked.name}: {field.name} of {n} loads must have shape ({n},) (got {shape})"
            )
        require(predicted.starts.dtype == np.bool_, f"oracle {picked.name}: starts must be truth values")


def predictions_make_sense(picked: Chosen) -> None:
    """Fractions are fractions; a load that nobody asks serves all; what does not start serves nothing."""
    says = _make(picked, oracle_problem()).predict(LOADS)
    for name in ("served_fraction", "adapter_served_fraction", "kv_utilisation"):
        values = getattr(says, name)
        fine = ((values >= 0) & (values <= 1 + CLOSE)).all()
        require(fine, f"oracle {picked.name}: {name} must be 0 to 1 (got {values.tolist()})")
    fine = np.isfinite(says.throughput_tok_s).all() and (says.throughput_tok_s >= 0).all()
    require(
        fine,
        f"oracle {picked.name}: throughput_tok_s must be finite, at least 0 (got {says.throughput_tok_s.tolist()})",
    )
    for name in ("itl_ms", "ttft_s"):
        values = getattr(says, name)
        require(not (values < 0).any(), f"oracle {picked.name}: {name} must be at least 0 (got {values.tolist()})")
    require(
        says.served_fraction[IDLE] == 1.0,
        f"oracle {picked.name}: a load without requests has served fraction 1 (got {says.served_fraction[IDLE]})",
    )
    require(
        not says.starts[NO_MEMORY] and says.served_fraction[NO_MEMORY] == 0.0,
        f"oracle {picked.name}: a server whose slots take all memory does not start, and serves nothing",
    )
    require(says.starts[[0, 1, 2, 3, 5]].all(), f"oracle {picked.name}: servers start that have the memory for it")
    overloaded = says.served_fraction[-1]
    require(
        overloaded < 0.9, f"oracle {picked.name}: 3,000 req/s on a GPU are too many (it serves {overloaded} of them)"
    )


def a_rank_that_is_not_taken_is_no_error(picked: Chosen) -> None:
    """A load whose rank its GPU type does not take does not start; that is an answer."""
    narrow = server("narrow")
    limits = narrow.limits.model_copy(update={"lora_ranks": (8,)})
    profiles = [narrow.model_copy(update={"limits": limits}), server("wide")]
    problem = small_problem([(8, 1.0), (64, 1.0)], counts=(1, 1), profiles=profiles)
    says = _make(picked, problem).predict([GPULoad(0, (0, 1), 2), GPULoad(1, (0, 1), 2)])
    fine = says.starts.tolist() == [False, True]
    require(fine, f"oracle {picked.name}: a load of rank 64 starts on a type that takes 8, or not on one that takes 64")


def answers_repeat(picked: Chosen) -> None:
    """The same load gets the same answer: again, in other company, from another instance."""
    problem = oracle_problem()
    oracle = _make(picked, problem)
    first = oracle.predict(LOADS)
    turned = oracle.predict(LOADS[::-1]).select(np.arange(len(LOADS))[::-1])
    others = (
        ("asked again", oracle.predict(LOADS), 0.0),
        ("in another order", turned, CLOSE),
        ("of another instance", _make(picked, problem).predict(LOADS), 0.0),
    )
    for what, other, close in others:
        for field in fields(first):
            one, two = getattr(first, field.name), getattr(other, field.name)
            fine = np.allclose(one, two, rtol=close, atol=close, equal_nan=True)
            require(fine, f"oracle {picked.name}: {field.name} {what} is {two.tolist()}, and was {one.tolist()}")


def outside_is_in_words(picked: Chosen) -> None:
    """What is out of its range is told as a tuple of words."""
    oracle = _make(picked, oracle_problem())
    for load in LOADS:
        words = oracle.outside(load)
        fine = isinstance(words, tuple) and all(isinstance(word, str) for word in words)
        require(fine, f"oracle {picked.name}: outside must return a tuple of words (got {words!r})")


def feasibility_is_hereditary(picked: Chosen, seed: int) -> None:
    """What proofs of infeasibility rest on: taking an adapter away never breaks a GPU, on any number of slots."""
    problem = random_problem(seed, 4.0)
    fits = feasible_subsets(problem, _make(picked, problem))
    masks = np.arange(fits.shape[1])
    for i, adapter in enumerate(problem.adapters):
        broken = fits & ~fits[:, masks & ~(1 << i)]
        require(
            not broken.any(),
            f"oracle {picked.name}: it is called hereditary, but a GPU starves without {adapter.name} and not with it "
            f"(random_problem({seed}, 4.0), GPU type and adapters {np.argwhere(broken)[:1].tolist()})",
        )


ORACLE_CHECKS = (
    predictions_have_their_shapes,
    predictions_make_sense,
    a_rank_that_is_not_taken_is_no_error,
    answers_repeat,
    outside_is_in_words,
)
