"""The command line as a user or a script meets it: output, exit codes, and one line for whatever goes wrong."""

from __future__ import annotations

import contextlib
import copy
import csv
import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml
from support import plugins
from support.cli import invoke, json_in
from typer.testing import Result

import loraplan.cli
from loraplan.api import solve_config
from loraplan.cli import commands
from loraplan.cli import compare as compare_command
from loraplan.cli import options as common
from loraplan.cli import simulate as simulate_command

GENERATE = {
    "count": 24,
    "ranks": [8, 16],
    "total_rate": 6,
    "popularity": {"law": "zipf", "exponent": 1.0},
    "input_tokens": 200,
    "output_tokens": 150,
    "seed": 0,
}
SETTINGS: dict[str, Any] = {
    "workload": {"generate": GENERATE, "horizon_s": 60},
    "fleet": [{"profile": "h100-64gb/llama-3.1-8b", "count": 4}],
}
TRACE_HEADER = "arrived_at,num_prefill_tokens,num_decode_tokens\n"
TABLE_HEADER = "name,rank,rate,tokens_in,tokens_out\n"


def run(*args: str | Path) -> Result:
    return invoke(*args)


def json_of(*args: str | Path) -> Any:
    """What a command prints with --json, which must be all that it prints."""
    result = run(*args, "--json")
    return json_in(result)


def refusal(*args: str | Path, code: int = 2) -> str:
    """The one line on stderr with which a command refuses."""
    result = run(*args)
    assert result.exit_code == code, (result.stdout, result.stderr)
    assert result.stderr.startswith("error: ")
    assert result.stderr.count("\n") == 1
    assert result.stderr.endswith("\n")
    return result.stderr.removeprefix("error: ").rstrip("\n")


def write_config(folder: Path, changes: dict[str, Any] | None = None, name: str = "config.yaml") -> Path:
    path = folder / name
    path.write_text(yaml.safe_dump(SETTINGS | (changes or {})))
    return path


@pytest.fixture
def config(tmp_path: Path) -> Path:
    return write_config(tmp_path)


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> str:
    """The text of a plan file."""
    folder = tmp_path_factory.mktemp("saved")
    assert run("solve", write_config(folder), "-o", folder / "plan.json").exit_code == 0
    return (folder / "plan.json").read_text()


@pytest.fixture
def plan(tmp_path: Path, saved: str) -> Path:
    path = tmp_path / "plan.json"
    path.write_text(saved)
    return path


def rewrite(path: Path, *place: str | int, to: Any) -> Path:
    """Change one field of a plan file."""
    data = json.loads(path.read_text())
    node = data
    for part in place[:-1]:
        node = node[part]
    node[place[-1]] = to
    path.write_text(json.dumps(data))
    return path


# ---- what the commands do ----


def test_solve_prints_and_saves_a_plan_that_its_schema_describes(config: Path, tmp_path: Path) -> None:
    path = tmp_path / "plan.json"
    result = run("solve", config, "-o", path)
    assert result.exit_code == 0
    assert "optimal: gpu_count = 1 GPUs, lower bound 1, gap 0.0 %; 24 adapters placed by auto" in result.stdout
    assert result.stderr == f"plan written to {path}; next: loraplan validate {path}\n"
    schema = json.loads(run("schema", "plan").stdout)
    jsonschema.Draft202012Validator.check_schema(schema)
    jsonschema.validate(json.loads(path.read_text()), schema)


def test_solve_prints_with_json_what_it_saves(config: Path, tmp_path: Path) -> None:
    path = tmp_path / "plan.json"
    result = run("solve", config, "--json", "-o", path)
    assert result.stdout == path.read_text()
    assert "plan written" in result.stderr


def test_options_of_solve_take_the_place_of_the_config_s_settings(config: Path) -> None:
    made = json_of(
        *("solve", config, "--solver", "best_fit", "--objective", "gpu_count", "--oracle", "twin", "--seed", "7"),
        *("--time-limit", "60", "--set", "oracle.horizon_s=300", "--set", "workload.generate.count=5"),
    )
    assert made["solver"]["name"] == "best_fit"
    assert made["solver"]["seed"] == 7
    assert made["oracle"]["name"] == "twin"
    assert made["oracle"]["params"]["horizon_s"] == 300
    assert made["provenance"]["config"]["time_limit_s"] == 60
    assert sum(len(gpu["adapters"]) for gpu in made["gpus"]) == 5


