"""The twin and the reference against vLLM 0.32.0's own schedulers, as ``support.vllm_scheduler`` recorded them."""

from __future__ import annotations

import gzip
import json
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from support.reference_scheduler import reference_simulate
from support.scenarios import MAX_RANK, RULES, Scenario, make_profile, make_requests

from twin.server import simulate

RECORDED = Path(__file__).with_name("vllm_0_32_runs.json.gz")
REAL_RULES = [rules for rules in RULES if rules.startswith("vllm-0.32")]


@cache
def recorded(rules: str) -> list[dict[str, Any]]:
    runs: list[dict[str, Any]] = json.loads(gzip.decompress(RECORDED.read_bytes()))["runs"]
    return [run for run in runs if run["profile"]["rules"] == rules]


def scenario_of(run: dict[str, Any]) -> Scenario:
    requests = make_requests(**run["requests"])
    ranks = np.full(run["adapters"], MAX_RANK)
    return Scenario(make_profile(**run["profile"]), run["slots"], MAX_RANK, ranks, requests, run["horizon_s"], None)


@pytest.mark.parametrize("simulator", [simulate, reference_simulate])
@pytest.mark.parametrize("rules", REAL_RULES)
def test_every_token_comes_when_vllm_s_scheduler_has_it_come(simulator: Any, rules: str) -> None:
    for run in recorded(rules):
        ours = scenario_of(run).run_by(simulator)
        for name in ("first_token_s", "finish_s"):
            np.testing.assert_allclose(getattr(ours, name), np.array(run[name], dtype=float), rtol=1e-9, err_msg=name)
        np.testing.assert_array_equal(ours.preempted, run["preempted"])
        assert ours.steps == run["steps"]


@pytest.mark.parametrize("rules", REAL_RULES)
def test_much_happened_in_the_recorded_runs(rules: str) -> None:
    runs = recorded(rules)
    assert len(runs) >= 20
    assert sum(sum(run["preempted"]) for run in runs) > 50
    assert sum(run["slots"] < run["adapters"] for run in runs) >= 5
