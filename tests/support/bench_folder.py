"""Folders of results, made in this process: what `loraplan bench` would write, without its processes."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Any

import pandas as pd

from benchmarks.best_known import Best, BestKnown
from benchmarks.cells import Cell, Limits, made_by, make_cells
from benchmarks.harness import MANIFEST, Manifest, keep
from benchmarks.results import make_table, write_tables
from benchmarks.rows import Result, figures, in_twin
from benchmarks.suites import Suite, select
from loraplan.api import solve_config
from loraplan.config import parse_config

HOSTILE = "<img src=x onerror=\"document.title='hacked'\">&lt;</script><script>document.title='hacked'</script>"


def row_of(cell: Cell, **more: Any) -> dict[str, Any]:
    """A row without a plan."""
    about = {name: getattr(cell, name) for name in ("suite", "instance", "solver", "objective", "oracle", "seed")}
    made = {"wall_s": 0.1, "peak_mb": 100.0, "loop_s": 0.003, "machine": HOSTILE, "versions": "loraplan=0", "date": "d"}
    return {**about, "status": "crash", "reason": HOSTILE, "problem": cell.problem, "config_hash": "h", **made, **more}


def solved(cell: Cell) -> Result:
    """A cell solved in this process."""
    plan = solve_config(parse_config(cell.config))
    seen, twin = in_twin(plan, 1) if plan.complete else ({}, [])
    return Result(row_of(cell) | figures(plan) | seen, twin, plan.to_json())


def results_folder(folder: Path) -> pd.DataFrame:
    """A small folder with hostile text wherever text can be; the table in it."""
    table = folder.parent / "adapters.csv"
    names = [HOSTILE.replace('"', '""') + str(i) for i in range(16)]
    rows = "".join(f'"{name}",{8 if i % 3 else 32},{0.02 * (i + 1) ** 2},250,231\n' for i, name in enumerate(names))
    table.write_text("name,rank,rate,tokens_in,tokens_out\n" + rows)
    suite = folder.parent / "mine.yaml"
    suite.write_text(
        "summary: mine\nbase:\n  workload: {adapters: adapters.csv, horizon_s: 120}\n"
        "  fleet: [{profile: h100-64gb/llama-3.1-8b, count: 9}]\n"
        "cases: {cold: {}, hot: {workload.rate_scale: 1.4}}\n"
    )
    (own,) = select([str(suite)])
    hostile = Suite(HOSTILE, "", ("gpu_count",), own.instances[:1])
    limits = Limits(time_limit_s=5.0)
    cells = [
        *make_cells([*select(["tiny/14-equal-r8"]), own, hostile], ["greedy", "best_fit"], [], ["fluid"], 1, limits)
    ]
    for part in ("", "rows", "plans"):
        (folder / part).mkdir(exist_ok=True)
    found = []
    for cell in cells:
        broken = cell.suite == HOSTILE and cell.solver == "greedy"
        result = Result(row_of(cell), [], "") if broken else solved(cell)
        keep(result, folder, cell.name)
        found.append(result.row | {"name": cell.name})
    told = {key: float(value) for key, value in asdict(limits).items()}
    manifest = Manifest(versions=made_by(), limits=told, cells=tuple(cell.name for cell in cells))
    (folder / MANIFEST).write_text(manifest.model_dump_json())
    about = {"oracle": "fluid", "objective": "gpu_count", "by": "brute force", "proven": "brute force", "date": "d"}
    bests = [
        Best(suite=c.suite, instance=c.instance, problem=c.problem, value=1.0, bound=1.0, **about)
        for c in cells
        if c.solver == "greedy" and c.instance == "cold"
    ]
    made = make_table(found, BestKnown(entries=tuple(bests)))
    write_tables(made, folder)
    return made
