"""The README is true: its commands run and print what it shows, but for seconds and rounding."""

from __future__ import annotations

import contextlib
import io
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from support.data import data_file

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"```(console|python)\n(.*?)```", README, flags=re.DOTALL)


def assert_same_output(printed: str, shown: str) -> None:
    """Words and counts are equal; figures with decimals may differ as seconds do, and floating point on machines."""
    printed_lines, shown_lines = printed.strip().splitlines(), shown.strip().splitlines()
    assert len(printed_lines) == len(shown_lines)
    for line, expected in zip(printed_lines, shown_lines, strict=True):
        words, expected_words = line.split(), expected.split()
        assert len(words) == len(expected_words), line
        for word, expected_word in zip(words, expected_words, strict=True):
            if re.fullmatch(r"\d[\d,]*\.\d+", word):
                assert float(word.replace(",", "")) == pytest.approx(
                    float(expected_word.replace(",", "")), rel=0.1, abs=1.0
                ), line
            elif re.fullmatch(r"\d{1,3}(,\d{3})+", word):
                assert int(word.replace(",", "")) == pytest.approx(int(expected_word.replace(",", "")), rel=0.01), line
            else:
                assert word == expected_word, line


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
        command, _, expected = text.removeprefix("$ ").partition("\n")
        program, *arguments = shlex.split(command)
        assert program == "loraplan"
        finished = subprocess.run(
            [sys.executable, "-c", "from loraplan.cli import main; main()", *arguments],
            cwd=place,
            capture_output=True,
            text=True,
            check=False,
        )
        assert finished.returncode == 0, finished.stderr
        assert_same_output(finished.stdout, expected)


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
