"""What a report shows, as plain data for the page's script."""

from __future__ import annotations

import json
import math
import shlex
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pandas as pd

from benchmarks.harness import plan_file, read_manifest, read_result, table_of
from benchmarks.paired import pairs
from loraplan.errors import BadInputError
from loraplan.plan import Plan, PlannedAdapter, PlannedGPU
from loraplan.report.answer import answer
from loraplan.validation import Validation, validate

RATES = (1.0, 0.1, 0.01)
"""Requests/s that divide the adapters of a placement map into classes: hot, warm, cool, cold."""
CLASSES = ("at least 1", "0.1 to 1", "0.01 to 0.1", "below 0.01")
CONFIG = "CONFIG.yaml"
MOST_ADAPTERS = 5000
"""Adapters that a page about a plan lists by name."""
KEPT = (
    "suite", "instance", "solver", "objective", "oracle", "seed", "status", "reason", "adapters", "gpus", "slots",
    "value", "unit", "best_value", "best_by", "best_bound", "proven", "vs_best", "solver_s", "peak_mb",
    "said_served_min", "said_itl_ms", "said_tok_s", "starved", "served_min", "itl_ms", "ttft_p95_s", "tok_s", "name",
)  # fmt: skip

Data = dict[str, Any]


def bench_data(folder: Path, title: str | None = None) -> Data:
    """The data of a page about the results in ``folder``.

    Raises:
        BadInputError: it holds no results, or none is finished.
    """
    manifest = read_manifest(folder)
    table = table_of(folder, manifest)
    if table.empty:
        raise BadInputError(f"results {folder}: no cell is done yet; run `loraplan bench` again to finish them")
    rows: list[Data] = [dict(row) for row in table.loc[:, list(KEPT)].to_dict("records")]  # type: ignore[arg-type]
    maps = {}
    for row in rows:
        result = read_result(folder, row["name"])
        if result.plan:
            plan = Plan.model_validate_json(result.plan)
            row["log"] = log_of(plan)
            if plan.complete and row["seed"] == 0:
                maps[row["name"]] = [gpu_data(gpu, seen) for gpu, seen in paired_with(plan.gpus, result.twin)]
    return {
        "kind": "bench",
        "title": title or f"Solvers on {', '.join(dict.fromkeys(table['suite']))}",
        "answer": answer(table),
        "rows": rows,
        "maps": maps,
        "classes": CLASSES,
        "pairs": [asdict(pair) for pair in pairs(table)],
        "made": _made(table, manifest.limits),
        "next": _next_of_bench(folder, table),
    }


def _made(table: pd.DataFrame, limits: Mapping[str, float]) -> Data:
    seeds = sorted({seed for text in table["twin_seeds"] for seed in text.split()})
    return {
        "machine": sorted(set(table["machine"])),
        "versions": sorted(set(table["versions"])),
        "dates": [min(table["date"]), max(table["date"])],
        "limits": dict(limits),
        "twin_seeds": seeds,
    }


def _next_of_bench(folder: Path, table: pd.DataFrame) -> list[Data]:
    """Commands to go on with: what they are for, and what to type."""
    found = []
    plans = table[table["value"].notna() & (table["vs_best"] > 1)]
    if len(plans):
        worst = plans.iloc[int(plans["vs_best"].to_numpy(float).argmax())]
        plan = plan_file(folder, str(worst["name"]))
        found.append(_command(f"Look into the worst plan ({worst['solver']} on {worst['instance']})", "report", plan))
        found.append(_command("Replay it on more seeds", "validate", plan, "--seeds", "10"))
    suites = [*dict.fromkeys(table["suite"])]
    found.append(_command("See whether a change makes it worse", "bench", *suites, "--check", folder / "results.csv"))
    found.append(_command("Plan for latency instead", "bench", *suites, "--objectives", "latency", "-o", "other"))
    return found


def _command(why: str, *words: str | Path) -> Data:
    """What a shell takes: names may be anything."""
    return {"why": why, "command": shlex.join(["loraplan", *map(str, words)])}


