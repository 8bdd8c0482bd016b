"""Commands in documents print what stands below them."""

from __future__ import annotations

import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest


def assert_prints(block: str, place: Path, code: int = 0) -> None:
    """A console block, ``$ loraplan ...`` and its output, is what the command prints in folder ``place``."""
    command, _, expected = block.removeprefix("$ ").partition("\n")
    program, *arguments = shlex.split(command)
    assert program == "loraplan"
    finished = subprocess.run(
        [sys.executable, "-c", "from loraplan.cli import main; main()", *arguments],
        cwd=place,
        capture_output=True,
        text=True,
        check=False,
    )
    assert finished.returncode == code, finished.stderr
    assert_same_output(finished.stdout, expected)


def assert_same_output(printed: str, shown: str) -> None:
    """Words and counts are equal; decimals may differ as floating point does on machines, and seconds as they like."""
    printed_lines, shown_lines = _timeless(printed), _timeless(shown)
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


def _timeless(text: str) -> list[str]:
    """The lines, without the column of seconds that a table may have, and without how long a search took."""
    lines, width, seconds = [], 0, -1
    for line in text.strip().splitlines():
        cells = re.split(r"\s{2,}", line.strip())
        if "seconds" in cells:
            width, seconds = len(cells), cells.index("seconds")
        if len(cells) == width:
            del cells[seconds]
        lines.append(re.sub(r" in \d[\d.]* s$", "", "  ".join(cells)))
    return lines
