"""A dataset: the same rows whoever makes them and however often that is interrupted; what is damaged is told."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from support.dataset_rows import MARK, die, made_up_rows, number_or_die, simulate_or_die

from loraplan.errors import BadInputError
from surrogate import dataset, executors
from surrogate.dataset import append_rows, generate, read_dataset
from surrogate.design import SCHEMA, Design
from surrogate.executors import Executor, WorkersDiedError
from surrogate.manifest import read_manifest

MADE_UP = Design(seed=3, workloads=150)
SMALL = Design(seed=5, workloads=70, loads=1, most_adapters=8, horizon_s=5.0)
"""Of which the twin simulates a workload in a few ms."""

IMPORTABLE = os.pathsep.join(str(path) for path in (Path(__file__).parents[1], Path(dataset.__file__).parents[1]))
"""What other processes must find: the tests' support, and the packages that are tested."""


@pytest.fixture(autouse=True)
def rows_that_cost_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    """In this process only: worker processes simulate."""
    monkeypatch.setattr(dataset, "rows_of", made_up_rows)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "data"


def files_of(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def test_it_holds_all_rows_in_order(folder: Path) -> None:
    seen: list[tuple[int, int, int]] = []
    made = generate(MADE_UP, folder, workers=1, on_progress=lambda *progress: seen.append(progress))
    table = read_dataset(folder)
    expected = [row for workload in range(150) for row in made_up_rows(MADE_UP, workload)]
    assert table.drop_columns("part").equals(pa.Table.from_pylist(expected, schema=SCHEMA))
    assert set(table["part"].to_pylist()) == {"design"}
    assert made == read_manifest(folder)
    assert (made.status, made.rows, [shard.number for shard in made.shards]) == ("complete", len(expected), [0, 1, 2])
    assert seen[0] == (0, 150, 0)
    assert seen[-1] == (150, 150, len(expected))
    assert seen == sorted(seen)
    assert set(files_of(folder)) == {".lock", "manifest.json", *(f"shard-0000{i}.parquet" for i in range(3))}


def test_the_seed_decides(tmp_path: Path) -> None:
    for name, seed in (("a", 0), ("b", 0), ("c", 1)):
        generate(Design(seed=seed, workloads=10), tmp_path / name, workers=1)
    assert files_of(tmp_path / "a") == files_of(tmp_path / "b")
    assert not read_dataset(tmp_path / "a").equals(read_dataset(tmp_path / "c"))


def test_two_processes_make_the_rows_of_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.undo()
    generate(SMALL, tmp_path / "one", workers=1)
    generate(SMALL, tmp_path / "two", workers=2)
    assert files_of(tmp_path / "one") == files_of(tmp_path / "two")


@pytest.mark.parametrize("after", [0, 63, 64, 140])
def test_an_interrupted_one_is_gone_on_with(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, after: int
) -> None:
    generate(MADE_UP, tmp_path / "whole", workers=1)

    def until_ctrl_c(design: Design, workload: int) -> list[dict[str, Any]]:
        if workload >= after:
            raise KeyboardInterrupt
        return made_up_rows(design, workload)

    monkeypatch.setattr(dataset, "rows_of", until_ctrl_c)
    with pytest.raises(KeyboardInterrupt):
        generate(MADE_UP, folder, workers=1)
    assert len(read_manifest(folder).shards) == after // 64
    with pytest.raises(BadInputError, match=f"only {after // 64} of 3 shards are there; finish it with"):
        read_dataset(folder)
    simulated: list[int] = []

    def noted(design: Design, workload: int) -> list[dict[str, Any]]:
        simulated.append(workload)
        return made_up_rows(design, workload)

    monkeypatch.setattr(dataset, "rows_of", noted)
    generate(MADE_UP, folder, workers=1)
    first = after // 64 * 64
    assert simulated == ([0] if first else []) + list(range(first, 150))  # one is compared with what is kept
    assert files_of(folder) == files_of(tmp_path / "whole")


def test_what_a_killed_process_left_is_cleared_away(folder: Path, tmp_path: Path) -> None:
    folder.mkdir()
    (folder / ".lock").touch()
    (folder / ".manifest.json.x8_a0b1c").write_text("{")  # killed before there was a manifest
    generate(MADE_UP, folder, workers=1)
    whole = files_of(folder)
    for name in (".shard-00002.parquet.abcdefgh", "shard-00009.parquet", "part-x-0123456789ab.parquet"):
        (folder / name).write_text("half")
    (folder / "notes.txt").write_text("mine")
    generate(MADE_UP, folder, workers=1)
    assert files_of(folder) == whole | {"notes.txt": b"mine"}


def test_kill_9_at_any_moment_loses_and_doubles_no_row(folder: Path, tmp_path: Path) -> None:
    code = (
        "from pathlib import Path; from support.dataset_rows import Design, generate_slowly; "
        f"generate_slowly(Design(seed=3, workloads=300), Path({str(folder)!r}))"
    )
    env = os.environ | {"PYTHONPATH": IMPORTABLE}
    for shard in (0, 2):  # between the file and the manifest that lists it, if all goes well
        with subprocess.Popen([sys.executable, "-c", code], env=env, start_new_session=True) as process:
            while not (folder / f"shard-{shard:05d}.parquet").exists():
                assert process.poll() is None
                time.sleep(0.001)
            os.killpg(process.pid, signal.SIGKILL)
    assert read_manifest(folder).status == "incomplete"
    design = MADE_UP.model_copy(update={"workloads": 300})
    generate(design, folder, workers=1)
    generate(design, tmp_path / "whole", workers=1)
    assert files_of(folder) == files_of(tmp_path / "whole")


def truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-100])


