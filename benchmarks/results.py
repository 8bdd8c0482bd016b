"""The table of results: a row for each cell, set against the best that anybody found; and what it comes to."""

from __future__ import annotations

import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from benchmarks.best_known import SAME, Best, BestKnown, today
from loraplan.errors import BadInputError
from loraplan.files import write_bytes

WORDS = ("suite", "instance", "solver", "objective", "oracle", "status", "reason", "unit", "best_by", "proven")
MORE_WORDS = ("twin_seeds", "problem", "config_hash", "machine", "versions", "date", "name")
NUMBERS = ("adapters", "gpus", "slots", "value", "bound", "gap", "best_value", "best_bound", "vs_best", "solver_s")
MORE_NUMBERS = (
    "wall_s", "peak_mb", "said_served_min", "said_itl_ms", "said_tok_s", "starved", "served_min", "itl_ms",
    "ttft_p95_s", "tok_s", "twin_s", "loop_s",
)  # fmt: skip
COLUMNS = (*WORDS[:5], "seed", *WORDS[5:7], *NUMBERS, *WORDS[7:], *MORE_NUMBERS, *MORE_WORDS)
KEY = ["suite", "instance", "solver", "objective", "oracle", "seed"]
PROBLEM = ["suite", "instance", "oracle", "objective"]
COMPLETE = ("optimal", "feasible", "wrong bound")
"""Statuses with a complete plan; that of a wrong bound proves nothing, but is a plan."""


def make_table(rows: Sequence[dict[str, Any]], known: BestKnown) -> pd.DataFrame:
    """The table of ``rows``, with the best value and bound of every problem, from all rows and from what is known."""
    table = typed(pd.DataFrame([*rows], columns=list(COLUMNS)))
    entries = known.by_key()
    parts = []
    for key, part in table.groupby(PROBLEM, sort=False):
        suite, instance, oracle, objective = map(str, key)
        entry = entries.get((suite, instance, oracle, objective))
        fits = entry is not None and entry.problem in set(part["problem"])
        parts.append(_against_best(part.copy(), entry if fits else None))
    return pd.concat(parts, ignore_index=True).loc[:, list(COLUMNS)] if parts else table


def typed(table: pd.DataFrame) -> pd.DataFrame:
    """The same with text and numbers where they belong."""
    for name in (*WORDS, *MORE_WORDS):
        table[name] = [_text(value) for value in table[name].tolist()]
    for name in (*NUMBERS, *MORE_NUMBERS):
        table[name] = pd.to_numeric(table[name]).astype(float)
    table["seed"] = table["seed"].fillna(0).astype(int)
    return table


def _text(value: Any) -> str:
    """A cell of words; a CSV makes a number of words that look like one, and nan of none."""
    if isinstance(value, float):
        return f"{value:.0f}" if value.is_integer() else ""
    return "" if value is None else str(value)


def _against_best(part: pd.DataFrame, entry: Best | None) -> pd.DataFrame:
    """The rows of a problem with its best value and bound; bounds and claims that a plan refutes are called wrong."""
    complete = (part["status"].isin(COMPLETE) & part["value"].notna()).to_numpy()
    values, solvers = np.where(complete, part["value"], np.inf), part["solver"].tolist()
    value, by = (np.inf, "") if entry is None or entry.value is None else (entry.value, entry.by)
    if values.min() < value * (1 - SAME) or np.isinf(value):
        value, by = float(values.min()), solvers[int(values.argmin())] if complete.any() else ""
    bounds, statuses, reasons = part["bound"].to_numpy(float).copy(), part["status"].tolist(), part["reason"].tolist()
    for row, bound in enumerate(bounds):
        if np.isfinite(value) and (statuses[row] == "infeasible" or bound > value * (1 + SAME)):
            claim = "infeasible" if statuses[row] == "infeasible" else f"no plan below {bound:g}"
            reasons[row] = f"it says {claim}, but {by} has a plan of {value:g}"
            statuses[row], bounds[row] = "wrong bound", np.nan
    most, proven = (-np.inf, "") if entry is None or entry.bound is None else (entry.bound, entry.proven)
    known = np.where(np.isnan(bounds), -np.inf, bounds)
    if known.max() > most * (1 + SAME) or (np.isinf(most) and np.isfinite(known.max())):
        most, proven = float(known.max()), solvers[int(known.argmax())]
    ratio = np.where(complete & (values > 0), values / value, np.nan)
    gap = np.where(np.isnan(bounds), np.nan, part["gap"].to_numpy(float))
    told: dict[str, Any] = {"status": statuses, "reason": reasons, "bound": bounds, "gap": gap, "vs_best": ratio}
    told |= {"best_value": value if by else np.nan, "best_by": by}
    told |= {"best_bound": most if proven else np.nan, "proven": proven}
    return part.assign(**told)


