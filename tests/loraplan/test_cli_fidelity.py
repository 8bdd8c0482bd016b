"""`loraplan fidelity` as a user or a script meets it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import yaml
from support.cli import invoke, json_in
from support.measured_runs import measured_by_twin, unmeasured, write_runs
from support.scenarios import make_profile
from typer.testing import Result

from benchmarks import twin_fidelity
from twin.fidelity import FIGURES

PROFILE = make_profile(step_ms={"per_request": 0.2}, kv_tokens=60_000)
ERRORS = {"mape", "smape_half", "smape", "bias", "n"}
LABELS = {"agreement", "agreement_clear", "macro_f1", "missed", "false_alarm", "n"}
SCORES = {"all", "starved", "not_starved", "starvation"}


def run(*args: str | Path) -> Result:
    return invoke("fidelity", *args)


def json_of(*args: str | Path) -> Any:
    result = run(*args, "--json")
    return json_in(result)


def refusal(*args: str | Path) -> str:
    result = run(*args)
    assert result.exit_code == 2, (result.stdout, result.stderr)
    assert result.stderr.count("\n") == 1
    return result.stderr.removeprefix("error: ").rstrip("\n")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Runs, results of another twin for the first of them, and the profile."""
    folder = tmp_path_factory.mktemp("fidelity")
    rows = measured_by_twin([unmeasured(8, 8, 16, (rate,), seconds=120.0) for rate in (0.2, 1.0, 8.0)], PROFILE)
    rows[1]["dataset"] = "other"
    write_runs(folder / "runs.csv", rows)
    columns = {"sim_itl_ms": "mean_itl_ms", "sim_ttft_ms": "mean_ttft_ms", "sim_starved": "starved"}
    first = {name: rows[0][name] for name in ("dataset", "model", "group", "run_id")}
    other = first | {name: rows[0][column] for name, column in columns.items()}
    other |= {"sim_total_tps": 2 * rows[0]["total_throughput"], "sim_wall_s": 5.0}
    write_runs(folder / "twin.csv", [other])
    (folder / "toy.yaml").write_text(yaml.safe_dump(PROFILE.model_dump(mode="json")))
    return folder


def test_json(folder: Path) -> None:
    found = json_of("--runs", folder / "runs.csv", "--profile", f"toy={folder / 'toy.yaml'}")
    assert set(found) == {"models", "speed", "apart", "without_apart"}
    assert (found["apart"], found["without_apart"]) == ([], None)
    assert set(found["speed"]) == {
        "seconds_per_simulated_hour_mean",
        "seconds_per_simulated_hour_median",
        "ratio_to_reference",
    }
    assert found["speed"]["ratio_to_reference"] is None
    assert found["speed"]["seconds_per_simulated_hour_mean"] > 0
    toy = found["models"]["toy"]
    assert set(toy) == SCORES | {"oom", "reference", "same_rows"}
    for group in ("all", "starved", "not_starved"):
        assert list(toy[group]) == list(FIGURES)
        assert all(set(of_figure) == ERRORS for of_figure in toy[group].values())
    assert set(toy["starvation"]) == LABELS
    assert toy["oom"] == {"agreement": 100.0, "n": 3}
    assert toy["reference"] is None
    assert toy["all"]["throughput"]["n"] == 3
    assert toy["all"]["throughput"]["mape"] < 15  # seed noise of two minutes


def test_json_with_reference(folder: Path) -> None:
    files = ("--runs", folder / "runs.csv", "--reference", folder / "twin.csv")
    found = json_of(*files, "--profile", f"toy={folder / 'toy.yaml'}")
    toy = found["models"]["toy"]
    assert set(toy["reference"]) == set(toy["same_rows"]) == SCORES
    assert toy["reference"]["all"]["throughput"] == {
        "mape": pytest.approx(100),
        "smape_half": pytest.approx(100 / 3),
        "smape": pytest.approx(200 / 3),
        "bias": pytest.approx(100),
        "n": 1,
    }
    assert toy["reference"]["all"]["tpot"]["mape"] is None
    assert found["speed"]["ratio_to_reference"] > 1


