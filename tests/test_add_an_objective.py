"""docs/add_an_objective.md is true: its files make a package that is found, checked and used by every solver."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from support.worked_example import files_of, installed, loraplan, run

from loraplan.profiles import load_profile
from solvers import SOLVERS

FILES = files_of("add_an_objective.md")


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the page's files, and with the package installed."""
    return installed(tmp_path_factory.mktemp("carbon"), FILES, "carbon.py")


def test_the_page_has_all_files() -> None:
    assert set(FILES) == {"carbon.py", "pyproject.toml", "test_carbon.py", "config.yaml"}
    code = FILES["carbon.py"].partition("class Carbon(")[2].splitlines()
    assert len(code) <= 20


def test_it_is_listed(place: Path) -> None:
    entries = {entry["name"]: entry for entry in json.loads(loraplan(place, "list", "objectives", "--json"))}
    assert entries["carbon"]["origin"] == "loraplan-carbon"
    assert entries["carbon"]["target"] == "carbon:Carbon"


def test_it_passes_its_test(place: Path) -> None:
    assert "1 passed" in run(place, "-m", "pytest", "-q", "-p", "no:cacheprovider", "test_carbon.py")


SOLVE_WITH_EACH = """
import json, sys
from typer.testing import CliRunner
from loraplan.cli import app

for solver in sys.argv[1:]:
    words = ["solve", "config.yaml", "--solver", solver, "--oracle", "fluid", "--time-limit", "20", "--json"]
    print(json.dumps([solver, CliRunner().invoke(app, words).stdout]))
"""


@pytest.fixture(scope="module")
def plans(place: Path) -> dict[str, Any]:
    """The plan of every solver; made in one process, because each takes its time to start."""
    printed = (json.loads(line) for line in run(place, "-c", SOLVE_WITH_EACH, *SOLVERS.names()).splitlines())
    return {solver: json.loads(plan) for solver, plan in printed}


@pytest.mark.parametrize("solver", SOLVERS.names())
def test_every_solver_plans_with_it(plans: dict[str, Any], solver: str) -> None:
    made = plans[solver]
    assert made["status"] in {"feasible", "optimal"}, made["reason"]
    assert made["objective"]["name"] == "carbon"
    assert made["objective"]["params"] == {"grams_per_kwh": 350.0}
    assert made["objective"]["unit"] == "g CO2 per hour"
    power = load_profile("h100-64gb/llama-3.1-8b").power
    assert power is not None
    assert made["objective"]["value"] == pytest.approx(len(made["gpus"]) * power.busy * 0.35)
