"""One row of results: a cell is solved in a process of its own, and its plan replayed in the twin."""

from __future__ import annotations

import json
import math
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from typing import Any

import numpy as np

from benchmarks.cells import Cell, Limits, machine, made_by
from benchmarks.guard import run_guarded
from loraplan.errors import LoraplanError
from loraplan.plan import Plan
from loraplan.validation import Validation, validate

NO_PLAN = ("timeout", "memory", "crash", "wrong plan", "refused")
"""Statuses of cells without a plan; the others are those of plans, and ``wrong bound``."""


@dataclass(frozen=True)
class Result:
    """What came of a cell.

    Attributes:
        row: figures by column.
        twin: what the twin says of each GPU, as plain data.
        plan: the text of plan.json; empty if there is none.
    """

    row: dict[str, Any]
    twin: list[dict[str, Any]]
    plan: str


def solve_cell(cell: Cell, limits: Limits) -> Result:
    """Solve a cell and validate its plan."""
    speed = loop_s()
    outcome = run_guarded(cell.config, limits)
    row: dict[str, Any] = {
        "suite": cell.suite,
        "instance": cell.instance,
        "solver": cell.solver,
        "objective": cell.objective,
        "oracle": cell.oracle,
        "seed": cell.seed,
        "status": outcome.kind,
        "reason": outcome.reason,
        "wall_s": round(outcome.wall_s, 3),
        "peak_mb": round(outcome.peak_mb, 1),
        "loop_s": round(speed, 6),
        "problem": cell.problem,
        "config_hash": cell.config_hash,
        "machine": machine(),
        "versions": " ".join(f"{name}={number}" for name, number in made_by().items()),
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
    }
    if outcome.kind != "plan":
        return Result(row, [], "")
    plan = Plan.model_validate_json(outcome.plan)
    row |= figures(plan)
    twin: list[dict[str, Any]] = []
    if plan.complete and limits.twin_seeds:
        seen, twin = in_twin(plan, limits.twin_seeds)
        row |= seen
    return Result(row, twin, outcome.plan)


def figures(plan: Plan) -> dict[str, Any]:
    """What the plan and its oracle say."""
    value = plan.objective
    return {
        "status": plan.status,
        "reason": plan.reason,
        "gpus": len(plan.gpus) if plan.complete else None,
        "adapters": len({a.name for gpu in plan.gpus for a in gpu.adapters}) + len(plan.unplaced),
        "slots": sum(gpu.slots for gpu in plan.gpus),
        "value": value.value,
        "unit": value.unit,
        "bound": value.lower_bound,
        "gap": value.gap,
        "solver_s": plan.solver.runtime_s,
        "said_served_min": min((gpu.predicted.served_fraction for gpu in plan.gpus), default=None),
        "said_itl_ms": _mean([(gpu.predicted.throughput_tok_s, gpu.predicted.itl_ms) for gpu in plan.gpus]),
        "said_tok_s": sum(gpu.predicted.throughput_tok_s for gpu in plan.gpus),
    }


def in_twin(plan: Plan, seeds: int) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """What the twin says of a plan on fresh seeds; why it cannot say anything, if so."""
    began = time.monotonic()
    try:
        found = validate(plan, None, seeds)
    except (LoraplanError, MemoryError) as error:
        return {"reason": f"not validated: {' '.join(str(error).split())[:200]}"}, []
    return _seen(found) | {"twin_s": round(time.monotonic() - began, 3)}, [_verdict(gpu) for gpu in found.gpus]


def _seen(found: Validation) -> dict[str, Any]:
    gpus = found.gpus
    return {
        "starved": found.starved_gpus,
        "served_min": min(gpu.served_fraction.mean for gpu in gpus),
        "itl_ms": _mean([(gpu.throughput_tok_s, gpu.itl_ms) for gpu in gpus]),
        "ttft_p95_s": finite_max([gpu.ttft_p95_s for gpu in gpus]),
        "tok_s": float(np.nansum([gpu.throughput_tok_s for gpu in gpus])),
        "twin_seeds": " ".join(map(str, found.seeds)),
    }


def _verdict(gpu: Any) -> dict[str, Any]:
    """A verdict as JSON has it."""

    def plain(value: Any) -> Any:
        if isinstance(value, Mapping):
            return {key: plain(item) for key, item in value.items()}
        return None if isinstance(value, float) and not math.isfinite(value) else value

    data: dict[str, Any] = json.loads(json.dumps(plain(asdict(gpu)), default=lambda item: item.item()))
    return data


def _mean(weighted: list[tuple[float, float | None]]) -> float | None:
    """Mean by tokens/s of the figures that are known."""
    known = [(w, x) for w, x in weighted if x is not None and math.isfinite(x) and math.isfinite(w) and w > 0]
    return float(np.average([x for _, x in known], weights=[w for w, _ in known])) if known else None


def finite_max(values: list[float]) -> float | None:
    """The largest that is a number."""
    return max((float(value) for value in values if math.isfinite(value)), default=None)


def loop_s() -> float:
    """Seconds of a fixed piece of work, the quickest of three: how fast this machine is just now."""

    def once() -> float:
        began = time.perf_counter()
        total = 0.0
        values = np.arange(1000.0)
        for i in range(2000):
            total += float(values[i % 1000]) * (i % 7)
            values.sum()
        return time.perf_counter() - began

    return min(once() for _ in range(3))
