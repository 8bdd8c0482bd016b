"""Pages with plots: self-contained HTML that any browser shows, also offline."""

from __future__ import annotations

import pandas as pd

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
