"""The README is true: its commands run and print what it shows, but for seconds and rounding."""

from __future__ import annotations

import contextlib
import io
import re
import shutil
from pathlib import Path

import pytest
from support.data import data_file
from support.printed import assert_prints

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"```(console|python)\n(.*?)```", README, flags=re.DOTALL)


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("readme")
    shutil.copytree(ROOT / "examples", folder / "examples")
    shutil.copy(data_file("traces/azure_llm_2023_conv.csv"), folder / "examples")
    return folder


def test_the_commands_print_what_the_readme_shows(place: Path) -> None:
    shown = [text for kind, text in BLOCKS if kind == "console"]
    assert shown
    for text in shown:
        assert_prints(text, place)


def test_the_python_example_runs() -> None:
    (code,) = [text for kind, text in BLOCKS if kind == "python"]
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed):
        exec(code, {})  # noqa: S102
    assert printed.getvalue().startswith("feasible ")


def test_every_command_is_listed() -> None:
    from loraplan.cli import app

    names = {command.name or command.callback.__name__ for command in app.registered_commands if command.callback}
    assert names <= set(re.findall(r"`loraplan (\w+)", README))
