"""Fitting the step law to measured runs: non-negative least squares on what the simulated runs contained.

The law is linear in what a step contains, but what steps contain depends on how long they take: a slower server holds
more requests. So every run is simulated with its own factor on the step time, turned until the simulated time per
output token equals the measured one. Then the simulated steps contain what the measured ones did, and the law is a
linear regression of the measured times on the simulated contents. A few passes of simulating and fitting settle it.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import nnls

from loraplan.profiles import LoadTimes, Profile, StepLaw, rank_tiles
from loraplan.workload import Floats, Lengths
from twin.batch import Simulation, spread
from twin.measured import MeasuredRun, replay, seed_of
from twin.server import Run
from twin.state import FEATURES, OUTPUT_SLICE

LOADS = "loads"
"""The term of the adapter loads: a factor on the load times of an isolated measurement."""

TERMS: dict[str, Callable[[Mapping[str, float]], float]] = {
    "base": lambda step: 1.0,
    "per_request": lambda step: step["requests"],
    "per_kv_token": lambda step: step["kv_tokens"],
    "per_prefill_token": lambda step: step["prefill_tokens"],
    "per_waiting": lambda step: step["waiting"],
    "eager": lambda step: step["eager"],
    "per_adapter": lambda step: step["adapters"],
    "per_small_adapter": lambda step: step["small_adapters"],
    "per_small_adapter_rank": lambda step: step["small_adapters"] * step["max_rank"],
    "per_registered": lambda step: (step["adapters"] + step["small_adapters"]) * step["registered"],
    "per_adapter_request": lambda step: step["adapters_x_requests"],
    "per_slot_shrink": lambda step: step["shrink_tiles"] * step["slots"] * rank_tiles(int(step["max_rank"])),
    "per_slot_expand": lambda step: step["expand_tiles"] * step["slots"],
    LOADS: lambda step: step["load_ms"],
}
"""What each term of the step law multiplies, given the mean contents of a step."""

LEAST_BASE_MS = 1e-3
"""A step takes time: few runs may not tell the base from the rest, and put it at 0."""

PASSES = 8
TURN_LIMIT = math.log(4.0)
USUAL_SLOPE = 1.5
SETTLED_AT = 0.01
SURE = 1.25
"""Mean of the running requests, in parts of a limit, from which on the limit is nearly always passed."""
ROBUST_AT = 0.05
"""Relative residual from which a run counts less."""
REWEIGHTINGS = 12
HARDLY_ANY = 0.05
"""Mean contents of a step up to which a term is not fitted: noise would make its constant huge, and queues of it."""


@dataclass(frozen=True)
class StepFit:
    """A fitted step law.

    Attributes:
        values: each term's constant, ms per unit (``loads``: a factor).
        errors: its standard error; nan for a constant that was given or is at 0.
        residuals: run name -> relative residual of its time per output token (fitted / measured - 1).
        step_residuals: run name -> the same for the mean step time of runs that were starved.
    """

    values: dict[str, float]
    errors: dict[str, float]
    residuals: dict[str, float]
    step_residuals: dict[str, float]

    def apply(self, profile: Profile) -> Profile:
        """``profile`` with this law, and its times of loads into a slot multiplied by the factor of the loads.

        Times of loads from disk stay as they are: the runs have none.
        """
        law = {name: value for name, value in self.values.items() if name != LOADS}
        law["base"] = max(law["base"], LEAST_BASE_MS)
        factor, times = self.values[LOADS], profile.load_ms
        slots = {"to_gpu": factor * times.to_gpu, "smaller_rank": factor * times.smaller_rank}
        return profile.model_copy(update={"step_ms": StepLaw(**law), "load_ms": times.model_copy(update=slots)})


class Named(Protocol):
    """Whatever was measured, as messages name it."""

    @property
    def name(self) -> str:
        """Its name."""


@dataclass(frozen=True)
class Equation:
    """One measured time in ms and the mean contents of the steps it is made of."""

    run: Named
    contents: dict[str, float]
    milliseconds: float


@dataclass(frozen=True, eq=False)
class Observed:
    """A measured run, simulated at its own pace.

    Attributes:
        run: what was measured.
        profile: with which the simulated time per output token is the measured one.
        tokens: equation of the time per output token.
        steps: equation of the step time; None if the server had not always enough to do.
    """

    run: MeasuredRun
    profile: Profile
    tokens: Equation
    steps: Equation | None


def observe(
    runs: Sequence[MeasuredRun],
    profile: Profile,
    lengths: Lengths,
    given: Mapping[str, float],
    seed: int = 0,
    on_progress: Callable[[int, int], None] | None = None,
) -> list[Observed]:
    """Simulate ``runs`` (all ok, of one model), each at its own pace, beginning with the law of ``profile``.

    Args:
        runs: the measured runs.
        profile: KV law, limits, isolated load times, and a first guess of the step law.
        lengths: the requests' lengths.
        given: terms whose constants are known from elsewhere, and those constants.
        seed: of the simulated arrivals.
        on_progress: called with (passes done, passes in all).
    """
    turns = {run.name: Turn() for run in runs}
    observed: dict[str, Observed] = {}
    law = profile
    for number in range(PASSES):
        if on_progress is not None:
            on_progress(number, PASSES)
        open_runs = [run for run in runs if not turns[run.name].settled or number == PASSES - 1]
        tasks = [(run, scaled(law, turns[run.name].factor, turns[run.name].factor)) for run in open_runs]
        simulations = (replay(run, turned, lengths, seed_of(run, seed)) for run, turned in tasks)
        for (run, turned), seen in zip(tasks, spread(Simulation.run, simulations), strict=True):
            # The twin's load milliseconds carry the factors it ran with; the law wants those of an isolated load.
            loads = profile.load_ms.to_gpu / max(turned.load_ms.to_gpu, 1e-12)
            of_steps = step_equation(run, seen, loads) if run.starved else None
            observed[run.name] = Observed(run, turned, token_equation(run, seen, loads), of_steps)
            simulated, measured = pace(run, seen)
            turns[run.name].look(simulated / measured)
        before, law = law, solve(list(observed.values()), given).apply(profile)
        for name, one in observed.items():
            contents = one.tokens.contents
            turns[name].rebase(predict(contents, before, profile) / predict(contents, law, profile))
    return list(observed.values())


@dataclass
class Turn:
    """The factor on one run's step time, and how the simulated time per token answers to it."""

    factor: float = 1.0
    settled: bool = False
    last: tuple[float, float] | None = None
    """Logarithms of the factor and of simulated / measured time at the look before."""

    def look(self, ratio: float) -> None:
        """Turn the factor towards where ``ratio`` (simulated / measured time) is 1, by the secant rule.

        Near saturation a small change of the step time changes the batch and so the time per token by much more.
        """
        self.settled = abs(ratio - 1.0) <= SETTLED_AT
        at, off = math.log(self.factor), math.log(ratio)
        slope = USUAL_SLOPE
        if self.last is not None and abs(at - self.last[0]) > 1e-6:
            slope = min(max((off - self.last[1]) / (at - self.last[0]), 0.7), 20.0)
        self.last = at, off
        if not self.settled:
            self.factor = math.exp(min(max(at - off / slope, -TURN_LIMIT), TURN_LIMIT))

    def rebase(self, change: float) -> None:
        """Take over a new law that makes this run's steps ``1 / change`` times as long."""
        self.factor *= change
        if self.last is not None:
            self.last = self.last[0] + math.log(change), self.last[1]


