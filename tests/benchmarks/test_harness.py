"""The harness: whatever a solver does is a row, and whatever ends the harness, the table is the same."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from multiprocessing import forkserver
from pathlib import Path

import pandas as pd
import pytest
from joblib.externals.loky import get_reusable_executor
from support import bad_solvers

from benchmarks import guard, harness
from benchmarks.best_known import BestKnown, read_best_known, updated
from benchmarks.cells import Cell, Limits, make_cells
from benchmarks.harness import bench, plan_file, read_manifest
from benchmarks.results import COLUMNS, improvements, read_table
from benchmarks.suites import select
from loraplan.errors import BadInputError
from loraplan.plan import read_plan
from solvers import SOLVERS

IMPORTABLE = os.pathsep.join(str(path) for path in (Path(__file__).parents[1], Path(harness.__file__).parents[1]))
QUICK = Limits(time_limit_s=1.0, grace_s=4.0, memory_gb=0.45, twin_seeds=1)
SUITE = """
summary: mine
base:
  workload:
    generate: {count: 9, ranks: [8], rates: [9], input_tokens: 250, output_tokens: 231}
    horizon_s: 60
  fleet: [{profile: h100-64gb/llama-3.1-8b, count: 9}]
cases: {one: {}, two: {workload.generate.count: 8}}
"""
TIMES = ["solver_s", "wall_s", "peak_mb", "twin_s", "loop_s", "date"]


@pytest.fixture(autouse=True)
def _plugins(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    bad_solvers.install(tmp_path / "site")
    monkeypatch.syspath_prepend(str(tmp_path / "site"))
    get_reusable_executor().shutdown(wait=True)  # workers of other tests know another path,
    forkserver._forkserver._stop()  # type: ignore[attr-defined] # and so does what cells are copies of
    guard._server.cache_clear()
    for name in ("_entries", "_loaded"):
        monkeypatch.setattr(SOLVERS, name, dict(getattr(SOLVERS, name)))
    monkeypatch.setattr(SOLVERS, "_scanned", False)
    yield


def cells_of(folder: Path, solvers: str, pattern: str = "*", limits: Limits = QUICK) -> list[Cell]:
    path = folder / "mine.yaml"
    path.write_text(SUITE)
    suites = select([str(path)])
    suites = tuple(
        type(s)(s.name, s.summary, s.objectives, tuple(i for i in s.instances if pattern in ("*", i.name)))
        for s in suites
    )
    return [*make_cells(suites, solvers.split(","), [], ["fluid"], 1, limits)]


def by_solver(table: pd.DataFrame) -> dict[str, tuple[str, str]]:
    return {row.solver: (row.status, row.reason) for row in table.itertuples()}


EXPECTED = {
    "one_each": ("feasible", ""),
    "raises": ("crash", "ZeroDivisionError: a bug, of two lines"),
    "hangs": ("timeout", "killed after its time limit of 1 s and 4 s more"),
    "eats": ("memory", "killed above 0.45 GB of memory"),
    "dies": ("crash", "ended by signal SIGSEGV"),
    "wrong": ("wrong plan", "1 of 9 adapters are not placed"),
    "starves": ("wrong plan", "does not start or starves"),
    "lies": ("wrong bound", "it says no plan below 8.5, but best_fit has a plan of 3"),
    "gives_up": ("wrong bound", "it says infeasible, but best_fit has a plan of 3"),
    "best_fit": ("feasible", ""),
}


@pytest.mark.parametrize(
    "names",
    [
        pytest.param("one_each,lies,best_fit", id="some"),
        pytest.param(
            "one_each,raises,hangs,eats,dies,wrong,starves,lies,gives_up,best_fit", id="all", marks=pytest.mark.slow
        ),
    ],
)
def test_every_misbehaviour_is_a_row_and_disturbs_nobody(tmp_path: Path, names: str) -> None:
    table = bench(cells_of(tmp_path, names, "one"), QUICK, tmp_path / "results", workers=1)
    found = by_solver(table)
    assert list(found) == names.split(",")
    for name, (status, reason) in found.items():
        assert status == EXPECTED[name][0], (name, reason)
        assert EXPECTED[name][1] in reason
    row = table[table["solver"] == "one_each"].iloc[0]
    assert (row["gpus"], row["value"], row["best_value"], row["vs_best"]) == (9, 9, 3, 3)
    assert (row["starved"] >= 0, row["twin_seeds"], row["adapters"]) == (True, "1000000", 9)
    assert 50 < row["peak_mb"] < 1024
    assert "numba=" in row["versions"]
    assert row["machine"]
    plan = read_plan(plan_file(tmp_path / "results", row["name"]))
    assert len(plan.gpus) == 9
    for file in ("results.parquet", "results.csv"):
        pd.testing.assert_frame_equal(read_table(tmp_path / "results" / file), table, check_dtype=False)
    assert tuple(table.columns) == COLUMNS
    known, changed = updated(BestKnown(), improvements(table))
    assert (changed, known.entries[0].value, known.entries[0].bound) == (1, 3.0, None)


def test_a_folder_grows_but_keeps_its_limits(tmp_path: Path) -> None:
    folder = tmp_path / "results"
    bench(cells_of(tmp_path, "best_fit", "one"), QUICK, folder, workers=1)
    told: list[tuple[int, int, str]] = []
    table = bench(
        cells_of(tmp_path, "best_fit,one_each", "one"), QUICK, folder, 1 * "local", 1, None, lambda *a: told.append(a)
    )
    assert [t[:2] for t in told] == [(1, 2), (2, 2)]
    assert list(table["solver"]) == ["best_fit", "one_each"]
    assert len(read_manifest(folder).cells) == 2
    other = Limits(time_limit_s=2.0)
    with pytest.raises(BadInputError, match=r"made with time_limit_s 1.0, not 2.0; give another folder"):
        bench(cells_of(tmp_path, "best_fit"), other, folder, workers=1)


def test_another_folder_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.tex").write_text("mine")
    with pytest.raises(BadInputError, match=r"holds something else \(thesis.tex\)"):
        bench(cells_of(tmp_path, "best_fit"), QUICK, tmp_path / "mine", workers=1)
    with pytest.raises(BadInputError, match=r"there is no bench\.json"):
        read_manifest(tmp_path / "mine")


def test_unknown_names_are_told_before_any_work(tmp_path: Path) -> None:
    with pytest.raises(BadInputError, match="unknown solver 'gredy'; did you mean 'greedy'"):
        cells_of(tmp_path, "gredy")


def start(folder: Path, *more: str) -> subprocess.Popen[bytes]:
    """The harness in a process of its own, on the cells of ``mine.yaml``."""
    code = (
        "from pathlib import Path; import sys\n"
        "from benchmarks.cells import Limits, make_cells\n"
        "from benchmarks.harness import bench\n"
        "from benchmarks.suites import select\n"
        "limits = Limits(1.0, 4.0, 0.45, 1)\n"
        f"suites = select([{str(folder / 'mine.yaml')!r}])\n"
        "cells = [*make_cells(suites, ['slow', 'best_fit', 'raises'], [], ['fluid'], 2, limits)]\n"
        f"bench(cells, limits, Path({str(folder / 'results')!r}), workers=1)\n"
    )
    env = os.environ | {"PYTHONPATH": os.pathsep.join([str(folder / "site"), IMPORTABLE])}
    return subprocess.Popen([sys.executable, "-c", code, *more], env=env, start_new_session=True)


@pytest.mark.slow
def test_kill_9_at_any_moment_gives_the_same_table(tmp_path: Path) -> None:
    (tmp_path / "mine.yaml").write_text(SUITE)
    whole = tmp_path / "whole"
    whole.mkdir()
    (whole / "mine.yaml").write_text(SUITE)
    bad_solvers.install(whole / "site")
    with start(whole) as process:
        assert process.wait(300) == 0
    for rows in (0, 1, 4):
        with start(tmp_path) as process:
            while len([*(tmp_path / "results" / "rows").glob("*.json")]) <= rows and process.poll() is None:
                time.sleep(0.02)
            time.sleep(0.4)  # somewhere within a cell
            process.send_signal(signal.SIGKILL)
    ends = time.monotonic() + 60  # what is still importing ends after that
    while children_of_bench(tmp_path) and time.monotonic() < ends:
        time.sleep(0.5)
    assert not children_of_bench(tmp_path), "what it started is still there"
    with start(tmp_path) as process:
        assert process.wait(300) == 0
    tables = [read_table(folder / "results" / "results.csv").drop(columns=TIMES) for folder in (whole, tmp_path)]
    assert len(tables[0]) == 12
    pd.testing.assert_frame_equal(*tables)


def children_of_bench(folder: Path) -> list[str]:
    """Processes that know of ``folder`` in their environment."""
    found = []
    for path in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            if int(path.name) != os.getpid() and str(folder / "site").encode() in (path / "environ").read_bytes():
                found.append((path / "cmdline").read_text())
    return found


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")  # Ray's own
def test_two_workers_of_ray_give_the_same_table_even_if_one_is_killed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ray = pytest.importorskip("ray")
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(tmp_path / "site"), IMPORTABLE]))
    cells = cells_of(tmp_path, "slow,best_fit,raises,one_each")
    local = bench(cells, QUICK, tmp_path / "local", workers=1)
    ray.init(num_cpus=2, include_dashboard=False, log_to_driver=False, logging_level="ERROR")
    killed = []

    def kill_one(done: int, total: int, words: str) -> None:
        if done == 2 and not killed:
            pids = [pid for pid in ray_workers() if pid not in killed]
            os.kill(pids[0], signal.SIGKILL)
            killed.append(pids[0])

    try:
        table = bench(cells, QUICK, tmp_path / "ray", "ray", 2, None, kill_one)
    finally:
        ray.shutdown()
    assert killed
    pd.testing.assert_frame_equal(table.drop(columns=TIMES), local.drop(columns=TIMES))
    assert len([*(tmp_path / "ray" / "rows").glob("*.json")]) == len(cells) == len(set(table["name"]))


def ray_workers() -> list[int]:
    """Processes that work on cells just now: the parents of those that solve."""
    found = []
    for path in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError, ValueError):
            if (
                b"forkserver" in (path / "cmdline").read_bytes()
                and b"benchmarks.preload" in (path / "cmdline").read_bytes()
            ):
                parent = int((path / "stat").read_text().rpartition(")")[2].split()[1])
                found += [parent] if b"ray::" in Path(f"/proc/{parent}/cmdline").read_bytes() else []
    return found


def test_the_file_of_what_is_known_is_used(tmp_path: Path) -> None:
    path = tmp_path / "known.json"
    cells = cells_of(tmp_path, "best_fit", "one")
    table = bench(cells, QUICK, tmp_path / "results", workers=1, best_known=path)
    (found,) = improvements(table)
    known, _ = updated(
        read_best_known(path), [found.model_copy(update={"value": 2.0, "by": "me", "bound": 2.0, "proven": "me"})]
    )
    known.save(path)
    table = bench(cells, QUICK, tmp_path / "results", workers=1, best_known=path)
    assert table[["best_value", "best_by", "best_bound", "vs_best"]].iloc[0].tolist() == [2.0, "me", 2.0, 1.5]
