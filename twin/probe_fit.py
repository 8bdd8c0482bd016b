"""Fitting a profile to probes of a live server: short runs whose requests are known one by one.

What the steps of a probe contain is known without a fit: its own requests, replayed in the twin. Each gives the
regression of ``step_fit`` an equation. A batch that decodes together: the time between two tokens. A prompt on an idle
server: the time to its first token, less what the way there takes. Open-loop runs, whose steps contain more the longer
they take, are turned to the measured pace, as measured hours are.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
import pandas as pd
from scipy import stats

from loraplan.errors import BadInputError
from loraplan.profiles import GRAPH_TOKENS, SMALL_TOKENS, KVLaw, LoadTimes, Profile, StepLaw
from loraplan.workload import Requests
from twin.batch import Simulation
from twin.calibrate import (
    KEPT,
    OUTLIER_AT,
    Calibration,
    Constant,
    Regime,
    kv_law,
    load_times,
    rounded,
    unidentified,
)
from twin.step_fit import LOADS, TERMS, Equation, StepFit, Turn, contents_of, inter_token_ms, regress, scaled

Kind = Literal["decode", "prefill", "open"]

LEAST_PROBES = 6
"""Fewer do not say what a step costs."""
TURNS = 6
NO_TERM = ("per_small_adapter_rank", "per_registered", "per_waiting")
"""Terms that short probes at one max rank cannot tell from others: 0."""
PASSES = 3
IMPOSSIBLE = 0.3
"""A time per token below this part of a single request's is none."""
LEAST_MS = 1e-3
HALF_A_TOKEN = 0.5
"""Capacities are whole blocks: what slots take, next to nothing, must not cost one."""
LEAST_PER_SLOT_RANK = 1e-9
"""A profile takes no zero here: slots that cost no KV memory."""


@dataclass(frozen=True, eq=False)
class Probe:
    """A short run and what was seen.

    Attributes:
        name, kind: ``decode``: requests sent at once; ``prefill``: one prompt at a time; ``open``: as they come.
        slots, max_rank, adapters: of the server, and how many adapters the requests name.
        requests: what was sent, when.
        ms: time between two tokens of an answer (decode, open), or to the first one (prefill).
    """

    name: str
    kind: Kind
    slots: int
    max_rank: int
    adapters: int
    requests: Requests
    ms: float

    def simulation(self, profile: Profile) -> Simulation:
        """The probe in the twin, to its end; every adapter has been loaded before, as those of a probe are."""
        seconds = float(self.requests.arrival_s.max(initial=0.0))
        return Simulation(
            profile=profile,
            slots=self.slots,
            max_rank=self.max_rank,
            ranks=np.full(self.adapters, self.max_rank),
            workload=self.requests,
            horizon_s=10 * seconds + 3600.0,
            name=self.name,
        )


@dataclass(frozen=True, eq=False)
class ProbeFit:
    """A calibration, and what the frontend adds to a first token.

    Attributes:
        calibration: the profile and how it came about.
        on_the_way_ms: HTTP, and whatever else is before the engine, on an idle server.
    """

    calibration: Calibration
    on_the_way_ms: float


def fit_probes(
    probes: Sequence[Probe], capacities: pd.DataFrame, loads: pd.DataFrame, like: Profile, source: str
) -> ProbeFit:
    """Fit a profile to what was measured on a live server.

    Args:
        probes: short runs.
        capacities: KV tokens by slots and max rank, columns as of ``kv_tokens_vs_slots_rank.csv``.
        loads: load times, columns as of ``adapter_loading_raw.csv``; may be empty.
        like: names, limits, rules, and what was not measured.
        source: what the probes were made on, for the profile.

    Raises:
        BadInputError: too little was measured.
    """
    probes = _possible(probes)
    if sum(probe.kind == "decode" for probe in probes) < LEAST_PROBES:
        raise BadInputError(f"too little was measured: expected at least {LEAST_PROBES} probes of decoding")
    kv, kv_constants = _capacity(capacities, like)
    times, load_constants = _loads(loads, like)
    start = like.model_copy(update={"kv": kv, "load_ms": times, "frontend": None})
    given = _given(probes, like)
    fit, on_the_way_ms = _fit(probes, start, given)
    profile = fit.apply(start)
    sources = (f"calibrated from {len(probes)} probes of {source}",)
    profile = profile.model_copy(update={"step_ms": rounded(profile.step_ms), "sources": sources})
    constants = [
        Constant(f"step_ms.{name}", value, fit.errors[name], "probes" if name not in given else "not fitted")
        for name, value in fit.values.items()
        if name != LOADS
    ]
    return ProbeFit(
        Calibration(
            profile=profile,
            constants=(*kv_constants, *load_constants, *constants),
            regimes=_regimes(probes, fit),
            unidentified=unidentified(fit, given),
            outliers=_outliers(fit),
        ),
        on_the_way_ms,
    )