def test_the_same_config_and_seed_give_the_same_gpus(config: Path) -> None:
    first, again = (json_of("solve", config, "--seed", "3", "--solver", "best_fit") for _ in range(2))
    assert first["gpus"] == again["gpus"]


def test_a_config_fits_its_schema() -> None:
    schema = json.loads(run("schema", "config").stdout)
    jsonschema.Draft202012Validator.check_schema(schema)
    jsonschema.validate(SETTINGS, schema)
    wrong = copy.deepcopy(SETTINGS)
    wrong["workload"]["generate"]["cuont"] = 3
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate(wrong, schema)


def test_validate_says_which_gpus_starve(plan: Path) -> None:
    found = json_of("validate", plan, "--seeds", "2")
    assert found["starved_gpus"] == 0
    assert len(found["seeds"]) == 2
    (gpu,) = found["gpus"]
    assert gpu["id"] == "gpu-0"
    assert gpu["starved"] is False
    assert set(gpu["served_fraction"]) == {"mean", "low", "high"}
    assert gpu["itl_ms"] > 0
    assert gpu["ttft_p95_s"] > 0
    assert gpu["trend"] in {"steady", "filling"}  # too short to tell
    assert abs(gpu["drift"]) < 0.5
    table = run("validate", plan, "--seeds", "1")
    assert table.exit_code == 0
    assert "0 of 1 GPUs starve (served below 0.9)" in table.stdout
    assert table.stderr == ""


def test_validate_replays_another_config_s_workload(plan: Path, tmp_path: Path) -> None:
    hotter = write_config(tmp_path, {"workload": {"generate": GENERATE | {"total_rate": 300}, "horizon_s": 30}})
    assert json_of("validate", plan, "--seeds", "1", "--config", hotter)["starved_gpus"] == 1
    (tmp_path / "table.csv").write_text(TABLE_HEADER + "stranger,8,1,10,5\n")
    more = write_config(tmp_path, {"workload": {"adapters": "table.csv"}})
    assert "which the plan does not place" in refusal("validate", plan, "--config", more)


def test_a_plan_whose_server_does_not_start_is_starved(plan: Path) -> None:
    rewrite(plan, "gpus", 0, "slots", to=5000)
    (gpu,) = json_of("validate", plan, "--seeds", "1")["gpus"]
    assert gpu["starts"] is False
    assert (gpu["drift"], gpu["trend"]) == (None, "memory")
    assert gpu["starved"] is True
    assert gpu["itl_ms"] is None
    assert "memory error" in run("validate", plan, "--seeds", "1").stdout


def test_simulate_shows_a_plan_or_a_single_gpu(plan: Path, config: Path) -> None:
    for report in (
        json_of("simulate", plan),
        json_of("simulate", plan, "--gpu", "gpu-0"),
        json_of("simulate", config, "--slots", "8", "--seed", "1", "--set", "workload.horizon_s=60"),
    ):
        (gpu,) = report["gpus"]
        assert report["seed"] == 1
        assert gpu["metrics"]["completed"] > 100
        assert sum(gpu["metrics"]["per_adapter"]["arrived"]) == gpu["metrics"]["arrived"]
    shown = run("simulate", plan, "--gpu", "gpu-0")
    assert "throughput tokens/s" in shown.stdout
    assert shown.stderr == ""


