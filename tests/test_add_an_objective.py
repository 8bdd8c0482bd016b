"""docs/add_an_objective.md is true: its files make a package that is found, checked and used by every solver."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest

from loraplan.profiles import load_profile
from solvers import SOLVERS

PAGE = (Path(__file__).parents[1] / "docs" / "add_an_objective.md").read_text(encoding="utf-8")
FILES = dict(re.findall(r"`([\w.]+)`[^`]*:\n\n```\w+\n(.*?)```", PAGE, flags=re.DOTALL))
NO_HATCHLING = re.compile(r"No matching distribution found for hatchling|NewConnectionError|Temporary failure")


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the page's files, and with the package installed in ``site``."""
    folder = tmp_path_factory.mktemp("carbon")
    for name, text in FILES.items():
        (folder / name).write_text(text)
    isolation = ["--no-build-isolation"] if find_spec("hatchling") else []
    command = [sys.executable, "-m", "pip", "install", "--no-deps", *isolation, "--target", str(folder / "site"), "."]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
    if done.returncode and not isolation and NO_HATCHLING.search(done.stderr):
        pytest.skip("there is no hatchling here, and none can be had")
    assert done.returncode == 0, done.stderr
    (folder / "carbon.py").unlink()  # it is the installed one that counts
    return folder


def run(place: Path, *words: str) -> str:
    """What Python prints, in this folder, beside the installed package."""
    paths = [str(place / "site"), *filter(None, [os.environ.get("PYTHONPATH")])]
    done = subprocess.run(
        [sys.executable, *words],
        cwd=place,
        env=os.environ | {"PYTHONPATH": os.pathsep.join(paths)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def loraplan(place: Path, *words: str) -> str:
    return run(place, "-c", "from loraplan.cli import main; main()", *words)


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
    words = ["solve", "config.yaml", "--solver", solver, "--time-limit", "20", "--json"]
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