def plan_data(
    plan: Plan, path: Path, seeds: int = 3, on_progress: Callable[[int, int], None] | None = None
) -> tuple[Data, str]:
    """The data of a page about one plan, and why the twin is not in it, if so.

    Args:
        plan: complete or not.
        path: of its file, for the commands on the page.
        seeds: of replays in the twin; 0 for none.
        on_progress: as ``validate`` takes it.
    """
    validation, why = None, ""
    if seeds and plan.complete:
        try:
            validation = validate(plan, None, seeds, on_progress)
        except BadInputError as error:
            why = str(error)
    twin = twin_data(validation) if validation else []
    gpus = [gpu_data(gpu, seen) for gpu, seen in paired_with(plan.gpus, twin)]
    value = plan.objective
    data = {
        "kind": "plan",
        "title": f"Plan {path.name}",
        "plan": {
            "status": plan.status,
            "reason": plan.reason,
            "solver": plan.solver.name,
            "oracle": plan.oracle.name,
            "objective": value.name,
            "unit": value.unit,
            "value": value.value,
            "bound": value.lower_bound,
            "gap": value.gap,
            "seconds": plan.solver.runtime_s,
            "adapters": len({a.name for gpu in plan.gpus for a in gpu.adapters}),
            "unplaced": list(plan.unplaced[:MOST_ADAPTERS]),
            "limit": plan.provenance.served_fraction,
            "seeds": list(validation.seeds) if validation else [],
            "log": log_of(plan),
        },
        "maps": {"plan": gpus},
        "classes": CLASSES,
        "adapters": _listed(plan),
        "made": {"versions": [f"loraplan={plan.provenance.loraplan}"], "dates": [plan.provenance.created]},
        "next": _next_of_plan(plan, path, gpus),
    }
    return data, why


def _listed(plan: Plan) -> list[list[Any]]:
    """Name, GPU, rank, rate and share of every adapter, the hottest first."""
    placed = [(a, gpu.id) for gpu in plan.gpus for a in gpu.adapters]
    placed.sort(key=lambda item: -item[0].rate * item[0].share)
    return [[a.name, gpu, a.rank, a.rate, a.share] for a, gpu in placed[:MOST_ADAPTERS]]


def _next_of_plan(plan: Plan, path: Path, gpus: Sequence[Data]) -> list[Data]:
    found = [_command("Replay it on more seeds", "validate", path, "--seeds", "10")]
    starved = [gpu["id"] for gpu in gpus if gpu["twin"] and gpu["twin"]["starved"]]
    if plan.gpus:
        one = starved[0] if starved else plan.gpus[0].id
        what = "Watch the GPU that starves" if starved else "Watch one of its GPUs"
        found.append(_command(what, "simulate", path, "--gpu", one, "--plot", "gpu.html"))
    if starved:
        found.append(
            _command("Plan again, with the twin in the loop", "solve", CONFIG, "--verify", "twin", "-o", "new.json")
        )
    found.append(_command("See what other solvers make of it", "compare", CONFIG, "--solvers", "greedy,best_fit"))
    found.append(_command("Trade GPUs for latency", "pareto", CONFIG, "--plot", "front.html"))
    return found


def twin_data(found: Validation) -> list[Data]:
    """What the twin says of each GPU."""
    return [asdict(gpu) for gpu in found.gpus]


def paired_with(gpus: Sequence[PlannedGPU], twin: Sequence[Data]) -> list[tuple[PlannedGPU, Data | None]]:
    """Each GPU with what the twin says of it."""
    by_id = {verdict["id"]: verdict for verdict in twin}
    return [(gpu, by_id.get(gpu.id)) for gpu in gpus]


def gpu_data(gpu: PlannedGPU, seen: Data | None) -> Data:
    """A GPU of a placement map: its server, what is on it by rank and rate, what is said of it and what was seen."""
    parts: dict[tuple[int, int], list[float]] = defaultdict(lambda: [0, 0.0])
    for adapter in gpu.adapters:
        part = parts[adapter.rank, _class_of(adapter)]
        part[0] += 1
        part[1] += adapter.rate * adapter.share
    said = gpu.predicted
    twin = None
    if seen is not None:
        twin = {name: seen[name] for name in ("starved", "itl_ms", "ttft_p95_s", "kv_utilisation", "binding", "trend")}
        twin["served"] = seen["served_fraction"]["mean"]
    return {
        "id": gpu.id,
        "profile": gpu.profile,
        "slots": gpu.slots,
        "max_rank": gpu.max_rank,
        "adapters": len(gpu.adapters),
        "rate": sum(a.rate * a.share for a in gpu.adapters),
        "parts": [[rank, rate, count, req_s] for (rank, rate), (count, req_s) in sorted(parts.items())],
        "said": {"served": said.served_fraction, "itl_ms": said.itl_ms, "kv": said.kv_utilisation},
        "twin": twin,
    }


def _class_of(adapter: PlannedAdapter) -> int:
    return sum(adapter.rate < least for least in RATES)


def log_of(plan: Plan) -> list[list[float | None]]:
    """Seconds, value and bound of every entry of the plan's log."""
    return [[entry.seconds, entry.value, entry.bound] for entry in plan.log]


def as_json(data: Any) -> str:
    """``data`` as JSON that may stand in a script element: nan as null, and nothing that a parser takes for markup."""
    text = json.dumps(_finite(data), separators=(",", ":"), allow_nan=False)
    return text.replace("&", "\\u0026").replace("<", "\\u003c").replace(">", "\\u003e")


def _finite(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {str(key): _finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(item) for item in value]
    if hasattr(value, "item"):
        value = value.item()
    if isinstance(value, float):
        return round(value, 6) if math.isfinite(value) else None
    return value
