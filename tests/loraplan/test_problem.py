"""Problems: what is wrong is refused when they are built, and their arrays say what the adapters say."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest

from loraplan.errors import BadInputError
from loraplan.problem import Constraints, Fleet, GPULoad, GPUType, Problem, ProblemBuilder
from loraplan.profiles import H100_LLAMA, Profile, read_profile
from loraplan.workload import Adapter, Lengths

LLAMA = read_profile(H100_LLAMA)
SMALL = LLAMA.model_copy(update={"name": "small", "limits": LLAMA.limits.model_copy(update={"lora_ranks": (8, 16)})})


def builder(*profiles: Profile) -> ProblemBuilder:
    made = ProblemBuilder().adapter("a", rank=8, rate=0.5, tokens_in=200, tokens_out=100)
    for profile in profiles or (LLAMA,):
        made.gpus(profile, count=4)
    return made


def test_a_problem_is_built_piece_by_piece() -> None:
    pairs = Lengths(np.array([10, 30]), np.array([5, 5]))
    made = builder().adapter("b", rank=12, rate=2.0, lengths=pairs).constraints(0.8).gpus(SMALL, count=2)
    problem = made.build()
    assert problem.constraints == Constraints(0.8)
    assert problem.fleet.count == 6
    np.testing.assert_array_equal(problem.ranks, [8, 12])
    np.testing.assert_array_equal(problem.rates, [0.5, 2.0])
    np.testing.assert_array_equal(problem.mean_in, [200, 20])
    np.testing.assert_array_equal(problem.mean_out, [100, 5])
    np.testing.assert_allclose(problem.mean_kv, [250.5, 23])
    np.testing.assert_allclose(problem.offered, [150, 50])
    assert builder().gpus("h100-64gb/qwen-2.5-7b", 1).build().fleet.types[1].profile.name == "h100-64gb/qwen-2.5-7b"


@pytest.mark.parametrize(
    ("adapter", "complaint"),
    [
        ({"name": ""}, "adapter: name must not be empty"),
        ({"rank": 0}, r"adapter b: rank must be at least 1 \(got 0\)"),
        ({"rate": math.nan}, r"adapter b: rate must be a number >= 0 requests/s \(got nan\)"),
        ({"rate": -1.0}, r"adapter b: rate must be a number >= 0 requests/s \(got -1\.0\)"),
        ({"rate": math.inf}, "adapter b: rate must be a number"),
        ({"tokens_in": None}, "adapter b: expected lengths, or tokens_in and tokens_out"),
        ({"tokens_out": 0}, r"tokens_out must be at least 1 \(got 0\)"),
    ],
)
def test_a_wrong_adapter_is_named(adapter: dict[str, Any], complaint: str) -> None:
    good = {"name": "b", "rank": 8, "rate": 1.0, "tokens_in": 10, "tokens_out": 10}
    with pytest.raises(BadInputError, match=complaint):
        builder().adapter(**(good | adapter))


def test_wrong_problems_are_refused() -> None:
    with pytest.raises(BadInputError, match="adapter a is listed twice"):
        builder().adapter("a", 8, 1.0, 10, 10).build()
    with pytest.raises(BadInputError, match="expected at least one adapter"):
        ProblemBuilder().gpus(LLAMA, 1).build()
    with pytest.raises(BadInputError, match="expected at least one GPU type"):
        ProblemBuilder().adapter("a", 8, 1.0, 10, 10).build()
    with pytest.raises(BadInputError, match="profile small is listed twice"):
        builder(SMALL, SMALL).build()
    with pytest.raises(BadInputError, match=r"count of small must be at least 1 \(got 0\)"):
        GPUType(SMALL, 0)
    for bound in (0.0, 1.1, math.nan):
        with pytest.raises(BadInputError, match=r"served_fraction must be in \(0, 1\]"):
            Constraints(bound)


def test_a_rank_above_the_largest_on_offer_is_refused() -> None:
    wide = Adapter("wide", 300, 1.0, Lengths.constant(10, 10))
    with pytest.raises(BadInputError, match="adapter wide: rank 300 is above 256, the largest --max-lora-rank"):
        Problem((wide,), Fleet((GPUType(SMALL, 1), GPUType(LLAMA, 1))))
    fits = Adapter("fits", 17, 1.0, Lengths.constant(10, 10))
    problem = Problem((fits,), Fleet((GPUType(SMALL, 1), GPUType(LLAMA, 1))))
    assert problem.max_rank(1, (0,)) == 32
    with pytest.raises(BadInputError, match="carries an adapter of rank 17"):
        problem.max_rank(0, (0,))
    assert not problem.starts(GPULoad(0, (0,), 1))
    assert problem.starts(GPULoad(1, (0,), 1))


def test_a_server_starts_while_memory_holds_its_slots() -> None:
    problem = builder().adapter("b", 30, 1.0, 10, 10).build()
    most = LLAMA.max_slots(32)
    assert problem.profile(GPULoad(0, (0,), 1)) is LLAMA
    assert problem.starts(GPULoad(0, (0, 1), most))
    assert not problem.starts(GPULoad(0, (0, 1), most + 1))
    assert problem.starts(GPULoad(0, (0,), most + 1))  # rank 8 takes less
    assert problem.starts(GPULoad(0, (), 1))
    assert problem.max_rank(0, ()) == 8
