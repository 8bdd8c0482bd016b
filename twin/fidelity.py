"""How close the twin comes to measured runs, and how close another twin came to them."""

from __future__ import annotations

import csv
import io
import math
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np

from loraplan.errors import BadInputError, did_you_mean
from loraplan.profiles import Frontend, Profile
from loraplan.workload import Lengths
from twin.agreement import STARVED_BELOW, Errors, Labels, errors, labels, mean
from twin.batch import Simulation, spread
from twin.measured import IDENTITY, MeasuredRun, lengths_of, numbers, read_csv, replay, seed_of
from twin.metrics import client_side
from twin.server import Run
from twin.step_fit import time_per_token_ms

Key = tuple[str, ...]
"""Dataset, model, group and run_id: what names a run in the runs and in the reference twin's results."""

Group = tuple[str, str]
"""Model, and dataset/group: runs that were made together."""

FIGURES = {
    "throughput": "total_throughput",
    "itl": "mean_itl_ms",
    "tpot": "mean_tpot_ms",
    "ttft": "mean_ttft_ms",
    "running": "tw_mean_num_running",
}
"""The figures compared, and the columns that hold their measured values: tokens/s, ms, ms, ms, requests."""

REFERENCE_FIGURES = {"throughput": "sim_total_tps", "itl": "sim_itl_ms", "ttft": "sim_ttft_ms"}
REFERENCE_STARVED = "sim_starved"
REFERENCE_WALL = "sim_wall_s"
REFERENCE_NUMBERS = (*REFERENCE_FIGURES.values(), REFERENCE_STARVED, REFERENCE_WALL)

SERVER = ("starts", "slots", "max_rank", "adapters")

WARM_UP_S = 1.0


@dataclass(frozen=True)
class Memory:
    """Over runs that were ok or out of memory: how often (percent) the profile says so too; nan if there are none."""

    agreement: float
    n: int


@dataclass(frozen=True)
class Scores:
    """Errors by figure, of all runs and by the measured label, and the labels."""

    all: dict[str, Errors]
    starved: dict[str, Errors]
    not_starved: dict[str, Errors]
    starvation: Labels


@dataclass(frozen=True)
class ModelFidelity(Scores):
    """What holds for one model.

    Attributes:
        oom: memory failures.
        reference: another twin's scores, over the runs it has results of; None if it has none.
        same_rows: this twin's scores over just those runs.
    """

    oom: Memory
    reference: Scores | None
    same_rows: Scores | None


@dataclass(frozen=True)
class Speed:
    """Time of a replay on one core, drawing the arrivals included: CPU seconds of its thread.

    Attributes:
        seconds_per_simulated_hour_mean: mean over the runs; nan if there are none.
        seconds_per_simulated_hour_median: their median.
        ratio_to_reference: wall seconds of the reference twin / seconds of this one, summed over the runs of both.
    """

    seconds_per_simulated_hour_mean: float
    seconds_per_simulated_hour_median: float
    ratio_to_reference: float


@dataclass(frozen=True)
class Fidelity:
    """What `loraplan fidelity` reports.

    Attributes:
        models: by model, over all runs.
        speed: over all runs.
        apart: the runs that were set apart, by name.
        without_apart: by model, over the others; None if none was set apart.
    """

    models: dict[str, ModelFidelity]
    speed: Speed
    apart: tuple[str, ...] = ()
    without_apart: dict[str, ModelFidelity] | None = None


@dataclass(frozen=True, eq=False)
class Compared:
    """One measured run beside its replay.

    Attributes:
        run: what was measured.
        starts: whether the profile says that the server starts.
        simulated: figures of the replay by name, means over the seeds; empty if there was nothing to replay.
        replay_s: seconds that one replay took, see `Speed`.
        reference: the reference twin's columns; empty if it has no result of this run.
    """

    run: MeasuredRun
    starts: bool
    simulated: dict[str, float]
    replay_s: float
    reference: dict[str, float] = field(default_factory=dict)


def read_reference(path: Path) -> dict[Key, dict[str, float]]:
    """Read another twin's results for measured runs from a CSV file.

    Raises:
        BadInputError: the file cannot be read, names a run twice, or a column is missing or not of numbers.
    """
    table = read_csv(path, (*IDENTITY, *REFERENCE_NUMBERS))
    for column in REFERENCE_NUMBERS:
        table[column] = numbers(path, table, column)
    results: dict[Key, dict[str, float]] = {}
    for row in table.to_dict("records"):
        key = tuple(str(row[column]) for column in IDENTITY)
        if key in results:
            raise BadInputError(f"{path}: run {'/'.join(key)} is there twice")
        results[key] = {column: float(row[column]) for column in REFERENCE_NUMBERS}
    return results