def predict(contents: Mapping[str, float], law: Profile, isolated: Profile) -> float:
    """Milliseconds of a step of these contents by the law of a profile."""
    once = isolated.load_ms.to_gpu
    values = law.step_ms.model_dump() | {LOADS: law.load_ms.to_gpu / once if once > 0 else 0.0}
    return float(sum(value * TERMS[name](contents) for name, value in values.items()))


def scaled(profile: Profile, steps: float, loads: float) -> Profile:
    """``profile`` with all step times and load times multiplied."""
    law = StepLaw(**{name: steps * value for name, value in profile.step_ms.model_dump().items()})
    times = LoadTimes(**{name: loads * value for name, value in profile.load_ms.model_dump().items()})
    return profile.model_copy(update={"step_ms": law, "load_ms": times})


def time_per_token_ms(seen: Run) -> float:
    """Mean over completed requests of (finish - first token) / (tokens - 1), as ``vllm bench serve`` defines TPOT."""
    tokens = seen.requests.tokens_out - 1
    done = np.isfinite(seen.finish_s) & (tokens > 0)
    return float(1e3 * np.mean((seen.finish_s[done] - seen.first_token_s[done]) / tokens[done]))


def inter_token_ms(seen: Run) -> float:
    """Mean gap between tokens over all completed requests, ms."""
    tokens = seen.requests.tokens_out - 1
    done = np.isfinite(seen.finish_s)
    return float(1e3 * (seen.finish_s[done] - seen.first_token_s[done]).sum() / tokens[done].sum())


