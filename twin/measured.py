"""Measured runs of a real server, and their replay in the twin.

The columns are those of the runs published with arXiv 2508.08343 (see docs/calibrate.md): each row is an hour of
open-loop Poisson load on one server, with its adapters, slots, rates and what a client and the server saw.
"""

from __future__ import annotations

import math
import zlib
from collections.abc import Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from scipy.special import gammaincinv, ndtr

from loraplan.errors import BadInputError, did_you_mean
from loraplan.profiles import Profile
from loraplan.sources import normal_points
from loraplan.workload import Adapter, Floats, Ints, Lengths, RateWorkload
from twin.batch import Simulation

SHIPPED = {
    "llama-3.1-8b-instruct": "h100-64gb/llama-3.1-8b",
    "qwen-2.5-7b-instruct": "h100-64gb/qwen-2.5-7b",
}
"""Model names as the published runs have them, and the profiles calibrated on those runs."""

IDENTITY = ("dataset", "model", "group", "run_id")
NUMBERS = (
    "served_adapters",
    "adapter_slots",
    "max_lora_rank",
    "total_time_s",
    "completed",
    "total_input_tokens",
    "total_output_tokens",
    "pool_mean_input",
    "pool_mean_output",
    "total_throughput",
    "ideal_throughput",
    "starved",
    "mean_ttft_ms",
    "mean_tpot_ms",
    "mean_itl_ms",
    "tw_mean_num_running",
    "max_num_waiting",
    "client_overloaded",
)
NEEDED = ("served_adapters", "adapter_slots", "max_lora_rank", "total_time_s")
SEEN_IF_OK = ("completed", "total_throughput", "ideal_throughput", "starved")
COLUMNS = (*IDENTITY, "status", "rates", "ranks", *NUMBERS)

MAX_OUTSTANDING = 27_000
"""Requests that the load generator of these runs could have unanswered: it ran out of ports at about that many."""


MOST_CHANCE = 0.04
"""How far the requests sent may be off those that the rates ask for by chance, as a share."""

SHAREGPT = {"input_cv": 1.12, "output_cv": 1.07, "correlation": -0.27}
"""Shape of the requests' lengths: coefficients of variation as published; the correlation is what makes a running
request hold the KV tokens that these runs show (360)."""
SHORTEST, LONGEST_INPUT, LONGEST = 4, 1024, 2048
"""Bounds of the tokens in, of the tokens in and out, and of both together, as published."""
LONGEST_OUTPUT = 896
"""Inferred from the runs of dataset dt, held out by group: with longer answers servers with few slots serve too little,
as all other adapters wait for the longest answer of those that have a slot; with shorter ones too many requests run."""


@dataclass(frozen=True, eq=False)
class MeasuredRun:
    """One row: the server, its load, and what was seen; ``seen`` holds the numeric columns by name."""

    key: tuple[str, ...]
    model: str
    group: str
    ok: bool
    out_of_memory: bool
    slots: int
    max_rank: int
    rates: tuple[float, ...]
    ranks: tuple[int, ...]
    adapters: int
    seconds: float
    seen: dict[str, float]

    @property
    def name(self) -> str:
        """How messages name the run."""
        return "/".join(self.key)

    @property
    def sent(self) -> float:
        """Tokens that the client asked for / tokens that the rates stand for: its draw of the arrivals.

        A client that could not send all that it wanted to asked for far less: there it is 1, and the twin's client too
        has too few ports.
        """
        seen = self.seen
        each = seen["pool_mean_input"] + seen["pool_mean_output"]
        wanted = float(_dealt(self.rates, self.adapters).sum()) * each
        share = seen["ideal_throughput"] / wanted if wanted > 0 else math.nan
        return share if abs(share - 1.0) < MOST_CHANCE else 1.0

    @property
    def adapter_rates(self) -> Floats:
        """Requests/s of each adapter, dealt round-robin, as they were sent; shape (adapters,)."""
        return _dealt(self.rates, self.adapters) * self.sent

    @property
    def adapter_ranks(self) -> Ints:
        """Rank of each adapter, dealt round-robin; shape (adapters,)."""
        return np.minimum(_dealt(self.ranks, self.adapters), self.max_rank).astype(np.int64)

    @property
    def starved(self) -> bool:
        """Whether it served less than 0.9 of what was asked."""
        return self.seen["starved"] == 1