def flip_a_bit(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[40] ^= 1
    path.write_bytes(content)


def put_another_table(path: Path) -> None:
    pq.write_table(pa.table({"x": [1, 2, 3]}), path)


@pytest.mark.parametrize(
    ("damage", "complaint"),
    [
        (Path.unlink, "No such file"),
        (truncate, "truncated, corrupt or not Parquet"),
        (flip_a_bit, "truncated, corrupt|SHA-256 is another one"),
        (lambda path: path.write_bytes(b""), "truncated, corrupt or not Parquet"),
        (put_another_table, "there is no column 'workload'"),
    ],
)
def test_a_damaged_shard_is_told_and_made_anew(folder: Path, damage: Callable[[Path], None], complaint: str) -> None:
    generate(MADE_UP, folder, workers=1)
    whole = files_of(folder)
    damage(folder / "shard-00001.parquet")
    with pytest.raises(BadInputError, match=f"shard-00001.parquet: .*({complaint})") as error:
        read_dataset(folder)
    assert "\n" not in str(error.value)
    generate(MADE_UP, folder, workers=1)
    assert files_of(folder) == whole


def test_rows_of_another_shard_are_told(folder: Path) -> None:
    made = generate(MADE_UP, folder, workers=1)
    second = (folder / "shard-00001.parquet").read_bytes()
    (folder / "shard-00000.parquet").write_bytes(second)
    swapped = made.shards[1].model_copy(update={"number": 0})
    made.model_copy(update={"shards": (swapped, *made.shards[1:])}).save(folder)
    with pytest.raises(BadInputError, match=r"shard-00000.parquet: expected rows of workloads 0 to 63"):
        read_dataset(folder)


@pytest.mark.parametrize(
    ("manifest", "complaint"),
    [
        ("", "not valid JSON"),
        ('{"schema_version": 1, "status"', "not valid JSON"),
        ("[" * 100_000, "not valid JSON"),
        ("[1]", "expected a mapping with a schema_version"),
        ('{"schema_version": 7}', "schema_version 7 is not known; expected 1"),
        ('{"schema_version": 1}', "status: Field required"),
    ],
)
def test_a_manifest_that_is_none_is_told(folder: Path, manifest: str, complaint: str) -> None:
    folder.mkdir()
    (folder / "manifest.json").write_text(manifest)
    for use in (read_dataset, lambda folder: generate(MADE_UP, folder, workers=1)):
        with pytest.raises(BadInputError, match=complaint) as error:
            use(folder)
        assert "\n" not in str(error.value)
    assert (folder / "manifest.json").read_text() == manifest


def test_another_design_or_version_is_refused(folder: Path) -> None:
    made = generate(MADE_UP, folder, workers=1)
    before = files_of(folder)
    with pytest.raises(BadInputError, match=r"begun with design.seed = 3, and now that is 4; go on with"):
        generate(MADE_UP.model_copy(update={"seed": 4}), folder, workers=1)
    assert files_of(folder) == before
    made.model_copy(update={"versions": made.versions | {"numpy": "1.0"}}).save(folder)
    with pytest.raises(BadInputError, match=r"begun with versions.numpy = 1.0, and now"):
        generate(MADE_UP, folder, workers=1)


def test_code_that_makes_other_rows_is_noticed(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    generate(MADE_UP, folder, workers=1)
    (folder / "shard-00002.parquet").unlink()
    monkeypatch.setattr(dataset, "rows_of", lambda _, workload: made_up_rows(Design(seed=99), workload))
    with pytest.raises(BadInputError, match=r"simulating workload 0 again gives other rows than those in shard-00000"):
        generate(MADE_UP, folder, workers=1)


def test_one_process_at_a_time(folder: Path) -> None:
    generate(MADE_UP, folder, workers=1)
    with (
        dataset._locked(folder),
        pytest.raises(BadInputError, match="another process writes to it"),
    ):
        generate(MADE_UP, folder, workers=1)
    generate(MADE_UP, folder, workers=1)


def test_a_folder_with_something_else_is_left_alone(folder: Path) -> None:
    folder.mkdir()
    (folder / "thesis.tex").write_text("mine")
    with pytest.raises(BadInputError, match=r"the folder holds something else \(thesis.tex\)"):
        generate(MADE_UP, folder, workers=1)
    with pytest.raises(BadInputError, match=r"there is no manifest.json"):
        append_rows(folder, "round-1", [])
    assert files_of(folder) == {"thesis.tex": b"mine"}


# ---- parts that are added ----


def test_a_part_is_added_and_replaced(folder: Path) -> None:
    generate(MADE_UP, folder, workers=1)
    design = read_dataset(folder)
    first, other = ([row for n in range(k) for row in made_up_rows(Design(seed=k), n)] for k in (8, 9))
    append_rows(folder, "round-1", other)
    append_rows(folder, "round-1", first)
    append_rows(folder, "again", other)
    once = files_of(folder)
    append_rows(folder, "round-1", first)
    assert files_of(folder) == once
    table = read_dataset(folder)
    assert table["part"].to_pylist() == len(design) * ["design"] + len(other) * ["again"] + len(first) * ["round-1"]
    assert table.slice(len(design) + len(other)).drop_columns("part").to_pylist() == first
    generate(MADE_UP, folder, workers=1)  # keeps them
    assert read_dataset(folder).equals(table)


@pytest.mark.parametrize(
    ("name", "change", "complaint"),
    [
        ("design", {}, "'design' is what the shards are"),
        ("../up", {}, "String should match pattern"),
        ("round-1", {"extra": 1}, "row 0: column 'extra' is unknown"),
        ("round-1", {"workload": "one"}, "the rows do not fit the schema"),
        ("round-1", {"row": None}, "column 'row' has no value"),
    ],
)
def test_a_wrong_part_is_refused(folder: Path, name: str, change: dict[str, Any], complaint: str) -> None:
    generate(MADE_UP, folder, workers=1)
    before = files_of(folder)
    row = next(row for n in range(9) for row in made_up_rows(MADE_UP, n))
    with pytest.raises(BadInputError, match=complaint):
        append_rows(folder, name, [row | change])
    assert files_of(folder) == before
    assert json.loads(before["manifest.json"])["parts"] == {}


# ---- workers ----


def loky() -> Executor:
    return Executor("loky", 2, (BrokenProcessPool,))


def test_a_worker_that_is_killed_costs_no_result(tmp_path: Path) -> None:
    results = loky().results(number_or_die, [(tmp_path / "killed", number) for number in range(8)])
    assert list(results) == list(range(8))
    assert (tmp_path / "killed").exists()


def test_workers_that_always_die_end_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(executors, "RESTARTS", 1)
    with pytest.raises(WorkersDiedError, match="the workers died 2 times in a row"):
        list(loky().results(die, [1, 2]))


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        ({"executor": "dask"}, "unknown executor 'dask'; known: local, ray"),
        ({"workers": 0}, "workers: expected at least 1, got 0"),
        ({"ray_address": "x:1"}, "makes no sense without the executor 'ray'"),
    ],
)
def test_wrong_arguments_make_no_folder(folder: Path, arguments: dict[str, Any], complaint: str) -> None:
    with pytest.raises(BadInputError, match=complaint):
        generate(MADE_UP, folder, **arguments)
    assert not folder.exists()


