"""The harness: cells solved by worker processes, each result written as it comes, and tables made of all of them.

A folder holds ``bench.json`` (what was asked for, with which limits and versions), ``rows/`` and ``plans/`` (a file for
each cell) and the tables. A cell whose row is there is done, so whatever ends the harness, it goes on where it was.
"""

from __future__ import annotations

import json
import platform
from collections.abc import Callable, Sequence
from contextlib import closing
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import pandas as pd
from pydantic import Field, ValidationError

from benchmarks.best_known import PATH, read_best_known
from benchmarks.cells import Cell, Limits, made_by
from benchmarks.guard import run_guarded
from benchmarks.paired import pair_table
from benchmarks.results import make_table, write_tables
from benchmarks.rows import Result, solve_cell
from loraplan.config.part import Part
from loraplan.errors import BadInputError
from loraplan.files import locked, make_folder, write_bytes, write_text
from loraplan.profiles import first_problem
from solvers import SOLVERS
from surrogate.executors import opened

MANIFEST, LOCK = "bench.json", ".lock"

WARM_UP = Limits(time_limit_s=5.0, grace_s=60.0)

OnProgress = Callable[[int, int, str], None]
"""Called with (cells done, cells in all, a few words on the last)."""


class Manifest(Part):
    """What a folder of results is made of (schema version 1)."""

    schema_version: Literal[1] = 1
    versions: dict[str, str]
    """Of what the results depend on."""
    limits: dict[str, float]
    """What every cell keeps."""
    cells: tuple[str, ...] = Field(default=())
    """Names of all cells that were asked for, in order."""


@dataclass(frozen=True)
class Task:
    """A cell for a worker.

    Attributes:
        folder: where the results go ...
        host: ... on this machine; a worker on another one only returns them.
    """

    cell: Cell
    limits: Limits
    folder: str
    host: str


def bench(
    cells: Sequence[Cell],
    limits: Limits,
    folder: Path,
    executor: str = "local",
    workers: int | None = None,
    ray_address: str | None = None,
    on_progress: OnProgress | None = None,
    best_known: Path = PATH,
) -> pd.DataFrame:
    """Solve all cells that are not done, and return and write the table of all cells of the folder.

    Args:
        cells: what is asked for; those of earlier calls stay in the folder, and in the tables.
        limits: of every cell; those of one folder are the same.
        folder: of the results.
        executor, workers, ray_address: who works: see ``surrogate.executors.opened``.
        on_progress: told as results come.
        best_known: file with the best values and bounds known.

    Raises:
        BadInputError: the folder holds something else, or results with other limits or versions; another process
            writes to it; or as ``opened``.
        WorkersDiedError: as ``Executor.results``.
    """
    with opened(executor, workers, ray_address) as crew:
        _make_folder(folder)
        with locked(folder / LOCK, f"results {folder}"):
            manifest = _begin(cells, limits, folder)
            done = [cell for cell in cells if row_file(folder, cell.name).exists()]
            left = [cell for cell in cells if not row_file(folder, cell.name).exists()]
            tasks = [Task(cell, limits, str(folder.resolve()), platform.node()) for cell in left]
            tell = on_progress or _ignore
            tell(len(done), len(cells), "")
            list(crew.results(warm_up, _to_compile(tasks)))
            with closing(crew.results(work, tasks)) as results:
                for number, result in enumerate(results, start=1):
                    keep(result, folder, left[number - 1].name)
                    row = result.row
                    words = f"{row['solver']} on {row['suite']}/{row['instance']}: {row['status']}"
                    tell(len(done) + number, len(cells), words)
            table = table_of(folder, manifest, best_known)
            write_tables(table, folder)
            write_bytes(folder / "pairs.csv", pair_table(table).to_csv(index=False).encode())
            return table


def work(task: Task) -> Result:
    """Solve a cell, if it is not done, and write what came of it where the results go."""
    here = task.host == platform.node() and Path(task.folder).is_dir()
    if here and row_file(Path(task.folder), task.cell.name).exists():  # a worker was killed, and all is done again
        return read_result(Path(task.folder), task.cell.name)
    result = solve_cell(task.cell, task.limits)
    if here:
        keep(result, Path(task.folder), task.cell.name)
    return result


