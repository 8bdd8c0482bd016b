"""Evaluation of a surrogate: beside the twin on workloads that it was not trained on, and beside measured runs.

Life cycle: `unseen_design` says which workloads, `simulate_unseen` has the twin judge them (or `read_dataset` gives
rows of a dataset), `evaluate` compares. docs/evaluate.md says what the figures mean.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import closing
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pyarrow as pa
from pydantic import ValidationError

from loraplan.errors import BadInputError
from loraplan.profiles import load_profile
from loraplan.workload import Floats
from surrogate.comparison import MOST_SVM_ROWS, Rows, Trained, features_of, train
from surrogate.dataset import WORKLOADS_PER_TASK
from surrogate.design import Design, rows_of
from surrogate.examples import Examples, examples_of
from surrogate.executors import opened
from surrogate.model import Card, Judged, Model
from surrogate.scores import (
    Acceptance,
    Bin,
    Coverage,
    Mask,
    Said,
    Seen,
    acceptance,
    by_group,
    by_region,
    coverage,
    reliability,
    said_by,
    scores,
    seen_in,
)
from surrogate.shards import table_of
from surrogate.speed import rows_speed, surrogate_speed
from twin.agreement import mean
from twin.fidelity import Scores

SEED = 1_000_000
"""Of the unseen workloads, unless another one is asked for; no dataset to train with should have it."""
SURROGATE = "surrogate"
MEASURED = ("throughput", "itl", "ttft")
"""Figures that a client sees."""
USUAL_PROFILE = "h100-64gb/llama-3.1-8b"
"""The server on which speed is measured."""


@dataclass(frozen=True, eq=False)
class Unseen:
    """Loads, what the twin saw of them, and what the surrogate says.

    Attributes:
        table: rows of a dataset, n.
        seen: of the n loads, by the twin.
        judged, said: of the n loads, by the surrogate.
        outside: shape (n,), whether something is out of the range of the training.
    """

    table: pa.Table
    seen: Seen
    judged: Judged
    said: Said
    outside: Mask


@dataclass(frozen=True)
class Evaluation:
    """What `loraplan evaluate` reports.

    Attributes:
        model: name of the surrogate.
        loads: unseen loads by group: a profile, random ones, all.
        twin: group -> model type -> scores beside the twin.
        models: model of the measured runs -> model type -> scores beside what was measured.
        regions: region of the unseen loads -> scores of the surrogate.
        risk: group -> what the surrogate accepts.
        quantiles: group -> target -> coverage of its quantiles.
        calibration: said probabilities that loads starve, and how many do.
        outside: group -> percent of the loads with something out of the range of the training.
        speed: microseconds by name.
        notes: what to know of these figures.
    """

    model: str
    loads: dict[str, int] = field(default_factory=dict)
    twin: dict[str, dict[str, Scores]] = field(default_factory=dict)
    models: dict[str, dict[str, Scores]] = field(default_factory=dict)
    regions: dict[str, Scores] = field(default_factory=dict)
    risk: dict[str, Acceptance] = field(default_factory=dict)
    quantiles: dict[str, dict[str, Coverage]] = field(default_factory=dict)
    calibration: tuple[Bin, ...] = ()
    outside: dict[str, float] = field(default_factory=dict)
    speed: dict[str, float] = field(default_factory=dict)
    notes: tuple[str, ...] = ()


def trained_design(card: Card) -> Design | None:
    """The design of the dataset that a model was trained on; None if its card does not say."""
    try:
        return Design.model_validate(card.data["design"])
    except (KeyError, ValidationError):
        return None


def refuse_trained(card: Card, seed: int) -> None:
    """Refuse workloads of the seed that a model was trained with.

    Raises:
        BadInputError: it is that one.
    """
    design = trained_design(card)
    if design is not None and design.seed == seed:
        raise BadInputError(f"model {card.name} was trained on workloads of seed {seed}: they are not unseen")


def unseen_design(card: Card, workloads: int, seed: int = SEED, profile: str | None = None) -> Design:
    """Workloads as those of the training, but of another seed: one load each, widely around the limit.

    Args:
        card: of the model.
        workloads: how many, at least 1.
        seed: none that the model was trained with.
        profile: name or file: have all on this server as it is.

    Raises:
        BadInputError: the seed is that of the training, or the profile cannot be read.
    """
    refuse_trained(card, seed)
    changes: dict[str, Any] = {"seed": seed, "workloads": workloads, "loads": 1}
    if profile is not None:
        load_profile(profile)
        changes |= {"profiles": (profile,), "random_profiles": 0.0}
    return (trained_design(card) or Design()).model_copy(update=changes)


def simulate_unseen(
    design: Design, workers: int | None = None, on_progress: Callable[[int, int], None] | None = None
) -> pa.Table:
    """Have the twin judge the workloads of a design: rows in their order.

    Args:
        design: what is simulated.
        workers: processes; one for each core if not given.
        on_progress: called with (workloads done, workloads in all).

    Raises:
        BadInputError: as ``surrogate.design.rows_of``.
        WorkersDiedError: as ``Executor.results``.
    """
    count = design.workloads
    parts = [range(first, min(first + WORKLOADS_PER_TASK, count)) for first in range(0, count, WORKLOADS_PER_TASK)]
    tables, done = [], 0
    with (
        opened(workers=workers) as crew,
        closing(crew.results(_simulate, [(design, part) for part in parts])) as results,
    ):
        for part, table in zip(parts, results, strict=True):
            tables.append(table)
            done += len(part)
            if on_progress is not None:
                on_progress(done, count)
    return pa.concat_tables(tables)


def _simulate(task: tuple[Design, range]) -> pa.Table:
    design, workloads = task
    return table_of([row for workload in workloads for row in rows_of(design, workload)])


def unseen(model: Model, table: pa.Table) -> Unseen:
    """Rows of a dataset beside what the surrogate says of them."""
    examples = examples_of(table)
    judged = model.judge_examples(examples)
    outside = np.any(model.outside(examples.inputs, examples.context), axis=1)
    return Unseen(table, seen_in(table), judged, said_by(judged, examples.offered_tok_s), np.asarray(outside))


class Rivals:
    """The comparison models: trained when they are asked for, profile by profile."""

    def __init__(self, table: pa.Table | None = None) -> None:
        """Train on a table of ``surrogate.comparison.training_rows``; there are no such models without it."""
        self._rows: Rows | None = None if table is None else Rows.of(table)
        self._trained: dict[str, dict[str, Trained]] = {}

    def on(self, profile: str) -> dict[str, Trained]:
        """The models for a profile, by type; none if there is nothing to train them on.

        Raises:
            BadInputError: scikit-learn is not installed.
        """
        if profile not in self._trained:
            mine = None if self._rows is None else self._rows.select(self._rows.base == profile)
            self._trained[profile] = {} if mine is None or len(mine) == 0 else train(mine)
        return self._trained[profile]

    def notes(self) -> tuple[str, ...]:
        """What they were trained on."""
        return tuple(
            f"{profile}: scikit-learn's default settings, {models['random_forest'].trained_on:,} training rows"
            + (f", svm {models['svm'].trained_on:,} of them (at most {MOST_SVM_ROWS:,})" if "svm" in models else "")
            for profile, models in sorted(self._trained.items())
            if models
        )

    def speed(self) -> dict[str, float]:
        """Microseconds per row of each type, all its figures together: in batches, and one by one."""
        found: dict[str, float] = {}
        for profile, models in self._trained.items():
            if self._rows is None or not models:
                continue
            rows = self._rows.select(self._rows.base == profile).features
            for name, trained in models.items():
                took = rows_speed(trained.predict, rows)
                found |= {f"{name}_us_per_row": took["batch"], f"{name}_us_per_row_single": took["single"]}
            break
        return found


def evaluate(
    model: Model,
    loads: Unseen | None = None,
    measured: pa.Table | None = None,
    rivals: Rivals | None = None,
    risk: float = 0.01,
    notes: tuple[str, ...] = (),
) -> Evaluation:
    """Compare a surrogate, and other model types, with the twin and with measured runs.

    Args:
        model: the surrogate.
        loads: what `unseen` made of a table of rows.
        measured: rows of ``surrogate.measured_runs.measured_table``.
        rivals: the comparison models.
        risk: at which loads are accepted, 0 to 1.
        notes: to be reported.

    Raises:
        BadInputError: scikit-learn is needed and not installed.
    """
    others = rivals or Rivals()
    beside_twin: dict[str, Any] = {}
    if loads is not None:
        groups = by_group(loads.seen)
        starved, score = loads.seen.starved, loads.judged.score
        regions = by_region(loads.seen, np.exp(loads.judged.log_share))
        beside_twin = {
            "loads": {name: int(mask.sum()) for name, mask in groups.items()},
            "twin": _side_by_side(loads.table, loads.seen, loads.said, groups, others),
            "regions": {name: scores(loads.said.select(mask), loads.seen.select(mask)) for name, mask in regions},
            "risk": {
                name: acceptance(model.calibration, score[mask], starved[mask], risk) for name, mask in groups.items()
            },
            "quantiles": {name: coverage(loads.judged, loads.seen, mask) for name, mask in groups.items()},
            "calibration": reliability(score, starved),
            "outside": {name: 100.0 * mean(loads.outside[mask]) for name, mask in groups.items()},
        }
    models = {} if measured is None else _beside_runs(model, measured, others)
    speed = {f"surrogate_us_per_{name}": value for name, value in _speed(model).items()} | others.speed()
    return Evaluation(model=model.card.name, models=models, speed=speed, notes=(*notes, *others.notes()), **beside_twin)


def _speed(model: Model) -> Mapping[str, float]:
    took = surrogate_speed(model, load_profile(USUAL_PROFILE))
    return {name if name == "server" else f"row_{name}": value for name, value in took.items()}


def _beside_runs(model: Model, table: pa.Table, rivals: Rivals) -> dict[str, dict[str, Scores]]:
    """Scores by model of the runs."""
    examples: Examples = examples_of(table)
    said = said_by(model.judge_examples(examples), examples.offered_tok_s)
    said = Said({name: said.figures[name] for name in MEASURED}, said.starved)
    seen = seen_in(table)
    kinds = np.array(table["kind"].to_pylist(), dtype=np.str_)
    groups = {str(name): kinds == name for name in dict.fromkeys(kinds.tolist())}
    return _side_by_side(table, seen, said, groups, rivals)


def _side_by_side(
    table: pa.Table, seen: Seen, said: Said, groups: Mapping[str, Mask], rivals: Rivals
) -> dict[str, dict[str, Scores]]:
    """Scores by group, of the surrogate and, where a group is on one profile, of the models trained on that."""
    features: Floats = features_of(table)
    found = {}
    for name, mask in groups.items():
        mine = seen.select(mask)
        found[name] = {SURROGATE: scores(said.select(mask), mine)}
        (first, *more) = sorted(set(mine.group.tolist()))
        if not more:
            for kind, trained in rivals.on(str(first)).items():
                found[name][kind] = scores(trained.predict(features[mask]), mine)
    return found
