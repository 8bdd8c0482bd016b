"""Pages with plots: self-contained HTML that any browser shows, also offline."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd

from loraplan.capacity import Capacity
from loraplan.capacity_check import Replayed, TwinCheck
from loraplan.pareto import Front, Point
from surrogate.calibration import Calibration
from surrogate.evaluation import Evaluation, Unseen
from surrogate.examples import TARGETS
from surrogate.scores import acceptance
from twin.agreement import STARVED_BELOW, mean

PANELS: tuple[tuple[str, tuple[tuple[str, str], ...]], ...] = (
    ("requests", (("running", "running"), ("waiting", "waiting"))),
    ("KV cache in use, %", (("KV cache", "kv"),)),
    ("tokens/s computed", (("prefill", "prefill_tok_s"), ("decode", "decode_tok_s"))),
    ("step, ms", (("step", "step_ms"),)),
    ("distinct adapters; loads/s", (("adapters running", "adapters"), ("loads/s", "loads_s"))),
)
"""Title and lines of every panel: what it is called, and its column."""


def course(series: pd.DataFrame, kv_capacity_tokens: int, title: str) -> str:
    """The course of a run: an HTML page with a panel for each of PANELS over one time axis.

    Args:
        series: with columns twin.recording.SERIES_COLUMNS.
        kv_capacity_tokens: what is 100 % of the KV cache.
        title: of the page.
    """
    # Imported here: it takes half a second, and only this needs it.
    import plotly.graph_objects as go
    from plotly.subplots import make_subplots

    shown = series.assign(
        kv=100 * series["kv_tokens"] / kv_capacity_tokens,
        prefill_tok_s=series["prefill_tokens"] / series["seconds"],
        decode_tok_s=series["decode_tokens"] / series["seconds"],
        loads_s=series["loads"] / series["seconds"],
    )
    middle = (shown["time_s"] + shown["seconds"] / 2).tolist()
    figure = make_subplots(
        rows=len(PANELS), shared_xaxes=True, vertical_spacing=0.04, subplot_titles=[name for name, _ in PANELS]
    )
    for row, (panel, lines) in enumerate(PANELS, start=1):
        for name, column in lines:
            line = go.Scatter(
                x=middle, y=shown[column].tolist(), name=name, legendgroup=panel, legendgrouptitle={"text": panel}
            )
            figure.add_trace(line, row=row, col=1)
        figure.update_yaxes(rangemode="tozero", row=row, col=1)
    figure.update_xaxes(title_text="seconds", row=len(PANELS), col=1)
    figure.update_layout(title=title, height=220 * len(PANELS), hovermode="x unified", template="plotly_white")
    page: str = figure.to_html(include_plotlyjs=True, full_html=True)
    return page


def capacity(found: Capacity, checked: TwinCheck | None, oracle: str) -> str:
    """How a GPU's service changes with its adapters on the best slots, and its capacity with the slots: an HTML page.

    Args:
        found: what the oracle says: lines.
        checked: what the twin says, if it was asked: points with 95 % intervals.
        oracle: its name.
    """
    import plotly.graph_objects as go
    from plotly.subplots import make_subplots

    best, curve = found.best, found.curve
    titles = [f"tokens/s on {best.slots} slots", f"ITL on {best.slots} slots, ms", "most adapters by slots"]
    figure = make_subplots(rows=3, vertical_spacing=0.1, subplot_titles=titles)

    def add(row: int, x: Any, y: Any, name: str, mode: str = "lines", **more: Any) -> None:
        figure.add_trace(go.Scatter(x=list(x), y=list(y), name=name, mode=mode, **more), row=row, col=1)

    counts = curve.adapters.tolist()
    add(1, counts, curve.offered_tok_s.tolist(), "offered", line={"dash": "dot"})
    add(1, counts, curve.predicted.throughput_tok_s.tolist(), f"served, {oracle}")
    add(2, counts, curve.predicted.itl_ms.tolist(), f"ITL, {oracle}")
    lines = found.by_slots
    add(3, [line.slots for line in lines], [line.adapters for line in lines], f"capacity, {oracle}", "lines+markers")
    if checked is not None:
        points = checked.points
        asked = [point.adapters for point in points]
        served = [point.seen.throughput_tok_s for point in points]
        add(1, asked, served, "served, twin", "markers", error_y=_error_bars(points))
        add(2, asked, [point.seen.itl_ms for point in points], "ITL, twin", "markers")
        slots = [line.slots for line in checked.by_slots for _ in line.carries]
        carries = [count for line in checked.by_slots for count in line.carries]
        add(3, slots, carries, "capacity, twin, by seed", "markers")
    for row in (1, 2):
        figure.add_vline(x=best.adapters, line_dash="dash", line_color="grey", row=row, col=1)
        figure.update_xaxes(title_text="adapters", row=row, col=1)
    figure.update_xaxes(title_text="slots (--max-loras)", row=3, col=1)
    figure.update_yaxes(rangemode="tozero")
    title = f"{found.profile}: {best.adapters} adapters on {best.slots} slots ({oracle})"
    figure.update_layout(title=title, height=1000, template="plotly_white")
    page: str = figure.to_html(include_plotlyjs=True, full_html=True)
    return page


def _error_bars(points: Sequence[Replayed]) -> dict[str, Any]:
    """The intervals of the served fraction, in tokens/s."""

    def scaled(point: Replayed, difference: float) -> float:
        mean = point.seen.served_fraction.mean
        return point.seen.throughput_tok_s * difference / mean if mean > 0 else 0.0

    served = [(point, point.seen.served_fraction) for point in points]
    return {
        "type": "data",
        "symmetric": False,
        "array": [scaled(point, part.high - part.mean) for point, part in served],
        "arrayminus": [scaled(point, part.mean - part.low) for point, part in served],
    }


def front(found: Front) -> str:
    """One objective against another, a point for each plan: an HTML page."""
    import plotly.graph_objects as go

    figure = go.Figure()
    best = [point for point in found.points if point.best]
    others = [point for point in found.points if not point.best]

    def text(point: Point) -> str:
        return f"{len(point.plan.gpus)} GPUs, slots {', '.join(str(gpu.slots) for gpu in point.plan.gpus)}"

    for name, points, mode in (("front", best, "lines+markers"), ("behind it", others, "markers")):
        if points:
            x, y = [point.x for point in points], [point.y for point in points]
            figure.add_trace(go.Scatter(x=x, y=y, name=name, mode=mode, text=[text(point) for point in points]))
    seen = [point for point in found.points if point.validation is not None]
    if seen:
        x, y = [point.twin_x for point in seen], [point.twin_y for point in seen]
        figure.add_trace(go.Scatter(x=x, y=y, name="in the twin", mode="markers", marker_symbol="x"))
    figure.update_xaxes(title_text=f"{found.x}, {found.x_unit}")
    figure.update_yaxes(title_text=f"{found.y}, {found.y_unit}", rangemode="tozero")
    figure.update_layout(title=f"{found.y} against {found.x}", template="plotly_white", height=600)
    page: str = figure.to_html(include_plotlyjs=True, full_html=True)
    return page


RISKS = (0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5)
MOST_POINTS = 5000


def evaluation(found: Evaluation, loads: Unseen, calibration: Calibration) -> str:
    """Whether a surrogate's probabilities, risks and quantiles hold, and where it errs: an HTML page.

    Args:
        found: what is told of it.
        loads: the unseen loads behind that; at most ``MOST_POINTS`` of them are shown as points.
        calibration: of the surrogate.
    """
    import plotly.graph_objects as go
    from plotly.subplots import make_subplots

    titles = [
        "starved, % of the loads of a bin",
        "starved, % of the loads accepted at a risk",
        "figures below their 5 %, 50 % and 95 % quantiles, %",
        "throughput, tokens/s",
        "served fraction: said - seen",
    ]
    figure = make_subplots(rows=len(titles), vertical_spacing=0.06, subplot_titles=titles)

    def add(row: int, x: Any, y: Any, name: str, mode: str = "markers", **more: Any) -> None:
        x, y = np.asarray(x).tolist(), np.asarray(y).tolist()
        figure.add_trace(go.Scatter(x=x, y=y, name=name, mode=mode, **more), row=row, col=1)

    dashed = {"mode": "lines", "name": "as said", "line": {"dash": "dot", "color": "grey"}, "showlegend": False}
    bins, seen, judged = found.calibration, loads.seen, loads.judged
    add(1, [one.said for one in bins], [one.seen for one in bins], "bins", text=[f"{one.n} loads" for one in bins])
    accepted = [acceptance(calibration, judged.score, seen.starved, risk) for risk in RISKS]
    add(2, [100 * one.risk for one in accepted], [one.starved_of_accepted for one in accepted], "risks")
    for target, below in _below(loads).items():
        add(3, [5, 50, 95], below, target, "lines+markers")
    shown = np.linspace(0, seen.served.size - 1, min(seen.served.size, MOST_POINTS)).astype(int)
    twin, said = seen.figures["throughput"][shown], loads.said.figures["throughput"][shown]
    add(4, twin, said, "throughput")
    add(5, seen.served[shown] - STARVED_BELOW, (judged.median("served_fraction") - seen.served)[shown], "loads")
    for row, top in enumerate((100, 100 * RISKS[-1], 100, float(np.max(twin))), start=1):
        figure.add_trace(go.Scatter(x=[0, top], y=[0, top], **dashed), row=row, col=1)
    labels = ("said, %", "risk asked, %", "quantile, %", "twin", "distance of the served fraction from the limit")
    for row, label in enumerate(labels, start=1):
        figure.update_xaxes(title_text=label, row=row, col=1)
    title = f"{found.model}: {seen.served.size:,} unseen loads"
    figure.update_layout(title=title, height=420 * len(titles), template="plotly_white")
    page: str = figure.to_html(include_plotlyjs=True, full_html=True)
    return page


def _below(loads: Unseen) -> dict[str, list[float]]:
    """By target: percent of the loads whose figure is below each of its quantiles."""
    seen = loads.seen
    true = (seen.served, seen.figures["itl"], seen.figures["ttft"], seen.figures["kv"])
    found = {}
    for place, (target, values) in enumerate(zip(TARGETS, true, strict=True)):
        known = np.isfinite(values)
        below = values[known, None] < loads.judged.figures[known, :, place]
        found[target] = [100.0 * mean(column) for column in below.T]
    return found
