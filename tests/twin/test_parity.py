"""The twin beside vLLM 0.32.0's own engine, step by step, in the scenarios that ``support.vllm_engine`` recorded."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from support import reference_scheduler
from support.parity_scenarios import SCENARIOS, ParityScenario
from support.scenarios import make_profile, make_requests
from support.vllm_engine import differences, read
from support.vllm_env import vllm_python

from twin.recording import Recording
from twin.server import Run, simulate

RECORDED = Path(__file__).with_name("vllm_0_32_steps.json.gz")
TICK_S = 2.0**-7  # sums of it are exact
RANK = 8
BY_NAME = {scenario.name: scenario for scenario in SCENARIOS}


@cache
def recorded() -> dict[str, Any]:
    return read(RECORDED)


def arguments(scenario: ParityScenario) -> dict[str, Any]:
    """The scenario as the simulators take it, on a server whose steps all take a tick."""
    tick, adapter, tokens_in, tokens_out = np.array(scenario.requests).T
    return {
        "profile": make_profile(
            rules="vllm-0.32",
            step_ms={"base": 1000 * TICK_S},
            kv_tokens=(scenario.blocks + 0.5) * scenario.block,
            block_tokens=scenario.block,
            max_model_len=scenario.max_model_len,
            max_num_seqs=scenario.max_num_seqs,
            max_num_batched_tokens=scenario.max_num_batched_tokens,
        ),
        "slots": scenario.slots,
        "max_rank": RANK,
        "adapter_ranks": np.full(scenario.adapters, RANK),
        "requests": make_requests(tick * TICK_S, adapter, tokens_in, tokens_out),
        "horizon_s": 4096 * TICK_S,
        "cpu_slots": scenario.cpu_slots,
    }


@cache
def twin_run(name: str) -> Run:
    return simulate(**arguments(BY_NAME[name]), recording=Recording(steps_s=(0.0, 4096 * TICK_S)))


def in_ticks(seconds: Any) -> list[int | None]:
    return [None if np.isnan(s) else round(s / TICK_S) for s in seconds]


def steps_of(run: dict[str, Any]) -> list[dict[str, Any]]:
    return [step for step in run["steps"] if step["parts"]]


def test_there_is_a_recording_of_every_scenario() -> None:
    assert recorded()["engine"].startswith("vllm 0.32.0")
    assert list(recorded()["runs"]) == [scenario.name for scenario in SCENARIOS]
    assert len(SCENARIOS) >= 12


@pytest.mark.parametrize("name", BY_NAME)
def test_every_token_comes_in_the_step_in_which_vllm_has_it(name: str) -> None:
    run, seen = twin_run(name), recorded()["runs"][name]
    assert in_ticks(run.first_token_s) == seen["first_token"]
    assert in_ticks(run.finish_s) == seen["finish"]
    gone = [number for step in seen["steps"] for number in step["preempted"]]
    assert run.preempted.tolist() == np.bincount(gone, minlength=len(seen["finish"])).tolist()


@pytest.mark.parametrize("name", BY_NAME)
def test_every_step_of_the_twin_contains_what_vllm_s_does(name: str) -> None:
    run, seen = twin_run(name), steps_of(recorded()["runs"][name])
    log = run.steps_log
    assert log is not None
    assert in_ticks(log["start_s"]) == [step["tick"] for step in seen]
    assert log["running"].astype(int).tolist() == [len(step["parts"]) for step in seen]
    tokens = (log["prefill_tokens"] + log["decode_tokens"]).astype(int).tolist()
    assert tokens == [sum(new for _, new in step["parts"]) for step in seen]
    assert log["waiting"].astype(int).tolist() == [step["waiting"] for step in seen]
    owner = [row[1] for row in BY_NAME[name].requests]
    assert log["adapters"].astype(int).tolist() == [len({owner[n] for n, _ in step["parts"]}) for step in seen]
    assert log["kv_tokens"].astype(int).tolist() == _held(seen)


def _held(steps: list[dict[str, Any]]) -> list[int]:
    """Tokens that the requests of each step hold after it."""
    held: dict[int, int] = {}
    sums = []
    for step in steps:
        for number in step["preempted"]:
            held[number] = 0
        for number, new in step["parts"]:
            held[number] = held.get(number, 0) + new
        sums.append(sum(held[number] for number, _ in step["parts"]))
    return sums


@pytest.mark.parametrize("name", BY_NAME)
def test_the_rules_schedule_the_same_requests_in_the_same_steps(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The twin keeps no list of who is in a step; the scheduler written out as lists, which it equals, does."""
    steps: list[dict[str, Any]] = []
    schedule = reference_scheduler._Scheduler.schedule

    def watched(self: Any) -> Any:
        step = schedule(self)
        parts = [[part.request.index, part.new] for part in step.parts]
        steps.append({"parts": parts, "preempted": [request.index for request in step.preempted]})
        return step

    monkeypatch.setattr(reference_scheduler._Scheduler, "schedule", watched)
    reference = reference_scheduler.reference_simulate(**arguments(BY_NAME[name]))
    seen = recorded()["runs"][name]["steps"]
    assert [step for step in steps if step["parts"] or step["preempted"]] == [
        {"parts": step["parts"], "preempted": step["preempted"]} for step in seen
    ]
    run = twin_run(name)
    np.testing.assert_array_equal(run.first_token_s, reference.first_token_s)
    np.testing.assert_array_equal(run.finish_s, reference.finish_s)


