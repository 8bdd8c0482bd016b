"""What every command prints with: tables, progress and messages for people, plain data for machines."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, fields, is_dataclass
from typing import Any

import numpy as np
from pydantic import BaseModel
from rich.console import Console, JustifyMethod
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn
from rich.table import Table as RichTable
from rich.text import Text

Advance = Callable[..., None]
"""Called with (done, in all) and, if there is something to add, a few words."""

GAP = 2
"""Spaces between two columns."""


@dataclass
class Table:
    """Titles and rows of cells in rich markup.

    Attributes:
        numbers: all columns but the first hold numbers, which stand on the right and must never be cut or wrapped.
    """

    titles: tuple[str, ...]
    numbers: bool = True
    rows: list[tuple[str, ...]] = field(default_factory=list)

    def add_row(self, *cells: str) -> None:
        """Add a row, a cell for each title."""
        if len(cells) != len(self.titles):
            raise ValueError(f"expected {len(self.titles)} cells, got {len(cells)}")
        self.rows.append(cells)

    @property
    def width(self) -> int:
        """Columns of the terminal that it takes to print all cells in full."""
        widths = self._widths()
        return sum(widths) + GAP * (len(widths) - 1)

    def parts(self, width: int) -> list[Table]:
        """Tables that are no wider than ``width``, if that can be, each with the first column and some of the others.

        Words can be wrapped, so a table of words stays in one part.
        """
        if not self.numbers or self.width <= width:
            return [self]
        first, *others = self._widths()
        chunks: list[list[int]] = []
        used = 0
        for place, needed in enumerate(others, start=1):
            if not chunks or used + GAP + needed > width:
                chunks.append([0])
                used = first
            chunks[-1].append(place)
            used += GAP + needed
        return [self._only(chunk) for chunk in chunks]

    def rich(self, width: int) -> RichTable:
        """The table as rich prints it; what is wider than ``width`` for all that is wrapped, and never cut off."""
        fits = self.width <= width
        table = RichTable(box=None, pad_edge=False, padding=(0, GAP // 2), header_style="bold")
        for i, title in enumerate(self.titles):
            justify: JustifyMethod = "right" if self.numbers and i > 0 else "left"
            table.add_column(title, justify=justify, no_wrap=fits, overflow="fold")
        for row in self.rows:
            table.add_row(*row)
        return table

    def _widths(self) -> list[int]:
        columns = zip(self.titles, *self.rows, strict=True)
        return [max(Text.from_markup(cell).cell_len for cell in column) for column in columns]

    def _only(self, places: Sequence[int]) -> Table:
        def chosen(cells: tuple[str, ...]) -> tuple[str, ...]:
            return tuple(cells[place] for place in places)

        return Table(chosen(self.titles), self.numbers, [chosen(row) for row in self.rows])


def _console(stderr: bool = False) -> Console:
    return Console(stderr=stderr, highlight=False)


def out(text: str | Table) -> None:
    """Print a table, or a line in rich markup, to stdout.

    A pipe or a file gets a table as wide as it is. On a terminal too narrow for it, the columns that do not fit follow
    below, beside the first column again.
    """
    console = _console()
    if isinstance(text, str):
        console.print(text, soft_wrap=True)
        return
    if not console.is_terminal:
        console.width = max(text.width, 1)
    for i, part in enumerate(text.parts(console.width)):
        if i > 0:
            console.print()
        console.print(part.rich(console.width))


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
        return {part.name: plain(getattr(value, part.name)) for part in fields(value)}
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
    return Table(titles, numbers)


def percent(fraction: float) -> str:
    """A fraction in percent, or a dash."""
    return "-" if math.isnan(fraction) else f"{100 * fraction:.1f} %"


def number(value: float | None, digits: int) -> str:
    """A number with that many decimals, or a dash."""
    return "-" if value is None or not math.isfinite(value) else f"{value:,.{digits}f}"


def percentiles(spread: Any, digits: int) -> str:
    """The percentiles of a Spread."""
    return " / ".join(number(value, digits) for value in (spread.p50, spread.p95, spread.p99))


def as_json(value: Any) -> str:
    """``value`` as JSON text."""
    return json.dumps(plain(value), indent=1, allow_nan=False) + "\n"


def print_json(value: Any) -> None:
    """Print ``value`` as JSON to stdout, and nothing else."""
    print(as_json(value), end="")  # noqa: T201
