"""The course of a run, if it is asked for: time series in fixed intervals, and its steps one by one."""

from __future__ import annotations

import json
import math
from dataclasses import dataclass

import numpy as np
import pandas as pd

from loraplan.errors import BadInputError
from loraplan.workload import Floats
from twin.state import SERIES, STEP_LOG, State

MOST_INTERVALS = 1_000_000
MOST_STEPS = 50_000

SERIES_COLUMNS = (
    "time_s",
    "seconds",
    "running",
    "waiting",
    "kv_tokens",
    "adapters",
    "busy",
    "steps",
    "prefill_tokens",
    "decode_tokens",
    "loads",
    "finished",
    "step_ms",
)
"""``time_s``: start of the interval, and how many ``seconds`` it has (the last one may be cut by the horizon); means
over it of the requests ``running`` and ``waiting``, the ``kv_tokens`` held and the distinct ``adapters`` running, and
the share of it in which the server was ``busy``; counts of ``steps``, of the ``prefill_tokens`` and ``decode_tokens``
computed in them and of adapter ``loads``, each where the step starts; requests ``finished``; busy milliseconds per
step, nan without steps."""


@dataclass(frozen=True)
class Recording:
    """What to write down of a run.

    Attributes:
        series_s: length of the intervals of a time series, in seconds; None for no series.
        steps_s: the seconds from and up to which the steps that start there are kept; None for no steps.
    """

    series_s: float | None = None
    steps_s: tuple[float, float] | None = None

    def intervals(self, horizon_s: float) -> int:
        """How many intervals the series has.

        Raises:
            BadInputError: their length is not above 0, or they are too many.
        """
        if self.series_s is None:
            return 0
        if not (math.isfinite(self.series_s) and self.series_s > 0):
            raise BadInputError(f"an interval of a series must be longer than 0 s (got {self.series_s:g})")
        if horizon_s / self.series_s > MOST_INTERVALS:
            raise BadInputError(
                f"{horizon_s:g} s in intervals of {self.series_s:g} s are more than {MOST_INTERVALS:,}: "
                f"make them at least {horizon_s / MOST_INTERVALS:g} s long"
            )
        return max(1, math.ceil(horizon_s / self.series_s - 1e-9))

    def window(self) -> tuple[float, float]:
        """The window of the steps to keep; an empty one if none are.

        Raises:
            BadInputError: it ends before it starts.
        """
        if self.steps_s is None:
            return math.inf, -math.inf
        start, end = self.steps_s
        if not 0 <= start < end:
            raise BadInputError(
                f"a window of steps must start at 0 or later and end after that (got {start:g} to {end:g})"
            )
        return start, end


def read_series(state: State, series_s: float, horizon_s: float, finish_s: Floats) -> pd.DataFrame:
    """The time series with columns SERIES_COLUMNS, a row per interval."""
    n = len(state.series)
    edges = np.append(np.arange(n) * series_s, horizon_s)
    steps = np.diff(state.series, axis=0, prepend=0.0)
    seconds = np.diff(edges)
    per = dict(zip(SERIES, steps.T, strict=True))
    with np.errstate(invalid="ignore", divide="ignore"):
        step_ms = 1e3 * per["busy_s"] / per["steps"]
    columns = {
        "time_s": edges[:-1],
        "seconds": seconds,
        "running": per["running_s"] / seconds,
        "waiting": per["waiting_s"] / seconds,
        "kv_tokens": per["kv_token_s"] / seconds,
        "adapters": per["adapter_s"] / seconds,
        "busy": per["busy_s"] / seconds,
        "steps": per["steps"].astype(np.int64),
        "prefill_tokens": per["prefill_tokens"].astype(np.int64),
        "decode_tokens": (per["tokens"] - per["prefill_tokens"]).astype(np.int64),
        "loads": per["loads"].astype(np.int64),
        "finished": np.histogram(finish_s, edges)[0],
        "step_ms": np.where(per["steps"] > 0, step_ms, np.nan),
    }
    return pd.DataFrame(columns, columns=list(SERIES_COLUMNS))


def read_steps(state: State, steps_s: tuple[float, float]) -> pd.DataFrame:
    """The steps of the window with columns STEP_LOG, a row per step.

    Raises:
        BadInputError: there are too many.
    """
    logged = int(state.totals[0]["logged"])
    if logged > MOST_STEPS:
        start, end = steps_s
        raise BadInputError(
            f"{logged:,} steps start between {start:g} and {end:g} s, more than {MOST_STEPS:,}: end the window at "
            f"{math.floor(1e3 * state.log[-1, 0]) / 1e3:g} s or earlier"
        )
    return pd.DataFrame(state.log[:logged], columns=list(STEP_LOG))


def chrome_trace(steps: pd.DataFrame, server: str, kv_capacity_tokens: int) -> str:
    """The steps as Chrome trace events: JSON that chrome://tracing and https://ui.perfetto.dev open.

    A slice per step, named after what it does, with its contents; counters of requests and of the KV cache.
    Format: "Trace Event Format", phases X (complete), C (counter) and M (metadata); times are microseconds.
    """
    events: list[dict[str, object]] = [{"ph": "M", "pid": 0, "name": "process_name", "args": {"name": server}}]
    for row in steps.to_dict("records"):
        start = round(1e6 * row.pop("start_s"), 3)
        length = round(1e3 * row.pop("ms"), 3)
        contents = {name: int(value) for name, value in row.items()}
        decodes, prefill = contents["decode_tokens"], contents["prefill_tokens"]
        name = "decode" if not prefill else "prefill and decode" if decodes else "prefill"
        common = {"pid": 0, "tid": 0, "ts": start}
        requests = {key: contents[key] for key in ("running", "waiting")}
        share = round(100 * contents["kv_tokens"] / kv_capacity_tokens, 2)
        events += (
            {**common, "ph": "X", "name": name, "dur": length, "args": contents},
            {**common, "ph": "C", "name": "requests", "args": requests},
            {**common, "ph": "C", "name": "KV cache, %", "args": {"in use": share}},
        )
    return json.dumps({"displayTimeUnit": "ms", "traceEvents": events}, separators=(",", ":")) + "\n"
