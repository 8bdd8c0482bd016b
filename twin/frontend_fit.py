"""Fitting the frontend to measured runs: what reading a server's metrics and loading tokenizers costs its clients.

The pauses decide how many chunks tokens come out in, hence the ratio of the client's ITL to its time per output token,
and how long first tokens take. Both are simulated over a grid of costs, each run at its own pace (twin/step_fit.py), so
that nothing of the engine's law enters; the rest of the way is linear. Most tokenizers are loaded at the start, when
there is little to read yet: so what they add is simulated once, not for every pair of the other costs.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import product

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import nnls

from loraplan.errors import BadInputError
from loraplan.profiles import Frontend
from loraplan.workload import Floats, Lengths
from twin.batch import Simulation, spread
from twin.measured import MeasuredRun, replay, seed_of
from twin.metrics import client_side
from twin.step_fit import Observed, time_per_token_ms

PER_SERIES = (0.0, 0.012, 0.016, 0.020, 0.024, 0.028)
PER_NAME = (0.0, 0.0002, 0.0004, 0.0005, 0.0006, 0.0008)
"""The grid: milliseconds for each label, and for each name in it."""
TOKENIZER = (0.0, 200.0, 240.0, 260.0, 280.0, 300.0, 320.0, 340.0, 360.0)
"""Milliseconds for the first request of an adapter."""
USUAL = (0.016, 0.0004, 300.0)
"""The costs at which the others are varied."""

QUEUE_FREE_MS = 500.0
"""Mean time to a first token up to which a run tells of the frontend: in longer ones queues drown it."""
ROBUST_AT = 0.1
REWEIGHTINGS = 8
FEWEST = 4
"""Runs without a queue below which no frontend is fitted."""
RESAMPLES = 30


@dataclass(frozen=True, eq=False)
class Views:
    """What clients would see, by the costs of reading the metrics.

    Attributes:
        runs: the queue-free runs.
        costs: per series, per name and of a tokenizer, ms; for each row of the arrays.
        ratio: shape (costs, runs), client's ITL / time per output token.
        ttft_ms: shape (costs, runs), without the rest of the way.
        running: shape (runs,), mean running requests.
    """

    runs: tuple[MeasuredRun, ...]
    costs: tuple[tuple[float, float, float], ...]
    ratio: Floats
    ttft_ms: Floats
    running: Floats


@dataclass(frozen=True)
class FrontendFit:
    """A fitted frontend, and the mean absolute relative errors that it leaves, of the ratio and of the TTFT."""

    frontend: Frontend
    ratio_error: float
    ttft_error: float


def look(
    observed: Sequence[Observed],
    lengths: Lengths,
    scrape_s: float,
    seed: int = 0,
    on_progress: Callable[[int, int], None] | None = None,
) -> Views:
    """Simulate the queue-free runs with every pair of costs of the metrics, and with every cost of a tokenizer.

    Args:
        observed: runs at their own pace.
        lengths: the requests' lengths.
        scrape_s: seconds between two readings of the metrics.
        seed: of the simulated arrivals.
        on_progress: called with (simulations done, simulations in all).
    """
    chosen = [one for one in observed if _tells(one.run)]
    pairs = [(*pair, USUAL[2]) for pair in product(PER_SERIES, PER_NAME)]
    others = [(*USUAL[:2], tokenizer) for tokenizer in TOKENIZER]

    def simulations() -> Iterator[Simulation]:
        for costs in (*pairs, *others):
            frontend = _frontend(scrape_s, costs, 0.0, 0.0)
            for one in chosen:
                profile = one.profile.model_copy(update={"frontend": frontend})
                yield replay(one.run, profile, lengths, seed_of(one.run, seed))

    views = list(spread(_view, simulations(), on_progress, total=(len(pairs) + len(others)) * len(chosen)))
    seen = np.array(views).reshape(len(pairs) + len(others), len(chosen), 3)
    of_pairs, of_others = seen[: len(pairs)], seen[len(pairs) :]
    added = of_others - of_others[TOKENIZER.index(USUAL[2])]
    whole = (of_pairs[:, None] + added).reshape(-1, len(chosen), 3)
    costs = tuple((*pair[:2], tokenizer) for pair, tokenizer in product(pairs, TOKENIZER))
    return Views(tuple(one.run for one in chosen), costs, whole[..., 0], whole[..., 1], seen[0, :, 2])


def fit_frontend(views: Views, scrape_s: float, group: str | None = None) -> FrontendFit | None:
    """The frontend that fits best to the runs, but for those of ``group``; None if there are too few to tell."""
    kept = np.flatnonzero([run.group != group for run in views.runs])
    return None if kept.size < FEWEST else _best(views, scrape_s, kept)


def standard_errors(views: Views, scrape_s: float) -> dict[str, float]:
    """The standard error of each constant of the frontend: its spread over resamples of the runs (bootstrap)."""
    rng, n = np.random.default_rng(0), len(views.runs)
    if n < FEWEST:
        return {}
    fits = [_best(views, scrape_s, rng.integers(n, size=n)).frontend for _ in range(RESAMPLES)]
    names = ("per_series", "per_name", "tokenizer", "ttft", "ttft_per_request")
    return {name: float(np.std([getattr(fit, name) for fit in fits], ddof=1)) for name in names}


def _best(views: Views, scrape_s: float, kept: NDArray[np.intp]) -> FrontendFit:
    """The frontend that fits best to the runs of these indices."""
    ttft = np.array([run.seen["mean_ttft_ms"] for run in views.runs])[kept]
    ratio = np.array([run.seen["mean_itl_ms"] / run.seen["mean_tpot_ms"] for run in views.runs])[kept]
    best, least = None, math.inf
    for row, costs in enumerate(views.costs):
        off = views.ratio[row, kept] / ratio - 1.0
        way, left = _rest_of_the_way(views.ttft_ms[row, kept], views.running[kept], ttft)
        cost = _robust(off) + _robust(left)
        if cost < least:
            frontend = _frontend(scrape_s, costs, *way)
            best, least = FrontendFit(frontend, float(np.abs(off).mean()), float(np.abs(left).mean())), cost
    if best is None:
        raise BadInputError("measured runs: those without a queue have no usable TTFT or ITL")
    return best


def _tells(run: MeasuredRun) -> bool:
    """Whether nothing but steps and the frontend kept first tokens: no queue, no overloaded client."""
    seen = run.seen
    known = all(math.isfinite(seen[name]) for name in ("mean_ttft_ms", "mean_itl_ms", "mean_tpot_ms"))
    return known and not run.starved and seen["client_overloaded"] == 0 and seen["mean_ttft_ms"] < QUEUE_FREE_MS


def _view(simulation: Simulation) -> tuple[float, float, float]:
    seen = simulation.run()
    client = client_side(seen, simulation.frontend)
    return client.itl_ms / time_per_token_ms(seen), 1e3 * client.ttft_s, seen.running_s / seen.horizon_s


def _rest_of_the_way(simulated: Floats, running: Floats, measured: Floats) -> tuple[tuple[float, float], Floats]:
    """Milliseconds at rest and per running request, and the relative residuals: robust and non-negative."""
    rows = np.column_stack((np.ones(running.size), running)) / measured[:, None]
    wanted = 1.0 - simulated / measured
    weights = np.ones(measured.size)
    for _ in range(REWEIGHTINGS):
        found = nnls(rows * weights[:, None], wanted * weights)[0]
        left = rows @ found - wanted
        weights = 1.0 / np.sqrt(1.0 + (left / ROBUST_AT) ** 2)
    return (float(found[0]), float(found[1])), left


def _robust(relative: Floats) -> float:
    """Sum of squares in which what is far off counts less."""
    scaled = relative / ROBUST_AT
    return float(np.log1p(scaled * scaled).sum())


def _frontend(scrape_s: float, costs: tuple[float, float, float], ttft: float, per_request: float) -> Frontend:
    per_series, per_name, tokenizer = costs
    return Frontend(
        scrape_s=scrape_s,
        per_series=per_series,
        per_name=per_name,
        tokenizer=tokenizer,
        ttft=float(f"{ttft:.4g}"),
        ttft_per_request=float(f"{per_request:.4g}"),
    )
