"""Running a command as a user does."""

from __future__ import annotations

import json
from typing import Any

import pytest
from typer.testing import CliRunner, Result

from loraplan.cli.commands import app


def invoke(*words: object, columns: int = 200) -> Result:
    """What the command says on a terminal of this width; an exception that it lets through is the test's."""
    return CliRunner().invoke(app, [str(word) for word in words], env={"COLUMNS": str(columns)}, catch_exceptions=False)


def json_in(result: Result, code: int = 0) -> Any:
    """What was printed, which must be all JSON, without NaN, by a command that ended with ``code``."""
    assert result.exit_code == code, result.stderr
    return json.loads(result.stdout, parse_constant=pytest.fail)
