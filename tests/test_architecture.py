"""The shape of the code base: six packages of one root, imports that point one way, nothing too long to read."""

from __future__ import annotations

import ast
import importlib
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from loraplan.oracle import ORACLES
from loraplan.profiles import PROFILES
from loraplan.registry import Registry
from objectives import OBJECTIVES
from solvers import SOLVERS

PACKAGES = ("loraplan", "twin", "surrogate", "objectives", "solvers", "benchmarks")
TESTS = Path(__file__).parent
SOURCE = TESTS.parent

LONGEST_FILE = 400
EXCUSED = {
    "core.py": "the compiled simulator: Numba's cache does not notice changes of other files",
    "kernel.py": "the compiled surrogate, for the same reason",
}
LONGEST_FUNCTION = 60


def package_root(name: str) -> Path:
    """The folder that holds the package which is imported, the installed one in a test of the wheel."""
    return Path(str(importlib.import_module(name).__file__)).resolve().parents[1]


def source_files() -> Iterator[Path]:
    for name in PACKAGES:
        yield from sorted((package_root(name) / name).rglob("*.py"))


def test_all_packages_come_from_one_root() -> None:
    """Names like ``twin`` are short: another project's package must not stand in for one of ours."""
    assert {package_root(name) for name in PACKAGES} == {package_root("loraplan")}


def test_imports_point_one_way() -> None:
    if not (SOURCE / "pyproject.toml").exists() or package_root("loraplan") != SOURCE:
        pytest.skip("the contracts are in the pyproject.toml of the source tree, which is not what is tested here")
    pytest.importorskip("importlinter")
    found = subprocess.run(
        [Path(sys.executable).parent / "lint-imports"], cwd=SOURCE, capture_output=True, text=True, check=False
    )
    assert found.returncode == 0, found.stdout + found.stderr
    assert " 0 broken" in found.stdout


def test_no_file_is_too_long() -> None:
    lengths = {str(path): len(path.read_text(encoding="utf-8").splitlines()) for path in source_files()}
    assert len(lengths) > 30
    assert {Path(path).name for path, length in lengths.items() if length > LONGEST_FILE} <= EXCUSED.keys()


def test_no_function_is_too_long() -> None:
    too_long = {}
    for path in source_files():
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                length = int(node.end_lineno or 0) - node.lineno + 1 - _docstring_lines(node)
                if length > LONGEST_FUNCTION:
                    too_long[f"{path}: {node.name}"] = length
    assert too_long == {}


def _docstring_lines(node: ast.FunctionDef | ast.AsyncFunctionDef) -> int:
    """An explanation makes no function harder to read."""
    return 0 if ast.get_docstring(node) is None else int(node.body[0].end_lineno or 0) - node.body[0].lineno + 1


def test_tests_are_no_package() -> None:
    """They are imported by path (importmode=importlib): a package there could shadow what it tests."""
    assert list(TESTS.rglob("__init__.py")) == []


@pytest.mark.parametrize("registry", [SOLVERS, OBJECTIVES, ORACLES, PROFILES], ids=lambda registry: registry.kind)
def test_every_registered_name_resolves_and_says_what_it_is(registry: Registry[Any]) -> None:
    assert registry.names()
    for name in registry.names():
        assert registry.get(name) is not None
        summary = registry.entry(name).summary
        assert summary.strip() == summary != ""
        assert "\n" not in summary
