"""Real servers in all but name: what calibrate and replay make of one that answers, and of one that does not."""

from __future__ import annotations

import asyncio
import itertools
import json
import math
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from support.fake_vllm import BLOCK, BLOCKS, REQUEST_S, STEP_S, FakeServer
from typer.testing import CliRunner

import loraplan
from loraplan.cli.commands import app
from loraplan.errors import BadInputError, ServerError
from loraplan.live import keeper as keeper_program
from loraplan.live.client import Answer, Target, client
from loraplan.live.launch import LaunchedServer, free_ports
from loraplan.live.measured import figures
from loraplan.live.notebook import Notebook
from loraplan.live.probes import between_tokens
from loraplan.live.prometheus import Metrics
from loraplan.profiles import read_profile
from loraplan.workload import Requests

ROOT = Path(__file__).parents[2]
FAKE = ROOT / "tests" / "support" / "fake_vllm.py"
LIMITS = ("--max-num-seqs", "8", "--max-num-batched-tokens", "64", "--max-model-len", "512")


def run(*arguments: str) -> Any:
    return CliRunner().invoke(app, list(arguments))


def stream(n: int, every_s: float, tokens_out: int = 4) -> Requests:
    ones = np.ones(n, dtype=np.int64)
    return Requests(every_s * np.arange(n), 0 * ones, 5 * ones, tokens_out * ones)


def play(url: str, requests: Requests, stall_s: float = 5.0, model: str = "a", **more: Any) -> list[Answer]:
    async def go() -> list[Answer]:
        async with client(stall_s) as session:
            return await session.play(requests, lambda *_: Target(url, model), **more)

    return asyncio.run(go())