def read_runs(path: Path) -> list[MeasuredRun]:
    """Read measured runs from a CSV file.

    Raises:
        BadInputError: the file cannot be read, or a column is missing or holds something else than numbers.
    """
    table = read_csv(path, COLUMNS)
    for column in NUMBERS:
        table[column] = numbers(path, table, column)
    for column in NEEDED:
        _require_positive(path, table, column)
    for column in SEEN_IF_OK:
        _require_known(path, table[table["status"] == "ok"], column)
    runs = []
    for number, row in enumerate(table.to_dict("records"), start=1):
        runs.append(
            MeasuredRun(
                key=tuple(str(row[column]) for column in IDENTITY),
                model=str(row["model"]),
                group=f"{row['dataset']}/{row['group']}",
                ok=row["status"] == "ok",
                out_of_memory=row["status"] == "oom",
                slots=int(row["adapter_slots"]),
                max_rank=int(row["max_lora_rank"]),
                rates=_listed(path, number, row, "rates"),
                ranks=tuple(int(rank) for rank in _listed(path, number, row, "ranks")),
                adapters=int(row["served_adapters"]),
                seconds=float(row["total_time_s"]),
                seen={column: float(row[column]) for column in NUMBERS},
            )
        )
    return runs


def read_csv(path: Path, columns: Sequence[str]) -> pd.DataFrame:
    """Read a CSV file that must have ``columns``.

    Raises:
        BadInputError: it cannot be read, is empty, or lacks a column.
    """
    try:
        table = pd.read_csv(path)
    except OSError as error:
        raise BadInputError(f"{path}: {error.strerror or error}") from None
    except (pd.errors.ParserError, pd.errors.EmptyDataError, UnicodeDecodeError) as error:
        raise BadInputError(f"{path}: not a CSV table: {' '.join(str(error).split())}") from None
    for column in columns:
        if column not in table:
            raise BadInputError(f"{path}: column {column!r} is missing{did_you_mean(column, map(str, table.columns))}")
    if table.empty:
        raise BadInputError(f"{path}: it has no rows")
    return table


def numbers(path: Path, table: pd.DataFrame, column: str) -> pd.Series[float]:
    """A column as numbers; empty cells are nan.

    Raises:
        BadInputError: a cell holds something else.
    """
    found = pd.to_numeric(table[column], errors="coerce")
    _refuse(path, table, column, found.isna() & table[column].notna(), "expected a number")
    return found


def _require_positive(path: Path, table: pd.DataFrame, column: str) -> None:
    wrong = ~(np.isfinite(table[column]) & (table[column] > 0))
    _refuse(path, table, column, wrong, "expected a number above 0")


def _require_known(path: Path, table: pd.DataFrame, column: str) -> None:
    _refuse(path, table, column, table[column].isna(), "expected a number in a run that is ok")


def _refuse(path: Path, table: pd.DataFrame, column: str, wrong: pd.Series[bool], complaint: str) -> None:
    if wrong.any():
        row = int(wrong.to_numpy().argmax())
        label = int(table.index[row]) + 1
        value = table[column].iloc[row]
        given = repr(value) if isinstance(value, str) else f"{value:g}"
        raise BadInputError(f"{path}: row {label}, {column}: {complaint} (got {given})")


def _listed(path: Path, number: int, row: Mapping[Hashable, Any], column: str) -> tuple[float, ...]:
    """A cell that holds positive numbers with blanks between them."""
    try:
        values = tuple(float(value) for value in str(row[column]).split())
    except ValueError:
        values = ()
    if not values or not all(0 < value < math.inf for value in values):
        raise BadInputError(
            f"{path}: row {number}, {column}: expected numbers above 0 with blanks between (got {row[column]!r})"
        )
    return values


