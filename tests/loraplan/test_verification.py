"""The twin in the loop: what starves in it gets other slots or is cut off, and what is confirmed does not starve."""

from __future__ import annotations

from pathlib import Path

import pytest
from support.oracles import server

from loraplan import ProblemBuilder
from loraplan.api import solve_config
from loraplan.config import build, parse_config, planned_workload
from loraplan.oracle import ORACLES
from loraplan.problem import GPULoad
from loraplan.replicas import whole
from loraplan.verification import Verifier, _mended
from objectives import OBJECTIVES
from solvers import Search

CONFIG = {
    "workload": {
        "generate": {
            "count": 60,
            "ranks": [8, 16],
            "rates": [1.6, 0.4, 0.1],
            "input_tokens": 250,
            "output_tokens": 231,
            "rate_scale": 1.5,
        },
        "horizon_s": 400,
    },
    "fleet": [{"profile": "h100-64gb/llama-3.1-8b", "count": 12}],
    "solver": "best_fit",
    "oracle": "fluid",
    "verify": "twin",
}


def make_search() -> Search:
    builder = ProblemBuilder().gpus(server("small"), 2)
    for i in range(24):
        builder.adapter(f"a{i}", 8, 0.05, tokens_in=250, tokens_out=231)
    problem = builder.build()
    aim, judge = OBJECTIVES.get("gpu_count"), ORACLES.get("fluid")
    return Search(problem, aim(aim.Params()), judge(problem, judge.Params()), seed=0)


def test_a_load_that_starves_gets_slots_with_which_it_does_not() -> None:
    search = make_search()
    loads = (GPULoad(0, tuple(range(16)), 8), GPULoad(0, tuple(range(16, 24)), 8))
    mended, starved = _mended(search, loads, [0], lambda tried: [0.85 + 0.005 * load.slots for load in tried])
    assert mended[1] == loads[1]
    assert (mended[0].adapters, mended[0].slots) == (loads[0].adapters, 16)  # as many as are tried
    assert search.judge([mended[0]])[0].all()
    assert {load.slots for load in starved} >= {5, 8, 9}
    assert all(load.slots < 10 and load.adapters == loads[0].adapters for load in starved)


def test_a_load_that_starves_with_any_slots_stays_and_is_told() -> None:
    search = make_search()
    loads = (GPULoad(0, tuple(range(16)), 8),)
    mended, starved = _mended(search, loads, [0], lambda tried: [0.5] * len(tried))
    assert mended == loads
    assert loads[0] in starved
    assert len(starved) > 5
    assert _mended(search, loads, [], lambda tried: []) == (loads, [])


@pytest.mark.parametrize("solver", ["best_fit", "first_fit"])
def test_a_plan_that_the_twin_confirms_does_not_starve_in_it(solver: str) -> None:
    config = parse_config(CONFIG, [f"solver={solver}"], Path(), "config")
    case, made = build(config), solve_config(config)
    assert made.complete
    assert made.verification is not None
    assert made.verification.confirmed
    assert made.verification.cuts > 0
    verifier = Verifier(planned_workload(config))
    place = {adapter.name: i for i, adapter in enumerate(case.problem.adapters)}
    loads = tuple(GPULoad(0, tuple(sorted(place[one.name] for one in gpu.adapters)), gpu.slots) for gpu in made.gpus)
    served = verifier.served(whole(case.problem), case.problem, loads)
    assert min(served) >= case.problem.constraints.served_fraction
