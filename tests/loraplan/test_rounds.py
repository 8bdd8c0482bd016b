"""Loads that a solver packs by a surrogate come back from the twin as rows, and are trained on."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from support.cli import invoke
from support.models import untrained_model
from support.small_dataset import make_dataset

from loraplan.rounds import FIRST_WORKLOAD, packed_rows
from surrogate.dataset import read_dataset
from surrogate.design import SCHEMA, Design
from surrogate.manifest import read_manifest
from surrogate.model import Model

DESIGN = Design(horizon_s=20.0, random_profiles=0.5)


def trusting() -> Model:
    """A model that accepts what the fluid model says is carried."""
    score = np.linspace(-50.0, 50.0, 1000)
    return untrained_model(score=score, served=np.where(score < 0.0, 1.0, 0.2))


def test_rows_are_loads_of_plans_simulated_in_the_twin() -> None:
    seen: list[tuple[int, int]] = []
    rows = packed_rows(trusting(), DESIGN, 4, seed=1, on_progress=lambda done, total: seen.append((done, total)))
    assert rows
    assert all(row.keys() == set(SCHEMA.names) for row in rows)
    assert {row["kind"] for row in rows} == {"packed"}
    assert {row["workload"] for row in rows} <= set(range(FIRST_WORKLOAD, FIRST_WORKLOAD + 4))
    keys = [(row["workload"], row["row"]) for row in rows]
    assert keys == sorted(set(keys))
    assert all(len(row["rates"]) == len(row["ranks"]) > 0 and 0.0 <= row["served_fraction"] <= 1.0 for row in rows)
    assert seen == [(n, 4) for n in range(1, 5)]


def test_the_same_seed_packs_the_same_loads_and_another_one_others() -> None:
    first, again, other = (packed_rows(trusting(), DESIGN, 2, seed) for seed in (1, 1, 2))
    assert json.dumps(first) == json.dumps(again)
    assert json.dumps(first) != json.dumps(other)


@pytest.mark.slow
def test_training_in_rounds_goes_on_where_it_was(tmp_path: Path) -> None:
    pytest.importorskip("pytorch_lightning")
    data, out = make_dataset(tmp_path / "data"), tmp_path / "model"
    words = ["train", str(data), "-o", str(out), "--rounds", "2", "--problems", "2", "--set", "epochs=3"]
    done = invoke(*words)
    assert done.exit_code == 0, done.stderr
    assert "that best-fit packed by round-1" in done.stdout
    digest = Model.load(out / "round-2").card.weights_sha256[:12]
    packed = [f"packed-{turn}-{digest}" for turn in (1, 2)]
    assert read_manifest(data).parts.keys() == {"round-1", "round-2", *packed}
    assert set(read_dataset(data)["part"].to_pylist()) <= {"design", "round-1", "round-2", *packed}
    last = Model.load(out)
    assert last.card.data["parts"].keys() == {"round-1", "round-2"}
    assert last.calibration.packed_score.size == read_manifest(data).parts[packed[1]].rows
    shutil.rmtree(out / "round-2")
    again = invoke(*words)
    assert again.exit_code == 0, again.stderr
    assert Model.load(out).to_bytes() == last.to_bytes()
