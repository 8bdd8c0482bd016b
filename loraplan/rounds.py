"""Rounds: loads that a solver packs to the limit by a surrogate's word, and what the twin says of them.

Solvers look for what a model wrongly accepts, so that its errors on loads drawn at random say little of those on the
loads of plans. Such loads come back as rows of the dataset: to train on, to calibrate on, and to evaluate with.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from loraplan.files import make_folder
from loraplan.oracle import Oracle
from loraplan.problem import Fleet, GPUType, Problem
from loraplan.profiles import Profile, load_profile
from objectives.gpu_count import GPUCount, GPUCountParams
from solvers.base import Search
from solvers.best_fit import BestFit, BestFitParams
from surrogate import sampling
from surrogate.dataset import append_rows, read_dataset
from surrogate.design import Design, Load, critical_rates, deal, turned
from surrogate.examples import examples_of
from surrogate.judgement import RISK, calibrated
from surrogate.manifest import DESIGN_PART, read_manifest
from surrogate.model import Card, Model
from surrogate.oracle import SurrogateOracle, SurrogateParams
from surrogate.settings import TrainSettings
from surrogate.split import split
from twin.agreement import STARVED_BELOW
from twin.batch import spread

OnProgress = Callable[[int, int, int, float], None]
"""As of ``surrogate.training``, which is not imported here: it needs torch."""

FIRST_SEED = 1_000
"""Round n packs the problems of seed FIRST_SEED + n."""
ROUND_STREAM = 77
"""Sets the problems' random numbers apart from those of a design's workloads."""
FIRST_WORKLOAD = 1_000_000_000
ROUND_EPOCHS, ROUND_RATE = 1 / 6, 0.2
"""Of the epochs and of the learning rate, in a round: so that it adds what it shows and forgets nothing."""
CALIBRATIONS = (RISK / 4, RISK)
"""Risks at which loads to calibrate with are packed: at first there is no threshold for packed loads, then there is."""
MOST_GPUS = 64
"""On offer in a problem of a round: more than it takes."""


def packed_rows(
    model: Model,
    design: Design,
    problems: int,
    seed: int,
    risk: float = RISK,
    on_progress: Callable[[int, int], None] | None = None,
) -> list[dict[str, Any]]:
    """Let best-fit place the adapters of random problems by ``model``, and simulate every GPU but the last of each.

    The last GPU of a plan is not full.

    Args:
        model: judges the loads, at ``risk``.
        design: profiles, share of random ones, horizon.
        problems: how many problems.
        seed: of the problems: other seeds, other problems.
        on_progress: called with (problems done, in all).

    Returns:
        Rows of ``surrogate.design.SCHEMA`` of the kind "packed"; ``workload`` is the problem's number
        from FIRST_WORKLOAD on.
    """
    done = 0

    def loads() -> Iterator[tuple[Load, dict[str, Any]]]:
        nonlocal done
        for number in range(problems):
            yield from _packed(model, design, number, seed, risk)
            done += 1
            if on_progress is not None:
                on_progress(done, problems)

    return list(spread(_row, loads()))


def _row(task: tuple[Load, dict[str, Any]]) -> dict[str, Any]:
    load, names = task
    return load.row(**names)


def _packed(model: Model, design: Design, number: int, seed: int, risk: float) -> Iterator[tuple[Load, dict[str, Any]]]:
    """The loads of one problem."""
    rng = np.random.default_rng([seed, number, ROUND_STREAM])
    base = str(rng.choice(design.profiles))
    profile = load_profile(base)
    if rng.random() < design.random_profiles:
        profile = sampling.random_profile(rng, profile, f"packed-{seed}-{number}")
    problem = _problem(rng, profile)
    oracle = SurrogateOracle(problem, SurrogateParams(risk=risk), model)
    for row, load in enumerate(_full(problem, oracle)):
        adapters = tuple(problem.adapters[i] for i in load.adapters)
        task = Load(profile, adapters, load.slots, 1.0, int(rng.integers(1 << 31)), design.horizon_s)
        yield task, {"workload": FIRST_WORKLOAD + number, "row": row, "kind": "packed", "base": base}


def _problem(rng: np.random.Generator, profile: Profile) -> Problem:
    """Adapters that three GPUs or more should carry."""
    count = round(float(np.exp(rng.uniform(np.log(48), np.log(800)))))
    ranks = sampling.random_ranks(rng, count)
    adapters = deal(sampling.random_rates(rng, count), ranks, [sampling.random_lengths(rng)], rng)
    slots = min(count, 128, profile.max_slots(profile.server_rank(int(ranks.max()))))
    factor = critical_rates(profile, adapters, slots) * float(rng.uniform(2.0, 8.0))
    return Problem(turned(adapters, factor), Fleet((GPUType(profile, MOST_GPUS),)))


def _full(problem: Problem, oracle: Oracle) -> list[Any]:
    """The loads of a best-fit plan, without the last."""
    search = Search(problem, GPUCount(GPUCountParams()), oracle, seed=0)
    return list(BestFit(BestFitParams()).solve(search).loads[:-1])


@dataclass(frozen=True)
class Round:
    """What a round showed of the model that packed its loads.

    Attributes:
        name: of the dataset's part that holds the rows.
        model: that packed them.
        loads: GPUs that were packed.
        starved: of them, in the twin.
    """

    name: str
    model: str
    loads: int
    starved: int


def train_in_rounds(
    folder: Path,
    out: Path,
    settings: TrainSettings,
    rounds: int,
    problems: int,
    stage: Callable[[str], AbstractContextManager[Callable[..., None]]],
    telling: Callable[[Callable[..., None]], OnProgress],
) -> tuple[Card, list[Round]]:
    """Train, let best-fit pack loads by the model, add them to the dataset, train on, and so on.

    At last the thresholds: best-fit packs loads by the last model, which is not trained on them, twice. The models are
    in ``out/round-0`` and so on, the last one with these thresholds in ``out``; rows of round n are the dataset's part
    ``round-n``, the last ones ``packed-1``, ``packed-2`` and the model's digest. Interrupted, the same call goes on
    where it was.

    Args:
        folder: of a complete dataset.
        out: folder of the model.
        settings: of the training; rounds go on from where it ended, with a smaller learning rate, for less epochs.
        rounds: how many.
        problems: packed in each round.
        stage: a progress bar with this title, to be called with (done, in all).
        telling: makes of a progress bar what training tells of its progress.

    Raises:
        BadInputError: as ``surrogate.training.train``.
    """
    from surrogate import training  # torch takes seconds to import

    make_folder(out, "model")

    def train(number: int, settings: TrainSettings, parts: Sequence[str], start: Model | None) -> None:
        with stage(f"round {number}: training") as advance:
            training.train(folder, out / f"round-{number}", settings, telling(advance), parts, start)

    train(0, settings, (), None)
    design = read_manifest(folder).design
    again = settings.model_copy(
        update={
            "epochs": max(1, round(ROUND_EPOCHS * settings.epochs)),
            "learning_rate": ROUND_RATE * settings.learning_rate,
            "temperatures": (settings.temperatures[1], settings.temperatures[1]),
        }
    )

    def pack(number: int, name: str, model: Model, risk: float) -> None:
        if name not in read_manifest(folder).parts:
            with stage(f"round {number}: packing problems") as advance:
                rows = packed_rows(model, design, problems, FIRST_SEED + number, risk, advance)
            append_rows(folder, name, rows)

    names = [f"round-{number}" for number in range(1, rounds + 1)]
    for number in range(1, rounds + 1):
        model = Model.load(out / f"round-{number - 1}")
        pack(number, names[number - 1], model, RISK)
        train(number, again, names[:number], model)
    last = Model.load(out / f"round-{rounds}")
    digest, drawn = last.card.weights_sha256[:12], examples_of(_part(folder, DESIGN_PART))
    validation = drawn.select(split(drawn.workload)[1])
    for turn, risk in enumerate(CALIBRATIONS):
        names.append(f"packed-{turn + 1}-{digest}")
        pack(rounds + 1 + turn, names[-1], last, risk)
        rows = _part(folder, names[-1])
        if rows.num_rows:  # else no GPU was full
            last = calibrated(last, validation, packed=examples_of(rows))
    last.save(out)
    return last.card, [_shown(name, min(number, rounds), _part(folder, name)) for number, name in enumerate(names)]


def _part(folder: Path, name: str) -> pa.Table:
    table = read_dataset(folder)
    return table.filter(pc.equal(table["part"], name))


def _shown(name: str, model: int, rows: pa.Table) -> Round:
    served = rows["served_fraction"].to_numpy()
    return Round(name, f"round-{model}", rows.num_rows, int((served < STARVED_BELOW).sum()))
