"""The tables that commands print."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence

import numpy as np
from rich.markup import escape

from loraplan.cli.doctor import Check
from loraplan.cli.terminal import new_table, note, number, out, percent, percentiles
from loraplan.plan import Plan
from loraplan.registry import Entry
from loraplan.simulation import GPUReport
from loraplan.validation import GPUVerdict, Validation
from objectives import Objective
from twin.metrics import Metrics, PerAdapter

MOST_ADAPTERS = 20
"""Adapters listed for a single GPU: those served worst."""


def plan(made: Plan) -> None:
    """Print a plan: a line per GPU, then what it is worth."""
    table = new_table("GPU", "profile", "slots", "max rank", "adapters", "served", "tokens/s", "ITL ms", "TTFT s", "KV")
    for gpu in made.gpus:
        says = gpu.predicted
        table.add_row(
            escape(gpu.id),
            escape(gpu.profile),
            str(gpu.slots),
            str(gpu.max_rank),
            str(len(gpu.adapters)),
            percent(says.served_fraction),
            f"{says.throughput_tok_s:,.0f}",
            number(says.itl_ms, 1),
            number(says.ttft_s, 2),
            percent(says.kv_utilisation),
        )
    if made.gpus:
        out(table)
    for gpu in made.gpus:
        if gpu.predicted.outside:
            what = ", ".join(gpu.predicted.outside)
            note(
                f"{gpu.id}: out of the range that oracle {made.oracle.name} was trained on ({what}); validate the plan"
            )
    value = "none" if made.objective.value is None else f"{made.objective.value:g} {made.objective.unit}"
    bound = "" if made.objective.lower_bound is None else f", lower bound {made.objective.lower_bound:g}"
    gap = "" if made.objective.gap is None else f", gap {percent(made.objective.gap)}"
    adapters = sum(len(gpu.adapters) for gpu in made.gpus)
    out(
        f"[bold]{made.status}[/]: {made.objective.name} = {value}{bound}{gap}; {adapters} adapters placed by "
        f"{made.solver.name} on the {made.oracle.name} oracle in {made.solver.runtime_s:.2f} s"
    )
    verification(made)


def verification(made: Plan) -> None:
    """Print how the twin took part in the search, if it did."""
    found = made.verification
    if found is None:
        return
    more = f", planning for {found.planned_for:g} times the rates" if found.planned_for > 1 else ""
    said = "no GPU starves in the twin" if found.confirmed else "[red]not confirmed by the twin[/]"
    out(f"{said}: {found.rounds} rounds, {found.cuts} loads cut off{more}, {len(found.seeds)} seeds")


def validation(found: Validation, made: Plan) -> None:
    """Print what the twin says of every GPU of a plan."""
    table = new_table(
        "GPU",
        "verdict",
        "served",
        "95 % interval",
        "ITL ms",
        "TTFT p95 s",
        "KV",
        "waiting",
        "loads",
        "binding",
        "trend",
    )
    for gpu in found.gpus:
        table.add_row(
            escape(gpu.id),
            _verdict(gpu),
            percent(gpu.served_fraction.mean),
            f"{percent(gpu.served_fraction.low)} to {percent(gpu.served_fraction.high)}",
            number(gpu.itl_ms, 1),
            number(gpu.ttft_p95_s, 2),
            percent(gpu.kv_utilisation),
            number(gpu.waiting, 1),
            number(gpu.loads, 0),
            gpu.binding,
            gpu.trend,
        )
    out(table)
    out(
        f"[bold]{found.starved_gpus} of {len(made.gpus)} GPUs starve[/] (served below {found.limit:g}) in the twin: "
        f"{found.horizon_s:g} s replayed on seeds {', '.join(map(str, found.seeds))}"
    )


def losses(found: Mapping[str, Validation]) -> None:
    """Print what the twin says of the plan that is left after each loss."""
    table = new_table("lost", "starved", "worst served", "ITL ms", "TTFT p95 s")
    for gpu_id, left in found.items():
        table.add_row(
            escape(gpu_id),
            f"{left.starved_gpus} of {len(left.gpus)}",
            percent(min((gpu.served_fraction.mean for gpu in left.gpus), default=math.nan)),
            number(float(np.mean([gpu.itl_ms for gpu in left.gpus])), 1),
            number(max((gpu.ttft_p95_s for gpu in left.gpus), default=None), 2),
        )
    out(table)
    survived = sum(not left.starved_gpus for left in found.values())
    out(f"[bold]{survived} of {len(found)} losses leave a plan that does not starve[/] in the twin")


def _verdict(gpu: GPUVerdict) -> str:
    if not gpu.starts:
        return "[red]memory error[/]"
    word = "[red]starved[/]" if gpu.starved else "[green]not starved[/]"
    return word if gpu.certain else f"{word} (uncertain)"


def comparison(rows: Sequence[tuple[Plan, Validation | None]]) -> None:
    """Print several plans of one problem side by side."""
    table = new_table(
        "solver", "for", "status", "GPUs", "objective", "bound", "seconds", "starved", "served", "ITL ms", "TTFT p95 s"
    )
    for made, found in rows:
        gpus = found.gpus if found else ()
        table.add_row(
            made.solver.name,
            made.objective.name,
            made.status,
            str(len(made.gpus)),
            "none" if made.objective.value is None else f"{made.objective.value:g} {made.objective.unit}",
            "-" if made.objective.lower_bound is None else f"{made.objective.lower_bound:g}",
            f"{made.solver.runtime_s:.2f}",
            str(found.starved_gpus) if found else "-",
            percent(min((gpu.served_fraction.mean for gpu in gpus), default=math.nan)),
            number(float(np.mean([gpu.itl_ms for gpu in gpus])) if gpus else None, 1),
            number(max((gpu.ttft_p95_s for gpu in gpus), default=None), 2),
        )
    out(table)
    seeds = next((len(found.seeds) for _, found in rows if found), 0)
    if seeds:
        out(f"starved GPUs, worst served fraction, mean ITL and worst TTFT p95 in the twin on {seeds} fresh seeds")
    for made, _ in rows:
        if made.reason:
            out(f"{made.solver.name}: {escape(made.reason)}")


def values(rows: Sequence[tuple[Plan, Mapping[str, float]]], told: Mapping[str, Objective]) -> None:
    """Print what every objective is worth for every plan, the best of each in bold."""
    table = new_table("plan for", *(f"{name}, {objective.unit}" for name, objective in told.items()))
    known = {name: [found[name] for _, found in rows if not math.isnan(found.get(name, math.nan))] for name in told}
    best = {name: min(numbers, default=math.nan) for name, numbers in known.items()}
    for made, found in rows:
        cells = []
        for name in told:
            value = found.get(name, math.nan)
            text = "-" if math.isnan(value) else f"{value:,.6g}"
            cells.append(f"[bold]{text}[/]" if value <= best[name] * (1 + 1e-6) else text)
        table.add_row(f"{made.objective.name}, {made.solver.name}", *cells)
    out(table)
    out("values as the twin measured them")


def simulation(reports: Sequence[GPUReport], detailed: bool) -> None:
    """Print what the twin saw, a column per GPU; of a single one also its adapters."""
    table = new_table("", *(escape(report.id) for report in reports))
    settings: list[tuple[str, Callable[[GPUReport], str]]] = [
        ("profile", lambda r: escape(r.profile)),
        ("slots x max rank", lambda r: f"{r.slots} x {r.max_rank}"),
        ("adapters", lambda r: str(len(r.adapters))),
    ]
    if not all(report.starts for report in reports):
        settings.append(("server", lambda r: "starts" if r.starts else "[red]memory error[/]"))
    figures: list[tuple[str, Callable[[Metrics], str]]] = [
        ("requests arrived", lambda m: f"{m.arrived:,}"),
        ("requests completed", lambda m: f"{m.completed:,}"),
        ("requests rejected", lambda m: f"{m.rejected:,}"),
        ("offered tokens/s", lambda m: f"{m.offered_tok_s:,.1f}"),
        ("throughput tokens/s", lambda m: f"{m.throughput_tok_s:,.1f}"),
        ("served fraction", lambda m: percent(m.served_fraction)),
        ("ITL mean ms", lambda m: number(m.itl_ms.mean, 1)),
        ("ITL p50 / p95 / p99 ms", lambda m: percentiles(m.itl_ms, 1)),
        ("TTFT mean s", lambda m: number(m.ttft_s.mean, 3)),
        ("TTFT p50 / p95 / p99 s", lambda m: percentiles(m.ttft_s, 3)),
        ("running, mean", lambda m: f"{m.running:.1f}"),
        ("waiting, mean / max", lambda m: f"{m.waiting:.1f} / {m.max_waiting}"),
        (
            "KV in use, mean / max",
            lambda m: f"{percent(m.kv_utilisation)} / {percent(m.max_kv_utilisation)}",
        ),
        ("loads from CPU / disk", lambda m: f"{m.loads_from_cpu:,} / {m.loads_from_disk:,}"),
        ("preemptions", lambda m: f"{m.preemptions:,}"),
        ("engine steps", lambda m: f"{m.steps:,}"),
        ("busy", lambda m: percent(m.busy_fraction)),
        ("binding resource", _binding),
        ("drift of unanswered work", lambda m: f"{percent(m.drift.work)} of what arrives"),
        ("trend", lambda m: m.drift.verdict),
    ]
    for title, cell in settings:
        table.add_row(title, *(cell(report) for report in reports))
    for title, figure in figures:
        table.add_row(title, *("-" if report.metrics is None else figure(report.metrics) for report in reports))
    out(table)
    if detailed:
        for report in reports:
            if report.metrics is not None:
                _adapters(report.adapters, report.metrics.per_adapter)


def _adapters(names: Sequence[str], service: PerAdapter) -> None:
    worst = np.lexsort((-service.arrived, service.served_fraction))[:MOST_ADAPTERS]
    table = new_table("adapter", "arrived", "completed", "served", "TTFT mean s")
    for i in worst:
        table.add_row(
            escape(names[i]),
            f"{service.arrived[i]:,}",
            f"{service.completed[i]:,}",
            percent(service.served_fraction[i]),
            number(service.ttft_s[i], 3),
        )
    out(table)
    if len(names) > MOST_ADAPTERS:
        out(f"the {MOST_ADAPTERS} of {len(names)} adapters that are served worst; --json has all")


def _binding(metrics: Metrics) -> str:
    resource = metrics.binding
    if resource == "none":
        return "none"
    return f"{resource} ({percent(metrics.blocked_fraction[resource])} of the time)"


def entries(kind: str, listed: Sequence[Entry]) -> None:
    """Print registered names."""
    table = new_table(kind, "what it is", "from", numbers=False)
    for entry in listed:
        table.add_row(entry.name, escape(entry.summary), entry.origin)
    out(table)


def checks(found: Sequence[Check]) -> None:
    """Print what the doctor found."""
    table = new_table("check", "", "found", numbers=False)
    for check in found:
        table.add_row(check.name, "[green]ok[/]" if check.ok else "[red]wrong[/]", escape(check.found))
    out(table)
