"""Problems: what is wrong is refused when they are built, and their arrays say what the adapters say."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest

from loraplan.constraints import Constraints
from loraplan.errors import BadInputError
from loraplan.oracle import ORACLES
from loraplan.problem import Fleet, GPULoad, GPUType, Problem, ProblemBuilder
from loraplan.profiles import H100_LLAMA, Profile, read_profile
from loraplan.workload import Adapter, Lengths, RateWorkload, Requests, TraceWorkload

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


@pytest.mark.parametrize("oracle", ["fluid", "surrogate"])
@pytest.mark.parametrize("rate", [1.1125369292536007e-308, 1e-13, 2e-12])
def test_an_adapter_that_is_hardly_ever_asked_for_is_no_load(rate: float, oracle: str) -> None:
    made = ProblemBuilder().adapter("a", 8, rate, tokens_in=250, tokens_out=231)
    problem = made.adapter("b", 8, 0.0, tokens_in=250, tokens_out=231).gpus(LLAMA, 1).build()
    assert problem.rates[0] in (0.0, 2e-12)
    judge = ORACLES.get(oracle)
    predicted = judge(problem, judge.Params()).predict([GPULoad(0, (0, 1), 1)])
    assert predicted.starts[0]
    assert predicted.served_fraction[0] > 0.9
    assert 0.0 <= predicted.kv_utilisation[0] < 0.01


@pytest.mark.parametrize(
    ("adapter", "complaint"),
    [
        ({"name": ""}, "adapter: name must not be empty"),
        ({"rank": 0}, r"adapter b: rank must be at least 1 \(got 0\)"),
        ({"rate": math.nan}, r"adapter b: rate must be a number >= 0 requests/s \(got nan\)"),
        ({"rate": -1.0}, r"adapter b: rate must be a number >= 0 requests/s \(got -1\.0\)"),
        ({"rate": math.inf}, "adapter b: rate must be a number"),
        ({"tokens_in": None}, "adapter b: expected lengths, or tokens_in and tokens_out"),
        ({"name": 3}, r"adapter: name must be text \(got 3\)"),
        ({"rank": "8"}, r"adapter b: rank must be a whole number \(got '8'\)"),
        ({"rank": 8.5}, r"adapter b: rank must be a whole number \(got 8\.5\)"),
        ({"rank": True}, r"adapter b: rank must be a whole number \(got True\)"),
        ({"rank": 10**30}, r"adapter b: rank must be at most 1000000 \(got 1000"),
        ({"rate": "1"}, r"adapter b: rate must be a number >= 0 requests/s \(got '1'\)"),
        ({"rate": 10**400}, r"adapter b: rate must be at most 1e\+09 requests/s \(got 1000"),
        ({"rate": 1e300}, r"adapter b: rate must be at most 1e\+09 requests/s \(got 1e\+300\)"),
        ({"lengths": (10, 10)}, r"adapter b: lengths must be Lengths \(got \(10, 10\)\)"),
        ({"tokens_in": math.nan}, r"tokens_in must be a number of tokens \(got nan\)"),
        ({"tokens_out": math.inf}, r"tokens_out must be a number of tokens \(got inf\)"),
        ({"tokens_in": "10"}, r"tokens_in must be a number of tokens \(got '10'\)"),
        ({"tokens_in": 1e300}, r"tokens_in must be at most 1000000000 \(got 1e\+300\)"),
        ({"tokens_in": 10**400}, r"tokens_in must be at most 1000000000 \(got 1000"),
        ({"tokens_out": 0}, r"tokens_out must be at least 1 \(got 0\)"),
    ],
)
def test_a_wrong_adapter_is_named(adapter: dict[str, Any], complaint: str) -> None:
    good = {"name": "b", "rank": 8, "rate": 1.0, "tokens_in": 10, "tokens_out": 10}
    with pytest.raises(BadInputError, match=complaint):
        builder().adapter(**(good | adapter))


def test_numbers_of_numpy_are_numbers() -> None:
    adapter = Adapter("b", np.int64(8), np.float32(0.5), Lengths.constant(np.float64(10), np.int32(5)))  # type: ignore[arg-type]
    assert (adapter.rank, adapter.rate, adapter.lengths.mean_in, adapter.lengths.mean_out) == (8, 0.5, 10, 5)
    assert (type(adapter.rank), type(adapter.rate)) == (int, float)


@pytest.mark.parametrize(
    ("tokens", "complaint"),
    [
        ([1.0, math.nan], r"tokens_in must be at least 1 \(got nan\)"),
        ([1.0, math.inf], r"tokens_in must be at most 1000000000 \(got inf\)"),
        ([2**63], r"tokens_in must be at most 1000000000 \(got 9223372036854775808\)"),
        ([10**30], "tokens_in must be numbers of tokens"),
        (["8"], "tokens_in must be numbers of tokens"),
    ],
)
def test_lengths_that_no_server_takes_are_refused(tokens: list[Any], complaint: str) -> None:
    with pytest.raises(BadInputError, match=complaint):
        Lengths(np.array(tokens), np.ones(len(tokens), dtype=np.int64))


def test_workloads_too_large_to_draw_are_refused() -> None:
    lengths = Lengths.constant(10, 10)
    with pytest.raises(
        BadInputError, match=r"^workload: 3\.6e\+09 requests are expected in 3600 s, more than 1e\+08; "
    ):
        RateWorkload((Adapter("a", 8, 1e6, lengths),))
    with pytest.raises(BadInputError, match=r"inf requests are expected in .*; lower the rates or the horizon$"):
        RateWorkload((Adapter("a", 8, 1e9, lengths),), 1e300)
    RateWorkload((Adapter("a", 8, 1e-9, lengths),), 1e12)
    recorded = Requests(np.arange(3.0), np.zeros(3, np.int64), np.ones(3, np.int64), np.ones(3, np.int64))
    with pytest.raises(
        BadInputError, match=r"^trace: 3 requests, 1e\+300 times as dense, are 3e\+300, more than 1e\+08"
    ):
        TraceWorkload((Adapter("a", 8, 1.0, lengths),), recorded, (0.0, 3.0), 1e300)


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
