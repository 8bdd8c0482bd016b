"""What every command prints with: tables, progress and messages for people, plain data for machines."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import fields, is_dataclass
from typing import Any

import numpy as np
from pydantic import BaseModel
from rich.console import Console, RenderableType
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn
from rich.table import Table

Advance = Callable[..., None]
"""Called with (done, in all) and, if there is something to add, a few words."""

PIPE_WIDTH = 160


def _console(stderr: bool = False) -> Console:
    """A console that cuts no column off where the output is a file or a pipe."""
    console = Console(stderr=stderr, highlight=False)
    if not console.is_terminal:
        console.width = PIPE_WIDTH
    return console


def out(text: RenderableType) -> None:
    """Print a table, or a line in rich markup, to stdout."""
    _console().print(text, soft_wrap=isinstance(text, str))


def error(text: str) -> None:
    """Print one line to stderr."""
    _console(stderr=True).print(f"[red]error:[/] {escape(text)}", soft_wrap=True)


def note(text: str) -> None:
    """Print a remark to stderr, so that stdout stays what was asked for."""
    _console(stderr=True).print(f"[dim]{escape(text)}[/]", soft_wrap=True)


@contextmanager
def progress(what: str) -> Iterator[Advance]:
    """Show a progress bar on stderr, if that is a terminal, until the block ends."""
    columns = (
        SpinnerColumn(),
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
    )
    console = _console(stderr=True)
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as bar:
        task = bar.add_task(what, total=None)

        def advance(done: int, total: int, words: str = "") -> None:
            bar.update(task, completed=done, total=total, description=f"{what}, {words}" if words else what)

        yield advance


def plain(value: Any) -> Any:
    """``value`` as data that JSON knows: dataclasses and arrays unfolded, nan and infinity as null."""
    if isinstance(value, BaseModel):
        return plain(value.model_dump(mode="json"))
    if is_dataclass(value):
        return {field.name: plain(getattr(value, field.name)) for field in fields(value)}
    if isinstance(value, dict):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple | np.ndarray):
        return [plain(item) for item in value]
    if isinstance(value, np.generic):
        return plain(value.item())
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    return value


def new_table(*titles: str, numbers: bool = True) -> Table:
    """An empty table: names on the left, and ``numbers`` on the right of their columns."""
    table = Table(box=None, pad_edge=False, padding=(0, 1), header_style="bold")
    for i, title in enumerate(titles):
        table.add_column(title, justify="right" if numbers and i > 0 else "left", no_wrap=True)
    return table


def percent(fraction: float) -> str:
    """A fraction in percent, or a dash."""
    return "-" if math.isnan(fraction) else f"{100 * fraction:.1f} %"


def number(value: float | None, digits: int) -> str:
    """A number with that many decimals, or a dash."""
    return "-" if value is None or not math.isfinite(value) else f"{value:,.{digits}f}"


def percentiles(spread: Any, digits: int) -> str:
    """The percentiles of a Spread."""
    return " / ".join(number(value, digits) for value in (spread.p50, spread.p95, spread.p99))


def print_json(value: Any) -> None:
    """Print ``value`` as JSON to stdout, and nothing else."""
    print(json.dumps(plain(value), indent=1, allow_nan=False))  # noqa: T201
