"""``loraplan calibrate`` writes a profile that a fleet can name, or one clear line and nothing."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import yaml
from support.cli import invoke
from support.measured_runs import measured_by_twin, unmeasured, write_runs
from typer.testing import Result

from loraplan.profiles import load_profile, read_profile


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = [unmeasured(n, n, 8, (rate,), seconds=120.0) for n in (4, 16) for rate in (0.2, 0.4, 0.8)]
    rows = measured_by_twin(made, load_profile("h100-64gb/llama-3.1-8b"))
    return write_runs(tmp_path_factory.mktemp("runs") / "runs.csv", rows)


def run(*arguments: object) -> Result:
    return invoke("calibrate", *arguments)


def test_it_writes_a_profile_and_prints_how_good_it_is(runs: Path, tmp_path: Path) -> None:
    result = run("--from-runs", runs, "-o", tmp_path / "mine.yaml", "--name", "mine")
    assert result.exit_code == 0, result.stderr
    profile = read_profile(tmp_path / "mine.yaml")
    assert profile.name == "mine"
    assert profile.sources[0] == "calibrated from 6 measured runs of toy"
    assert "step_ms.base" in result.stdout
    assert "queue-free" in result.stdout
    assert "not identified: step_ms." in result.stdout  # six runs cannot tell twelve terms apart
    assert "profile written to" in result.stderr


def test_json_has_the_profile_and_its_constants(runs: Path, tmp_path: Path) -> None:
    result = run("--from-runs", runs, "-o", tmp_path / "mine.yaml", "--json")
    found = json.loads(result.stdout)
    assert found["profile"] == yaml.safe_load((tmp_path / "mine.yaml").read_text())
    assert {"name", "value", "error", "source"} == found["constants"][0].keys()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--model", "tox"), "--model: no run is of 'tox'; did you mean 'toy'"),
        (("--like", "h100"), "unknown profile 'h100'"),
        (("--name", ""), "--name must not be empty"),
    ],
)
def test_bad_options_are_one_line_and_write_nothing(
    runs: Path, tmp_path: Path, arguments: tuple[str, ...], message: str
) -> None:
    result = run("--from-runs", runs, "-o", tmp_path / "mine.yaml", *arguments)
    assert result.exit_code == 2
    assert message in result.stderr
    assert result.stderr.count("\n") == 1
    assert list(tmp_path.iterdir()) == []