@pytest.fixture(scope="module")
def fake_vllm(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A command that stands in for ``vllm``."""
    path = tmp_path_factory.mktemp("bin") / "vllm"
    path.write_text(f'#!/bin/sh\nexec {sys.executable} {FAKE} "$@"\n')
    path.chmod(0o755)
    return str(path)


def gone(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return True
    return Path(f"/proc/{pid}/stat").read_text().split()[2] == "Z"


# The client


def test_requests_are_sent_when_they_are_due_whatever_becomes_of_others() -> None:
    with FakeServer() as server:
        answers = play(server.url, stream(10, 0.01, tokens_out=30))
    assert all(answer.finished and answer.tokens_out == 30 and len(answer.gaps_s) == 29 for answer in answers)
    assert sum(later.sent_s < earlier.last_s for earlier, later in itertools.pairwise(answers)) >= 8
    for answer in answers:
        assert answer.due_s <= answer.sent_s < answer.first_s < answer.last_s


def test_what_is_unfinished_at_the_horizon_is_broken_off() -> None:
    with FakeServer() as server:
        started = time.monotonic()
        answers = play(server.url, stream(3, 0.0, tokens_out=5000), horizon_s=0.3)
        assert time.monotonic() - started < 5
        wait_for(lambda: server.fake.running == 0)
    assert not any(answer.finished for answer in answers)
    assert figures(answers, 0.3).completed == 0


@pytest.mark.parametrize(
    ("mode", "message"),
    [
        ("dies", "broke off|refused|reset|disconnect|closed|payload|Connect"),
        ("refuses", "HTTP status 503: 'no capacity'"),
        ("garbage", "Expecting|delimiter|property name"),
        ("hangs", "the server hangs: .* nothing came for 0.5 s"),
    ],
)
def test_a_server_that_fails_ends_the_run_with_its_reason_and_what_there_is(mode: str, message: str) -> None:
    kept: list[Answer] = []
    with (
        FakeServer(mode=mode, after=3) as server,
        pytest.raises(ServerError, match=message),
    ):
        play(server.url, stream(60, 0.02), stall_s=0.5, into=kept)
    assert sum(answer.finished for answer in kept) >= 3


def test_a_single_request_that_fails_does_not_end_a_run() -> None:
    with FakeServer() as server:
        answers = play(server.url, stream(3, 0.0), model="nobody")
    assert {answer.error for answer in answers} == {
        """HTTP status 404: '{"message": "The model nobody does not exist."}'"""
    }
    assert figures(answers, 1.0).failed == 3


def test_figures_are_those_of_vllm_s_benchmark() -> None:
    one = Answer(0, 0, 10, 3, 0.0, 0.1, 3, 1.0, 2.0, [0.4, 0.6], True)
    two = Answer(1, 0, 20, 2, 1.0, 1.0, 2, 1.5, 3.5, [2.0], True)
    late = Answer(2, 0, 50, 5, 2.0, 2.0, 5, 3.0, 9.0, [1.5] * 4, True)
    seen = figures([one, two, late], 4.0)
    assert (seen.sent, seen.completed, seen.failed) == (3, 2, 0)
    assert seen.throughput_tok_s == (13 + 22) / 4
    assert seen.served_fraction == pytest.approx(35 / 90)
    assert seen.ttft_s == pytest.approx((1.0 + 0.5) / 2)  # from when they were due
    assert seen.tpot_ms == pytest.approx(1e3 * (0.5 + 2.0) / 2)  # mean over requests
    assert seen.itl_ms == pytest.approx(1e3 * (0.4 + 0.6 + 2.0) / 3)  # mean over gaps
    assert math.isnan(figures([], 1.0).itl_ms)


def test_the_time_between_tokens_does_not_depend_on_chunks() -> None:
    one = Answer(0, 0, 8, 5, 0.0, 0.0, 5, 0.0, 8.0, [3.0, 5.0], True)
    two = Answer(1, 0, 8, 4, 0.0, 0.0, 4, 1.0, 7.0, [2.0, 2.0, 2.0], True)
    broken = Answer(2, 0, 8, 9, 0.0, 0.0, 2, 1.0, 100.0, [99.0])
    assert between_tokens([one, two, broken]) == 2.0
    assert between_tokens([broken]) == 0.0


def test_metrics_are_read_from_prometheus_text() -> None:
    text = '# HELP x\nx{a="1,\\"}",b="2"} 3.0\nx{a="4"} 5\ny 1e3 1700000000\nbroken{ 1\nz NaNs\n'
    metrics = Metrics.parse(text)
    assert metrics.total("x") == 8
    assert metrics.total("y") == 1000
    assert metrics.label("x", "b") == "2"
    assert metrics.label("x", "c") is None
    assert math.isnan(metrics.total("z"))


# The notebook


def test_a_notebook_goes_on_where_it_was_cut_off(tmp_path: Path) -> None:
    notes = Notebook(tmp_path / "notes", {"server": "x", "slots": [1, 2]})
    notes.write("one", {"ms": 1.5})
    notes.write("two", 2)
    path = tmp_path / "notes" / "notes.jsonl"
    path.write_text(path.read_text()[:-5])
    again = Notebook(tmp_path / "notes", {"server": "x", "slots": [1, 2]})
    assert dict(again.items()) == {"one": {"ms": 1.5}}
    again.write("three", 3)
    assert "three" in Notebook(tmp_path / "notes", {"server": "x", "slots": [1, 2]})
    with pytest.raises(BadInputError, match=r"another server \(server differ\)"):
        Notebook(tmp_path / "notes", {"server": "y", "slots": [1, 2]})
    path.write_text("nonsense\n")
    with pytest.raises(BadInputError, match="not valid JSON"):
        Notebook(tmp_path / "notes", {"server": "x"})


# Calibration


def calibrate(url: str, folder: Path, *more: str) -> Any:
    where = ("--url", url, "--slots", "2", "--max-rank", "8", "-o", str(folder / "p.yaml"))
    return run("calibrate", *where, *LIMITS, "--budget", "20s", *more)


def test_a_running_server_is_calibrated(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("loraplan.live.calibration.ROUNDS", 1)
    monkeypatch.setattr("loraplan.live.calibration.OPEN_S", 0.7)
    monkeypatch.setattr("loraplan.live.probes.DECODE_TOKENS", 8)
    with FakeServer() as server:
        done = calibrate(server.url, tmp_path, "--json", "--name", "fake")
        asked = len(server.fake.asked)
        assert done.exit_code == 0, done.output
        again = calibrate(server.url, tmp_path, "--name", "fake")
        assert len(server.fake.asked) == asked  # all was in the notebook
    profile = read_profile(tmp_path / "p.yaml")
    assert (profile.name, profile.base_model, profile.engine, profile.rules) == (
        "fake", "tiny", "vLLM 0.32.0+cpu", "vllm-0.32")  # fmt: skip
    assert profile.kv_blocks(2, 8) == BLOCKS - 1
    assert profile.kv.block_tokens == BLOCK
    assert (profile.limits.max_num_seqs, profile.limits.max_model_len) == (8, 512)
    found = json.loads(done.stdout)
    assert {check["name"] for check in found["checks"]} == {"2 slots, check 1", "2 slots, check 2"}
    constants = {one["name"]: one for one in found["fit"]["calibration"]["constants"]}
    assert any(constant["error"] for name, constant in constants.items() if name.startswith("step_ms."))
    law, expected_ms = profile.step_ms, 1e3 * (STEP_S + 8 * REQUEST_S)
    step_ms = law.base + 8 * law.per_request + 2 * (law.per_small_adapter + 8 * law.per_adapter_request)
    assert expected_ms / 2 < step_ms < 20 * expected_ms  # whatever else the machine does
    assert again.exit_code == 0
    assert "held out" in again.stdout


@pytest.mark.parametrize("mode", ["dies", "refuses", "garbage"])
def test_a_calibration_that_fails_keeps_what_it_has(mode: str, tmp_path: Path) -> None:
    with FakeServer(mode=mode, after=12) as server:
        done = calibrate(server.url, tmp_path)
    assert done.exit_code == 3, done.output
    assert len(done.stderr.strip().splitlines()) == 2
    assert "are kept in" in done.stderr
    assert not (tmp_path / "p.yaml").exists()
    notes = (tmp_path / "p.yaml.probes" / "notes.jsonl").read_text()
    assert "decode 1 x 1" in notes
    with FakeServer() as server:
        refused = calibrate(server.url, tmp_path)
    assert refused.exit_code == 2
    assert "another server" in refused.stderr


def test_who_is_no_vllm_is_told_from_one(tmp_path: Path) -> None:
    (port,) = free_ports(1)
    done = calibrate(f"http://127.0.0.1:{port}", tmp_path)
    assert done.exit_code == 3
    assert "Cannot connect" in done.stderr
    with FakeServer(adapters=()) as server:
        done = calibrate(server.url, tmp_path, "--state", str(tmp_path / "other"))
    assert "no LoRA adapters" in done.stderr


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((), "one of --from-runs, --url and --launch"),
        (("--url", "http://x"), "needs --slots"),
        (("--launch", "m"), "needs --loras"),
        (("--url", "http://x", "--slots", "2", "--max-rank", "8", "--budget", "soon"), "a time such as"),
        (("--url", "http://x", "--slots", "many"), "whole numbers"),
        (("--launch", "m", "--env", "X", "--slots", "1"), "NAME=VALUE"),
    ],
)
def test_options_that_make_no_sense_are_refused(arguments: tuple[str, ...], message: str, tmp_path: Path) -> None:
    done = run("calibrate", *arguments, "-o", str(tmp_path / "p.yaml"))
    assert done.exit_code == 2
    assert message in done.stderr


# Launching


def write_loras(folder: Path) -> Path:
    for name in ("a", "b", "c"):
        (folder / name).mkdir(parents=True)
        (folder / name / "adapter_config.json").write_text('{"r": 8}')
    return folder


def test_a_server_that_does_not_start_says_why(fake_vllm: str, tmp_path: Path) -> None:
    loras = write_loras(tmp_path / "loras")
    where = ("--launch", "tiny", "--loras", str(loras), "--slots", "1,2", "--vllm", fake_vllm)
    done = run("calibrate", *where, "-o", str(tmp_path / "p.yaml"), "--vllm-args", "--mode 'no start'", *LIMITS)
    assert done.exit_code == 3
    assert "ended with code 1: ValueError: No available memory for the cache blocks." in done.stderr
    missing = run("calibrate", *where[:-1], "/no/vllm", "-o", str(tmp_path / "other.yaml"), *LIMITS)
    assert missing.exit_code == 3
    assert "/no/vllm: No such file" in missing.stderr


@pytest.mark.parametrize("how", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
def test_nothing_is_left_behind_however_a_calibration_ends(how: int, fake_vllm: str, tmp_path: Path) -> None:
    loras, pids = write_loras(tmp_path / "loras"), tmp_path / "pids"
    command = [sys.executable, "-c", "from loraplan.cli import main; main()", "calibrate", "--launch", "tiny"]
    options = ["--loras", str(loras), "--slots", "2", "--vllm", fake_vllm, "-o", str(tmp_path / "p.yaml"), *LIMITS]
    more = ["--vllm-args", f"--pids {pids} --mode hangs --after 6"]
    log = (tmp_path / "log").open("w")
    process = subprocess.Popen([*command, *options, *more], cwd=ROOT, stderr=log, stdout=log)
    try:
        wait_for(lambda: (tmp_path / "p.yaml.probes/notes.jsonl").exists() and pids.exists())
        wait_for(lambda: "server" in (tmp_path / "p.yaml.probes/notes.jsonl").read_text()[5:])
        process.send_signal(how)
        code = process.wait(30)
    finally:
        process.kill()
        log.close()
    assert code == (130 if how != signal.SIGKILL else -signal.SIGKILL)
    (pid,) = [int(line) for line in pids.read_text().split()]
    wait_for(lambda: gone(pid))


def wait_for(condition: Any, longest_s: float = 60.0) -> None:
    deadline = time.monotonic() + longest_s
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.05)


def test_a_server_that_ignores_sigterm_is_killed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    script = "import os, signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); print(os.getpid(), flush=True)"
    script += "; time.sleep(60)"
    keeper = tmp_path / "keeper.py"
    source = Path(keeper_program.__file__).read_text()
    keeper.write_text(source.replace("PATIENCE_S = 10.0", "PATIENCE_S = 0.5"))
    monkeypatch.setattr("loraplan.live.keeper.__file__", str(keeper))
    with LaunchedServer([sys.executable, "-c", script], 1, tmp_path / "log", {}) as server:
        wait_for(lambda: (tmp_path / "log").read_text().endswith("\n"))
        keeper_of_it = server.process
    assert keeper_of_it.returncode is not None
    wait_for(lambda: gone(int((tmp_path / "log").read_text())))


# Replay


def plan_file(folder: Path) -> Path:
    """A plan of four adapters for two servers, with a workload of a few seconds."""
    table = folder / "adapters.csv"
    table.write_text("name,rank,rate,tokens_in,tokens_out\n" + "".join(f"{n},8,8,6,4\n" for n in "abcd"))
    config = folder / "config.yaml"
    config.write_text(
        f"workload: {{adapters: {table}, horizon_s: 60}}\n"
        "fleet: [{profile: h100-64gb/llama-3.1-8b, count: 2}]\n"
        "constraints: {separate: [[a, b]], together: [[a, c], [b, d]]}\nsolver: best_fit\n"
    )
    path = folder / "plan.json"
    done = run("solve", str(config), "-o", str(path))
    assert done.exit_code == 0, done.output
    return path


def test_a_plan_is_replayed_on_its_servers(tmp_path: Path) -> None:
    plan = plan_file(tmp_path)
    with FakeServer() as one, FakeServer() as two:
        urls = f"{one.url},{two.url}"
        done = run("replay", str(plan), "--urls", urls, "--duration", "1s", "-o", str(tmp_path / "r.json"))
    assert done.exit_code == 0, done.output
    for word in ("predicted", "simulated", "measured", "0 failed"):
        assert word in done.stdout
    found = json.loads((tmp_path / "r.json").read_text())
    assert found["error"] == ""
    placed = {gpu.id: {adapter.name for adapter in gpu.adapters} for gpu in loraplan.read_plan(plan).gpus}
    assert [set(server.fake.asked) for server in (one, two)] == [placed[gpu["id"]] for gpu in found["gpus"]]
    sent = [sum(a["measured"]["sent"] for a in gpu["adapters"]) for gpu in found["gpus"]]
    assert sent == [gpu["figures"]["sent"] for gpu in found["gpus"]] == [len(s.fake.asked) for s in (one, two)]
    assert all(gpu["measured"]["served_fraction"] > 0.5 for gpu in found["gpus"])
    assert all(gpu["simulated"]["throughput_tok_s"] > 0 for gpu in found["gpus"])


def test_a_replay_through_a_proxy_counts_answers_from_the_wrong_server(tmp_path: Path) -> None:
    plan = plan_file(tmp_path)
    one, two = loraplan.read_plan(plan).gpus
    with FakeServer() as server, FakeServer(says=one.id) as proxy:
        where = ("--urls", f"{server.url},{server.url}", "--proxy", proxy.url, "--duration", "1s", "--json")
        done = run("replay", str(plan), *where)
    assert done.exit_code == 0, done.output
    found = json.loads(done.stdout)["gpus"]
    asked = proxy.fake.asked
    assert server.fake.asked == []
    assert found[0]["elsewhere"] == 0
    assert found[1]["elsewhere"] == sum(name in {a.name for a in two.adapters} for name in asked) > 0
    words = [prompt.split() for prompt in proxy.fake.prompts]
    assert {len(prompt) for prompt in words} <= set(range(1, 2000))
    assert not any(word.endswith("0") for prompt in words for word in prompt)  # those are two tokens


def test_a_replay_that_fails_shows_what_came_before(tmp_path: Path) -> None:
    plan = plan_file(tmp_path)
    with FakeServer(mode="dies", after=5) as one, FakeServer() as two:
        urls = f"{one.url},{two.url}"
        done = run("replay", str(plan), "--urls", urls, "--duration", "20s", "-o", str(tmp_path / "r.json"), "--json")
    assert done.exit_code == 3, done.output
    assert "what came before" in done.stderr
    found = json.loads((tmp_path / "r.json").read_text())
    assert found["error"] != ""
    assert sum(gpu["figures"]["completed"] for gpu in found["gpus"]) >= 5
    assert found["seconds"] < 15


def test_a_replay_starts_the_servers_and_ends_them(fake_vllm: str, tmp_path: Path) -> None:
    plan, pids = plan_file(tmp_path), tmp_path / "pids"
    launch = ("--launch", "tiny", "--vllm", fake_vllm, "--vllm-args", f"--pids {pids}")
    done = run("replay", str(plan), *launch, "--duration", "1s", "--json")
    assert done.exit_code == 0, done.output
    found = json.loads(done.stdout)
    assert [gpu["figures"]["failed"] for gpu in found["gpus"]] == [0, 0]
    started = [int(line) for line in pids.read_text().split()]
    assert len(started) == 2
    assert all(gone(pid) for pid in started)
