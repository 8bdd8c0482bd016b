"""`loraplan evaluate` as a user or a script meets it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from support.cli import invoke, json_in
from support.measured_runs import measured_by_twin, unmeasured, write_runs
from support.models import load_rows, untrained_model
from typer.testing import Result

from benchmarks import surrogate_speed
from loraplan.profiles import load_profile
from surrogate import comparison, dataset, evaluation, speed
from surrogate.dataset import generate
from surrogate.design import Design

LLAMA, MODEL = "h100-64gb/llama-3.1-8b", "llama-3.1-8b-instruct"
ROWS = load_rows(64).to_pylist()


def stored_rows(design: Design, workload: int) -> list[dict[str, Any]]:
    return [ROWS[workload % len(ROWS)] | {"workload": workload, "seed": design.seed}]


@pytest.fixture(autouse=True)
def nothing_that_takes_time(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in (("BATCH", 20), ("REPEATS", 1), ("SINGLES", 2), ("SINGLES_OF_OTHERS", 1)):
        monkeypatch.setattr(speed, name, value)
    monkeypatch.setattr(dataset, "rows_of", stored_rows)
    monkeypatch.setattr(evaluation, "rows_of", stored_rows)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model that was trained on seed 5, and runs."""
    folder = tmp_path_factory.mktemp("evaluate")
    score = [-40.0 + i for i in range(80)]
    data = {"design": Design(seed=5).model_dump(mode="json")}
    untrained_model(data, score, [1.0 if one < 2 else 0.5 for one in score]).save(folder / "model")
    made = [unmeasured(8, 8, 16, (rate,), MODEL, seconds=60.0) for rate in (0.2, 1.0, 40.0)]
    write_runs(folder / "runs.csv", measured_by_twin(made, load_profile(LLAMA)))
    return folder


def run(*args: object) -> Result:
    words = ["evaluate", *map(str, args), "--workers", "1"]
    return invoke(*words)


def json_of(*args: object) -> Any:
    result = run(*args, "--json")
    return json_in(result)


def refusal(*args: object) -> str:
    result = run(*args)
    assert result.exit_code == 2, (result.stdout, result.stderr)
    assert result.stderr.count("\n") == 1
    return result.stderr.removeprefix("error: ").rstrip("\n")


def test_json(folder: Path) -> None:
    found = json_of(folder / "model", "--workloads", 20, "--runs", folder / "runs.csv", "--runs-dataset", "made")
    assert set(found) == {
        *("model", "loads", "twin", "models", "regions", "risk", "quantiles", "calibration", "outside", "speed"),
        "notes",
    }
    assert found["loads"] == {LLAMA: 10, "random profiles": 10, "all": 20}
    scores = found["models"][MODEL]["surrogate"]
    assert set(scores) == {"all", "starved", "not_starved", "starvation"}
    assert set(scores["all"]["throughput"]) == {"mape", "smape_half", "smape", "bias", "n"}
    assert scores["all"]["itl"]["n"] == 3
    assert found["risk"]["all"]["risk"] == 0.01
    assert found["speed"]["surrogate_us_per_row_single"] >= 0
    (note,) = found["notes"]
    assert note.startswith("no comparison models: name the dataset that ")


def test_tables_and_plots(folder: Path, tmp_path: Path) -> None:
    pytest.importorskip("sklearn")
    generate(Design(seed=5, workloads=64, loads=1), tmp_path / "train", workers=1)
    page = tmp_path / "page.html"
    words = ("--runs", folder / "runs.csv", "--runs-dataset", "made", "--risk", 0.05, "--plot", page)
    result = run(folder / "model", "--workloads", 20, *words, "--train-data", tmp_path / "train")
    assert result.exit_code == 0, result.stderr
    for words in (
        "beside the twin, 20 unseen loads",
        "random forest",
        "served below 0.5",
        "adapters <= slots",
        "accepted at risk 0.05",
        "kv_utilisation",
        "beside measured runs",
        "a GPU load takes the surrogate ",
        "svm: ",
        "another design than that of the surrogate's training data",
    ):
        assert words in result.stdout
    assert result.stderr == f"plots written to {page}\n"
    html = page.read_text()
    assert "starved, % of the loads accepted at a risk" in html
    assert "<script src=" not in html


def test_a_dataset_and_training_rows_in_the_models_folder(folder: Path, tmp_path: Path) -> None:
    generate(Design(seed=6, workloads=30, loads=1), tmp_path / "unseen", workers=1)
    untrained_model().save(tmp_path / "model")
    comparison.write_training_rows(load_rows(64), tmp_path / "model")
    found = json_of(tmp_path / "model", "--dataset", tmp_path / "unseen")
    assert found["loads"]["all"] == 30
    kinds = ["surrogate", *comparison.MODELS] if comparison.installed() else ["surrogate"]
    assert list(found["twin"][LLAMA]) == kinds


def test_runs_only(folder: Path) -> None:
    found = json_of(folder / "model", "--workloads", 0, "--runs", folder / "runs.csv", "--runs-dataset", "made")
    assert (found["twin"], found["loads"], found["calibration"]) == ({}, {}, [])
    assert list(found["models"]) == [MODEL]
    text = run(folder / "model", "--workloads", 0, "--runs", folder / "runs.csv", "--runs-dataset", "made").stdout
    assert "beside the twin" not in text


def test_bad_input_is_one_line(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = folder / "model"
    generate(Design(seed=5, workloads=4, loads=1), tmp_path / "seen", workers=1)
    assert "card.json" in refusal(tmp_path / "nothing")
    assert "trained on workloads of seed 5: they are not unseen" in refusal(model, "--seed", 5)
    assert "trained on workloads of seed 5" in refusal(model, "--dataset", tmp_path / "seen")
    assert "makes no sense with --workloads" in refusal(model, "--dataset", tmp_path / "seen", "--workloads", 3)
    assert "no runs of dataset 'mltest'" in refusal(model, "--runs", folder / "runs.csv")
    assert "--plot needs unseen workloads" in refusal(model, "--workloads", 0, "--plot", tmp_path / "a.html")
    assert "did you mean 'h100-64gb/llama-3.1-8b'" in refusal(model, "--profile", "h100-64gb/llama-3.1")
    monkeypatch.setattr(comparison, "installed", lambda: False)
    assert "pip install 'loraplan[train]'" in refusal(model, "--train-data", tmp_path / "seen")


def test_the_benchmark_prints_what_a_load_takes(
    folder: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(surrogate_speed, "TRAINING_ROWS", 50)
    assert surrogate_speed.main([str(folder / "model")]) == 0
    printed = capsys.readouterr().out
    assert "surrogate, loads of 100 adapters" in printed
    assert surrogate_speed.main([str(folder / "nothing")]) == 2
    assert capsys.readouterr().err.startswith("error: model ")
