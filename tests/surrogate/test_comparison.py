"""The published model types: their features by hand, what they are trained on, and that they learn."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from support.models import load_rows

from loraplan.errors import BadInputError
from surrogate import comparison
from surrogate.comparison import FEATURES, FILE, MODELS, OUTPUTS, Rows, features_of, train
from surrogate.shards import table_of
from surrogate.split import split


@pytest.fixture(scope="module")
def table() -> pa.Table:
    """80 loads, of which every other one is on a varied profile."""
    return load_rows(80)


def test_features_by_hand(table: pa.Table) -> None:
    row = table.slice(0, 1).to_pylist()[0]
    row |= {"rates": [0.1, 0.2, 0.6], "ranks": [8, 8, 32], "law": [0, 0, 0], "slots": 2}
    other = row | {"rates": [0.5], "ranks": [16], "law": [0], "slots": 1}
    found = features_of(table_of([row, other]))
    by_hand = [0.9, np.std([0.1, 0.2, 0.6]), 32, 16, np.std([8, 8, 32]), 2, 3]
    np.testing.assert_allclose(found, [by_hand, [0.5, 0, 16, 16, 0, 1, 1]], rtol=1e-6)
    np.testing.assert_allclose(features_of(table_of([row, other]).slice(1)), found[1:])
    assert features_of(table_of([])).shape == (0, len(FEATURES))


def test_training_rows_are_those_of_the_training_split_on_shipped_profiles(table: pa.Table, tmp_path: Path) -> None:
    path = comparison.write_training_rows(table, tmp_path)
    assert path == tmp_path / FILE
    stored = comparison.read_training_rows(path)
    chosen = split(table["workload"].to_numpy())[0] & (np.arange(80) % 2 == 0)
    assert stored.column_names == ["base", *FEATURES, *OUTPUTS]
    assert {str(stored.schema.field(name).type) for name in (*FEATURES, *OUTPUTS)} == {"float"}
    assert set(stored["base"].to_pylist()) == {"h100-64gb/llama-3.1-8b"}
    rows = Rows.of(stored)
    assert len(rows) == chosen.sum() > 10
    np.testing.assert_allclose(rows.features, features_of(table)[chosen], rtol=1e-6)
    np.testing.assert_allclose(rows.outputs[:, 0], table["throughput_tok_s"].to_numpy()[chosen], rtol=1e-6)


def test_stored_rows_that_are_damaged_are_refused_in_one_line(table: pa.Table, tmp_path: Path) -> None:
    with pytest.raises(BadInputError, match="missing, truncated or not Parquet"):
        comparison.read_training_rows(tmp_path / FILE)
    path = comparison.write_training_rows(table, tmp_path)
    path.write_bytes(path.read_bytes()[:100])
    with pytest.raises(BadInputError, match="missing, truncated or not Parquet"):
        comparison.read_training_rows(path)


def made_up(n: int = 300) -> Rows:
    rng = np.random.default_rng(1)
    features = rng.random((n, len(FEATURES)))
    load = features[:, 0] + features[:, 6]
    outputs = np.column_stack((1000 * np.minimum(load, 1), 10 + 20 * load, np.minimum(1 / load, 1)))
    outputs[0, 1] = np.nan  # nothing was served
    return Rows(np.full(n, "server"), features, outputs)


def test_they_learn_and_are_the_same_every_time() -> None:
    pytest.importorskip("sklearn")
    rows, fresh = made_up(), made_up(400).select(np.arange(300, 400))
    trained, again = train(rows), train(rows)
    assert tuple(trained) == MODELS
    for name, model in trained.items():
        said = model.predict(fresh.features)
        starved = fresh.outputs[:, 2] < 0.9
        assert np.mean(said.starved == starved) > 0.8, name
        assert np.mean(np.abs(said.figures["itl"] / fresh.outputs[:, 1] - 1)) < 0.2, name
        assert np.mean(np.abs(said.figures["throughput"] / fresh.outputs[:, 0] - 1)) < 0.2, name
        repeated = again[name].predict(fresh.features)
        np.testing.assert_array_equal(said.figures["throughput"], repeated.figures["throughput"])


def test_svm_takes_a_part_of_many_rows(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("sklearn")
    monkeypatch.setattr(comparison, "MOST_SVM_ROWS", 50)
    trained = train(made_up())
    assert {name: model.trained_on for name, model in trained.items()} == {
        "random_forest": 300,
        "nearest_neighbour": 300,
        "svm": 50,
    }


def test_rows_of_one_label() -> None:
    pytest.importorskip("sklearn")
    rows = made_up(40)
    rows.outputs[:, 2] = 1.0
    for model in train(rows).values():
        assert not model.predict(rows.features).starved.any()
    rows.outputs[:, 1] = np.nan
    with pytest.raises(BadInputError, match="nothing was served"):
        train(rows)


def test_without_scikit_learn_one_line_says_how_to_get_it(monkeypatch: pytest.MonkeyPatch) -> None:
    def nothing(name: str, *_: Any) -> None:
        assert name == "sklearn"

    monkeypatch.setattr(comparison.importlib.util, "find_spec", nothing)
    with pytest.raises(BadInputError, match=r"pip install 'loraplan\[train\]'"):
        train(made_up(10))