def of_dataset(runs: Sequence[MeasuredRun], dataset: str) -> list[MeasuredRun]:
    """The runs of one dataset.

    Raises:
        BadInputError: there are none.
    """
    place = IDENTITY.index("dataset")
    found = [run for run in runs if run.key[place] == dataset]
    if not found:
        raise BadInputError(f"no runs of dataset {dataset!r}{did_you_mean(dataset, {run.key[place] for run in runs})}")
    return found


def compare(
    runs: Sequence[MeasuredRun],
    profiles: Mapping[str, Profile],
    lengths: Mapping[str, Lengths] | None = None,
    reference: Mapping[Key, dict[str, float]] | None = None,
    seeds: int = 1,
    on_progress: Callable[[int, int], None] | None = None,
    held_out: Mapping[Group, Profile] | None = None,
) -> list[Compared]:
    """Replay every run that was ok, on all cores; runs that were neither ok nor out of memory are left out.

    Args:
        runs: the measured runs.
        profiles: model -> its profile.
        lengths: model -> its requests' lengths, of `lengths_by_model`; None to take them from ``runs``.
        reference: run -> columns of another twin, of `read_reference`.
        seeds: replays per run, each on its own arrivals; figures are means.
        on_progress: called with (replays done, replays in all).
        held_out: group of runs -> the profile to replay it with, in place of its model's.

    Raises:
        BadInputError: a model has no profile, or no run to take the lengths from.
    """
    for run in runs:
        if run.model not in profiles:
            raise BadInputError(f"model {run.model!r} has no profile: give --profile {run.model}=PROFILE")
    of_model = lengths_by_model(runs) if lengths is None else lengths
    kept = [run for run in runs if run.ok or run.out_of_memory]
    used = [(held_out or {}).get((run.model, run.group), profiles[run.model]) for run in kept]
    starts = [profile.starts(run.slots, run.max_rank) for run, profile in zip(kept, used, strict=True)]
    tasks = [(i, seed_of(run, n)) for i, run in enumerate(kept) if run.ok and starts[i] for n in range(seeds)]

    if tasks:  # compile before the clocks run
        first = kept[tasks[0][0]]
        replay(replace(first, seconds=WARM_UP_S), profiles[first.model], of_model[first.model], seed=0).run()
    simulations = (replay(kept[i], used[i], of_model[kept[i].model], seed) for i, seed in tasks)
    replays: dict[int, list[tuple[dict[str, float], float]]] = {}
    for (i, _), result in zip(tasks, spread(_timed, simulations, on_progress, total=len(tasks)), strict=True):
        replays.setdefault(i, []).append(result)
    return [
        Compared(
            run=run,
            starts=starts[i],
            simulated=_means([seen for seen, _ in replays.get(i, [])]),
            replay_s=mean([seconds for _, seconds in replays.get(i, [])]),
            reference=dict((reference or {}).get(run.key, {})),
        )
        for i, run in enumerate(kept)
    ]


def _timed(simulation: Simulation) -> tuple[dict[str, float], float]:
    """The figures of a replay, and the CPU seconds that it took."""
    started = time.thread_time()
    seen = simulation.run()
    took_s = time.thread_time() - started
    return figures(seen, simulation.frontend), took_s


def lengths_by_model(runs: Sequence[MeasuredRun]) -> dict[str, Lengths]:
    """The requests' lengths of every model that has runs to replay.

    Raises:
        BadInputError: a model has no run that is ok and not starved.
    """
    lengths = {}
    for model in {run.model for run in runs if run.ok}:
        try:
            lengths[model] = lengths_of([run for run in runs if run.model == model])
        except BadInputError as error:
            raise BadInputError(f"model {model!r}: {error}") from None
    return lengths


def figures(seen: Run, frontend: Frontend | None) -> dict[str, float]:
    """The figures compared, of one replay, in the units of the measured columns; nan where no request was completed.

    ITL and TTFT are the client's, through ``frontend``; without one they are the engine's.
    """
    client = client_side(seen, frontend)
    done = np.isfinite(seen.finish_s)
    served = int((seen.requests.tokens_in[done] + seen.requests.tokens_out[done]).sum())
    return {
        "throughput": served / seen.horizon_s,
        "itl": client.itl_ms,
        "tpot": math.nan if math.isnan(client.itl_ms) else time_per_token_ms(seen),
        "ttft": 1e3 * client.ttft_s,
        "running": seen.running_s / seen.horizon_s,
    }


def measured(run: MeasuredRun, figure: str) -> float:
    """A measured figure; nan if there is none to be trusted."""
    if figure == "ttft" and run.seen["client_overloaded"] != 0:
        return math.nan  # the client itself kept requests waiting
    return run.seen[FIGURES[figure]]


