"""The answer at a glance: how much a solver wastes, where, and what of it is proven."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd

from benchmarks.best_known import SAME
from benchmarks.results import COMPLETE, PROBLEM

ASKED = "greedy"
"""The solver that is asked about, if it is among the results; else the first."""


def answer(table: pd.DataFrame) -> dict[str, Any]:
    """What the solver asked about wastes, on the first objective and oracle of the table.

    Returns:
        solver; unit; instances (with a plan of it), of: all; used, best: sums; wasted: used - best, which is certain,
        since there are better plans; most: used - bounds, the most that can be saved, if there are bounds for all;
        closed: instances whose best plan is proven to be optimal; worst: the instances that waste most.
    """
    first = table.iloc[0]
    part = table[(table["objective"] == first["objective"]) & (table["oracle"] == first["oracle"])]
    solvers = [*dict.fromkeys(part["solver"])]
    asked = ASKED if ASKED in solvers else solvers[0]
    mine = part[(part["solver"] == asked) & part["status"].isin(COMPLETE) & part["value"].notna()]
    each = mine.groupby(PROBLEM, sort=False)[["value", "best_value", "best_bound"]].mean().reset_index()
    wasted = each["value"] - each["best_value"]
    order = np.argsort(-wasted.to_numpy(float), kind="stable")[:3]
    bounds = each["best_bound"]
    return {
        "solver": asked,
        "unit": str(first["unit"]) or "GPUs",
        "objective": str(first["objective"]),
        "instances": len(each),
        "of": int(part.drop_duplicates(PROBLEM).shape[0]),
        "used": float(each["value"].sum()),
        "best": float(each["best_value"].sum()),
        "wasted": float(wasted.sum()),
        "most": float((each["value"] - bounds).sum()) if len(each) and bounds.notna().all() else None,
        "closed": int((each["best_value"] <= bounds * (1 + SAME)).sum()),
        "worst": [
            {"instance": f"{each.iloc[i]['suite']}/{each.iloc[i]['instance']}", "wasted": float(wasted.iloc[i])}
            for i in map(int, order)
            if wasted.iloc[i] > 0
        ],
    }


def in_words(found: dict[str, Any]) -> str:
    """The answer as a sentence or two."""
    if not found["instances"]:
        return f"{found['solver']} found no plan on any of {found['of']} instances."
    unit = found["unit"]
    share = found["wasted"] / found["used"] if found["used"] else 0.0
    words = (
        f"{found['solver']} uses {found['used']:,.6g} {unit} on {found['instances']} of {found['of']} instances; "
        f"{found['wasted']:,.6g} of them ({100 * share:.0f} %) are wasted: there are better plans."
    )
    return f"{words} For {found['closed']} instances it is proven that nothing is better than the best plan."