def pace(run: MeasuredRun, seen: Run) -> tuple[float, float]:
    """How long tokens took in the twin and in the measured run, ms.

    The mean gap between tokens, if so many requests ran that the frontend merged none of them; else the mean over
    requests of their time per output token, to which it does not matter in how many chunks they came.
    """
    if run.seen["tw_mean_num_running"] > SURE * OUTPUT_SLICE and np.isfinite(run.seen["mean_itl_ms"]):
        return inter_token_ms(seen), run.seen["mean_itl_ms"]
    return time_per_token_ms(seen), run.seen["mean_tpot_ms"]


def token_equation(run: MeasuredRun, seen: Run, loads: float) -> Equation:
    """Measured time of a token = law of the steps as the output tokens met them.

    The twin says how the mean over tokens, which the law gives, relates to a mean over requests.
    """
    simulated, measured = pace(run, seen)
    return Equation(run, _contents(run, seen.features[1], loads), measured * inter_token_ms(seen) / simulated)


def step_equation(run: MeasuredRun, seen: Run, loads: float) -> Equation:
    """Measured step time = law of the steps, for a server that had always enough to do.

    Steps themselves were not measured; what they served was, and the twin says what a step serves.
    """
    served = (seen.requests.tokens_in + seen.requests.tokens_out)[np.isfinite(seen.finish_s)].sum() / seen.horizon_s
    step_ms = 1e3 * seen.busy_s / seen.steps
    return Equation(run, _contents(run, seen.features[0], loads), step_ms * served / run.seen["total_throughput"])


def _contents(run: MeasuredRun, sums: Floats, loads: float) -> dict[str, float]:
    return contents_of(sums, loads, run.slots, run.max_rank, run.adapters)


def contents_of(sums: Floats, loads: float, slots: int, max_rank: int, registered: int) -> dict[str, float]:
    """Mean contents of the steps whose ``features`` a simulation has summed up, load times multiplied by ``loads``."""
    means = dict(zip(FEATURES, (sums / sums[0]).tolist(), strict=True))
    means["load_ms"] *= loads
    return means | {"slots": float(slots), "max_rank": float(max_rank), "registered": float(registered)}


def solve(observed: Sequence[Observed], given: Mapping[str, float]) -> StepFit:
    """Solve the equations of measured runs for the terms that are not given."""
    return regress([one.tokens for one in observed], [one.steps for one in observed if one.steps], given)


def regress(tokens: Sequence[Equation], steps: Sequence[Equation], given: Mapping[str, float]) -> StepFit:
    """Solve the equations for the terms that are not given: non-negative, relative and robust least squares."""
    equations = [*tokens, *steps]
    free = [name for name in TERMS if name not in given]
    rows = np.array([[TERMS[name](equation.contents) for name in free] for equation in equations])
    rows[:, rows.max(axis=0) < HARDLY_ANY] = 0.0
    target = np.array([equation.milliseconds for equation in equations])
    known = np.array([sum(given[name] * TERMS[name](e.contents) for name in given) for e in equations])
    rows, wanted = rows / target[:, None], (target - known) / target
    scale = np.abs(rows).max(axis=0) + 1e-300
    weights = np.ones(target.size)
    for _ in range(REWEIGHTINGS):
        found = nnls(rows / scale * weights[:, None], wanted * weights)[0] / scale
        residuals = rows @ found - wanted
        weights = 1.0 / np.sqrt(1.0 + (residuals / ROBUST_AT) ** 2)
    errors = _standard_errors(rows, residuals, weights, found > 0)
    half = len(tokens)
    return StepFit(
        values={name: given[name] if name in given else float(found[free.index(name)]) for name in TERMS},
        errors={name: float("nan") if name in given else float(errors[free.index(name)]) for name in TERMS},
        residuals={e.run.name: float(r) for e, r in zip(tokens, residuals[:half], strict=True)},
        step_residuals={e.run.name: float(r) for e, r in zip(steps, residuals[half:], strict=True)},
    )


def _standard_errors(rows: Floats, residuals: Floats, weights: Floats, active: NDArray[np.bool_]) -> Floats:
    """Sandwich (heteroscedasticity-consistent) standard errors of the constants that are not at 0."""
    errors = np.full(active.size, np.nan)
    weighted = rows[:, active] * weights[:, None] ** 2
    bread = np.linalg.pinv(weighted.T @ rows[:, active])
    meat = (weighted * residuals[:, None]).T @ (weighted * residuals[:, None])
    errors[active] = np.sqrt(np.diag(bread @ meat @ bread))
    return errors