def test_tables(folder: Path) -> None:
    files = ("--runs", folder / "runs.csv", "--reference", folder / "twin.csv")
    result = run(*files, "--profile", f"toy={folder / 'toy.yaml'}", "--seeds", "2")
    assert result.exit_code == 0, result.stderr
    for words in (
        "toy",
        "SMAPE half",
        "not starved",
        "reference",
        "macro F1",
        "memory failures: 100",
        "simulated hour",
    ):
        assert words in result.stdout


def test_one_dataset_and_a_line_per_run(folder: Path, tmp_path: Path) -> None:
    out = tmp_path / "per_run.csv"
    result = run(
        *("--runs", folder / "runs.csv", "--profile", f"toy={folder / 'toy.yaml'}"),
        *("--dataset", "other", "-o", out, "--json"),
    )
    assert result.exit_code == 0, result.stderr
    assert json.loads(result.stdout)["models"]["toy"]["all"]["itl"]["n"] == 1
    assert "written to" in result.stderr
    table = pd.read_csv(out)
    assert list(table["dataset"]) == ["other"]
    assert table["simulated_throughput"].notna().all()
    everything = tmp_path / "everything.csv"
    run("--runs", folder / "runs.csv", "--profile", f"toy={folder / 'toy.yaml'}", "-o", everything)
    whole = pd.read_csv(everything)
    columns = [name for name in table.columns if name != "replay_s"]
    # A run's figures do not depend on which others are looked at.
    pd.testing.assert_frame_equal(
        whole.loc[whole["dataset"] == "other", columns].reset_index(drop=True), table[columns], check_dtype=False
    )


def test_a_group_held_out_is_replayed_with_a_profile_calibrated_on_the_others(folder: Path, tmp_path: Path) -> None:
    made = [unmeasured(n, n, 16, (rate,), seconds=600.0) for n in (4, 16) for rate in (0.2, 0.5, 1.0, 2.0)]
    table = pd.DataFrame(measured_by_twin(made, PROFILE))
    odd = table.assign(group="odd", mean_tpot_ms=2 * table["mean_tpot_ms"], mean_itl_ms=2 * table["mean_itl_ms"])
    refused = table.iloc[:1].assign(model="qwen-2.5-7b-instruct", status="oom")
    pd.concat([table, odd, refused]).to_csv(tmp_path / "runs.csv", index=False)
    files = ("--runs", tmp_path / "runs.csv", "--profile", f"toy={folder / 'toy.yaml'}")
    plain, out = tmp_path / "plain.csv", tmp_path / "held_out.csv"
    json_of(*files, "-o", plain)
    found = json_of(*files, "--held-out", "-o", out)
    assert found["models"]["toy"]["all"]["tpot"]["n"] == 16
    before, after = (pd.read_csv(path).query("status == 'ok'") for path in (plain, out))
    of_odd = before["group"] == "odd"
    # What those runs say twice as long of is what the others are replayed with, and the other way round.
    ratio = after["simulated_tpot"] / before["simulated_tpot"]
    assert (ratio[~of_odd] > 1.5).all()
    assert ratio[of_odd].to_numpy() == pytest.approx(1.0, rel=0.15)


def test_a_held_out_group_that_is_all_there_is(folder: Path, tmp_path: Path) -> None:
    pd.read_csv(folder / "runs.csv").assign(dataset="made").to_csv(tmp_path / "runs.csv", index=False)
    profile = f"toy={folder / 'toy.yaml'}"
    said = refusal("--runs", tmp_path / "runs.csv", "--profile", profile, "--held-out")
    assert said == "measured runs: all are of group 'made/up': none is left to fit to"


def test_runs_set_apart(folder: Path, tmp_path: Path) -> None:
    names = tmp_path / "apart.txt"
    first = "/".join(pd.read_csv(folder / "runs.csv").loc[0, ["dataset", "model", "group", "run_id"]])
    names.write_text(f"# these are odd\n\n  {first}\n")
    files = ("--runs", folder / "runs.csv", "--profile", f"toy={folder / 'toy.yaml'}", "--apart", names)
    found = json_of(*files)
    assert found["apart"] == [first]
    assert found["models"]["toy"]["all"]["itl"]["n"] == 3
    assert found["without_apart"]["toy"]["all"]["itl"]["n"] == 2
    tables = run(*files)
    assert tables.exit_code == 0, tables.stderr
    assert "Without the 1 runs set apart" in tables.stdout
    names.write_text("# none\n")
    assert json_of(*files)["without_apart"] is None