def _possible(probes: Sequence[Probe]) -> list[Probe]:
    """The probes without those that took less than any step can: a client that was kept from reading saw no gaps."""
    known = [probe for probe in probes if math.isfinite(probe.ms) and probe.ms > 0]
    decodes = [probe for probe in known if probe.kind == "decode"]
    smallest = min((len(probe.requests) for probe in decodes), default=0)
    base = [probe.ms for probe in decodes if len(probe.requests) == smallest]
    return [probe for probe in known if probe.ms > IMPOSSIBLE * float(np.median(base))] if base else known


def _capacity(table: pd.DataFrame, like: Profile) -> tuple[KVLaw, list[Constant]]:
    """The KV law; with one number of slots only the capacity there is known, and slots are taken to cost nothing."""
    if table[["adapter_slots", "max_lora_rank"]].drop_duplicates().shape[0] > 1:
        padded = table.copy()
        # What slots take is one unknown where all have one max rank: the part of the rank is all of it.
        law, constants = _one_rank(padded, like) if table["max_lora_rank"].nunique() == 1 else kv_law(padded, like)
        return law, constants
    tokens = float(table["kv_tokens"].median()) + HALF_A_TOKEN
    law = KVLaw(tokens=tokens, per_slot=0.0, per_slot_rank=LEAST_PER_SLOT_RANK, block_tokens=like.kv.block_tokens)
    source = "one number of slots: theirs is not known"
    nothing = float("nan")
    return law, [Constant("kv.tokens", tokens, nothing, "metrics"), Constant("kv.per_slot_rank", 0.0, nothing, source)]


def _one_rank(table: pd.DataFrame, like: Profile) -> tuple[KVLaw, list[Constant]]:
    slots, tokens = table["adapter_slots"].to_numpy(np.float64), table["kv_tokens"].to_numpy(np.float64)
    rank = float(table["max_lora_rank"].iloc[0])
    rows = np.column_stack((np.ones(slots.size), -slots * rank))
    found, left, _, _ = np.linalg.lstsq(rows, tokens, rcond=None)
    free = max(1, tokens.size - 2)
    errors = np.sqrt(np.diag(np.linalg.pinv(rows.T @ rows)) * (float(left[0]) if left.size else 0.0) / free)
    law = KVLaw(
        tokens=HALF_A_TOKEN + (float(found[0]) if found[1] > 0 else float(tokens.mean())),
        per_slot=0.0,
        per_slot_rank=max(float(found[1]), LEAST_PER_SLOT_RANK),
        block_tokens=like.kv.block_tokens,
    )
    return law, [
        Constant("kv.tokens", law.tokens, float(errors[0]), "metrics"),
        Constant("kv.per_slot_rank", law.per_slot_rank, float(errors[1]), "metrics"),
    ]


def _loads(table: pd.DataFrame, like: Profile) -> tuple[LoadTimes, list[Constant]]:
    """Load times; those of a kind that was not measured are kept."""
    if table.empty:
        return load_times(None, like)
    kept = {"cpu_to_gpu": like.load_ms.to_gpu, "disk_to_cpu": like.load_ms.disk}
    missing = {kind: ms for kind, ms in kept.items() if not (table["kind"] == kind).any()}
    rank = int(table["max_lora_rank"].max())
    rows = [
        {"kind": kind, "phase": "benchmark", "adapter_rank": rank, "max_lora_rank": rank, "ms": ms}
        for kind, ms in missing.items()
    ]
    times, constants = load_times(pd.concat((table, pd.DataFrame(rows))) if rows else table, like)
    prefix = {"cpu_to_gpu": ("load_ms.to_gpu", "load_ms.smaller"), "disk_to_cpu": ("load_ms.disk",)}
    names = tuple(name for kind in missing for name in prefix[kind])
    return times, [
        replace(one, error=float("nan"), source=KEPT) if names and one.name.startswith(names) else one
        for one in constants
    ]


def _given(probes: Sequence[Probe], like: Profile) -> dict[str, float]:
    """Terms that these probes say nothing of."""
    given = dict.fromkeys(NO_TERM, 0.0) | {LOADS: 1.0}
    if not any(probe.kind == "prefill" for probe in probes):
        given["per_prefill_token"] = like.step_ms.per_prefill_token
    if max(_largest_batch(probe) for probe in probes) <= GRAPH_TOKENS:
        given["eager"] = 0.0
    if len({probe.slots for probe in probes}) < 2:
        given |= dict.fromkeys(("per_slot_shrink", "per_slot_expand"), 0.0)
    return given


def _largest_batch(probe: Probe) -> int:
    return len(probe.requests) if probe.kind == "decode" else 0