def test_ray_that_is_not_installed_is_told(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(BadInputError, match=r"pip install 'loraplan\[ray\]'"):
        generate(MADE_UP, folder, "ray")
    assert not folder.exists()


def test_a_ray_cluster_that_is_not_there_is_told(folder: Path) -> None:
    pytest.importorskip("ray")
    with pytest.raises(BadInputError, match=r"^Ray at 127.0.0.1:9: .*Connection refused"):
        generate(MADE_UP, folder, "ray", ray_address="127.0.0.1:9")
    assert not folder.exists()


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")  # Ray's own
def test_two_workers_of_ray_make_the_same_rows_even_if_one_is_killed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.undo()
    ray = pytest.importorskip("ray")
    monkeypatch.setenv("PYTHONPATH", IMPORTABLE)
    monkeypatch.setenv(MARK, str(tmp_path / "mark"))
    generate(SMALL, tmp_path / "local", workers=1)
    ray.init(num_cpus=2, include_dashboard=False, log_to_driver=False, logging_level="ERROR")
    try:
        generate(SMALL, tmp_path / "ray", "ray")
        with pytest.raises(BadInputError, match="the Ray cluster has 2 CPUs, 3 are asked for"):
            generate(SMALL, tmp_path / "many", "ray", workers=3)
        monkeypatch.setattr(dataset, "simulate", simulate_or_die)
        generate(SMALL, tmp_path / "killed", "ray", workers=2)
    finally:
        ray.shutdown()
    assert (tmp_path / "mark").exists()
    assert files_of(tmp_path / "ray") == files_of(tmp_path / "local")
    assert files_of(tmp_path / "killed") == files_of(tmp_path / "local")
