"""The pictures that ``python -m benchmarks.twin_residuals`` draws of a table of runs."""

from __future__ import annotations

from pathlib import Path
from xml.etree import ElementTree

import pandas as pd
import pytest

pytest.importorskip("matplotlib")  # of the dev extra: the wheel does without
from benchmarks import twin_residuals

PICTURES = ("twin_labels.svg", "twin_parity.svg", "twin_residuals.svg", "twin_tail.svg")


def toy() -> pd.DataFrame:
    """Six runs of two models and one that ran out of memory; the first label is wrong, and one TTFT is the client's."""
    shares = (0.95, 0.5, 1.0, 0.99, 0.91, 0.3, float("nan"))
    table = pd.DataFrame({"measured_share": shares})
    for i, name in enumerate(("dataset", "model", "group", "run_id")):
        table[name] = [f"{name} {row % 2 if i == 1 else row}" for row in range(7)]
    table["slots"], table["adapters"], table["ideal_throughput"] = [16, 32, 32, 64, 64, 64, 64], 32, 1000.0
    for i, name in enumerate(("throughput", "itl", "ttft", "running")):
        table[f"measured_{name}"] = 1000.0 * table["measured_share"] / (1 + i)
        table[f"simulated_{name}"] = table[f"measured_{name}"] * [0.9, 1.1, 1.0, 0.95, 1.02, 1.3, 1.0]
    table["measured_starved"] = (table["measured_share"] < 0.9).astype(float)
    table["simulated_starved"] = (table["simulated_throughput"] < 900).astype(float)
    table["client_overloaded"] = [0, 0, 0, 0, 0, 1, 0]
    return table.drop(columns="measured_share")


def draw(table: pd.DataFrame, folder: Path) -> int:
    table.to_csv(folder / "per_run.csv", index=False)
    return twin_residuals.main([str(folder / "per_run.csv"), "-o", str(folder)])


def words(path: Path) -> str:
    """All text in an SVG file, which has to be one."""
    root = ElementTree.fromstring(path.read_text(encoding="utf-8"))  # noqa: S314 - our own
    assert root.tag == "{http://www.w3.org/2000/svg}svg"
    return "\n".join(root.itertext())


def test_pictures(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert draw(toy(), tmp_path) == 0
    assert sorted(path.name for path in tmp_path.glob("*.svg")) == list(PICTURES)
    assert capsys.readouterr().out.count("written") == 4
    assert "model 0: MAPE 4.0 %, bias -2.7 %, n 3" in words(tmp_path / "twin_parity.svg")
    assert "1: model 0/group 0/run_id 0, measured 0.950, simulated 0.855" in words(tmp_path / "twin_labels.svg")
    assert "1 of 6 labels are wrong" in words(tmp_path / "twin_labels.svg")
    assert "model 1: mean 7.5 %, median 7.5 %" in words(tmp_path / "twin_tail.svg")  # without the client's own waits
    assert all(regime.split("\n")[0] in words(tmp_path / "twin_residuals.svg") for regime in twin_residuals.REGIMES)


def test_the_same_runs_give_the_same_bytes(tmp_path: Path) -> None:
    drawn = []
    for _ in range(2):
        assert draw(toy(), tmp_path) == 0
        drawn.append([(tmp_path / name).read_bytes() for name in PICTURES])
    assert drawn[0] == drawn[1]


def test_runs_without_ttft(tmp_path: Path) -> None:
    assert draw(toy().assign(client_overloaded=1), tmp_path) == 0


def refusal(table: pd.DataFrame, folder: Path, capsys: pytest.CaptureFixture[str]) -> str:
    assert draw(table, folder) == 2
    said = capsys.readouterr()
    assert said.out == ""
    assert said.err.count("\n") == 1
    assert list(folder.glob("*.svg")) == []
    return said.err


def test_refusals(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert "column 'simulated_itl' is missing" in refusal(toy().drop(columns="simulated_itl"), tmp_path, capsys)
    assert "expected a number (got 'many')" in refusal(toy().assign(slots="many"), tmp_path, capsys)
    assert "no run that was replayed" in refusal(toy()[6:], tmp_path, capsys)
    assert twin_residuals.main([str(tmp_path / "per_run.csv"), "-o", str(tmp_path / "none")]) == 2
    assert "there is no folder" in capsys.readouterr().err