def score(compared: Sequence[Compared], apart: Collection[str] = ()) -> Fidelity:
    """All figures, by model in order of appearance; and the same without the runs named in ``apart``."""
    found = [one.run.name for one in compared if one.run.name in apart]
    others = [one for one in compared if one.run.name not in apart]
    return Fidelity(
        models=_by_model(compared),
        speed=_speed([one for one in compared if one.simulated]),
        apart=tuple(found),
        without_apart=_by_model(others) if found else None,
    )


def _by_model(compared: Sequence[Compared]) -> dict[str, ModelFidelity]:
    models = {}
    for model in dict.fromkeys(one.run.model for one in compared):
        rows = [one for one in compared if one.run.model == model]
        replayed = [one for one in rows if one.simulated]
        both = [one for one in replayed if one.reference]
        own = _scores(replayed, _own, _own_label)
        models[model] = ModelFidelity(
            all=own.all,
            starved=own.starved,
            not_starved=own.not_starved,
            starvation=own.starvation,
            oom=_memory(rows),
            reference=_scores(both, _others, _others_label) if both else None,
            same_rows=_scores(both, _own, _own_label) if both else None,
        )
    return models


def per_run_csv(compared: Sequence[Compared]) -> str:
    """A CSV table with a line per run: what it was, what was measured, what was simulated."""
    out = io.StringIO()
    pairs = [f"{side}_{name}" for name in FIGURES for side in ("measured", "simulated")]
    labelled = ("measured_starved", "simulated_starved", "client_overloaded", "replay_s")
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow([*IDENTITY, "status", *SERVER, "ideal_throughput", *pairs, *labelled])
    for one in compared:
        run, label = one.run, _own_label(one) if one.simulated else None
        numbers = [run.seen["ideal_throughput"]]
        for name, column in FIGURES.items():
            numbers += [run.seen[column], _own(one, name)]
        numbers += [run.seen["starved"], math.nan if label is None else float(label)]
        numbers += [run.seen["client_overloaded"], one.replay_s]
        server = (int(one.starts), run.slots, run.max_rank, run.adapters)
        cells = [f"{value:.10g}" if math.isfinite(value) else "" for value in numbers]
        writer.writerow([*run.key, "ok" if run.ok else "oom", *server, *cells])
    return out.getvalue()


def _own(one: Compared, figure: str) -> float:
    return one.simulated.get(figure, math.nan)


def _own_label(one: Compared) -> bool | None:
    ideal = one.run.seen["ideal_throughput"]
    return None if math.isnan(ideal) else one.simulated["throughput"] < STARVED_BELOW * ideal


def _others(one: Compared, figure: str) -> float:
    return one.reference[REFERENCE_FIGURES[figure]] if figure in REFERENCE_FIGURES else math.nan


def _others_label(one: Compared) -> bool | None:
    label = one.reference[REFERENCE_STARVED]
    return None if math.isnan(label) else label == 1


def _scores(
    rows: Sequence[Compared],
    simulated: Callable[[Compared, str], float],
    label: Callable[[Compared], bool | None],
) -> Scores:
    def by_figure(some: Sequence[Compared]) -> dict[str, Errors]:
        return {
            name: errors(
                np.array([simulated(one, name) for one in some], dtype=np.float64),
                np.array([measured(one.run, name) for one in some], dtype=np.float64),
            )
            for name in FIGURES
        }

    labelled = [(one.run, said) for one in rows if (said := label(one)) is not None]
    return Scores(
        all=by_figure(rows),
        starved=by_figure([one for one in rows if one.run.starved]),
        not_starved=by_figure([one for one in rows if not one.run.starved]),
        starvation=labels(
            np.array([said for _, said in labelled], dtype=np.bool_),
            np.array([run.starved for run, _ in labelled], dtype=np.bool_),
            np.array([run.seen["total_throughput"] / run.seen["ideal_throughput"] for run, _ in labelled]),
        ),
    )


def _memory(rows: Sequence[Compared]) -> Memory:
    return Memory(100.0 * mean([one.starts == one.run.ok for one in rows]), len(rows))


def _speed(rows: Sequence[Compared]) -> Speed:
    hours = [one.replay_s * 3600.0 / one.run.seconds for one in rows]
    both = [(one.reference[REFERENCE_WALL], one.replay_s) for one in rows if one.reference]
    both = [(other, own) for other, own in both if math.isfinite(other)]
    own = sum(seconds for _, seconds in both)
    return Speed(
        seconds_per_simulated_hour_mean=mean(hours),
        seconds_per_simulated_hour_median=float(np.median(hours)) if hours else math.nan,
        ratio_to_reference=sum(other for other, _ in both) / own if own > 0 else math.nan,
    )


def _means(results: Sequence[dict[str, float]]) -> dict[str, float]:
    """Means by name; a figure that one of the seeds lacks is nan."""
    return {name: mean([result[name] for result in results]) for name in results[0]} if results else {}
