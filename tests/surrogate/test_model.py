"""A model's folder: what was saved is loaded, anything else is refused in one line; no torch is needed."""

from __future__ import annotations

import hashlib
import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load, save
from support.small_dataset import model_of, random_tensors, small_examples

from loraplan.errors import BadInputError
from surrogate.model import Model


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    model = model_of(random_tensors(0))
    digest = hashlib.sha256(model.to_bytes()).hexdigest()
    card = model.card.model_copy(update={"weights_sha256": digest})
    Model(model.tensors, model.calibration, card).save(tmp_path / "model")
    return tmp_path / "model"


def test_what_is_saved_is_loaded(folder: Path) -> None:
    made, loaded = model_of(random_tensors(0)), Model.load(folder)
    there, back = (model.judge_examples(small_examples()) for model in (made, loaded))
    for name in ("score", "log_share", "figures"):
        np.testing.assert_array_equal(getattr(there, name), getattr(back, name))
    np.testing.assert_allclose(loaded.calibration.score, made.calibration.score, rtol=1e-6)
    assert loaded.card.name == "made up"


def change_card(folder: Path, **changes: Any) -> None:
    path = folder / "card.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def put_weights(folder: Path, content: bytes) -> None:
    """Weights that the card describes."""
    (folder / "weights.safetensors").write_bytes(content)
    change_card(folder, weights_sha256=hashlib.sha256(content).hexdigest())


def change_tensors(folder: Path, change: Callable[[dict[str, Any]], object]) -> None:
    tensors = load((folder / "weights.safetensors").read_bytes())
    change(tensors)
    put_weights(folder, save(tensors))


def truncate(folder: Path) -> None:
    path = folder / "weights.safetensors"
    path.write_bytes(path.read_bytes()[:-50])


def put_nan(tensors: dict[str, Any]) -> None:
    tensors["margin.by_term"] = np.full_like(tensors["margin.by_term"], np.nan)


@pytest.mark.parametrize(
    ("damage", "complaint"),
    [
        (truncate, "not the file that card.json describes"),
        (lambda f: (f / "weights.safetensors").unlink(), "No such file"),
        (lambda f: (f / "card.json").unlink(), "No such file"),
        (lambda f: (f / "card.json").write_text("{"), "Invalid JSON"),
        (lambda f: (f / "card.json").write_bytes(b"\xff\xfe"), "Invalid JSON"),
        (lambda f: (f / "card.json").write_text('{"kind": "foreign"}'), "is it the card of a surrogate"),
        (lambda f: change_card(f, schema_version=2), "schema_version"),
        (lambda f: change_card(f, low=[0.0]), "low and high need"),
        (lambda f: change_card(f, weights_sha256="0" * 64), "not the file that card.json describes"),
        (lambda f: put_weights(f, b""), "not a safetensors file"),
        (lambda f: put_weights(f, b"x" * 1000), "not a safetensors file"),
        (lambda f: change_tensors(f, lambda t: t.pop("head.net.0.bias")), "tensor head.net.0.bias is missing"),
        (
            lambda f: change_tensors(f, lambda t: t.update({"head.net.4.bias": np.zeros(3, np.float32)})),
            r"tensor head.net.4.bias is \[3\], expected",
        ),
        (lambda f: change_tensors(f, put_nan), "margin.by_term has values that are no numbers"),
    ],
)
def test_a_folder_that_is_no_model_is_refused_in_one_line(
    folder: Path, damage: Callable[[Path], object], complaint: str
) -> None:
    damage(folder)
    with pytest.raises(BadInputError, match=complaint) as error:
        Model.load(folder)
    assert "\n" not in str(error.value)


def test_no_torch_is_needed() -> None:
    code = "import sys, surrogate.model; sys.exit('torch' in sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)