def delivered(runs: Iterable[MeasuredRun]) -> tuple[float, float]:
    """Mean tokens in and out per request as served: answers end at an end-of-sequence token before the asked length.

    Over runs that are not starved, where those completed are a fair sample of those asked.
    """
    fair = [run.seen for run in runs if run.ok and not run.starved]
    if not fair:
        raise BadInputError("measured runs: expected at least one that is ok and not starved")
    completed = sum(seen["completed"] for seen in fair)
    cut = sum(seen["total_output_tokens"] for seen in fair) / sum(
        seen["completed"] * seen["pool_mean_output"] for seen in fair
    )
    asked_in = sum(seen["completed"] * seen["pool_mean_input"] for seen in fair) / completed
    asked_out = sum(seen["completed"] * seen["pool_mean_output"] for seen in fair) / completed
    return asked_in, asked_out * cut


def lengths_of(runs: Iterable[MeasuredRun]) -> Lengths:
    """The joint request lengths of these runs: their means, in the shape of ShareGPT, Gamma laws within its bounds.

    Lognormal laws would have answers far longer than any there was.
    """
    return sharegpt(*delivered(runs))


def sharegpt(mean_in: float, mean_out: float) -> Lengths:
    """Joint request lengths in the shape of ShareGPT with these means (tokens): Gamma laws within its bounds."""
    first, second = normal_points()
    angle = math.asin(_copula(SHAREGPT["correlation"]))
    mixed = math.sin(angle) * first + math.cos(angle) * second
    tokens_in = _within(ndtr(first), mean_in, SHAREGPT["input_cv"], LONGEST_INPUT)
    tokens_out = _within(ndtr(mixed), mean_out, SHAREGPT["output_cv"], LONGEST_OUTPUT)
    return Lengths(tokens_in, np.minimum(tokens_out, LONGEST - tokens_in))


def _copula(correlation: float) -> float:
    """Correlation of two normals whose Gamma lengths correlate by ``correlation``; near exponential ones, to 0.01."""
    return correlation * 1.4


def _within(uniform: Floats, mean: float, cv: float, longest: int) -> Ints:
    """Whole tokens between the bounds, of a Gamma law whose mean and coefficient of variation are these in them."""
    scale, spread = mean, cv
    for _ in range(60):
        shape = 1.0 / spread**2
        tokens = np.clip(np.rint(gammaincinv(shape, uniform) * scale / shape), SHORTEST, longest)
        scale *= mean / tokens.mean()
        spread *= cv * tokens.mean() / tokens.std()
    return np.asarray(tokens, dtype=np.int64)


def replay(run: MeasuredRun, profile: Profile, lengths: Lengths, seed: int) -> Simulation:
    """A measured run in the twin: rates and ranks dealt round-robin over its adapters, Poisson arrivals.

    The client and the profile's frontend, if it has one, are in it.
    """
    adapters = tuple(Adapter(f"a{i}", 1, float(rate), lengths) for i, rate in enumerate(run.adapter_rates))
    return Simulation(
        profile=profile,
        slots=run.slots,
        max_rank=run.max_rank,
        ranks=run.adapter_ranks,
        workload=RateWorkload(adapters, run.seconds),
        horizon_s=run.seconds,
        seed=seed,
        max_outstanding=MAX_OUTSTANDING,
        frontend=profile.frontend,
        name=run.name,
    )


def seed_of(run: MeasuredRun, number: int) -> int:
    """The seed of a run's replay ``number``: its own, as one draw for all runs would bias them all to the same side."""
    return zlib.crc32(f"{run.name}/{number}".encode())


def _dealt(values: Sequence[float], count: int) -> Floats:
    return np.resize(np.asarray(values, dtype=np.float64), count)
