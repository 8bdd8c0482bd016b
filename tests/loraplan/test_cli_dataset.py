"""``loraplan dataset`` writes a dataset and says how much of it is new, or one clear line and nothing."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from support.cli import invoke
from support.dataset_rows import made_up_rows
from typer.testing import Result

from surrogate import dataset
from surrogate.dataset import read_dataset
from surrogate.design import Design


@pytest.fixture(autouse=True)
def rows_that_cost_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dataset, "rows_of", made_up_rows)


@pytest.fixture
def config(tmp_path: Path) -> Path:
    path = tmp_path / "design.yaml"
    path.write_text("seed: 4\n")
    return path


def run(config: Path, *arguments: object) -> Result:
    words = [str(argument) for argument in (config, "--workers", 1, "--set", "workloads=70", *arguments)]
    return invoke("dataset", *words)


def test_it_writes_a_dataset_and_says_what_is_new(config: Path, tmp_path: Path) -> None:
    result = run(config, "-o", tmp_path / "data")
    assert result.exit_code == 0, result.stderr
    rows = read_dataset(tmp_path / "data").num_rows
    assert f"{rows} rows of 70 workloads in 2 shards; {rows} rows are new, in " in result.stdout
    assert result.stderr == f"dataset written to {tmp_path / 'data'}\n"
    assert run(config, "-o", tmp_path / "data").stdout == f"complete already: {rows} rows of 70 workloads in 2 shards\n"


def test_json_and_an_empty_config(tmp_path: Path) -> None:
    (tmp_path / "empty.yaml").touch()
    found = json.loads(run(tmp_path / "empty.yaml", "-o", tmp_path / "data", "--json").stdout)
    assert found.pop("seconds") >= 0
    rows = found.pop("rows")
    assert found == {
        "folder": str(tmp_path / "data"),
        "status": "complete",
        "workloads": 70,
        "new_rows": rows,
        "shards": 2,
        "parts": {},
    }


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        (("--set", "workload=7"), "--set workload=7: workload: unknown key; did you mean 'workloads'"),
        (("--set", "seed=-1"), "--set seed=-1: seed: Input should be greater than or equal to 0 (got -1)"),
        (("--ray-address", "10.0.0.1:1"), "--ray-address makes no sense without --executor ray"),
        (("--executor", "dask"), "Invalid value for '--executor'"),
        (("--workers", "0"), "Invalid value for '--workers'"),
    ],
)
def test_bad_input_is_one_line_and_writes_nothing(
    config: Path, tmp_path: Path, arguments: tuple[str, ...], complaint: str
) -> None:
    result = run(config, "-o", tmp_path / "data", *arguments)
    assert result.exit_code == 2
    assert complaint in result.stderr
    assert result.stderr.count("\n") == 1
    assert list(tmp_path.iterdir()) == [config]


def test_another_seed_is_refused(config: Path, tmp_path: Path) -> None:
    run(config, "-o", tmp_path / "data")
    result = run(config, "-o", tmp_path / "data", "--set", "seed=5")
    assert result.exit_code == 2
    assert "it was begun with design.seed = 4, and now that is 5" in result.stderr


def test_ctrl_c_says_how_to_go_on(config: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def until_ctrl_c(design: Design, workload: int) -> list[dict[str, Any]]:
        if workload == 66:
            raise KeyboardInterrupt
        return made_up_rows(design, workload)

    monkeypatch.setattr(dataset, "rows_of", until_ctrl_c)
    result = run(config, "-o", tmp_path / "data")
    assert result.exit_code == 130
    assert result.stdout == ""
    assert result.stderr.startswith("error: interrupted; complete shards are kept in ")
    monkeypatch.setattr(dataset, "rows_of", made_up_rows)
    assert run(config, "-o", tmp_path / "data").exit_code == 0
