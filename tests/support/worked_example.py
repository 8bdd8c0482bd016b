"""Pages whose files make a package: they are written, installed and run, as a reader would."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest

NO_HATCHLING = re.compile(r"No matching distribution found for hatchling|NewConnectionError|Temporary failure")


def files_of(page: str) -> dict[str, str]:
    """The files that a page of the documentation shows, by name."""
    text = (Path(__file__).parents[2] / "docs" / page).read_text(encoding="utf-8")
    return dict(re.findall(r"`([\w.]+)`[^`]*:\n\n```\w+\n(.*?)```", text, flags=re.DOTALL))


def installed(folder: Path, files: dict[str, str], module: str) -> Path:
    """The folder with these files, and with their package installed in ``site``."""
    for name, text in files.items():
        (folder / name).write_text(text)
    isolation = ["--no-build-isolation"] if find_spec("hatchling") else []
    command = [sys.executable, "-m", "pip", "install", "--no-deps", *isolation, "--target", str(folder / "site"), "."]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
    if done.returncode and not isolation and NO_HATCHLING.search(done.stderr):
        pytest.skip("there is no hatchling here, and none can be had")
    assert done.returncode == 0, done.stderr
    (folder / module).unlink()  # it is the installed one that counts
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
    """What the command prints there."""
    return run(place, "-c", "from loraplan.cli import main; main()", *words)
