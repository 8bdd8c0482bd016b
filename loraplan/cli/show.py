"""Tables, progress and messages for people; plain data for machines."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import fields, is_dataclass
from typing import Any

import numpy as np
from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn
from rich.table import Table

from loraplan.cli.doctor import Check
from loraplan.plan import Plan
from loraplan.registry import Entry
from loraplan.simulation import GPUReport
from loraplan.validation import GPUVerdict, Validation

Advance = Callable[..., None]
"""Called with (done, in all) and, if there is something to add, a few words."""

PIPE_WIDTH = 160

MOST_ADAPTERS = 20
"""Adapters listed for a single GPU: those served worst."""


def _console(stderr: bool = False) -> Console:
    """A console that cuts no column off where the output is a file or a pipe."""
    console = Console(stderr=stderr, highlight=False)
    if not console.is_terminal:
        console.width = PIPE_WIDTH
    return console


def _out() -> Console:
    return _console()


def _err() -> Console:
    return _console(stderr=True)


def error(text: str) -> None:
    """Print one line to stderr."""
    _err().print(f"[red]error:[/] {escape(text)}", soft_wrap=True)


def note(text: str) -> None:
    """Print a remark to stderr, so that stdout stays what was asked for."""
    _err().print(f"[dim]{escape(text)}[/]", soft_wrap=True)


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
    console = _err()
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as bar:
        task = bar.add_task(what, total=None)

        def advance(done: int, total: int, words: str = "") -> None:
            bar.update(task, completed=done, total=total, description=f"{what}, {words}" if words else what)

        yield advance


def plan(made: Plan) -> None:
    """Print a plan: a line per GPU, then what it is worth."""
    table = _table("GPU", "profile", "slots", "max rank", "adapters", "served", "tokens/s", "ITL ms", "TTFT s", "KV")
    for gpu in made.gpus:
        says = gpu.predicted
        table.add_row(
            escape(gpu.id),
            escape(gpu.profile),
            str(gpu.slots),
            str(gpu.max_rank),
            str(len(gpu.adapters)),
            _percent(says.served_fraction),
            f"{says.throughput_tok_s:,.0f}",
            _number(says.itl_ms, 1),
            _number(says.ttft_s, 2),
            _percent(says.kv_utilisation),
        )
    if made.gpus:
        _out().print(table)
    value = "none" if made.objective.value is None else f"{made.objective.value:g} {made.objective.unit}"
    bound = "" if made.objective.lower_bound is None else f", lower bound {made.objective.lower_bound:g}"
    gap = "" if made.objective.gap is None else f", gap {_percent(made.objective.gap)}"
    adapters = sum(len(gpu.adapters) for gpu in made.gpus)
    _out().print(
        f"[bold]{made.status}[/]: {made.objective.name} = {value}{bound}{gap}; {adapters} adapters placed by "
        f"{made.solver.name} on the {made.oracle.name} oracle in {made.solver.runtime_s:.2f} s",
        soft_wrap=True,
    )


def validation(found: Validation, made: Plan) -> None:
    """Print what the twin says of every GPU of a plan."""
    table = _table(
        "GPU", "verdict", "served", "95 % interval", "ITL ms", "TTFT p95 s", "KV", "waiting", "loads", "binding"
    )
    for gpu in found.gpus:
        table.add_row(
            escape(gpu.id),
            _verdict(gpu),
            _percent(gpu.served_fraction.mean),
            f"{_percent(gpu.served_fraction.low)} to {_percent(gpu.served_fraction.high)}",
            _number(gpu.itl_ms, 1),
            _number(gpu.ttft_p95_s, 2),
            _percent(gpu.kv_utilisation),
            _number(gpu.waiting, 1),
            _number(gpu.loads, 0),
            gpu.binding,
        )
    _out().print(table)
    _out().print(
        f"[bold]{found.starved_gpus} of {len(made.gpus)} GPUs starve[/] (served below {found.limit:g}) in the twin: "
        f"{found.horizon_s:g} s replayed on seeds {', '.join(map(str, found.seeds))}",
        soft_wrap=True,
    )


def _verdict(gpu: GPUVerdict) -> str:
    if not gpu.starts:
        return "[red]memory error[/]"
    word = "[red]starved[/]" if gpu.starved else "[green]not starved[/]"
    return word if gpu.certain else f"{word} (uncertain)"


def comparison(rows: Sequence[tuple[Plan, Validation | None]]) -> None:
    """Print several plans of one problem side by side."""
    table = _table(
        "solver", "status", "GPUs", "objective", "bound", "seconds", "starved", "served", "ITL ms", "TTFT p95 s"
    )
    for made, found in rows:
        gpus = found.gpus if found else ()
        table.add_row(
            made.solver.name,
            made.status,
            str(len(made.gpus)),
            "none" if made.objective.value is None else f"{made.objective.value:g} {made.objective.unit}",
            _number(made.objective.lower_bound, 0),
            f"{made.solver.runtime_s:.2f}",
            str(found.starved_gpus) if found else "-",
            _percent(min((gpu.served_fraction.mean for gpu in gpus), default=math.nan)),
            _number(float(np.mean([gpu.itl_ms for gpu in gpus])) if gpus else None, 1),
            _number(max((gpu.ttft_p95_s for gpu in gpus), default=None), 2),
        )
    _out().print(table)
    seeds = next((len(found.seeds) for _, found in rows if found), 0)
    if seeds:
        _out().print(
            f"starved GPUs, worst served fraction, mean ITL and worst TTFT p95 in the twin on {seeds} fresh seeds",
            soft_wrap=True,
        )
    for made, _ in rows:
        if made.reason:
            _out().print(f"{made.solver.name}: {escape(made.reason)}", soft_wrap=True)


def simulation(reports: Sequence[GPUReport], detailed: bool) -> None:
    """Print what the twin saw, a column per GPU; of a single one also its adapters."""
    table = _table("", *(escape(report.id) for report in reports))
    rows: list[tuple[str, Callable[[GPUReport], str]]] = [
        ("profile", lambda r: escape(r.profile)),
        ("slots x max rank", lambda r: f"{r.slots} x {r.max_rank}"),
        ("adapters", lambda r: str(len(r.adapters))),
        ("requests arrived", lambda r: f"{r.metrics.arrived:,}"),
        ("requests completed", lambda r: f"{r.metrics.completed:,}"),
        ("requests rejected", lambda r: f"{r.metrics.rejected:,}"),
        ("offered tokens/s", lambda r: f"{r.metrics.offered_tok_s:,.1f}"),
        ("throughput tokens/s", lambda r: f"{r.metrics.throughput_tok_s:,.1f}"),
        ("served fraction", lambda r: _percent(r.metrics.served_fraction)),
        ("ITL mean ms", lambda r: _number(r.metrics.itl_ms.mean, 1)),
        ("ITL p50 / p95 / p99 ms", lambda r: _percentiles(r.metrics.itl_ms, 1)),
        ("TTFT mean s", lambda r: _number(r.metrics.ttft_s.mean, 3)),
        ("TTFT p50 / p95 / p99 s", lambda r: _percentiles(r.metrics.ttft_s, 3)),
        ("running, mean", lambda r: f"{r.metrics.running:.1f}"),
        ("waiting, mean / max", lambda r: f"{r.metrics.waiting:.1f} / {r.metrics.max_waiting}"),
        (
            "KV in use, mean / max",
            lambda r: f"{_percent(r.metrics.kv_utilisation)} / {_percent(r.metrics.max_kv_utilisation)}",
        ),
        ("loads from CPU / disk", lambda r: f"{r.metrics.loads_from_cpu:,} / {r.metrics.loads_from_disk:,}"),
        ("preemptions", lambda r: f"{r.metrics.preemptions:,}"),
        ("engine steps", lambda r: f"{r.metrics.steps:,}"),
        ("busy", lambda r: _percent(r.metrics.busy_fraction)),
        ("binding resource", lambda r: _binding(r)),
    ]
    for title, cell in rows:
        table.add_row(title, *(cell(report) for report in reports))
    _out().print(table)
    if detailed:
        for report in reports:
            _adapters(report)


def _adapters(report: GPUReport) -> None:
    service = report.metrics.per_adapter
    worst = np.lexsort((-service.arrived, service.served_fraction))[:MOST_ADAPTERS]
    table = _table("adapter", "arrived", "completed", "served", "TTFT mean s")
    for i in worst:
        table.add_row(
            escape(report.adapters[i]),
            f"{service.arrived[i]:,}",
            f"{service.completed[i]:,}",
            _percent(service.served_fraction[i]),
            _number(service.ttft_s[i], 3),
        )
    _out().print(table)
    if len(report.adapters) > MOST_ADAPTERS:
        _out().print(f"the {MOST_ADAPTERS} of {len(report.adapters)} adapters that are served worst; --json has all")


def _binding(report: GPUReport) -> str:
    resource = report.metrics.binding
    if resource == "none":
        return "none"
    return f"{resource} ({_percent(report.metrics.blocked_fraction[resource])} of the time)"


def entries(kind: str, listed: Sequence[Entry]) -> None:
    """Print registered names."""
    table = _table(kind, "what it is", "from", numbers=False)
    for entry in listed:
        table.add_row(entry.name, escape(entry.summary), entry.origin)
    _out().print(table)


def checks(found: Sequence[Check]) -> None:
    """Print what the doctor found."""
    table = _table("check", "", "found", numbers=False)
    for check in found:
        table.add_row(check.name, "[green]ok[/]" if check.ok else "[red]wrong[/]", escape(check.found))
    _out().print(table)


def plain(value: Any) -> Any:
    """``value`` as data that JSON knows: dataclasses and arrays unfolded, nan and infinity as null."""
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


def _table(*titles: str, numbers: bool = True) -> Table:
    """An empty table: names on the left, and ``numbers`` on the right of their columns."""
    table = Table(box=None, pad_edge=False, padding=(0, 1), header_style="bold")
    for i, title in enumerate(titles):
        table.add_column(title, justify="right" if numbers and i > 0 else "left", no_wrap=True)
    return table


def _percent(fraction: float) -> str:
    return "-" if math.isnan(fraction) else f"{100 * fraction:.1f} %"


def _number(value: float | None, digits: int) -> str:
    return "-" if value is None or not math.isfinite(value) else f"{value:,.{digits}f}"


def _percentiles(spread: Any, digits: int) -> str:
    return " / ".join(_number(value, digits) for value in (spread.p50, spread.p95, spread.p99))
