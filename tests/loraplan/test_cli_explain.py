"""``loraplan explain`` as a user or a script meets it."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import yaml
from support import plugins
from support.cli import invoke, json_in
from typer.testing import Result

from loraplan.cli import explain as command

GENERATE = {
    "count": 24,
    "ranks": [8, 16],
    "total_rate": 60,
    "popularity": {"law": "zipf", "exponent": 1.0},
    "input_tokens": 200,
    "output_tokens": 150,
    "seed": 0,
}
SETTINGS: dict[str, Any] = {
    "workload": {"generate": GENERATE, "horizon_s": 60},
    "fleet": [{"profile": "h100-64gb/llama-3.1-8b", "count": 4, "price_per_hour": 3}],
    "objective": "cost",
    "solver": "best_fit",
}
TOO_FEW = ("--set", "fleet.0.count=1")


def run(*args: str | Path) -> Result:
    words = ["explain", *map(str, args)]
    return invoke(*words)


def json_of(*args: str | Path, code: int = 0) -> Any:
    result = run(*args, "--json")
    return json_in(result, code)


def refusal(*args: str | Path) -> str:
    """The one line on stderr with which the command refuses."""
    result = run(*args)
    assert result.exit_code == 2, (result.stdout, result.stderr)
    assert result.stderr.startswith("error: ")
    assert result.stderr.count("\n") == 1
    return result.stderr.removeprefix("error: ").rstrip("\n")


@pytest.fixture
def config(tmp_path: Path) -> Path:
    path = tmp_path / "config.yaml"
    path.write_text(yaml.safe_dump(SETTINGS))
    return path


@pytest.fixture
def plan(config: Path, tmp_path: Path) -> Path:
    path = tmp_path / "plan.json"
    assert invoke("solve", config, "-o", path).exit_code == 0
    return path


def no_plan(config: Path, tmp_path: Path, *changes: str) -> Path:
    """What `solve --json` prints where there is no plan, as a file."""
    result = invoke("solve", config, "--json", *TOO_FEW, *changes)
    assert result.exit_code == 1
    path = tmp_path / "none.json"
    path.write_text(result.stdout)
    return path


def test_a_plan_is_explained(plan: Path) -> None:
    found = json_of(plan)
    assert (found["status"], found["impasse"]) == ("feasible", None)
    explanation = found["explanation"]
    made = json.loads(plan.read_text())
    assert [gpu["id"] for gpu in explanation["gpus"]] == [gpu["id"] for gpu in made["gpus"]]
    assert explanation["unit"] == "per hour"
    assert len(explanation["adapters"]) == sum(len(gpu["adapters"]) for gpu in made["gpus"])
    assert sum(one["cost"] for one in explanation["adapters"]) == pytest.approx(made["objective"]["value"])
    for gpu in explanation["gpus"]:
        assert gpu["headroom"] >= 1
        assert gpu["binding"] in {gain["resource"] for gain in gpu["gains"]} | {"none"}
    shown = run(plan)
    assert shown.exit_code == 0
    assert shown.stderr == ""
    (sentence,) = [line for line in shown.stdout.splitlines() if line.startswith("gpu-0: ")]
    assert " binds; " in sentence
    assert " -> " in sentence
    assert "the 10 most expensive of" in shown.stdout


def test_a_config_is_solved_first(config: Path, plan: Path) -> None:
    assert json_of(config)["explanation"] == json_of(plan)["explanation"]


def test_options_for_a_plan(plan: Path, config: Path, tmp_path: Path) -> None:
    assert json_of(plan, "--oracle", "surrogate")["explanation"]["oracle"] == "surrogate"
    busier = tmp_path / "busier.yaml"
    busier.write_text(yaml.safe_dump(SETTINGS | {"workload": {"generate": GENERATE | {"total_rate": 120}}}))
    before, after = json_of(plan)["explanation"]["gpus"], json_of(plan, "--config", busier)["explanation"]["gpus"]
    assert [gpu["headroom"] for gpu in after] == pytest.approx([gpu["headroom"] / 2 for gpu in before], rel=1e-3)


def test_a_config_without_a_plan(config: Path) -> None:
    found = json_of(config, *TOO_FEW, code=1)
    impasse = found["impasse"]
    assert found["status"] == "unknown"
    assert found["explanation"] is None
    assert impasse["minimal"]
    assert not impasse["proven"]
    assert [limit["text"] for limit in impasse["limits"]] == ["served_fraction 0.9", "1 GPU of h100-64gb/llama-3.1-8b"]
    assert 1 < len(impasse["adapters"]) <= 24
    assert {remedy["name"] for remedy in impasse["remedies"]} >= {"fleet", "rates", "served_fraction"}
    (fleet,) = [remedy for remedy in impasse["remedies"] if remedy["name"] == "fleet"]
    enough = ("--set", f"fleet.0.count={1 + fleet['value']:g}")
    assert run(config, *enough).exit_code == 0
    shown = run(config, *TOO_FEW)
    assert shown.exit_code == 1
    assert shown.stderr == ""
    assert "the smallest conflict (by solver best_fit, which has not proven it" in shown.stdout
    assert "without any one of these best_fit finds a plan for the rest" in shown.stdout
    assert fleet["text"] in shown.stdout


def test_a_plan_file_that_is_no_plan(config: Path, tmp_path: Path) -> None:
    file = no_plan(config, tmp_path)
    assert json_of(file, code=1)["impasse"]["limits"] == json_of(config, *TOO_FEW, code=1)["impasse"]["limits"]
    assert "explain " in refusal(file, "--config", config)


def test_a_search_that_is_not_long_enough(config: Path) -> None:
    assert not json_of(config, *TOO_FEW, "--solves", "3", code=1)["impasse"]["minimal"]
    assert (
        "perhaps not the smallest: the search ended after 3 problems" in run(config, *TOO_FEW, "--solves", "3").stdout
    )


def test_what_no_change_resolves(config: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def never(*args: Any, **kwargs: Any) -> Any:
        return SimpleNamespace(complete=False, status="unknown", reason="it cannot")

    monkeypatch.setattr(command, "solve", never)
    result = run(config, *TOO_FEW)
    assert result.exit_code == 1
    assert "  1 of 24 adapters, " in result.stdout
    assert result.stdout.splitlines()[-1] == "no single change was found that resolves it"


def test_bad_input(config: Path, plan: Path, tmp_path: Path) -> None:
    other = tmp_path / "plan.txt"
    assert refusal(other) == f"{other}: expected a plan (PLAN.json) or a config (CONFIG.yaml or .yml)"
    assert "No such file" in refusal(tmp_path / "no.json")
    assert "No such file" in refusal(tmp_path / "no.yaml")
    assert "--set is for a config" in refusal(plan, "--set", "seed=1")
    assert "--config is for a plan" in refusal(config, "--config", config)
    assert "did you mean 'fluid'" in refusal(plan, "--oracle", "fliud")
    assert "Invalid value for '--solves'" in refusal(config, "--solves", "0")
    plan.write_text(plan.read_text()[:200])
    assert "is the file complete?" in refusal(plan)


def test_a_plan_without_its_config(plan: Path, config: Path) -> None:
    made = json.loads(plan.read_text())
    made["provenance"]["config"] = None
    plan.write_text(json.dumps(made))
    assert "this plan records no config" in refusal(plan)
    assert json_of(plan, "--config", config)["status"] == "feasible"


def test_odd_names_are_printed_as_they_are(tmp_path: Path) -> None:
    (tmp_path / "table.csv").write_text("name,rank,rate,tokens_in,tokens_out\n[/red],8,1,10,5\n[b]x,8,30,200,200\n")
    settings = SETTINGS | {"workload": {"adapters": "table.csv"}}
    path = tmp_path / "config.yaml"
    path.write_text(yaml.safe_dump(settings))
    assert "[/red]" in run(path).stdout
    narrow = ("--set", "constraints.itl_ms=14", "--set", "fleet.0.count=1")
    assert "[b]x" in run(path, *narrow).stdout


def test_ctrl_c_ends_without_a_traceback(plan: Path, config: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(*args: Any, **kwargs: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(command, "explain", interrupted)
    monkeypatch.setattr(command, "explain_conflict", interrupted)
    for words in ((plan,), (config, *TOO_FEW)):
        result = run(*words)
        assert (result.exit_code, result.stdout, result.stderr) == (130, "", "")


def test_ctrl_c_in_the_solver(config: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    plugins.install(monkeypatch)
    scripted = ("--oracle", "interrupted", "--set", "oracle.after=4", "--set", "oracle.capacity_tok_s=[1200]")
    result = run(config, *scripted)
    assert (result.exit_code, result.stdout, result.stderr) == (130, "", "")


def test_help_teaches_by_example() -> None:
    shown = " ".join(run("--help").stdout.split())
    assert "loraplan explain plan.json" in shown.partition("Examples:")[2]
