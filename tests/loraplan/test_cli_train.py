"""``loraplan train`` writes a model and tells its errors, or one clear line."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest
from support.cli import invoke
from support.small_dataset import make_dataset
from typer.testing import Result

from surrogate.model import Model


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_dataset(tmp_path_factory.mktemp("train") / "data")


def run(*arguments: object) -> Result:
    words = [str(argument) for argument in (*arguments, "--set", "epochs=2", "--set", "device=cpu")]
    return invoke("train", *words)


def test_it_writes_a_model_and_tells_its_errors(data: Path, tmp_path: Path) -> None:
    pytest.importorskip("pytorch_lightning")
    out = tmp_path / "model"
    result = run(data, "-o", out)
    assert result.exit_code == 0, result.stderr
    assert "accuracy" in result.stdout
    assert result.stderr == f"model written to {out}\n"
    again = run(data, "-o", out, "--json")
    assert again.stderr == ""
    assert json.loads(again.stdout) == json.loads(Model.load(out).card.model_dump_json())
    assert run(data, "-o", out).stderr == f"complete already: {out} holds this model\n"
    refused = run(data, "-o", out, "--set", "seed=9")
    assert refused.exit_code == 2
    assert "begun with settings.seed = 0, and now that is 9" in refused.stderr
    assert refused.stderr.count("\n") == 1


def test_ctrl_c_says_how_to_go_on(data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    training: Any = pytest.importorskip("surrogate.training")

    def interrupted(*_: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(training, "train", interrupted)
    result = run(data, "-o", tmp_path / "model")
    assert result.exit_code == 130
    assert result.stderr.startswith("error: interrupted; the last epoch is kept in ")


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        (("--set", "epoch=7"), "--set epoch=7: epoch: unknown key; did you mean 'epochs'"),
        (("--set", "device=tpu"), "--set device=tpu: device: Input should be 'auto', 'cpu' or 'gpu'"),
        (("--set", "batch_size=0"), "--set batch_size=0: batch_size: Input should be greater than 0"),
    ],
)
def test_bad_input_is_one_line_and_writes_nothing(
    data: Path, tmp_path: Path, arguments: tuple[str, ...], complaint: str
) -> None:
    words = [str(data), "-o", str(tmp_path / "model"), *arguments]
    result = invoke("train", *words)
    assert result.exit_code == 2
    assert complaint in result.stderr
    assert result.stderr.count("\n") == 1
    assert list(tmp_path.iterdir()) == []


def test_packages_that_are_not_installed_are_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "torch", None)
    result = run(tmp_path, "-o", tmp_path / "model")
    assert result.exit_code == 2
    assert result.stderr.startswith("error: training needs torch")  # and whatever else is missing here
    assert result.stderr.endswith(": pip install 'loraplan[train]'\n")