def test_runs_set_apart_that_are_not_looked_at(folder: Path, tmp_path: Path) -> None:
    table = pd.read_csv(folder / "runs.csv")
    names = tmp_path / "apart.txt"
    names.write_text("\n".join("/".join(row) for row in table[["dataset", "model", "group", "run_id"]].to_numpy()[:2]))
    files = ("--runs", folder / "runs.csv", "--profile", f"toy={folder / 'toy.yaml'}", "--apart", names)
    found = json_of(*files, "--dataset", "made")  # the second is of another
    assert found["apart"] == ["made/toy/up/8_8_16_0.2"]
    assert found["without_apart"]["toy"]["all"]["itl"]["n"] == 1


def test_wrong_names_set_apart(folder: Path, tmp_path: Path) -> None:
    files = ("--runs", folder / "runs.csv", "--profile", f"toy={folder / 'toy.yaml'}")
    names = tmp_path / "apart.txt"
    assert refusal(*files, "--apart", names) == f"--apart {names}: No such file or directory"
    assert "Is a directory" in refusal(*files, "--apart", tmp_path)
    names.write_bytes(b"\xff\xfe")
    assert "can't decode" in refusal(*files, "--apart", names)
    names.write_text("made/toy/up/8_8_16_0.3\n")
    said = refusal(*files, "--apart", names)
    assert "no run 'made/toy/up/8_8_16_0.3'; did you mean 'made/toy/up/8_8_16_0.2'?" in said


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["--profile", "toy"], "--profile toy: expected MODEL=PROFILE"),
        (["--profile", "toi=x.yaml"], "--profile toi=x.yaml: no run of model 'toi'; did you mean 'toy'?"),
        ([], "model 'toy' has no profile: give --profile toy=PROFILE"),
        (["--profile", "toy=h100-64gb/lama-3.1-8b"], "did you mean 'h100-64gb/llama-3.1-8b'?"),
        (["--dataset", "otter"], "no runs of dataset 'otter'; did you mean 'other'?"),
        (["--reference", "nowhere.csv"], "nowhere.csv: No such file or directory"),
        (["-o", "nowhere/out.csv"], "there is no folder nowhere"),
    ],
)
def test_wrong_arguments(folder: Path, args: list[str], message: str) -> None:
    assert message in refusal("--runs", folder / "runs.csv", *args)


def test_wrong_runs(folder: Path, tmp_path: Path) -> None:
    assert "No such file" in refusal("--runs", tmp_path / "none.csv")
    table = pd.read_csv(folder / "runs.csv")
    table.drop(columns="mean_tpot_ms").to_csv(tmp_path / "runs.csv", index=False)
    assert "column 'mean_tpot_ms' is missing" in refusal("--runs", tmp_path / "runs.csv")


def test_shipped_profiles_serve_the_published_models(folder: Path, tmp_path: Path) -> None:
    table = pd.read_csv(folder / "runs.csv").assign(model="qwen-2.5-7b-instruct", max_lora_rank=16)
    table.to_csv(tmp_path / "runs.csv", index=False)
    assert json_of("--runs", tmp_path / "runs.csv")["models"]["qwen-2.5-7b-instruct"]["all"]["itl"]["n"] == 3


def test_benchmark(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    table = pd.read_csv(folder / "runs.csv").assign(model="llama-3.1-8b-instruct")
    table.to_csv(tmp_path / "runs.csv", index=False)
    assert twin_fidelity.main([str(tmp_path / "runs.csv"), str(folder / "twin.csv")]) == 0
    assert "llama-3.1-8b-instruct" in capsys.readouterr().out
    assert twin_fidelity.main([str(tmp_path / "none.csv")]) == 2
    assert "No such file" in capsys.readouterr().err
    assert twin_fidelity.main([]) == 2
    assert "usage" in capsys.readouterr().err
