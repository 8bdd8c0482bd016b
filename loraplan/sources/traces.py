"""Recorded traces: reading them, and what a planner who watched one would plan for."""

from __future__ import annotations

import warnings
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
from numpy.typing import NDArray
from pyarrow import parquet

from loraplan.errors import BadInputError, did_you_mean
from loraplan.workload import MOST_TOKENS, Adapter, Floats, Ints, Lengths, Requests, TraceWorkload

Window = tuple[float, float]

# Accepted names of each column; the second are those of the public Azure traces (github Azure/AzurePublicDataset).
_COLUMNS = {
    "arrived_at": ("arrived_at", "TIMESTAMP"),
    "num_prefill_tokens": ("num_prefill_tokens", "ContextTokens"),
    "num_decode_tokens": ("num_decode_tokens", "GeneratedTokens"),
}
_DATE_TIME = "TIMESTAMP"
_ADAPTER = "adapter"

_LATEST_S = 1e12
"""Times beyond this are no seconds, whatever they count from."""

_SPARE_S, _SPARE_SHARE = 60.0, 0.1
"""A window may end this much past the last request (seconds, or share of the window): rounding, or a quiet end."""


@dataclass(frozen=True, eq=False)
class Trace:
    """A recorded trace.

    Attributes:
        path: the file, for messages.
        requests: times in the trace's own seconds; adapter -1 where the trace names none, else an index of ``names``.
        names: adapters in order of first arrival; None if the trace has no such column.
    """

    path: Path
    requests: Requests
    names: tuple[str, ...] | None

    @property
    def span_s(self) -> Window:
        """From the first arrival up to and with the last one."""
        times = self.requests.arrival_s
        return float(times[0]), float(np.nextafter(times[-1], np.inf))


def read_trace(path: Path) -> Trace:
    """Read a trace from a CSV file with a header, or from Parquet (``.parquet``, ``.pq``).

    Columns: arrived_at (seconds) or TIMESTAMP, num_prefill_tokens or ContextTokens (>= 1), num_decode_tokens or
    GeneratedTokens (>= 0; 0 counts as 1), and optionally adapter. TIMESTAMP, and an arrived_at whose Parquet type is
    date and time, become seconds since the first. Rows may come in any order; other columns are ignored.

    Raises:
        BadInputError: naming the file and, where one is at fault, the column and row (the first below the header is 1).
    """
    frame, columns = _read_frame(path)
    if frame.empty:
        raise BadInputError(f"trace {path}: it has no requests")
    times = _arrival_times(path, frame[columns["arrived_at"]])
    tokens_in = _token_counts(path, frame[columns["num_prefill_tokens"]], at_least=1)
    tokens_out = np.maximum(_token_counts(path, frame[columns["num_decode_tokens"]], at_least=0), 1)
    order = np.argsort(times, kind="stable")
    adapter, names = np.full(times.size, -1, dtype=np.int64), None
    if _ADAPTER in columns:
        column = frame[_ADAPTER]
        _reject(path, column, column.isna().to_numpy(dtype=bool), "the name is missing")
        codes, found = pd.factorize(column.astype(str).to_numpy(dtype=object)[order])
        adapter, names = codes.astype(np.int64), tuple(str(name) for name in found)
    else:
        adapter = adapter[order]
    return Trace(path, Requests(times[order], adapter, tokens_in[order], tokens_out[order]), names)


def _read_frame(path: Path) -> tuple[pd.DataFrame, dict[str, str]]:
    """The columns of a trace that matter, and what each of them is called in the file."""
    try:
        if path.suffix in {".parquet", ".pq"}:
            columns = _find_columns(path, list(parquet.read_schema(path).names))
            return pd.read_parquet(path, columns=list(columns.values())), columns
        columns = _find_columns(path, _header(path))
        with warnings.catch_warnings():
            warnings.simplefilter("error", pd.errors.ParserWarning)  # more cells than columns
            frame = pd.read_csv(
                path,
                index_col=False,
                dtype={_ADAPTER: str},
                keep_default_na=False,
                na_values=[""],
                low_memory=False,  # one type per column, however late the first odd value comes
            )
    except OSError as error:
        raise BadInputError(f"trace {path}: {error.strerror or error}") from None
    except pd.errors.EmptyDataError:
        raise BadInputError(f"trace {path}: the file is empty") from None
    except pd.errors.ParserWarning:
        raise BadInputError(f"trace {path}: rows have more cells than there are columns") from None
    except (pd.errors.ParserError, pa.ArrowException, UnicodeDecodeError) as error:
        raise BadInputError(f"trace {path}: cannot be read: {' '.join(str(error).split())}") from None
    return frame, columns


