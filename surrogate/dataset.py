"""Training data for the surrogate: rows that the twin simulates, in a folder that grows shard by shard.

Life cycle: ``generate`` starts a dataset, goes on with one that was interrupted, or finds it complete; ``append_rows``
adds parts of other origin; ``read_dataset`` gives all rows. At any moment the manifest lists whole files only, so a
process that is killed loses no more than the shard at hand. docs/dataset.md describes the files.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
from pydantic import ValidationError

from loraplan.errors import BadInputError, LoraplanError
from loraplan.files import locked, make_folder, write_bytes
from loraplan.profiles import first_problem
from surrogate.design import Design, rows_of
from surrogate.executors import Executor, opened
from surrogate.manifest import (
    DESIGN_PART,
    MANIFEST,
    OWN_FILE,
    TEMPORARY_FILE,
    Addition,
    Manifest,
    Shard,
    part_file,
    read_manifest,
    shard_file,
)
from surrogate.shards import check_numbering, digest, encode, read_rows, table_of

LOCK = ".lock"
WORKLOADS_PER_TASK = 4
"""What a worker does at a time: about a second of work, so that progress is smooth and passing it on costs little."""

OnProgress = Callable[[int, int, int], None]
"""Called with (workloads done, workloads in all, rows so far), those of an earlier run among them."""


@dataclass(frozen=True)
class Task:
    """Some workloads of a dataset to be simulated by a worker.

    Attributes:
        made_from: the manifest of the dataset, without its files: the worker must be able to make the same rows.
        workloads: numbers of the workloads.
    """

    made_from: Manifest
    workloads: range


def simulate(task: Task) -> pa.Table:
    """The rows of a task.

    Raises:
        BadInputError: the worker has other versions or profiles than the process that asks it.
    """
    design = task.made_from.design
    differing = task.made_from.difference(Manifest.of(design))
    if differing is not None:
        name, expected, found = differing
        raise BadInputError(f"a worker would make other rows: its {name} is {found}, expected {expected}")
    tables = []
    for workload in task.workloads:
        try:
            table = table_of(rows_of(design, workload))
            check_numbering(table, range(workload, workload + 1))
        except LoraplanError as error:
            raise type(error)(f"workload {workload}: {error}") from error
        except Exception as error:
            error.add_note(f"in workload {workload}")
            raise
        tables.append(table)
    return pa.concat_tables(tables)


def generate(
    design: Design,
    folder: Path,
    executor: str = "local",
    workers: int | None = None,
    ray_address: str | None = None,
    on_progress: OnProgress | None = None,
) -> Manifest:
    """Simulate the workloads of a design and write their rows to ``folder``, or go on where an earlier call ended.

    The rows depend on the design only, and not on executor, workers or interruptions. If the call is interrupted, all
    complete shards are kept.

    Args:
        design: what is simulated.
        folder: of the dataset; made if need be.
        executor, workers, ray_address: who simulates: see ``surrogate.executors.opened``.
        on_progress: told as results come, and once at the start.

    Raises:
        BadInputError: the folder holds something else, or a dataset that other settings or versions made; another
            process writes to it; or as ``opened``.
        WorkersDiedError: as ``Executor.results``.
    """
    with opened(executor, workers, ray_address) as crew:
        _make_folder(folder)
        with _locked(folder):
            manifest = _begin(design, folder)
            for grown in _missing_shards(manifest, folder, crew, on_progress or _ignore):
                manifest = grown
            return manifest


def read_dataset(folder: Path) -> pa.Table:
    """All rows of a complete dataset: the design's in their order, then the parts that were added, by name.

    Returns:
        The columns of ``surrogate.design.SCHEMA``, and ``part``: "design" or the name of a part.

    Raises:
        BadInputError: it is no dataset, not complete, or one of its files is not what was written.
    """
    manifest = read_manifest(folder)
    if manifest.status != "complete":
        raise BadInputError(
            f"dataset {folder}: only {len(manifest.shards)} of {manifest.shards_in_all} shards are there; "
            f"finish it with `loraplan dataset CONFIG.yaml -o {folder}`"
        )
    tables = [_labelled(_read_shard(manifest, shard, folder), DESIGN_PART) for shard in manifest.shards]
    for name, part in sorted(manifest.parts.items()):
        path = folder / part_file(name, part.sha256)
        tables.append(_labelled(read_rows(path, part.sha256, part.rows), name))
    return pa.concat_tables(tables)


def append_rows(folder: Path, name: str, rows: Sequence[Mapping[str, Any]]) -> Manifest:
    """Add rows to a dataset as the part ``name``; a part of that name is replaced, whole or not at all.

    Args:
        folder: of the dataset, complete or not.
        name: small letters, digits, - and _; not "design".
        rows: mappings with the columns of ``surrogate.design.SCHEMA``.

    Raises:
        BadInputError: the name or a row is wrong; there is no dataset, or another process writes to it.
    """
    content = encode(_of_part(name, rows))
    part = Addition(rows=len(rows), sha256=digest(content))
    read_manifest(folder)  # before a lock file is made in what is no dataset
    with _locked(folder):
        manifest = read_manifest(folder)
        try:
            grown = Manifest.model_validate(manifest.model_dump() | {"parts": {**manifest.parts, name: part}})
        except ValidationError as error:
            raise BadInputError(f"part {name!r}: {first_problem(error)}") from None
        write_bytes(folder / part_file(name, part.sha256), content)
        grown.save(folder)
        _sweep(grown, folder)
    return grown


def _of_part(name: str, rows: Sequence[Mapping[str, Any]]) -> pa.Table:
    try:
        return table_of(rows)
    except BadInputError as error:
        raise BadInputError(f"part {name!r}: {error}") from None


def _labelled(table: pa.Table, name: str) -> pa.Table:
    return table.append_column("part", pa.repeat(name, table.num_rows))


def _ignore(done: int, total: int, rows: int) -> None:
    """Tell nobody."""


# ---- the folder ----


def _make_folder(folder: Path) -> None:
    """Make the folder of a dataset, unless there is something else."""
    names = make_folder(folder, "dataset")
    foreign = [name for name in names if name != LOCK and not TEMPORARY_FILE.fullmatch(name)]
    if foreign and MANIFEST not in names:
        raise BadInputError(
            f"dataset {folder}: the folder holds something else ({min(foreign)}) and no {MANIFEST}; choose another one"
        )


def _locked(folder: Path) -> AbstractContextManager[None]:
    return locked(folder / LOCK, f"dataset {folder}")


def _sweep(manifest: Manifest, folder: Path) -> None:
    """Remove what killed processes left: temporary files, and whole ones that never came to be listed."""
    for path in folder.iterdir():
        unlisted = OWN_FILE.fullmatch(path.name) and path.name not in manifest.files
        if unlisted or TEMPORARY_FILE.fullmatch(path.name):
            path.unlink(missing_ok=True)


# ---- the shards ----


def _begin(design: Design, folder: Path) -> Manifest:
    """The manifest of a new dataset, or of one that was begun, with those of its shards that are as they should be."""
    manifest = Manifest.of(design)
    if (folder / MANIFEST).exists():
        there = read_manifest(folder)
        differing = there.difference(manifest)
        if differing is not None:
            name, old, new = differing
            raise BadInputError(
                f"dataset {folder}: it was begun with {name} = {old}, and now that is {new}; "
                "go on with what it was begun with, or choose another folder"
            )
        sound = list(_sound_shards(there, folder))
        if 0 < len(sound) < there.shards_in_all:
            _check_same(there, sound[0], folder)
        manifest = there.with_shards({shard.number: shard for shard in sound})
    manifest.save(folder)
    _sweep(manifest, folder)
    return manifest


def _sound_shards(manifest: Manifest, folder: Path) -> Iterator[Shard]:
    """The shards that can be read; what a crash damaged is made anew."""
    for shard in manifest.shards:
        try:
            _read_shard(manifest, shard, folder)
        except BadInputError:
            continue
        yield shard


def _check_same(manifest: Manifest, shard: Shard, folder: Path) -> None:
    """Simulate a workload again: versions do not tell that the code or the machine has changed, the rows do."""
    workloads = manifest.workloads_of(shard.number)[:1]
    table = _read_shard(manifest, shard, folder)
    before = table.filter(pc.equal(table["workload"], workloads.start))
    if encode(before) != encode(simulate(Task(manifest, workloads))):
        raise BadInputError(
            f"dataset {folder}: simulating workload {workloads.start} again gives other rows than those in "
            f"{shard.file}: the code or the machine is another one; choose another folder"
        )


def _read_shard(manifest: Manifest, shard: Shard, folder: Path) -> pa.Table:
    table = read_rows(folder / shard.file, shard.sha256, shard.rows)
    try:
        check_numbering(table, manifest.workloads_of(shard.number))
    except BadInputError as error:
        raise BadInputError(f"{folder / shard.file}: {error}") from None
    return table


def _missing_shards(manifest: Manifest, folder: Path, crew: Executor, tell: OnProgress) -> Iterator[Manifest]:
    """Simulate and write the missing shards one after the other; the manifest after each."""
    shards = {shard.number: shard for shard in manifest.shards}
    missing = [number for number in range(manifest.shards_in_all) if number not in shards]
    made_from = manifest.with_shards({}).model_copy(update={"parts": {}})
    tasks = {number: _tasks(made_from, manifest.workloads_of(number)) for number in missing}
    total = manifest.design.workloads
    done = sum(len(manifest.workloads_of(number)) for number in shards)
    rows = manifest.rows
    tell(done, total, rows)
    with closing(crew.results(simulate, [task for number in missing for task in tasks[number]])) as results:
        for number in missing:
            tables = []
            for task in tasks[number]:
                tables.append(next(results))
                done += len(task.workloads)
                rows += tables[-1].num_rows
                tell(done, total, rows)
            shards[number] = _write_shard(folder, number, pa.concat_tables(tables))
            manifest = manifest.with_shards(shards)
            manifest.save(folder)
            yield manifest


def _write_shard(folder: Path, number: int, table: pa.Table) -> Shard:
    content = encode(table)
    write_bytes(folder / shard_file(number), content)
    return Shard(number=number, rows=table.num_rows, sha256=digest(content))


def _tasks(made_from: Manifest, workloads: range) -> list[Task]:
    return [
        Task(made_from, workloads[first : first + WORKLOADS_PER_TASK])
        for first in range(0, len(workloads), WORKLOADS_PER_TASK)
    ]
