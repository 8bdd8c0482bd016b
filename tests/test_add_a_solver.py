"""docs/add_a_solver.md is true: its files make a package whose solver is found, checked and used."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from support.worked_example import files_of, installed, loraplan, run

FILES = files_of("add_a_solver.md")


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the page's files, and with the package installed."""
    return installed(tmp_path_factory.mktemp("nextfit"), FILES, "nextfit.py")


def test_it_passes_its_test(place: Path) -> None:
    assert "1 passed" in run(place, "-m", "pytest", "-q", "-p", "no:cacheprovider", "test_nextfit.py")


def test_it_plans(place: Path) -> None:
    rows = json.loads(
        loraplan(place, "compare", "config.yaml", "--solvers", "next_fit,best_fit", "--seeds", "1", "--json")
    )
    plans = {row["plan"]["solver"]["name"]: row["plan"] for row in rows}
    assert plans["next_fit"]["status"] == "feasible"
    assert len(plans["next_fit"]["gpus"]) >= len(plans["best_fit"]["gpus"])