def _header(path: Path) -> list[str]:
    """The column names of a CSV file as they stand there; as a header, pandas would rename the second of two."""
    first_row = pd.read_csv(path, header=None, nrows=1, dtype=str, keep_default_na=False)
    return [name for name in first_row.iloc[0] if name]


def _find_columns(path: Path, present: list[str]) -> dict[str, str]:
    twice = [name for name, times in Counter(present).items() if times > 1]
    if twice:
        raise BadInputError(f"trace {path}: column {twice[0]!r} is there twice")
    columns = {_ADAPTER: _ADAPTER} if _ADAPTER in present else {}
    for name, accepted in _COLUMNS.items():
        found = [column for column in accepted if column in present]
        if not found:
            raise BadInputError(f"trace {path}: no column {name!r}{did_you_mean(name, present)}")
        columns[name] = found[0]
    return columns


def _arrival_times(path: Path, column: pd.Series) -> Floats:
    """Seconds, checked; shape (rows,), in the order of the file."""
    if column.name == _DATE_TIME or pd.api.types.is_datetime64_any_dtype(column):
        bare = pd.api.types.is_numeric_dtype(column) or pd.api.types.is_timedelta64_dtype(column)
        _reject(path, column, np.full(column.size, bare), "expected a date and time")
        moments = pd.to_datetime(column, format="ISO8601", utc=True, errors="coerce")
        _reject(path, column, moments.isna().to_numpy(dtype=bool), "expected a date and time")
        return np.asarray((moments - moments.min()).dt.total_seconds(), dtype=np.float64)
    times = _numbers(path, column)
    _reject(path, column, times < 0, "must not be negative")
    _reject(path, column, times > _LATEST_S, f"must be at most {_LATEST_S:g} s")
    return times


def _token_counts(path: Path, column: pd.Series, at_least: int) -> Ints:
    counts = _numbers(path, column)
    _reject(path, column, counts != np.floor(counts), "expected a whole number")
    _reject(path, column, counts < at_least, f"must be at least {at_least}")
    _reject(path, column, counts > MOST_TOKENS, f"must be at most {MOST_TOKENS} tokens")
    return counts.astype(np.int64)


def _numbers(path: Path, column: pd.Series) -> Floats:
    _reject(path, column, column.isna().to_numpy(dtype=bool), "the value is missing")
    # All of these pandas would turn into numbers, of no unit that anyone meant.
    types = pd.api.types
    odd = types.is_bool_dtype(column) or types.is_timedelta64_dtype(column) or types.is_datetime64_any_dtype(column)
    _reject(path, column, np.full(column.size, odd), "expected a number")
    if types.is_object_dtype(column):  # may hold integers that no float holds
        _reject(path, column, np.array([len(str(cell)) > 300 for cell in column]), "expected a number")
    numbers = pd.to_numeric(column, errors="coerce").to_numpy(dtype=np.float64)
    _reject(path, column, ~np.isfinite(numbers), "expected a number")
    return numbers


def _reject(path: Path, column: pd.Series, bad: NDArray[np.bool_], complaint: str) -> None:
    if bad.any():
        row = int(np.argmax(bad))
        value = column.iloc[row]
        given = "" if pd.isna(value) else f" (got {value!s:.80})"
        raise BadInputError(f"trace {path}: row {row + 1}, {column.name}: {complaint}{given}")