def _fit(probes: Sequence[Probe], start: Profile, given: dict[str, float]) -> tuple[StepFit, float]:
    """Fit to the closed probes, then to all: the steps of the open ones depend on how long steps take."""
    guess = start.model_copy(update={"step_ms": _guess(probes)})
    decodes = [_equation(probe, guess) for probe in probes if probe.kind == "decode"]
    prompts = [_Prompt.of(probe, guess) for probe in probes if probe.kind == "prefill"]
    without = given | {"per_prefill_token": 0.0}
    fit = regress(decodes, [], without)  # tells what a step takes but for its prompt tokens
    if max(len(probe.requests) for probe in probes if probe.kind == "decode") <= SMALL_TOKENS:
        # Large steps are those of single prompts alone: what an adapter costs there they cannot tell from their base.
        given["per_adapter"] = fit.values["per_small_adapter"]
    on_the_way_ms = _on_the_way(prompts, fit)
    known = [prompt.equation(on_the_way_ms, fit) for prompt in prompts]
    fit = regress([*decodes, *known], [], given)
    waiting = [probe for probe in probes if probe.kind == "open"]
    for _ in range(PASSES if waiting else 0):
        law = fit.apply(start)
        opened = [equation for probe in waiting if (equation := _turned(probe, law)) is not None]
        fit = regress([*decodes, *known, *opened], [], given)
    return fit, on_the_way_ms


@dataclass(frozen=True, eq=False)
class _Prompt:
    """A prompt on an idle server: how many steps its chunks take, and what they contain in the mean."""

    probe: Probe
    steps: float
    contents: dict[str, float]

    @classmethod
    def of(cls, probe: Probe, law: Profile) -> _Prompt:
        sums = probe.simulation(law).run().features[0]
        contents = contents_of(sums, 1.0, probe.slots, probe.max_rank, probe.adapters)
        return cls(probe, float(sums[0]) / len(probe.requests), contents)

    def equation(self, on_the_way_ms: float, without: StepFit) -> Equation:
        """Its steps without its way; at least half of what they take by a law ``without`` prompt tokens."""
        least = 0.5 * _step_ms(without, self.contents)
        return Equation(self.probe, self.contents, max((self.probe.ms - on_the_way_ms) / self.steps, least, LEAST_MS))


def _on_the_way(prompts: Sequence[_Prompt], without: StepFit) -> float:
    """Of the time to a first token, what neither grows with the prompt nor is a step without prompt tokens, ms."""
    single = [prompt for prompt in prompts if prompt.steps < 1.5]
    if not single:
        return 0.0
    tokens = [prompt.contents["prefill_tokens"] for prompt in single]
    times = [prompt.probe.ms for prompt in single]
    if len(set(tokens)) < 2:
        return 0.0
    slope, middle, *_ = stats.theilslopes(times, tokens)
    at_none = middle if slope > 0 else float(np.median(times))
    return max(0.0, float(at_none) - _step_ms(without, single[0].contents))


def _step_ms(fit: StepFit, contents: dict[str, float]) -> float:
    return float(sum(value * TERMS[name](contents) for name, value in fit.values.items()))


def _guess(probes: Sequence[Probe]) -> StepLaw:
    """A law to begin with: closed probes contain the same whatever steps take."""
    base = min(probe.ms for probe in probes)
    nothing = {name: 0.0 for name in TERMS if name != LOADS}
    return StepLaw(**nothing | {"base": max(base, 1e-3), "per_prefill_token": 0.01})


def _equation(probe: Probe, law: Profile) -> Equation:
    """A batch that decodes: what its steps contain, and the time between two of its tokens."""
    sums = probe.simulation(law).run().features[1]
    return Equation(probe, contents_of(sums, 1.0, probe.slots, probe.max_rank, probe.adapters), probe.ms)


def _turned(probe: Probe, law: Profile) -> Equation | None:
    """An open probe at its own pace; None if it has no pace that the twin can have."""
    turn = Turn()
    for _ in range(TURNS):
        run = probe.simulation(scaled(law, turn.factor, turn.factor)).run()
        turn.look(inter_token_ms(run) / probe.ms)
        if turn.settled:
            contents = contents_of(run.features[1], 1.0 / turn.factor, probe.slots, probe.max_rank, probe.adapters)
            return Equation(probe, contents, probe.ms)
    return None


def _regimes(probes: Sequence[Probe], fit: StepFit) -> tuple[Regime, ...]:
    kinds: dict[str, list[float]] = {}
    for probe in probes:
        if probe.name in fit.residuals:
            kinds.setdefault(probe.kind, []).append(100 * fit.residuals[probe.name])
    return tuple(
        Regime(kind, len(values), float(np.mean(np.abs(values))), float(np.mean(values)))
        for kind, values in kinds.items()
    )


def _outliers(fit: StepFit) -> tuple[tuple[str, float], ...]:
    values = np.array(list(fit.residuals.values()))
    spread = 1.4826 * float(np.median(np.abs(values - np.median(values))))
    far = {name: 100 * r for name, r in fit.residuals.items() if abs(r - np.median(values)) > OUTLIER_AT * spread}
    return tuple(sorted(far.items(), key=lambda item: -abs(item[1])))
