"""The surrogate as an oracle: consistent, hereditary, and honest about what it does not know."""

from __future__ import annotations

import numpy as np
import pytest
from support.oracles import server, small_problem

from loraplan.errors import BadInputError
from loraplan.problem import GPULoad, Problem, ProblemBuilder
from surrogate.oracle import SurrogateOracle, SurrogateParams
from twin.oracle import TwinOracle, TwinParams


@pytest.fixture(scope="module")
def problem() -> Problem:
    rng = np.random.default_rng(0)
    builder = ProblemBuilder().gpus("h100-64gb/llama-3.1-8b", 4).gpus("h100-64gb/qwen-2.5-7b", 4)
    for i in range(200):
        rank, rate = int(rng.choice([8, 16, 32])), float(rng.choice([0.4, 0.1, 0.025]))
        builder.adapter(f"a{i}", rank, rate, tokens_in=223, tokens_out=197)
    return builder.build()


@pytest.fixture(scope="module")
def oracle(problem: Problem) -> SurrogateOracle:
    return SurrogateOracle(problem, SurrogateParams())


def test_a_load_is_judged_the_same_alone_and_in_company(problem: Problem, oracle: SurrogateOracle) -> None:
    rng = np.random.default_rng(1)
    loads = [
        GPULoad(int(rng.integers(2)), tuple(sorted(rng.choice(200, int(rng.integers(1, 200)), False).tolist())), slots)
        for slots in (8, 32, 96, 160)
        for _ in range(20)
    ]
    together = oracle.predict(loads)
    for row, load in enumerate(loads):
        alone = oracle.predict([load])
        for name in ("served_fraction", "throughput_tok_s", "itl_ms", "ttft_s", "kv_utilisation"):
            np.testing.assert_array_equal(getattr(alone, name)[0], getattr(together, name)[row], name)


def test_more_adapters_never_serve_more_of_the_traffic(oracle: SurrogateOracle) -> None:
    """Chains of added adapters, of any ranks, on a few servers: heredity by construction."""
    rng = np.random.default_rng(2)
    for _ in range(30):
        order = rng.permutation(200)
        gpu_type, slots = int(rng.integers(2)), int(rng.choice([4, 16, 64, 128]))
        loads = [GPULoad(gpu_type, tuple(sorted(order[:n].tolist())), slots) for n in range(1, 201)]
        served = oracle.predict(loads).served_fraction
        assert (np.diff(served) <= 0).all()


def test_light_and_heavy_loads_are_told_apart_as_in_the_twin(problem: Problem, oracle: SurrogateOracle) -> None:
    loads = [GPULoad(0, tuple(range(0, 200, 8)), 32), GPULoad(0, tuple(range(200)), 8)]
    said, seen = oracle.predict(loads), TwinOracle(problem, TwinParams(horizon_s=900.0)).predict(loads)
    assert said.starved(0.9).tolist() == seen.starved(0.9).tolist() == [False, True]
    assert said.itl_ms[0] == pytest.approx(seen.itl_ms[0], rel=0.15)
    assert said.throughput_tok_s[0] == pytest.approx(seen.throughput_tok_s[0], rel=0.1)


def test_less_risk_accepts_less(problem: Problem) -> None:
    loads = [GPULoad(0, tuple(range(n)), 96) for n in range(1, 201)]
    served = [SurrogateOracle(problem, SurrogateParams(risk=risk)).predict(loads) for risk in (0.01, 0.05, 0.2)]
    accepted = [int((~one.starved(0.9)).sum()) for one in served]
    assert accepted == sorted(accepted)
    assert accepted[0] > 0


def test_a_server_that_does_not_start_and_a_load_without_requests() -> None:
    problem = small_problem([(8, 0.0), (8, 1.0)], profiles=[server(max_slots=8)])
    oracle = SurrogateOracle(problem, SurrogateParams())
    said = oracle.predict([GPULoad(0, (0, 1), 64), GPULoad(0, (0,), 4), GPULoad(0, (), 4)])
    assert said.starts.tolist() == [False, True, True]
    assert said.served_fraction.tolist() == [0.0, 1.0, 1.0]
    assert said.throughput_tok_s.tolist() == [0.0, 0.0, 0.0]
    assert np.isnan(said.itl_ms).all()


def test_what_is_out_of_range_is_flagged() -> None:
    builder = ProblemBuilder().gpus("h100-64gb/llama-3.1-8b", 1)
    problem = builder.adapter("usual", 8, 0.5, 223, 197).adapter("long", 8, 0.5, 100, 60_000).build()
    oracle = SurrogateOracle(problem, SurrogateParams())
    assert oracle.outside(GPULoad(0, (0,), 4)) == ()
    assert "mean tokens out" in oracle.outside(GPULoad(0, (1,), 4))


@pytest.mark.parametrize(("setting", "value"), [("risk", 0.0), ("risk", 1.0), ("cv", 0.0), ("cv", 21.0)])
def test_settings_out_of_range(setting: str, value: float) -> None:
    with pytest.raises(BadInputError, match=f"oracle 'surrogate': {setting} must be"):
        SurrogateParams(**{setting: value})


def test_a_model_that_is_not_there(problem: Problem) -> None:
    with pytest.raises(BadInputError, match=r"card\.json"):
        SurrogateOracle(problem, SurrogateParams(model="nowhere"))


@pytest.mark.slow
def test_a_hundred_thousand_chains_of_added_adapters(problem: Problem, oracle: SurrogateOracle) -> None:
    """Each adds 20 adapters one by one, in random order, to a server of random slots; none ever serves more."""
    rng = np.random.default_rng(3)
    chains, steps = 1000, 20
    sizes = np.tile(np.arange(1, steps + 1), chains)
    for _ in range(100):
        orders = rng.permuted(np.tile(np.arange(len(problem.adapters)), (chains, 1)), axis=1)[:, :steps]
        members = np.concatenate([order[:n] for order in orders for n in range(1, steps + 1)]).astype(np.int64)
        gpu_type = np.repeat(rng.integers(2, size=chains), steps)
        slots = np.repeat(rng.choice([1, 2, 4, 8, 16], chains), steps)
        served = oracle.predict_arrays(members, np.cumsum(sizes), gpu_type, slots).served_fraction
        assert (np.diff(served.reshape(chains, steps), axis=1) <= 0.0).all()