def warm_up(task: Task) -> None:
    """Have the task's solver compile what it compiles, which is kept on the disk, by a small problem."""
    small = {"count": 2, "ranks": [8], "rates": [0.1], "input_tokens": 100, "output_tokens": 100}
    easy = {"workload": {"generate": small}, "constraints": {}, "time_limit_s": WARM_UP.time_limit_s}
    run_guarded(task.cell.config | easy, WARM_UP)


def _to_compile(tasks: Sequence[Task]) -> list[Task]:
    """A task for each of our own solvers and oracles; what others' solvers do is not to be waited for twice."""
    kinds = {(task.cell.solver, task.cell.oracle, task.cell.objective): task for task in tasks}
    return [task for (solver, *_), task in kinds.items() if SOLVERS.entry(solver).origin == "loraplan"]


def keep(result: Result, folder: Path, name: str) -> None:
    """Write a result, if it is not there; the row last, because it says that the cell is done."""
    if not row_file(folder, name).exists():
        if result.plan:
            write_text(plan_file(folder, name), result.plan)
        write_text(row_file(folder, name), json.dumps({"row": result.row, "twin": result.twin}, indent=1) + "\n")


def row_file(folder: Path, name: str) -> Path:
    """Where the row of a cell is."""
    return folder / "rows" / f"{name}.json"


def plan_file(folder: Path, name: str) -> Path:
    """Where the plan of a cell is."""
    return folder / "plans" / f"{name}.json"


def read_result(folder: Path, name: str) -> Result:
    """What came of a cell.

    Raises:
        BadInputError: its file is not there, or wrong.
    """
    path = row_file(folder, name)
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
        plan = plan_file(folder, name)
        return Result(data["row"], data["twin"], plan.read_text(encoding="utf-8") if plan.exists() else "")
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise BadInputError(
            f"{path}: not a row of results ({type(error).__name__}); delete it to make it anew"
        ) from None


def read_rows(folder: Path, manifest: Manifest) -> list[dict[str, Any]]:
    """The rows of all cells that are done, in order, with the name of each."""
    names = [name for name in manifest.cells if row_file(folder, name).exists()]
    return [read_result(folder, name).row | {"name": name} for name in names]


def read_manifest(folder: Path) -> Manifest:
    """What the results in ``folder`` are made of.

    Raises:
        BadInputError: it holds no results.
    """
    path = folder / MANIFEST
    try:
        return Manifest.model_validate_json(path.read_text(encoding="utf-8"))
    except OSError:
        raise BadInputError(f"results {folder}: there is no {MANIFEST}; was it written by `loraplan bench`?") from None
    except ValidationError as error:
        raise BadInputError(f"results {folder}: {MANIFEST}: {first_problem(error)}") from None


def table_of(folder: Path, manifest: Manifest, best_known: Path = PATH) -> pd.DataFrame:
    """The table of all cells of ``folder`` that are done, finished or not as a whole."""
    return make_table(read_rows(folder, manifest), read_best_known(best_known))


def _make_folder(folder: Path) -> None:
    names = make_folder(folder, "results")
    if names and MANIFEST not in names and names - {LOCK, "rows", "plans"}:
        raise BadInputError(f"results {folder}: the folder holds something else ({min(names)}); give another one")
    for part in ("rows", "plans"):
        (folder / part).mkdir(exist_ok=True)


def _begin(cells: Sequence[Cell], limits: Limits, folder: Path) -> Manifest:
    """The manifest, with the cells that are new in it."""
    told = {key: float(value) for key, value in asdict(limits).items()}
    asked = Manifest(versions=made_by(), limits=told)
    before = read_manifest(folder) if (folder / MANIFEST).exists() else asked
    for what in ("versions", "limits"):
        old, new = getattr(before, what), getattr(asked, what)
        differing = [name for name in old | new if old.get(name) != new.get(name)]
        if differing:
            name = differing[0]
            raise BadInputError(
                f"results {folder}: made with {name} {old.get(name)}, not {new.get(name)}; give another folder"
            )
    names = dict.fromkeys([*before.cells, *(cell.name for cell in cells)])
    manifest = asked.model_copy(update={"cells": tuple(names)})
    write_text(folder / MANIFEST, json.dumps(manifest.model_dump(mode="json"), indent=1) + "\n")
    return manifest


def _ignore(done: int, total: int, words: str) -> None:
    """Nobody wants to know."""
