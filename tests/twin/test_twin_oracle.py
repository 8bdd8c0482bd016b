"""The twin as an oracle: the same load gets the same answer, and is simulated once."""

from __future__ import annotations

import math
from dataclasses import fields
from typing import Any

import numpy as np
import pytest
from support.oracles import small_problem

from loraplan.errors import BadInputError
from loraplan.oracle import ORACLES, Predictions
from loraplan.problem import GPULoad
from loraplan.registry import make_params
from loraplan.workload import RateWorkload
from twin import batch
from twin.metrics import measure
from twin.oracle import TwinOracle, TwinParams
from twin.server import simulate

SHORT = TwinParams(horizon_s=60.0)
PROBLEM = small_problem([(8, 2.0), (16, 0.5), (8, 1.0), (8, 0.0), (16, 60.0)], counts=(1, 1))
LOADS = [
    GPULoad(0, (0, 1), 1),
    GPULoad(1, (0, 1, 2), 3),
    GPULoad(0, (4,), 1),
    GPULoad(0, (3,), 1),
    GPULoad(0, (0,), 100_000),  # does not start
]


def assert_same(one: Predictions, other: Predictions) -> None:
    for field in fields(Predictions):
        np.testing.assert_array_equal(getattr(one, field.name), getattr(other, field.name), err_msg=field.name)


@pytest.fixture
def simulated(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """One item for each simulation that runs."""
    ran: list[Any] = []

    def counting(*args: Any, **kwargs: Any) -> Any:
        ran.append(args)
        return simulate(*args, **kwargs)

    monkeypatch.setattr(batch, "simulate", counting)
    return ran


def test_the_answer_does_not_depend_on_when_or_with_what_a_load_is_asked_for() -> None:
    oracle = TwinOracle(PROBLEM, SHORT)
    together = oracle.predict(LOADS)
    assert_same(oracle.predict(LOADS), together)
    for row, load in enumerate(LOADS):
        alone = TwinOracle(PROBLEM, SHORT).predict([load])
        for field in fields(Predictions):
            np.testing.assert_array_equal(getattr(alone, field.name)[0], getattr(together, field.name)[row])


def test_a_load_is_simulated_once(simulated: list[Any]) -> None:
    oracle = TwinOracle(PROBLEM, SHORT)
    oracle.predict([LOADS[0], LOADS[1], LOADS[0]])
    assert len(simulated) == 2
    oracle.predict(LOADS[:2])
    oracle.predict([LOADS[1]])
    assert len(simulated) == 2
    oracle.predict([LOADS[1], LOADS[2]])
    assert len(simulated) == 3


def test_an_interrupted_question_leaves_no_wrong_answers(monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(*_: Any) -> None:
        raise KeyboardInterrupt

    oracle = TwinOracle(PROBLEM, SHORT)
    with monkeypatch.context() as patched, pytest.raises(KeyboardInterrupt):
        patched.setattr(batch, "simulate", interrupted)
        oracle.predict(LOADS)
    assert_same(oracle.predict(LOADS), TwinOracle(PROBLEM, SHORT).predict(LOADS))


def test_it_says_what_the_twin_says() -> None:
    load = LOADS[1]
    answer = TwinOracle(PROBLEM, TwinParams(horizon_s=60.0, first_seed=5)).predict([load])
    adapters = tuple(PROBLEM.adapters[i] for i in load.adapters)
    requests = RateWorkload(adapters, 60.0).requests(5)
    seen = measure(simulate(PROBLEM.profile(load), 3, 16, PROBLEM.ranks[:3], requests, 60.0), 3)
    assert answer.served_fraction[0] == seen.served_fraction
    assert answer.throughput_tok_s[0] == seen.throughput_tok_s
    assert answer.itl_ms[0] == seen.itl_ms.mean
    assert answer.ttft_s[0] == seen.ttft_s.mean
    assert answer.kv_utilisation[0] == seen.kv_utilisation


def test_several_seeds_are_averaged() -> None:
    singly = [TwinOracle(PROBLEM, TwinParams(60.0, first_seed=seed)).predict(LOADS[:1]) for seed in (2, 3, 4)]
    together = TwinOracle(PROBLEM, TwinParams(60.0, seeds=3, first_seed=2)).predict(LOADS[:1])
    assert together.itl_ms[0] == pytest.approx(np.mean([one.itl_ms[0] for one in singly]))
    assert together.served_fraction[0] == pytest.approx(np.mean([one.served_fraction[0] for one in singly]))
    assert len({float(one.itl_ms[0]) for one in singly}) == 3


def test_a_seed_in_which_nobody_asks_does_not_hide_the_others() -> None:
    problem = small_problem([(8, 0.02)])
    seeds = range(12)
    singly = [TwinOracle(problem, TwinParams(60.0, first_seed=s)).predict([GPULoad(0, (0,), 1)]) for s in seeds]
    itl_ms = [float(one.itl_ms[0]) for one in singly]
    silent = [math.isnan(value) for value in itl_ms]
    assert any(silent)
    assert not all(silent)
    together = TwinOracle(problem, TwinParams(60.0, seeds=len(seeds))).predict([GPULoad(0, (0,), 1)])
    assert together.itl_ms[0] == pytest.approx(np.nanmean(itl_ms))
    assert math.isfinite(together.ttft_s[0])


def test_a_load_that_does_not_start_is_an_answer(simulated: list[Any]) -> None:
    found = TwinOracle(PROBLEM, SHORT).predict([LOADS[4]])
    assert not found.starts[0]
    assert found.served_fraction[0] == found.throughput_tok_s[0] == 0
    assert math.isnan(found.itl_ms[0])
    assert found.starved(0.9)[0]
    assert not simulated


def test_a_load_that_nobody_asks_for_is_served() -> None:
    found = TwinOracle(PROBLEM, SHORT).predict([LOADS[3]])
    assert found.served_fraction[0] == 1
    assert math.isnan(found.itl_ms[0])
    assert not found.starved(0.9)[0]


def test_too_much_traffic_starves() -> None:
    assert TwinOracle(PROBLEM, SHORT).predict([LOADS[2]]).starved(0.9)[0]


def test_no_loads_get_no_answers() -> None:
    assert len(TwinOracle(PROBLEM, SHORT).predict([])) == 0


@pytest.mark.parametrize(
    ("given", "complaint"),
    [
        ({"horizon_s": 0}, "horizon_s must be above 0"),
        ({"horizon_s": float("nan")}, "horizon_s must be above 0"),
        ({"horizon_s": float("inf")}, "horizon_s must be above 0"),
        ({"seeds": 0}, "seeds must be at least 1"),
        ({"first_seed": -1}, "first_seed at least 0"),
        ({"cv": 0}, "cv must be above 0"),
        ({"cv": float("nan")}, "cv must be above 0"),
        ({"horizon": 60}, "oracle 'twin' has no setting 'horizon'; did you mean 'horizon_s'"),
        ({"seeds": "many"}, "setting seeds: Input should be a valid integer"),
    ],
)
def test_bad_settings_are_refused(given: dict[str, Any], complaint: str) -> None:
    with pytest.raises(BadInputError, match=complaint):
        make_params(ORACLES.get("twin").Params, given, "oracle 'twin'")