def test_simulate_writes_the_course_of_a_run(plan: Path, tmp_path: Path) -> None:
    series, page, trace = tmp_path / "series.csv", tmp_path / "plot.html", tmp_path / "trace.json"
    outputs = ("--series", series, "--every", "7", "--plot", page, "--trace", trace, "--window", "10", "20")
    shown = run("simulate", plan, "--gpu", "gpu-0", *outputs)
    assert shown.exit_code == 0
    assert "binding resource" in shown.stdout
    assert "drift of unanswered work" in shown.stdout
    assert shown.stderr.count("\n") == 3
    assert f"9 intervals written to {series}" in shown.stderr
    rows = list(csv.DictReader(series.read_text().splitlines()))
    assert [float(row["time_s"]) for row in rows] == [7.0 * i for i in range(9)]
    (gpu,) = json_of("simulate", plan, "--gpu", "gpu-0", *outputs)["gpus"]
    assert sum(int(row["steps"]) for row in rows) == gpu["metrics"]["steps"]
    assert sum(int(row["finished"]) for row in rows) == gpu["metrics"]["completed"]
    assert "run" not in gpu
    slices = [event for event in json.loads(trace.read_text())["traceEvents"] if event["ph"] == "X"]
    assert slices
    assert all(10e6 <= event["ts"] < 20e6 for event in slices)
    text = page.read_text()
    assert "Plotly.newPlot" in text
    assert "gpu-0: h100-64gb" in text
    assert re.search(r'<(script|link)[^>]+(src|href)="http', text) is None  # opens offline


def test_simulate_writes_the_course_of_a_single_gpu_too(config: Path, tmp_path: Path) -> None:
    series = tmp_path / "series.csv"
    assert run("simulate", config, "--slots", "8", "--series", series).exit_code == 0
    assert len(series.read_text().splitlines()) == 1 + 6


@pytest.mark.parametrize(
    ("options", "complaint"),
    [
        (("--series", "OUT/no/such/s.csv"), "there is no folder"),
        (("--series", "OUT/a", "--plot", "OUT/a"), "need a file each"),
        (("--series", "OUT/s.csv", "--every", "0"), "an interval of a series must be longer than 0 s (got 0)"),
        (("--series", "OUT/s.csv", "--every", "nan"), "an interval of a series must be longer than 0 s (got nan)"),
        (("--plot", "OUT/s.html", "--every", "1e-9"), "make them at least 6e-05 s long"),
        (("--trace", "OUT/t.json", "--window", "20", "10"), "end after that (got 20 to 10)"),
        (("--trace", "OUT/t.json", "--window", "20"), "--window"),
    ],
)
def test_a_course_that_cannot_be_written(plan: Path, tmp_path: Path, options: tuple[str, ...], complaint: str) -> None:
    given = [option.replace("OUT", str(tmp_path)) for option in options]
    assert complaint in refusal("simulate", plan, "--gpu", "gpu-0", *given)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["plan.json"]


def test_the_course_of_one_gpu_at_a_time(plan: Path, tmp_path: Path) -> None:
    data = json.loads(plan.read_text())
    data["gpus"].append(data["gpus"][0] | {"id": "gpu-1", "adapters": data["gpus"][0]["adapters"][:1]})
    data["gpus"][0]["adapters"] = data["gpus"][0]["adapters"][1:]
    plan.write_text(json.dumps(data))
    assert "say which with --gpu" in refusal("simulate", plan, "--trace", tmp_path / "t.json")
    assert run("simulate", plan, "--gpu", "gpu-1", "--trace", tmp_path / "t.json").exit_code == 0


def test_no_course_of_a_server_that_does_not_start(plan: Path, tmp_path: Path) -> None:
    rewrite(plan, "gpus", 0, "slots", to=5000)
    result = run("simulate", plan, "--series", tmp_path / "s.csv")
    assert result.exit_code == 2
    assert result.stderr == "error: GPU gpu-0: its server does not start (memory error), there is nothing to write\n"


