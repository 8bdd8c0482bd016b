"""Calibrate and replay on a real vLLM (`make vllm`, `pytest -m vllm`); how close they come is for quiet machines."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from support.cli import invoke
from support.vllm_env import vllm_command

import loraplan
from benchmarks.tiny_llama import Sizes, write_all
from loraplan.profiles import read_profile

pytestmark = pytest.mark.vllm

SERVER = ("--cpu", "--vllm-args", "--disable-uvicorn-access-log --num-gpu-blocks-override 65")


def run(*arguments: object) -> Any:
    done = invoke(*arguments)
    assert done.exit_code == 0, done.output
    return done


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a model of a million weights and four adapters."""
    folder = tmp_path_factory.mktemp("tiny")
    write_all(folder, 4, (8,), Sizes(hidden=128, layers=2, heads=2, inner=256, vocabulary=1024, longest=512))
    return folder


@pytest.fixture(scope="module")
def profile(model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Calibrated on it, in little time."""
    path = tmp_path_factory.mktemp("profile") / "p.yaml"
    limits = ("--max-num-seqs", 8, "--max-num-batched-tokens", 128, "--max-model-len", 512)
    where = ("--launch", model / "model", "--loras", model / "adapters", "--slots", "2", "--vllm", vllm_command())
    run("calibrate", *where, *SERVER, *limits, "--budget", "150s", "--name", "tiny", "-o", path)
    return path


def test_a_real_server_is_calibrated(profile: Path) -> None:
    found = read_profile(profile)
    assert found.engine.startswith("vLLM 0.32.0")
    assert found.rules == "vllm-0.32"
    assert found.kv.block_tokens == 128
    assert found.kv_blocks(2, 8) == 64
    assert found.step_ms.base + found.step_ms.per_request > 0


def test_a_plan_is_replayed_on_a_real_server(profile: Path, model: Path, tmp_path: Path) -> None:
    names = [path.name for path in sorted((model / "adapters").iterdir())]
    table, config, plan = tmp_path / "adapters.csv", tmp_path / "config.yaml", tmp_path / "plan.json"
    table.write_text("name,rank,rate,tokens_in,tokens_out\n" + "".join(f"{name},8,0.25,16,8\n" for name in names))
    config.write_text(
        f"workload: {{adapters: {table}, horizon_s: 60}}\nfleet: [{{profile: {profile}, count: 1}}]\nsolver: best_fit\n"
    )
    run("solve", config, "-o", plan)
    where = ("--launch", model / "model", "--adapter-path", f"{model}/adapters/{{name}}", "--vllm", vllm_command())
    done = run("replay", plan, *where, *SERVER, "--duration", "15s", "--json")
    (gpu,) = json.loads(done.stdout)["gpus"]
    assert gpu["figures"]["failed"] == 0
    assert gpu["figures"]["completed"] >= 0.6 * gpu["figures"]["sent"] > 0
    assert {adapter["name"] for adapter in gpu["adapters"]} == set(names)
    assert len(loraplan.read_plan(plan).gpus) == 1
