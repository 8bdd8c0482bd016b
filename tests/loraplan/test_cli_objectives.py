"""The commands about objectives: compare --objectives, pareto, replan, validate --lose; tables, JSON, refusals."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import yaml
from support.cli import invoke, json_in
from typer.testing import Result

PROFILE = "h100-64gb/llama-3.1-8b"
GENERATE = {
    "count": 24,
    "ranks": [8, 16],
    "total_rate": 40,
    "popularity": {"law": "zipf", "exponent": 0.5},
    "input_tokens": 200,
    "output_tokens": 150,
    "seed": 0,
}
SETTINGS: dict[str, Any] = {
    "workload": {"generate": GENERATE, "horizon_s": 120},
    "fleet": [{"profile": PROFILE, "count": 5, "price_per_hour": 2.5}],
    "solver": {"name": "local_search", "patience": 8},
}


def run(*args: str | Path) -> Result:
    return invoke(*args, columns=250)


def json_of(*args: str | Path, code: int = 0) -> Any:
    result = run(*args, "--json")
    return json_in(result, code)


def refusal(*args: str | Path, code: int = 2) -> str:
    """The one line on stderr with which a command refuses."""
    result = run(*args)
    assert result.exit_code == code, (result.stdout, result.stderr)
    assert result.stderr.startswith("error: ")
    assert result.stderr.count("\n") == 1
    return result.stderr.removeprefix("error: ").rstrip("\n")


@pytest.fixture
def config(tmp_path: Path) -> Path:
    path = tmp_path / "config.yaml"
    path.write_text(yaml.safe_dump(SETTINGS))
    return path


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> str:
    """The text of a plan with a reserve."""
    folder = tmp_path_factory.mktemp("saved")
    path = folder / "config.yaml"
    path.write_text(yaml.safe_dump(SETTINGS | {"constraints": {"reserve": True}, "solver": "best_fit"}))
    assert run("solve", path, "-o", folder / "plan.json").exit_code == 0
    return (folder / "plan.json").read_text()


@pytest.fixture
def plan(tmp_path: Path, saved: str) -> Path:
    path = tmp_path / "plan.json"
    path.write_text(saved)
    return path


# ---- compare ----


def test_compare_tells_every_plan_by_every_objective(config: Path) -> None:
    names = "gpu_count,latency,cost,energy,lexicographic"
    rows = json_of("compare", config, "--objectives", names, "--seeds", "1")
    assert [row["plan"]["objective"]["name"] for row in rows] == names.split(",")
    measured = {row["plan"]["objective"]["name"]: row["measured"] for row in rows}
    for name in ("gpu_count", "cost"):
        assert measured[name][name] == min(values[name] for values in measured.values())
        assert measured["latency"]["latency"] < measured[name]["latency"]
    assert measured["cost"]["cost"] == 2.5 * measured["cost"]["gpu_count"]
    assert all(set(values) == set(names.split(",")) for values in measured.values())


def test_compare_prints_both_tables(config: Path) -> None:
    shown = run("compare", config, "--solver", "best_fit", "--objectives", "gpu_count, latency", "--seeds", "1")
    assert shown.exit_code == 0
    assert shown.stderr == ""
    first, second = shown.stdout.split("plan for")
    assert ["best_fit", "latency", "feasible"] in [line.split()[:3] for line in first.splitlines()]
    assert second.splitlines()[0].split() == ["gpu_count,", "GPUs", "latency,", "ms"]
    assert [line.split()[0] for line in second.splitlines()[1:3]] == ["gpu_count,", "latency,"]
    assert second.rstrip().endswith("values as the twin measured them")


def test_compare_keeps_the_settings_of_the_config_s_objective(config: Path) -> None:
    change = ("--set", "objective={name: latency, figure: ttft_s}")
    rows = json_of("compare", config, "--objectives", "gpu_count,latency", "--seeds", "1", *change)
    assert rows[1]["plan"]["objective"]["params"] == {"figure": "ttft_s"}
    assert rows[0]["plan"]["objective"]["params"] == {}


def test_compare_measures_percentiles_in_the_twin(config: Path) -> None:
    change = ("--set", "objective={name: latency, figure: itl_p95_ms}", "--set", "oracle={name: twin, horizon_s: 60}")
    small = ("--set", "workload.generate.count=4", "--solver", "best_fit")
    (row,) = json_of("compare", config, "--objectives", "latency", "--seeds", "1", *change, *small)
    assert row["measured"]["latency"] == pytest.approx(row["plan"]["objective"]["value"], rel=0.5)


def test_what_compare_refuses(config: Path) -> None:
    assert "expected --solvers or --objectives" in refusal("compare", config)
    assert "did you mean 'latency'" in refusal("compare", config, "--objectives", "cost,latencie")
    assert "not both" in refusal("compare", config, "--objective", "cost", "--objectives", "latency")
    free = ("--set", "fleet.0.price_per_hour=null")
    text = refusal("compare", config, "--objectives", "gpu_count,cost", *free)
    assert text == f"objective 'cost': {PROFILE} in the fleet has no price_per_hour"
    assert "expected plan" in refusal("compare", config, "--objectives", "gpu_count,migration")


# ---- pareto ----


def test_pareto_prints_and_plots_the_front(config: Path, tmp_path: Path) -> None:
    page = tmp_path / "front.html"
    shown = run("pareto", config, "--points", "3", "--plot", page, "--time-limit", "1", "--seeds", "1")
    assert shown.exit_code == 0
    assert "best" in shown.stdout.splitlines()[0]
    assert "gpu_count in the twin" in shown.stdout
    assert "plans are on the front of gpu_count and latency" in shown.stdout
    assert shown.stderr == f"plot written to {page}\n"
    assert "Plotly.newPlot" in page.read_text()


def test_pareto_as_json(config: Path) -> None:
    found = json_of("pareto", config, "--x", "cost", "--y", "latency", "--points", "3", "--time-limit", "1")
    assert found["x"] == {"objective": "cost", "unit": "per hour"}
    assert found["y"] == {"objective": "latency", "unit": "ms"}
    assert 1 < len(found["points"]) <= 3
    for point in found["points"]:
        assert point["plan"]["status"] == "feasible"
        assert point["twin_x"] is None
        assert point["x"] == 2.5 * len(point["plan"]["gpus"])


def test_what_pareto_refuses(config: Path, tmp_path: Path) -> None:
    assert "x and y are both 'cost'" in refusal("pareto", config, "--x", "cost", "--y", "cost")
    assert "did you mean 'energy'" in refusal("pareto", config, "--x", "enrgy")
    assert "'--points'" in refusal("pareto", config, "--points", "1")
    assert "cannot write" in refusal("pareto", config, "--plot", tmp_path / "no" / "such.html")
    hot = ("--set", "workload.generate.total_rate=4000")
    assert refusal("pareto", config, *hot, code=1).startswith("no feasible plan to begin with: ")


# ---- replan ----


def new_workload(folder: Path, generate: dict[str, Any] | None = None, **more: Any) -> Path:
    path = folder / "new.yaml"
    path.write_text(yaml.safe_dump({"workload": {"generate": GENERATE | (generate or {}), "horizon_s": 120}} | more))
    return path


def test_replan_prints_steps_and_saves_the_plan(plan: Path, tmp_path: Path) -> None:
    new = new_workload(tmp_path, {"total_rate": 150}, constraints={})
    out, steps = tmp_path / "out.json", tmp_path / "steps.json"
    shown = run("replan", plan, "--workload", new, "--max-moves", "12", "-o", out, "--steps", steps)
    assert shown.exit_code in (0, 1)
    assert "step" in shown.stdout.splitlines()[0]
    assert "adapters move" in shown.stdout
    assert f"plan written to {out}" in shown.stderr
    made = json.loads(steps.read_text())
    assert {step["action"] for step in made} >= {"load", "drain", "unload"}
    assert run("validate", out, "--seeds", "1").exit_code == 0
    again = json_of("replan", out, "--workload", new, "--max-moves", "0", code=shown.exit_code)
    assert again["steps"] == []
    assert again["plan"]["solver"]["name"] == "replan"


def test_replan_says_when_moves_are_too_few(plan: Path, tmp_path: Path) -> None:
    new = new_workload(tmp_path, {"total_rate": 110}, constraints={})
    result = run("replan", plan, "--workload", new, "--max-moves", "0", "--seeds", "0", "-o", tmp_path / "out.json")
    assert result.exit_code == 1
    assert "error: too few moves: the limits are not kept by gpu-" in result.stderr
    assert "would be overloaded" in result.stdout
    assert (tmp_path / "out.json").exists()


def test_replan_as_json(plan: Path, tmp_path: Path) -> None:
    new = new_workload(tmp_path, {"count": 22})
    found = json_of("replan", plan, "--workload", new, "--max-moves", "2", "--objective", "latency")
    assert [step for step in found["steps"] if step["action"] == "unload"][:2] != []
    assert len(found["moved"]) <= 2
    assert found["plan"]["objective"]["name"] == "latency"
    assert found["plan"]["fallbacks"]


def test_what_replan_refuses(plan: Path, tmp_path: Path, config: Path) -> None:
    new = new_workload(tmp_path)
    asked = ("replan", plan, "--workload", new, "--max-moves")
    assert "'--max-moves'" in refusal(*asked, "-1")
    assert "--max-moves" in refusal("replan", plan, "--workload", new)
    assert "did you mean 'latency'" in refusal(*asked, "1", "--objective", "latenc")
    assert "did you mean 'fluid'" in refusal(*asked, "1", "--oracle", "fluit")
    assert "not in the fleet" in refusal(*asked, "1", "--set", "fleet.0.profile=h100-64gb/qwen-2.5-7b")
    assert "unknown profile" in refusal(*asked, "1", "--set", "fleet.0.profile=h100-64gb/lama-3.1-8b")
    assert "cannot write" in refusal(*asked, "1", "-o", tmp_path / "no" / "plan.json")
    assert "not valid JSON" in refusal("replan", config, "--workload", new, "--max-moves", "1")
    assert refusal(*asked, "1", "--set", "workload.generate.ranks=[999]").startswith("adapter a")
    for text, complaint in (("[]", "expected a mapping"), ("{}", "workload is missing"), ("a: [", "not valid YAML")):
        new.write_text(text)
        assert complaint in refusal(*asked, "1")
    new.unlink()
    assert "No such file" in refusal(*asked, "1")
    hot = new_workload(tmp_path, {"count": 25, "total_rate": 5000})
    assert "takes the new adapter" in refusal("replan", plan, "--workload", hot, "--max-moves", "1", code=1)
    data = json.loads(plan.read_text())
    data["status"], data["reason"], data["objective"]["value"] = "unknown", "no time", None
    plan.write_text(json.dumps(data))
    assert "its status is unknown (no time)" in refusal(*asked, "1")


# ---- validate --lose ----


def test_validate_replays_what_is_left(plan: Path) -> None:
    ids = [gpu["id"] for gpu in json.loads(plan.read_text())["gpus"]]
    assert len(ids) > 1
    found = json_of("validate", plan, "--lose", "each", "--seeds", "1")
    assert list(found) == ids
    for lost, left in found.items():
        assert [gpu["id"] for gpu in left["gpus"]] == [gpu for gpu in ids if gpu != lost]
    shown = run("validate", plan, "--lose", ids[0], "--seeds", "1")
    assert shown.exit_code == 0
    assert "of 1 losses leave a plan that does not starve in the twin" in shown.stdout
    assert shown.stdout.splitlines()[1].split()[0] == ids[0]


def test_losses_that_cannot_be_replayed(plan: Path, config: Path, tmp_path: Path) -> None:
    assert "the plan has no GPU 'gpu-77'; did you mean 'gpu-" in refusal("validate", plan, "--lose", "gpu-77")
    other = tmp_path / "other.json"
    assert run("solve", config, "--solver", "best_fit", "-o", other).exit_code == 0
    assert "solve with constraints.reserve=true" in refusal("validate", other, "--lose", "each")


@pytest.mark.parametrize("command", ["compare", "pareto", "replan", "validate"])
def test_help_has_examples(command: str) -> None:
    shown = " ".join(run(command, "--help").stdout.split())
    assert f"loraplan {command} " in shown.partition("Examples:")[2] + " "
    named = {"compare": "--objectives", "pareto": "--points", "replan": "--max-moves", "validate": "--lose"}[command]
    assert named in shown