def test_ctrl_c_while_simulating_writes_nothing(plan: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(*args: Any, **kwargs: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(simulate_command, "simulate_plan", interrupted)
    result = run("simulate", plan, "--series", tmp_path / "s.csv")
    assert (result.exit_code, result.stdout, result.stderr) == (130, "", "")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["plan.json"]


def test_simulate_names_a_gpu_whose_server_does_not_start(plan: Path) -> None:
    rewrite(plan, "gpus", 0, "slots", to=5000)
    for options in ((), ("--gpu", "gpu-0")):
        (gpu,) = json_of("simulate", plan, *options)["gpus"]
        assert gpu["id"] == "gpu-0"
        assert gpu["starts"] is False
        assert gpu["metrics"] is None
        shown = run("simulate", plan, *options)
        assert shown.exit_code == 0
        assert "memory error" in next(line for line in shown.stdout.splitlines() if line.startswith("server"))


def test_compare_puts_solvers_side_by_side(tmp_path: Path) -> None:
    config = write_config(tmp_path, {"workload": {"generate": GENERATE, "horizon_s": 900}})
    rows = json_of("compare", config, "--solvers", "greedy,best_fit", "--seeds", "1")
    assert [row["plan"]["solver"]["name"] for row in rows] == ["greedy", "best_fit"]
    assert [row["validation"]["starved_gpus"] for row in rows] == [0, 0]
    shown = run("compare", config, "--solvers", "greedy, best_fit", "--seeds", "1")
    assert shown.exit_code == 0
    assert {"greedy", "best_fit"} <= {line.split()[0] for line in shown.stdout.splitlines()}
    assert shown.stderr == ""


def test_compare_runs_a_solver_named_twice_once(config: Path) -> None:
    rows = json_of("compare", config, "--solvers", "greedy,best_fit,greedy", "--seeds", "1")
    assert [row["plan"]["solver"]["name"] for row in rows] == ["greedy", "best_fit"]


@pytest.mark.parametrize(
    ("kind", "name"),
    [
        ("solvers", "greedy"),
        ("objectives", "gpu_count"),
        ("oracles", "fluid"),
        ("profiles", "h100-64gb/llama-3.1-8b"),
    ],
)
def test_list_says_what_a_config_can_name(kind: str, name: str) -> None:
    listed = json_of("list", kind)
    assert name in [entry["name"] for entry in listed]
    assert all(entry["summary"] for entry in listed)
    assert name in run("list", kind).stdout


def test_doctor_finds_nothing_wrong() -> None:
    assert all(check["ok"] for check in json_of("doctor"))
    assert run("doctor").exit_code == 0


def test_plugins_are_listed_and_used(config: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    plugins.install(monkeypatch)
    assert ("one_each", "their-package") in [(one["name"], one["origin"]) for one in json_of("list", "solvers")]
    made = json_of("solve", config, "--solver", "one_each", "--objective", "rent", "--set", "fleet.0.count=24")
    assert made["objective"]["value"] == 48


@pytest.mark.parametrize(
    "command",
    ["", "solve", "validate", "simulate", "compare", "list", "schema", "calibrate", "fidelity", "doctor"],
)
def test_help_teaches_by_example(command: str) -> None:
    shown = " ".join(run(*command.split(), "--help").stdout.split())
    assert "Examples:" in shown
    assert f"loraplan {command or 'solve'} " in shown.partition("Examples:")[2] + " "


def test_help_says_where_the_names_are_listed() -> None:
    shown = " ".join(run("solve", "--help").stdout.split())
    for kind in ("solvers", "objectives", "oracles"):
        assert f"loraplan list {kind}" in shown
    assert "loraplan list solvers" in " ".join(run("compare", "--help").stdout.split())


# ---- no plan: exit code 1 ----


def test_an_adapter_too_hot_for_any_gpu(config: Path, tmp_path: Path) -> None:
    path = tmp_path / "plan.json"
    hot = ("solve", config, "-o", path, "--set", "workload.generate.total_rate=2000")
    text = refusal(*hot, code=1)
    assert text.startswith("no feasible plan: no GPU type carries adapter a")
    assert "even alone (served fraction 0." in text
    assert "is below 0.9" in text
    assert not path.exists()
    result = run(*hot, "--json")
    assert result.exit_code == 1
    made = json.loads(result.stdout)
    assert made["status"] == "infeasible"
    assert made["reason"] in text
    jsonschema.validate(made, json.loads(run("schema", "plan").stdout))


def test_more_adapters_than_the_fleet_holds(config: Path, tmp_path: Path) -> None:
    path = tmp_path / "plan.json"
    path.write_text("an older plan")
    full = ("solve", config, "--set", "workload.generate.total_rate=150", "--set", "fleet.0.count=1", "-o", path)
    text = refusal(*full, "--solver", "best_fit", code=1)
    assert "of 24 adapters (first: a" in text
    assert "were left when the only GPU of the fleet was used" in text
    assert path.read_text() == "an older plan"


def test_compare_without_any_plan(config: Path) -> None:
    hot = ("compare", config, "--solvers", "greedy,best_fit", "--set", "workload.generate.total_rate=2000")
    assert refusal(*hot, code=1).startswith("no feasible plan: no GPU type carries adapter a")


def test_a_time_limit_too_short_for_anything(config: Path) -> None:
    text = refusal("solve", config, "--time-limit", "1e-9", code=1)
    assert text == "no feasible plan: the time limit was reached when 0 of 24 adapters were placed"
    assert refusal("solve", config, "--time-limit", "0", code=1) == text


def test_ctrl_c_prints_the_best_plan_so_far(config: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    plugins.install(monkeypatch)
    result = run(
        *("solve", config, "--json", "--solver", "greedy", "--oracle", "interrupted"),
        *("--set", "oracle.after=4", "--set", "oracle.capacity_tok_s=[1200]"),
    )
    assert result.exit_code == 1
    made = json.loads(result.stdout)
    placed = sum(len(gpu["adapters"]) for gpu in made["gpus"])
    assert made["status"] == "unknown"
    assert 0 < placed < 24
    reason = f"the search was interrupted when {placed} of 24 adapters were placed"
    assert made["reason"] == reason
    assert result.stderr == f"error: no feasible plan: {reason}\n"


def test_ctrl_c_in_a_solver_ends_the_comparison(config: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    plugins.install(monkeypatch)
    result = run(
        *("compare", config, "--json", "--solvers", "greedy,best_fit", "--oracle", "interrupted"),
        *("--set", "oracle.after=4", "--set", "oracle.capacity_tok_s=[1200]"),
    )
    assert result.exit_code == 130
    (row,) = json.loads(result.stdout)
    assert row["plan"]["solver"]["name"] == "greedy"
    assert "interrupted" in row["plan"]["reason"]
    assert row["validation"] is None
    assert result.stderr == "error: the comparison was interrupted; left out: best_fit\n"


def test_ctrl_c_ends_the_comparison_even_when_the_plan_is_complete(
    config: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def solve_until_ctrl_c(*args: Any, **kwargs: Any) -> Any:
        made = solve_config(*args, **kwargs)
        with contextlib.suppress(KeyboardInterrupt):  # as a search does, which returns the best so far
            signal.raise_signal(signal.SIGINT)
        return made

    monkeypatch.setattr(common, "solve_config", solve_until_ctrl_c)
    before = signal.getsignal(signal.SIGINT)
    result = run("compare", config, "--solvers", "greedy,best_fit")
    assert signal.getsignal(signal.SIGINT) is before
    assert result.exit_code == 130
    assert "feasible" in result.stdout
    assert "best_fit" not in result.stdout
    assert result.stderr == "error: the comparison was interrupted; left out: best_fit\n"


def test_ctrl_c_while_a_plan_is_replayed_keeps_the_plans_so_far(config: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(*args: Any, **kwargs: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(compare_command, "validate_plan", interrupted)
    result = run("compare", config, "--solvers", "greedy")
    assert result.exit_code == 130
    assert "feasible" in result.stdout
    assert result.stderr == "error: the comparison was interrupted\n"


def test_ctrl_c_anywhere_else_ends_without_a_traceback(plan: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(*args: Any, **kwargs: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(commands, "validate_plan", interrupted)
    result = run("validate", plan)
    assert (result.exit_code, result.stdout, result.stderr) == (130, "", "")


@pytest.mark.parametrize("delay_s", [0.0, 0.1, 0.3, 0.6, 1.0])
def test_ctrl_c_while_the_commands_are_imported(delay_s: float) -> None:
    # The process says when main is about to import the commands; and then it runs checks, which take longer.
    code = "from loraplan.cli import main; print('ready', flush=True); main()"
    command = [sys.executable, "-c", code, "doctor"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
        time.sleep(delay_s + 0.005)
        process.send_signal(signal.SIGINT)
        out, err = process.communicate(timeout=60)
    assert (process.returncode, out, err) == (130, "", "")


def test_importing_the_command_line_imports_no_command() -> None:
    code = "import sys, loraplan.cli; print([name for name in sys.modules if name.split('.')[0] in ('numpy', 'typer')])"
    finished = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert finished.stdout == "[]\n"
    with pytest.raises(AttributeError, match="has no attribute 'ap'"):
        _ = loraplan.cli.ap


def write_to_pipe(pipe: Path, text: str, reader: subprocess.Popen[str]) -> None:
    """Wait until the reader has opened the pipe, but not for one that has died."""
    while True:
        try:
            handle = os.open(pipe, os.O_WRONLY | os.O_NONBLOCK)
        except OSError:  # nobody reads yet
            assert reader.poll() is None, reader.communicate()
            time.sleep(0.05)
        else:
            with os.fdopen(handle, "w") as file:
                file.write(text)
            return


def test_ctrl_c_ends_a_long_solve_of_a_real_process(tmp_path: Path) -> None:
    # The process reads its config from a pipe, so that the test knows when it has come that far.
    config = tmp_path / "config.yaml"
    os.mkfifo(config)
    settings = {
        "workload": {"generate": GENERATE | {"count": 2000, "total_rate": 200}},
        "fleet": [{"profile": "h100-64gb/llama-3.1-8b", "count": 100}],
        "solver": "best_fit",
        "oracle": {"name": "twin", "seeds": 3},
    }
    start = [sys.executable, "-c", "from loraplan.cli import main; main()"]
    command = [*start, "solve", str(config), "--json", "-o", str(tmp_path / "plan.json")]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        write_to_pipe(config, yaml.safe_dump(settings), process)
        time.sleep(2.0)
        assert process.poll() is None
        process.send_signal(signal.SIGINT)
        out, err = process.communicate(timeout=60)
    made = json.loads(out)
    placed = sum(len(gpu["adapters"]) for gpu in made["gpus"])
    assert process.returncode == 1
    assert made["status"] == "unknown"
    assert err == f"error: no feasible plan: the search was interrupted when {placed} of 2000 adapters were placed\n"
    assert list(tmp_path.iterdir()) == [config]


# ---- bad input: exit code 2 ----


def trace_settings(trace: str = "trace.csv") -> dict[str, Any]:
    return {"workload": {"trace": trace, "adapters": {"count": 3, "ranks": [8]}}}


@pytest.mark.parametrize(
    ("rows", "complaint"),
    [
        (None, "the file is empty"),
        (TRACE_HEADER, "it has no requests"),
        (TRACE_HEADER + "0,10,5\n-1,10,5\n", "row 2, arrived_at: must not be negative (got -1)"),
        (TRACE_HEADER + "nan,10,5\n", "row 1, arrived_at: expected a number"),
        (TRACE_HEADER + "0,-10,5\n", "row 1, num_prefill_tokens: must be at least 1 (got -10)"),
        (TRACE_HEADER + "0,NaN,5\n", "row 1, num_prefill_tokens: expected a number (got NaN)"),
        (TRACE_HEADER + "0,10,\n", "row 1, num_decode_tokens: the value is missing"),
        (TRACE_HEADER + "0,10,-5\n", "row 1, num_decode_tokens: must be at least 0 (got -5)"),
    ],
)
def test_a_bad_trace(tmp_path: Path, rows: str | None, complaint: str) -> None:
    (tmp_path / "trace.csv").write_text(rows or "")
    config = write_config(tmp_path, trace_settings())
    text = refusal("solve", config, "-o", tmp_path / "plan.json")
    assert text.startswith(f"trace {tmp_path / 'trace.csv'}: ")
    assert complaint in text
    assert not (tmp_path / "plan.json").exists()


@pytest.mark.parametrize(
    ("row", "complaint"),
    [
        ("a,8,-1,10,5\n", "row 1, rate: Input should be greater than or equal to 0 (got '-1')"),
        ("a,8,nan,10,5\n", "row 1, rate: Input should be a finite number (got 'nan')"),
        ("a,0,1,10,5\n", "row 1, rank: Input should be greater than 0 (got '0')"),
        ("a,8,1,nan,5\n", "row 1, tokens_in: "),
        ("", "it has no rows"),
    ],
)
def test_a_bad_table(tmp_path: Path, row: str, complaint: str) -> None:
    (tmp_path / "table.csv").write_text(TABLE_HEADER + row)
    config = write_config(tmp_path, {"workload": {"adapters": "table.csv"}})
    text = refusal("solve", config, "-o", tmp_path / "plan.json")
    assert text.startswith(f"table {tmp_path / 'table.csv'}: ")
    assert complaint in text
    assert not (tmp_path / "plan.json").exists()


@pytest.mark.parametrize(
    ("options", "complaint"),
    [
        (("--solver", "gredy"), "unknown solver 'gredy'; did you mean 'greedy'?"),
        (("--objective", "gpu_cuont"), "unknown objective 'gpu_cuont'; did you mean 'gpu_count'?"),
        (("--oracle", "twim"), "unknown oracle 'twim'; did you mean 'twin'?"),
        (("--solver", ""), "solver: String should have at least 1 character"),
        (("--solver", "a: b"), "unknown solver 'a: b'"),
        (("--solver", "null"), "unknown solver 'null'"),
        (("--set", "fleet.0.profile=h100-64gb/llama"), "unknown profile 'h100-64gb/llama'; did you mean 'h100-64gb/"),
        (("--set", "workload.generat.count=3"), "workload.generat: unknown key; did you mean 'generate'?"),
        (("--set", "solvr=greedy"), "solvr: unknown key; did you mean 'solver'?"),
        (("--set", "workload.generate.ranks=[8, 0]"), "workload.generate.ranks.1: Input should be greater than 0"),
        (("--set", "workload.generate.count"), "--set workload.generate.count: expected key=value"),
        (("--set", "=3"), "--set =3: expected key=value"),
        (("--set", "workload.generate.count=["), "not valid YAML"),
        (("--set", "fleet.1.count=3"), "fleet is a list; expected an index 0 to 0"),
        (("--set", "fleet.0.count.x=3"), "fleet.0.count is 4, which has no settings"),
        (("--set", "workload.generate.total_rate=.nan"), "workload.generate.total_rate: Input should be a finite numb"),
        (("--set", "solver={name: greedy, patience: 3}"), "solver 'greedy' has no setting 'patience'"),
        (("--seed", "-1"), "Invalid value for '--seed'"),
        (("--seed", "many"), "Invalid value for '--seed'"),
        (("--time-limit", "nan"), "'--time-limit'"),
        (("--time-limit", "-3"), "'--time-limit'"),
        (("--frobnicate",), "--frobnicate"),
    ],
)
def test_a_bad_option_of_solve(config: Path, tmp_path: Path, options: tuple[str, ...], complaint: str) -> None:
    assert complaint in refusal("solve", config, "-o", tmp_path / "plan.json", *options)
    assert list(tmp_path.iterdir()) == [config]


@pytest.mark.parametrize(
    ("content", "complaint"),
    [
        (None, "No such file or directory"),
        (b"", "the file is empty"),
        (bytes(range(256)), "not valid YAML"),
        (b"\x7fELF\x02\x01\x01\x00\x00", "not valid YAML"),
        (b"workload: [", "not valid YAML"),
        (b"- a\n- b\n", "expected a mapping of settings, got list"),
        (b"{}", "workload: Field required"),
    ],
)
@pytest.mark.parametrize("command", [("solve",), ("simulate", "--slots", "4"), ("compare", "--solvers", "greedy")])
def test_a_bad_config_file(tmp_path: Path, content: bytes | None, complaint: str, command: tuple[str, ...]) -> None:
    path = tmp_path / "config.yaml"
    if content is not None:
        path.write_bytes(content)
    assert refusal(*command, path).startswith(f"config {path}: {complaint}")


def test_a_folder_in_the_place_of_a_file(tmp_path: Path) -> None:
    assert refusal("solve", tmp_path) == f"config {tmp_path}: Is a directory"
    assert refusal("validate", tmp_path) == f"plan {tmp_path}: Is a directory"


def test_an_output_that_cannot_be_written_is_told_before_the_work(config: Path, tmp_path: Path) -> None:
    for output in (tmp_path / "nowhere" / "plan.json", config / "plan.json", tmp_path):
        assert refusal("solve", config, "-o", output).startswith(f"cannot write {output}: ")
        assert run("solve", config, "-o", output).stdout == ""
    assert list(tmp_path.iterdir()) == [config]
    assert yaml.safe_load(config.read_text()) == SETTINGS


@pytest.mark.parametrize("command", ["validate", "simulate"])
def test_a_plan_file_that_is_not_one(plan: Path, saved: str, command: str) -> None:
    plan.write_text(saved[: len(saved) // 2])
    assert "is the file complete?" in refusal(command, plan)
    plan.write_text(saved.replace('"schema_version": 1', '"schema_version": 2', 1))
    assert refusal(command, plan) == f"plan {plan}: schema_version 2 is not known; expected 1"
    for not_a_plan in ([json.loads(saved)], SETTINGS, "plan"):
        plan.write_text(json.dumps(not_a_plan))
        assert "expected a plan with a schema_version" in refusal(command, plan)
    plan.unlink()
    assert refusal(command, plan) == f"plan {plan}: No such file or directory"


def test_odd_names_in_a_plan_are_printed_as_they_are(plan: Path) -> None:
    rewrite(plan, "gpus", 0, "id", to="[/red]")
    for command in (("validate", plan, "--seeds", "1"), ("simulate", plan)):
        result = run(*command)
        assert result.exit_code == 0
        assert "[/red]" in result.stdout


@pytest.mark.parametrize("command", ["validate", "simulate"])
def test_a_plan_whose_trace_is_not_what_it_was(tmp_path: Path, command: str) -> None:
    trace, plan = tmp_path / "trace.csv", tmp_path / "plan.json"
    trace.write_text(TRACE_HEADER + "0,10,5\n3,10,5\n")
    assert run("solve", write_config(tmp_path, trace_settings()), "-o", plan).exit_code == 0
    assert run(command, plan).exit_code == 0
    trace.write_text(TRACE_HEADER + "0,10,5\n4,10,5\n")
    assert f"{trace} has changed since the plan was made" in refusal(command, plan)
    trace.unlink()
    assert f"{trace}, from which the plan was made, is missing" in refusal(command, plan)


def test_bad_settings_of_validate_and_simulate(plan: Path, config: Path) -> None:
    assert "Invalid value for '--seeds'" in refusal("validate", plan, "--seeds", "0")
    assert "Invalid value for '--seeds'" in refusal("compare", config, "--solvers", "greedy", "--seeds", "0")
    assert "the plan has no GPU 'gpu-7'; did you mean 'gpu-0'?" in refusal("simulate", plan, "--gpu", "gpu-7")
    assert "Invalid value for '--slots'" in refusal("simulate", config, "--slots", "0")
    assert refusal("simulate", config, "--slots", "5000").startswith("memory error: 5000 slots of rank 16 leave -")
    assert "give --slots N" in refusal("simulate", config)
    assert "--slots and --set are for a single GPU" in refusal("simulate", plan, "--slots", "3")
    other = plan.rename(plan.with_suffix(".txt"))
    assert refusal("simulate", other) == f"{other}: expected a plan (PLAN.json) or a config (CONFIG.yaml or .yml)"
    assert "a config has none yet" in refusal("simulate", config, "--gpu", "gpu-0")


def test_bad_names_and_words(config: Path) -> None:
    assert "did you mean 'greedy'" in refusal("compare", config, "--solvers", "best_fit,gredy")
    assert "expected at least one name" in refusal("compare", config, "--solvers", ",")
    assert "solvers" in refusal("list", "sovlers")
    assert "schema --help" in refusal("schema", "pan")
    assert "No such command 'slove'" in refusal("slove")
    assert "Missing argument 'CONFIG.yaml'" in refusal("solve")
