"""Calibration: from measurements of one server to its profile.

The micro-benchmarks give what they isolate: the KV law, the load times, what a KV token and a prompt token cost in a
step. The rest of the step law is fitted to hours of real load (twin/step_fit.py).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from scipy.optimize import nnls

from loraplan.errors import BadInputError, did_you_mean
from loraplan.profiles import GRAPH_TOKENS, KVLaw, LoadTimes, Profile, StepLaw
from loraplan.workload import Floats
from twin.frontend_fit import FrontendFit, Views, fit_frontend, look, standard_errors
from twin.measured import COLUMNS, MeasuredRun, lengths_of, read_csv, read_runs
from twin.step_fit import LOADS, TERMS, Observed, StepFit, observe, solve

P = TypeVar("P", StepLaw, LoadTimes)

KV_FILE = "kv_tokens_vs_slots_rank.csv"
LOADS_FILE = "adapter_loading_raw.csv"
STEPS_FILE = "base_latency_raw.csv"

KEPT = "not measured: kept"

OUTLIER_AT = 4.0
"""A run is flagged when its residual is this many robust standard deviations from the median."""
WEAK_AT = 0.5
"""A constant is weakly identified when its standard error is more than this part of it."""


@dataclass(frozen=True)
class Constant:
    """One calibrated constant: its standard error (nan if given or at 0) and where it comes from."""

    name: str
    value: float
    error: float
    source: str


@dataclass(frozen=True)
class Regime:
    """How well the step law fits the runs of one regime, in percent of the measured time per output token."""

    name: str
    runs: int
    mape: float
    bias: float


@dataclass(frozen=True, eq=False)
class Calibration:
    """A profile and how it came about.

    Attributes:
        profile: the calibrated profile.
        constants: every constant with its standard error.
        regimes: residuals by regime.
        unidentified: constants that the data do not pin down, and why.
        outliers: runs that do not fit (they were weighted down), with their residual in percent.
    """

    profile: Profile
    constants: tuple[Constant, ...]
    regimes: tuple[Regime, ...]
    unidentified: tuple[str, ...]
    outliers: tuple[tuple[str, float], ...]


@dataclass(frozen=True, eq=False)
class Evidence:
    """What the measurements of one model say, before the laws are fitted to its runs.

    Attributes:
        model: whose runs.
        source: name of the file of the runs.
        start: the profile with what the micro-benchmarks give.
        constants: those constants.
        measured: constants of the step law that the micro-benchmarks give.
        given: these, and others that the runs do not tell: not fitted.
        observed: the runs, simulated at their own pace.
        views: what their clients would see; None if the profile to begin with has no frontend.
    """

    model: str
    source: str
    start: Profile
    constants: tuple[Constant, ...]
    measured: Mapping[str, float]
    given: Mapping[str, float]
    observed: Sequence[Observed]
    views: Views | None

    def fit(self, but: str | None = None) -> tuple[Profile, StepFit, FrontendFit | None]:
        """The profile fitted to all runs but those of one group, the step law, the frontend (None if not fitted).

        Raises:
            BadInputError: no run is left.
        """
        kept = [one for one in self.observed if one.run.group != but]
        if not kept:
            raise BadInputError(f"measured runs: all are of group {but!r}: none is left to fit to")
        steps = solve(kept, self.given)
        fitted = steps.apply(self.start)
        way = None
        if self.views is not None and self.start.frontend is not None:
            way = fit_frontend(self.views, self.start.frontend.scrape_s, but)
        source = f"calibrated from {len(kept)} measured runs of {self.model}"
        changes = {
            "step_ms": rounded(fitted.step_ms),
            "load_ms": rounded(fitted.load_ms),
            "frontend": way.frontend if way else self.start.frontend,
            "sources": tuple(dict.fromkeys((source, *self.start.sources))),
        }
        return fitted.model_copy(update=changes), steps, way


def gather(
    source: Path,
    model: str | None,
    like: Profile,
    seed: int = 0,
    on_progress: Callable[[int, int], None] | None = None,
) -> Evidence:
    """Read the measurements in ``source`` and simulate the runs at their own pace; arguments as of `calibrate`.

    Raises:
        BadInputError: the data are missing, broken, or do not have the model.
    """
    runs_file = _runs_file(source)
    runs = [run for run in read_runs(runs_file) if run.ok and np.isfinite(run.seen["mean_tpot_ms"])]
    chosen = _only(model, sorted({run.model for run in runs}))
    runs = [run for run in runs if run.model == chosen]
    folder = source if source.is_dir() else source.parent
    kv, kv_constants = kv_law(_benchmark(folder, KV_FILE, chosen), like)
    loads, load_constants = load_times(_benchmark(folder, LOADS_FILE, chosen), like)
    measured = _decode_costs(_benchmark(folder, STEPS_FILE, chosen))
    # Runs of one mix of lengths cannot tell these from the cost per request: not measured means kept, not fitted.
    given = {name: getattr(like.step_ms, name) for name in ("per_kv_token", "per_prefill_token", "eager")} | measured
    start = like.model_copy(update={"kv": kv, "load_ms": loads})
    lengths = lengths_of(runs)
    observed = observe(runs, start, lengths, given, seed, on_progress)
    views = look(observed, lengths, like.frontend.scrape_s, seed, on_progress) if like.frontend else None
    return Evidence(chosen, runs_file.name, start, (*kv_constants, *load_constants), measured, given, observed, views)


def calibrate(
    source: Path,
    model: str | None,
    like: Profile,
    seed: int = 0,
    on_progress: Callable[[int, int], None] | None = None,
) -> Calibration:
    """Calibrate ``like`` anew from the measurements in ``source``.

    Args:
        source: a CSV of measured runs; or a folder with one, and the micro-benchmarks in it or in ``calibration/``.
        model: whose rows to use; None if there is only one model.
        like: what is not measured (names, limits, rules), and the constants whose measurements are missing.
        seed: of the simulated arrivals.
        on_progress: called with (passes or simulations done, in all).

    Raises:
        BadInputError: the data are missing, broken, or do not have the model.
    """
    evidence = gather(source, model, like, seed, on_progress)
    profile, steps, way = evidence.fit()
    frontend = _frontend_constants(evidence, way)
    return Calibration(
        profile=profile,
        constants=(*evidence.constants, *_step_constants(evidence, steps), *frontend),
        regimes=_regimes([one.run for one in evidence.observed], steps),
        unidentified=(*unidentified(steps, evidence.given), *_weak(frontend)),
        outliers=_outliers(steps),
    )


def _step_constants(evidence: Evidence, fit: StepFit) -> list[Constant]:
    def source(name: str) -> str:
        if name in evidence.measured:
            return STEPS_FILE
        return KEPT if name in evidence.given else evidence.source

    return [
        Constant(
            f"step_ms.{name}" if name != LOADS else "loads, factor on load_ms", value, fit.errors[name], source(name)
        )
        for name, value in fit.values.items()
    ]


def _frontend_constants(evidence: Evidence, fit: FrontendFit | None) -> list[Constant]:
    frontend = fit.frontend if fit else evidence.start.frontend
    if frontend is None:
        return []
    errors = standard_errors(evidence.views, frontend.scrape_s) if fit and evidence.views else {}
    return [
        Constant(f"frontend.{name}", value, errors.get(name, float("nan")), evidence.source if name in errors else KEPT)
        for name, value in frontend.model_dump().items()
    ]


def _runs_file(source: Path) -> Path:
    if source.is_file():
        return source
    if not source.is_dir():
        raise BadInputError(f"{source}: no such file or folder")
    for path in sorted(source.glob("*.csv")):
        if set(COLUMNS) <= set(pd.read_csv(path, nrows=0).columns):
            return path
    raise BadInputError(f"{source}: no CSV in this folder has the columns of measured runs ({', '.join(COLUMNS)})")


def _only(model: str | None, known: Sequence[str]) -> str:
    if model is None:
        if len(known) != 1:
            raise BadInputError(f"--model: the runs are of several models; name one of {', '.join(known)}")
        return known[0]
    if model not in known:
        raise BadInputError(f"--model: no run is of {model!r}{did_you_mean(model, known)}")
    return model


def _benchmark(folder: Path, name: str, model: str) -> pd.DataFrame | None:
    """The rows of a micro-benchmark for ``model``, or None if it is not there."""
    for path in (folder / name, folder / "calibration" / name):
        if path.exists():
            table = read_csv(path, ("model",))
            return table[table["model"] == model]
    return None


def kv_law(table: pd.DataFrame | None, like: Profile) -> tuple[KVLaw, list[Constant]]:
    """``tokens - slots * (per_slot + per_slot_rank * max_rank)`` from the KV tokens that servers reported at start."""
    if table is None or not (table["status"] == "ok").any():
        values = (like.kv.tokens, like.kv.per_slot, like.kv.per_slot_rank)
        return like.kv, _constants("kv", ("tokens", "per_slot", "per_slot_rank"), values, None, KEPT)
    table = table[table["status"] == "ok"]
    slots, rank = table["adapter_slots"].to_numpy(np.float64), table["max_lora_rank"].to_numpy(np.float64)
    rows = np.column_stack((np.ones(slots.size), -slots, -slots * rank))
    found, errors = _least_squares(rows, table["kv_tokens"].to_numpy(np.float64))
    law = KVLaw(
        tokens=_round(found[0]),
        per_slot=_round(found[1]),
        per_slot_rank=_round(found[2]),
        block_tokens=like.kv.block_tokens,
    )
    return law, _constants("kv", ("tokens", "per_slot", "per_slot_rank"), found, errors, KV_FILE)


def load_times(table: pd.DataFrame | None, like: Profile) -> tuple[LoadTimes, list[Constant]]:
    """Load times of adapters one by one on an idle server."""
    names = ("to_gpu", "smaller_rank", "disk", "disk_per_rank")
    if table is None or table.empty:
        values = [getattr(like.load_ms, name) for name in names]
        return like.load_ms, _constants("load_ms", names, values, None, KEPT)
    rank, max_rank = table["adapter_rank"].to_numpy(np.float64), table["max_lora_rank"].to_numpy(np.float64)
    milliseconds = table["ms"].to_numpy(np.float64)
    to_gpu = ((table["kind"] == "cpu_to_gpu") & (table["phase"] == "benchmark")).to_numpy()
    disk = (table["kind"] == "disk_to_cpu").to_numpy()
    ones = np.ones(rank.size)
    up, up_errors = _least_squares(np.column_stack((ones, rank < max_rank))[to_gpu], milliseconds[to_gpu])
    read, read_errors = _least_squares(np.column_stack((ones, rank))[disk], milliseconds[disk])
    found, errors = np.concatenate((up, read)), np.concatenate((up_errors, read_errors))
    times = LoadTimes(**{name: _round(value) for name, value in zip(names, found, strict=True)})
    return times, _constants("load_ms", names, found, errors, LOADS_FILE)


def _decode_costs(table: pd.DataFrame | None) -> dict[str, float]:
    """What a KV token and a prompt token cost in a step, from decode and prefill benchmarks without LoRA, ms."""
    if table is None:
        return {}
    table = table[table["step_ms_median"].notna()]
    decode, prefill = (
        table[(table["kind"] == "decode") & (table["max_kv_usage"] < 0.95)],
        table[table["kind"] == "prefill"],
    )
    given: dict[str, float] = {}
    # The median step has the full batch: only the last steps of such a benchmark have less.
    batch = decode["max_batch"].to_numpy(np.float64)
    base = 0.0
    if batch.size >= 4:
        prompt = (decode["total_input_tokens"] / decode["completed"]).to_numpy(np.float64)
        tokens = batch * (prompt + decode["output_len"].to_numpy(np.float64) / 2)
        step_ms = decode["step_ms_median"].to_numpy(np.float64)
        rows = np.column_stack((np.ones(batch.size), batch, tokens, batch > GRAPH_TOKENS))
        found, _ = _least_squares(rows / step_ms[:, None], np.ones(batch.size))
        base, given["per_kv_token"] = float(found[0]), _round(found[2])
        if (batch > GRAPH_TOKENS).any():
            given["eager"] = _round(found[3])
    if base > 0 and not prefill.empty:
        per_step = (prefill["total_input_tokens"] / prefill["n_steps"]).to_numpy(np.float64)
        given["per_prefill_token"] = _round(
            np.median((prefill["step_ms_median"].to_numpy(np.float64) - base) / per_step)
        )
    return given


def _least_squares(rows: NDArray[Any], target: Floats) -> tuple[Floats, Floats]:
    """Non-negative least squares and standard errors (nan for what is at 0)."""
    scale = np.abs(rows).max(axis=0) + 1e-300
    found = nnls(rows / scale, target)[0] / scale
    active = found > 0
    freedom = max(1, target.size - int(active.sum()))
    variance = float(((rows @ found - target) ** 2).sum()) / freedom
    errors = np.full(found.size, np.nan)
    inverse = np.linalg.pinv(rows[:, active].T @ rows[:, active])
    errors[active] = np.sqrt(variance * np.diag(inverse))
    return found, errors


def _constants(
    part: str, names: Sequence[str], values: Sequence[float] | Floats, errors: Floats | None, source: str
) -> list[Constant]:
    unknown = np.full(len(names), np.nan)
    return [
        Constant(f"{part}.{name}", float(value), float(error), source)
        for name, value, error in zip(names, values, unknown if errors is None else errors, strict=True)
    ]


def _round(value: float) -> float:
    """Four significant digits: no constant here is known better."""
    return float(f"{value:.4g}") if value < 1e5 else float(round(value))


def rounded(part: P) -> P:
    """A part of a profile with its constants rounded."""
    return part.model_copy(update={name: _round(value) for name, value in part.model_dump().items()})


def _regimes(runs: Sequence[MeasuredRun], fit: StepFit) -> tuple[Regime, ...]:
    """Residuals of runs without a queue, of those that wait for slots, and of those that were starved."""
    groups: dict[str, list[float]] = {"queue-free": [], "slot-limited": [], "starved": []}
    for run in runs:
        if run.starved:
            name = "starved"
        else:
            name = "slot-limited" if run.seen["max_num_waiting"] > 0 and run.adapters > run.slots else "queue-free"
        groups[name].append(100 * fit.residuals[run.name])
    return tuple(
        Regime(name, len(values), float(np.mean(np.abs(values))), float(np.mean(values)))
        for name, values in groups.items()
        if values
    )


def unidentified(fit: StepFit, given: Mapping[str, float]) -> tuple[str, ...]:
    """Constants of the step law that the runs do not pin down."""
    found = []
    for name in TERMS:
        value, error = fit.values[name], fit.errors[name]
        if name in given:
            continue
        if value == 0:
            found.append(f"step_ms.{name}: at 0; these runs do not tell it from the others")
        elif error > WEAK_AT * value:
            found.append(f"step_ms.{name}: standard error {error:.2g} of {value:.2g}")
    return tuple(found)


def _weak(constants: Sequence[Constant]) -> Iterator[str]:
    for constant in constants:
        if constant.error > WEAK_AT * constant.value:
            yield f"{constant.name}: standard error {constant.error:.2g} of {constant.value:.2g}"


def _outliers(fit: StepFit) -> tuple[tuple[str, float], ...]:
    values = np.array(list(fit.residuals.values()))
    middle = float(np.median(values))
    spread = 1.4826 * float(np.median(np.abs(values - middle)))
    far = {name: 100 * r for name, r in fit.residuals.items() if abs(r - middle) > OUTLIER_AT * spread}
    return tuple(sorted(far.items(), key=lambda item: -abs(item[1])))