def test_adapters_are_loaded_when_and_from_where_vllm_loads_them() -> None:
    name = "CPU tier smaller than the adapters"
    run, seen = twin_run(name), steps_of(recorded()["runs"][name])
    assert run.steps_log is not None
    assert run.steps_log["loads"].astype(int).tolist() == [step["slots"] for step in seen]
    assert run.loads_from_disk == sum(step["disk"] for step in seen) > 3
    assert run.loads_from_cpu == sum(step["slots"] - step["disk"] for step in seen) >= 1


def test_the_scenarios_press_on_every_rule() -> None:
    runs = recorded()["runs"]
    assert sum(len(step["preempted"]) for step in runs["KV scarce"]["steps"]) > 3
    chunks = [number for step in runs["prefill in chunks"]["steps"] for number, new in step["parts"] if new > 1]
    assert len(chunks) > len(set(chunks))
    overtaken = runs["skip and overtake"]["first_token"]
    assert overtaken[3] < overtaken[2]
    blocked = runs["KV gate at admission"]["first_token"]
    assert blocked[3] >= blocked[2]


def test_a_new_recording_is_compared_scenario_by_scenario() -> None:
    old = recorded()
    new = json.loads(json.dumps(old))
    new["engine"] = "vllm 9"
    new["runs"]["KV scarce"]["steps"][2]["waiting"] += 1
    new["runs"]["another"] = new["runs"]["one request"]
    lines = differences(old, new)
    assert lines[0] == f"{old['engine']} -> vllm 9"
    assert [line for line in lines[1:] if not line.endswith(": the same")] == [
        next(line for line in lines if line.startswith("KV scarce: step 2 was")),
        "another: new",
    ]


@pytest.mark.vllm
def test_the_engine_still_does_what_was_recorded(tmp_path: Path) -> None:
    root = Path(__file__).parents[2]
    path = os.pathsep.join((str(root), str(root / "tests")))
    subprocess.run(
        [vllm_python(), "-m", "support.vllm_engine", str(tmp_path / "steps.json.gz")],
        cwd=root,
        env=os.environ | {"PYTHONPATH": path},
        check=True,
        timeout=900,
        stdout=sys.stderr,
    )
    assert differences(recorded(), read(tmp_path / "steps.json.gz"))[1:] == [f"{name}: the same" for name in BY_NAME]
