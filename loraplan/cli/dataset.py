"""``loraplan dataset``: training data for the surrogate."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Annotated

import typer

from loraplan.cli import INTERRUPTED, terminal
from loraplan.config import load_settings
from loraplan.errors import BadInputError
from surrogate.dataset import generate
from surrogate.design import Design
from surrogate.executors import ExecutorName
from surrogate.manifest import Manifest


def dataset(
    config: Annotated[
        Path,
        typer.Argument(metavar="CONFIG.yaml", help="The design: docs/dataset.md has its settings; it may be empty."),
    ],
    output: Annotated[Path, typer.Option("-o", "--output", metavar="DIR", help="Folder of the dataset.")],
    executor: Annotated[
        ExecutorName, typer.Option("--executor", help="Simulate on this machine, or on a Ray cluster.")
    ] = ExecutorName.local,
    workers: Annotated[
        int | None, typer.Option("--workers", min=1, metavar="N", help="Processes at a time; all cores if not given.")
    ] = None,
    ray_address: Annotated[
        str | None,
        typer.Option(
            "--ray-address", metavar="A", help="Of the cluster's head; else RAY_ADDRESS, else Ray on this machine."
        ),
    ] = None,
    changes: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="KEY=VALUE", help="Change a setting of the design: `--set workloads=500`."),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON instead of a line.")] = False,
) -> None:
    """Simulate the workloads of a design in the digital twin: rows to train the surrogate with.

    Whatever ends the command (Ctrl-C, kill -9, no power), the same command goes on where it ended. The rows depend on
    the design only, not on executor, workers or interruptions.
    """
    if ray_address is not None and executor is not ExecutorName.ray:
        raise BadInputError("--ray-address makes no sense without --executor ray")
    design = load_settings(Design, config, changes or ())
    pace = _Pace()
    try:
        with terminal.progress("simulating workloads") as advance:

            def tell(done: int, total: int, rows: int) -> None:
                advance(done, total, pace.words(done, total, rows))

            made = generate(design, output, executor, workers, ray_address, tell)
    except KeyboardInterrupt:
        terminal.error(f"interrupted; complete shards are kept in {output}, and the same command goes on with the rest")
        raise typer.Exit(INTERRUPTED) from None
    _report(made, output, pace, as_json)


class _Pace:
    """How fast rows come; only of those that come now, not of those that were there."""

    def __init__(self) -> None:
        self.started = time.monotonic()
        self.first: tuple[int, int] | None = None
        """Workloads and rows that were there."""
        self.rows = 0

    @property
    def seconds(self) -> float:
        """Time since the start."""
        return time.monotonic() - self.started

    @property
    def new_rows(self) -> int:
        """Rows that have come."""
        return self.rows - self.first[1] if self.first else 0

    def words(self, done: int, total: int, rows: int) -> str:
        """What to add to a progress bar: rows, rows per second, time left."""
        if self.first is None:
            self.first, self.started = (done, rows), time.monotonic()
        self.rows = rows
        new = done - self.first[0]
        if new == 0:
            return f"{rows:,} rows"
        left = self.seconds / new * (total - done)
        return f"{rows:,} rows, {self.new_rows / max(self.seconds, 1e-9):,.0f} rows/s, {_duration(left)} left"


def _duration(seconds: float) -> str:
    minutes = round(seconds / 60)
    if minutes < 1:
        return f"{seconds:.0f} s"
    return f"{minutes} min" if minutes < 120 else f"{minutes // 60} h {minutes % 60} min"


def _report(made: Manifest, folder: Path, pace: _Pace, as_json: bool) -> None:
    workloads = made.design.workloads
    if as_json:
        terminal.print_json(
            {
                "folder": str(folder),
                "status": made.status,
                "workloads": workloads,
                "rows": made.rows,
                "new_rows": pace.new_rows,
                "seconds": pace.seconds,
                "shards": len(made.shards),
                "parts": {name: part.rows for name, part in made.parts.items()},
            }
        )
    elif pace.new_rows:
        terminal.out(
            f"{made.rows:,} rows of {workloads:,} workloads in {len(made.shards):,} shards; "
            f"{pace.new_rows:,} rows are new, in {_duration(pace.seconds)}"
        )
    else:
        terminal.out(f"complete already: {made.rows:,} rows of {workloads:,} workloads in {len(made.shards):,} shards")
    if not as_json:
        terminal.note(f"dataset written to {folder}")