def summary(table: pd.DataFrame) -> pd.DataFrame:
    """A row for each solver on each suite, objective and oracle.

    Columns: cells, plans (complete), optimal (proven by the solver itself or by the best bound), value (sum over its
    plans), above_best (sum of value - best), vs_best (geometric mean), gap (mean to the best bound, of the value),
    starved (plans with a GPU that starves in the twin), solver_s (median), solver_s_max, failed (statuses that are no
    plan and no proof, with how often).
    """
    found = []
    for key, part in table.groupby(["suite", "objective", "oracle", "solver"], sort=False):
        plans = part[part["status"].isin(COMPLETE) & part["value"].notna()]
        gaps = (plans["value"] - plans["best_bound"]) / plans["value"]
        ratios = plans["vs_best"].dropna()
        failed = part.loc[~part["status"].isin(("optimal", "feasible", "infeasible")), "status"].value_counts()
        found.append(
            dict(zip(("suite", "objective", "oracle", "solver"), key, strict=True))
            | {
                "cells": len(part),
                "plans": len(plans),
                "optimal": int((plans["value"] <= plans["best_bound"] * (1 + SAME)).sum()),
                "value": float(plans["value"].sum()),
                "above_best": float((plans["value"] - plans["best_value"]).sum()),
                "vs_best": float(np.exp(np.log(ratios).mean())) if len(ratios) else np.nan,
                "gap": float(gaps.mean()) if gaps.notna().any() else np.nan,
                "starved": int((plans["starved"] > 0).sum()),
                "solver_s": float(plans["solver_s"].median()) if len(plans) else np.nan,
                "solver_s_max": float(plans["solver_s"].max()) if len(plans) else np.nan,
                "failed": ", ".join(f"{count} {status}" for status, count in failed.items()),
            }
        )
    return pd.DataFrame(found)


def improvements(table: pd.DataFrame) -> list[Best]:
    """What the table knows of every problem, for the file of what is known."""
    found = []
    for key, part in table.groupby(PROBLEM, sort=False):
        complete = part["status"].isin(COMPLETE) & part["value"].notna()
        values = np.where(complete, part["value"], np.inf)
        bounds = np.where(part["bound"].isna(), -np.inf, part["bound"])
        solvers = part["solver"].tolist()
        data: dict[str, Any] = dict(zip(PROBLEM, key, strict=True))
        data |= {"problem": part["problem"].iloc[0], "date": today()}
        if np.isfinite(values.min()):
            data |= {"value": float(values.min()), "by": solvers[int(values.argmin())]}
        if np.isfinite(bounds.max()):
            data |= {"bound": float(bounds.max()), "proven": solvers[int(bounds.argmax())]}
        found.append(Best.model_validate(data))
    return found


def write_tables(table: pd.DataFrame, folder: Path) -> None:
    """Write results.parquet, results.csv and summary.csv."""
    buffer = io.BytesIO()
    table.to_parquet(buffer, index=False)
    write_bytes(folder / "results.parquet", buffer.getvalue())
    write_bytes(folder / "results.csv", table.to_csv(index=False).encode())
    write_bytes(folder / "summary.csv", summary(table).to_csv(index=False).encode())


def read_table(path: Path) -> pd.DataFrame:
    """A table that ``write_tables`` wrote, from CSV or Parquet.

    Raises:
        BadInputError: it is not there, or no such table.
    """
    try:
        table = pd.read_parquet(path) if path.suffix == ".parquet" else pd.read_csv(path, keep_default_na=True)
    except (OSError, ValueError) as error:
        raise BadInputError(f"results {path}: {' '.join(str(error).split())[:200]}") from None
    missing = [name for name in COLUMNS if name not in table.columns]
    if missing:
        raise BadInputError(f"results {path}: no column {missing[0]!r}; was it written by `loraplan bench`?")
    return typed(table)