def from_trace(
    trace: Trace,
    ranks: Mapping[str, int],
    *,
    plan_window: Window | None = None,
    replay_window: Window | None = None,
    scale: float = 1.0,
    popularity: Floats | None = None,
    seed: int = 0,
) -> TraceWorkload:
    """The replay of a trace by adapters whose rates and lengths are those seen in the plan window.

    A rate is what a planner would have counted, in one realisation of the plan window, and at least one request (as in
    arXiv 2602.24044). Lengths are the recorded pairs of the plan window: an adapter's own if the trace names it there,
    everyone's if not.

    Args:
        trace: what was recorded.
        ranks: adapter names, in order, and their ranks; all names of the trace among them.
        plan_window: (start, end) in seconds of the trace; None is the whole trace.
        replay_window: the same for the replay; None is the plan window.
        scale: how much denser than recorded.
        popularity: shape (adapters,), for a trace that names no adapters.
        seed: of the realisation.

    Raises:
        BadInputError: a window has no request in it or ends long after the last one, the whole trace is one moment, or
            the trace names an adapter without a rank.
    """
    times = trace.requests.arrival_s
    if plan_window is None and times[0] == times[-1]:
        raise BadInputError(f"trace {trace.path}: it spans 0 s, which gives no rates; give plan_window")
    plan_window = plan_window or trace.span_s
    replay_window = replay_window or plan_window
    seen = trace.requests.select(_within(trace, "plan_window", plan_window))
    _within(trace, "replay_window", replay_window)

    recorded = replace(trace.requests, adapter=_adapter_indices(trace, ranks))
    everyone = Lengths(seen.tokens_in, seen.tokens_out)
    lengths = dict.fromkeys(ranks, everyone) | _own_lengths(trace, seen)
    unrated = tuple(Adapter(name, rank, 0.0, lengths[name]) for name, rank in ranks.items())

    planned = TraceWorkload(unrated, recorded, plan_window, scale, popularity)
    counts = np.bincount(planned.requests(seed).adapter, minlength=len(unrated))
    rates = np.maximum(counts, 1) / planned.horizon_s
    adapters = tuple(replace(adapter, rate=float(rate)) for adapter, rate in zip(unrated, rates, strict=True))
    return replace(planned, adapters=adapters, window_s=replay_window)


def _within(trace: Trace, name: str, window: Window) -> NDArray[np.bool_]:
    """Which requests arrive in ``window``; at least one must, and the trace must last (almost) as long as it."""
    times = trace.requests.arrival_s
    inside = (times >= window[0]) & (times < window[1])
    if not inside.any():
        raise BadInputError(
            f"trace {trace.path}: no request arrives in {name} [{window[0]:g}, {window[1]:g}]; "
            f"they arrive from {times[0]:g} to {times[-1]:g} s"
        )
    past = window[1] - float(times[-1])
    if past > max(_SPARE_S, _SPARE_SHARE * (window[1] - window[0])):
        raise BadInputError(
            f"trace {trace.path}: {name} [{window[0]:g}, {window[1]:g}] ends {past:.6g} s past the trace, "
            f"whose requests arrive from {times[0]:g} to {times[-1]:g} s"
        )
    return inside


def _adapter_indices(trace: Trace, ranks: Mapping[str, int]) -> Ints:
    """Which of ``ranks`` each request asks for; shape (requests,), -1 where the trace does not say."""
    if trace.names is None:
        return trace.requests.adapter
    index = {name: i for i, name in enumerate(ranks)}
    unknown = [name for name in trace.names if name not in index]
    if unknown:
        raise BadInputError(f"trace {trace.path}: adapter {unknown[0]!r} is not in the table of adapters")
    return np.array([index[name] for name in trace.names], dtype=np.int64)[trace.requests.adapter]


def _own_lengths(trace: Trace, seen: Requests) -> dict[str, Lengths]:
    """The recorded pairs of each adapter that the trace names among the requests ``seen``."""
    if trace.names is None:
        return {}
    order = np.argsort(seen.adapter, kind="stable")
    present, starts = np.unique(seen.adapter[order], return_index=True)
    pieces = np.split(order, starts[1:])
    return {
        trace.names[index]: Lengths(seen.tokens_in[piece], seen.tokens_out[piece])
        for index, piece in zip(present, pieces, strict=True)
    }
