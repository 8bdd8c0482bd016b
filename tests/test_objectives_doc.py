"""docs/objectives.md is true: every snippet plans, all objectives and constraints are told, commands do so."""

from __future__ import annotations

import contextlib
import io
import re
import shlex
from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest
import yaml
from support.cli import invoke

import loraplan
from loraplan.config import parse_config
from loraplan.constraints import Constraints
from loraplan.replan import Step
from objectives import OBJECTIVES

ROOT = Path(__file__).parents[1]
PAGE = (ROOT / "docs" / "objectives.md").read_text(encoding="utf-8")
SNIPPETS = [yaml.safe_load(text) for text in re.findall(r"```yaml\n(.*?)```", PAGE, flags=re.DOTALL)]
ROWS = set(re.findall(r"^\| `(\w+)", PAGE, flags=re.MULTILINE))
COMMANDS = re.findall(r"^\$ loraplan (.*)$", PAGE, flags=re.MULTILINE)


@pytest.mark.parametrize("snippet", SNIPPETS, ids=lambda snippet: "-".join(snippet))
def test_every_snippet_plans(snippet: dict[str, Any]) -> None:
    chat = yaml.safe_load((ROOT / "examples" / "chat.yaml").read_text())
    solver = {"name": snippet["solver"]} | ({"patience": 8} if snippet["solver"] == "local_search" else {})
    config = parse_config({**chat, **snippet, "solver": solver}, folder=ROOT / "examples")
    plan = loraplan.solve_config(config)
    assert plan.complete, plan.reason


def test_every_objective_constraint_and_step_is_told() -> None:
    assert set(OBJECTIVES.names()) <= ROWS
    assert {field.name for field in fields(Constraints)} <= ROWS
    assert set(re.findall(r"'(\w+)'", str(Step.__annotations__["action"]).replace('"', "'"))) <= ROWS


def test_the_commands_do_what_the_page_shows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "examples").symlink_to(ROOT / "examples")
    tomorrow = yaml.safe_load((ROOT / "examples" / "chat.yaml").read_text())["workload"]
    tomorrow |= {"trace": "examples/chat.csv", "rate_scale": 22, "adapters": tomorrow["adapters"] | {"count": 165}}
    (tmp_path / "tomorrow.yaml").write_text(yaml.safe_dump({"workload": tomorrow}))
    for command in ("solve examples/chat.yaml -o plan.json", *COMMANDS):
        result = invoke(*shlex.split(command))
        assert result.exit_code == 0, (command, result.stderr)
        last = result.stdout.strip().splitlines()[-1]
        if not command.startswith("solve"):
            assert last in PAGE


def test_the_python_example_runs() -> None:
    (code,) = re.findall(r"```python\n(.*?)```", PAGE, flags=re.DOTALL)
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed):
        exec(code, {})  # noqa: S102
    assert printed.getvalue() == "6.0 ['gpu-0', 'gpu-1']\n"
