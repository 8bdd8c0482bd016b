"""Training: the same result whether interrupted or not; what it was not begun with is refused; the model is sound."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from support.small_dataset import make_dataset, small_examples

from loraplan.errors import BadInputError
from loraplan.files import locked
from surrogate.dataset import append_rows, read_dataset
from surrogate.examples import Examples
from surrogate.model import SHAPES, Model
from surrogate.settings import TrainSettings
from surrogate.split import split

torch = pytest.importorskip("torch")
training: Any = pytest.importorskip("surrogate.training")
batches: Any = pytest.importorskip("surrogate.batches")

SETTINGS = TrainSettings(epochs=4, batch_size=32, device="cpu")


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_dataset(tmp_path_factory.mktemp("training") / "data")


@pytest.fixture(scope="module")
def whole(data: Path) -> Path:
    """The folder of a model whose training was not interrupted."""
    training.train(data, data.parent / "whole", SETTINGS)
    return data.parent / "whole"


@pytest.fixture
def model(whole: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(whole, tmp_path / "model"))


def parts() -> tuple[Examples, Examples]:
    examples = small_examples()
    for_training, validation, _ = split(examples.workload)
    return examples.select(for_training), examples.select(validation)


def ctrl_c_after(steps: int) -> Any:
    def tell(done: int, *_: Any) -> None:
        if done == steps:
            raise KeyboardInterrupt

    return tell


def test_a_workload_is_never_split_and_never_moves() -> None:
    workload = np.repeat(np.arange(20_000), 3)
    masks = split(workload)
    assert np.all(sum(mask.astype(int) for mask in masks) == 1)
    for mask, share in zip(masks, (0.8, 0.1, 0.1), strict=True):
        assert np.all(mask.reshape(-1, 3).sum(1) % 3 == 0)
        assert np.mean(mask) == pytest.approx(share, abs=0.01)
    for mask, fewer in zip(masks, split(workload[:600]), strict=True):
        np.testing.assert_array_equal(mask[:600], fewer)


def test_batches_hold_every_example_once() -> None:
    found = batches.Batches({"a": torch.arange(10), "b": torch.arange(10.0)}, 4, lambda n: torch.arange(n).flip(0))
    seen = list(found)
    assert [len(batch["a"]) for batch in seen] == [4, 3, 3]
    assert torch.cat([batch["a"] for batch in seen]).tolist() == list(range(9, -1, -1))
    assert len(found) == 3


def test_the_folder_holds_a_model_logs_and_checkpoints(whole: Path, data: Path) -> None:
    assert {path.name for path in whole.iterdir()} == {
        *(".lock", "card.json", "checkpoints", "logs", "training.json", "weights.safetensors")
    }
    names = sorted(path.name.split(".")[0] for path in (whole / "logs" / "version_0").iterdir())
    assert names == ["events", "hparams", "metrics"]
    metrics = (whole / "logs" / "version_0" / "metrics.csv").read_text()
    assert "val_loss" in metrics
    card = Model.load(whole).card
    table = read_dataset(data)
    assert card.name == "whole"
    assert (card.data["rows"], card.data["workloads"]) == (table.num_rows, 60)
    masks = split(table["workload"].to_numpy())
    first = table["row"].to_numpy() == 0  # thresholds come from loads that are drawn from all there are
    assert tuple(card.data["rows_for"].values()) == (masks[0].sum(), masks[1].sum(), (masks[2] & first).sum())
    assert list(card.data["profiles"]) == ["h100-64gb/llama-3.1-8b", "h100-64gb/qwen-2.5-7b"]
    assert card.settings == SETTINGS.model_dump(mode="json")
    assert {"accuracy", "macro_f1", "throughput_mape", "itl_mape", "ttft_median_ape"} <= card.errors.keys()
    assert 0.0 <= card.errors["accuracy"] <= 100.0


def test_range_and_thresholds_are_those_of_their_rows(whole: Path) -> None:
    model, examples = Model.load(whole), small_examples()
    for_training, _, for_calibration = split(examples.workload)
    known = examples.select(for_training)
    assert not model.outside(known.inputs, known.context).any()
    values = np.concatenate((known.inputs, known.context), axis=1)
    np.testing.assert_allclose(model.card.high, values.max(0))
    first = np.diff(examples.workload, prepend=-1) > 0
    judged = model.judge_examples(examples.select(for_calibration & first))
    np.testing.assert_allclose(model.calibration.score, judged.score, rtol=1e-5)
    assert model.calibration.packed_score.size == 0


def test_complete_already(model: Path, data: Path) -> None:
    before = (model / "card.json").read_bytes()
    assert not training.train(data, model, SETTINGS, ctrl_c_after(0)).new
    assert (model / "card.json").read_bytes() == before


def test_a_damaged_model_is_made_again_from_the_checkpoint(model: Path, whole: Path, data: Path) -> None:
    (model / "weights.safetensors").write_bytes(b"half")
    assert training.train(data, model, SETTINGS).new
    assert (model / "weights.safetensors").read_bytes() == (whole / "weights.safetensors").read_bytes()


@pytest.mark.parametrize("steps", [2, 5])  # before the first checkpoint, and in the second epoch
def test_interrupted_it_ends_with_the_same_model(data: Path, whole: Path, tmp_path: Path, steps: int) -> None:
    out = tmp_path / "model"
    with pytest.raises(KeyboardInterrupt):
        training.train(data, out, SETTINGS, ctrl_c_after(steps))
    assert not (out / "card.json").exists()
    out = out.rename(tmp_path / "moved")
    told: list[int] = []
    training.train(data, out, SETTINGS, lambda done, *_: told.append(done))
    assert told[0] == (0 if steps == 2 else told[-1] // SETTINGS.epochs)
    assert (out / "logs" / "version_1" / "metrics.csv").exists()
    assert (out / "weights.safetensors").read_bytes() == (whole / "weights.safetensors").read_bytes()


@pytest.mark.slow  # a process that imports torch
def test_killed_it_ends_with_the_same_model(data: Path, whole: Path, tmp_path: Path) -> None:
    out = tmp_path / "model"
    code = (
        "import os; from pathlib import Path; from surrogate import training; "
        "from surrogate.settings import TrainSettings; "
        f"training.train(Path({str(data)!r}), Path({str(out)!r}), TrainSettings(**{SETTINGS.model_dump()!r}), "
        "lambda done, total, epochs, loss: os.kill(os.getpid(), 9) if epochs == 2 else None)"
    )
    found = subprocess.run([sys.executable, "-c", code], env=os.environ, check=False)
    assert found.returncode == -9
    training.train(data, out, SETTINGS)
    assert (out / "weights.safetensors").read_bytes() == (whole / "weights.safetensors").read_bytes()


def test_another_dataset_or_setting_is_refused(model: Path, data: Path, tmp_path: Path) -> None:
    with pytest.raises(BadInputError, match=r"begun with settings.epochs = 4, and now that is 5; go on with"):
        training.train(data, model, SETTINGS.model_copy(update={"epochs": 5}))
    other = Path(shutil.copytree(data, tmp_path / "other"))
    append_rows(other, "packed", read_dataset(data).drop_columns("part").slice(0, 3).to_pylist())
    with pytest.raises(BadInputError, match=r"begun with dataset = [0-9a-f]{64}, and now that is") as error:
        training.train(other, model, SETTINGS)
    assert "\n" not in str(error.value)


def test_rows_that_were_added_are_trained_on(data: Path, tmp_path: Path) -> None:
    other = Path(shutil.copytree(data, tmp_path / "other"))
    table = read_dataset(data).drop_columns("part")
    append_rows(other, "packed", table.to_pylist())
    settings = SETTINGS.model_copy(update={"epochs": 1})
    card = training.train(other, tmp_path / "model", settings).card
    plain = training.train(other, tmp_path / "plain", settings, parts=()).card
    assert (card.data["parts"], plain.data["parts"]) == ({"packed": table.num_rows}, {})
    more = {name: count - plain.data["rows_for"][name] for name, count in card.data["rows_for"].items()}
    assert more == {"training": table.num_rows, "validation": 0, "calibration": 0}
    assert Model.load(tmp_path / "model").calibration.packed_score.size == 0


@pytest.mark.parametrize("content", [b"", b"half a checkpoint"])
def test_a_damaged_checkpoint_is_told(model: Path, data: Path, content: bytes) -> None:
    (model / "card.json").unlink()
    (model / "checkpoints" / "last.ckpt").write_bytes(content)
    with pytest.raises(BadInputError, match=r"last.ckpt: truncated, corrupt .* remove .*checkpoints to begin") as error:
        training.train(data, model, SETTINGS)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("content", ["{", "[1]", ""])
def test_a_damaged_beginning_is_told(model: Path, data: Path, content: str) -> None:
    (model / "training.json").write_text(content)
    with pytest.raises(BadInputError, match=r"training.json: (not valid JSON|expected a mapping)"):
        training.train(data, model, SETTINGS)


def test_a_folder_with_something_else_is_left_alone(data: Path, tmp_path: Path) -> None:
    (tmp_path / "thesis.tex").write_text("mine")
    with pytest.raises(BadInputError, match=r"holds something else \(thesis.tex\) and no training.json"):
        training.train(data, tmp_path, SETTINGS)
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.tex"]


def test_one_process_at_a_time(data: Path, model: Path) -> None:
    with locked(model / ".lock", "model"), pytest.raises(BadInputError, match="another process writes to it"):
        training.train(data, model, SETTINGS)


def test_it_stops_early_and_stays_so(tmp_path: Path) -> None:
    hopeless = SETTINGS.model_copy(update={"learning_rate": 1e-12, "patience": 1, "epochs": 30})
    epochs: list[int] = []
    for _ in range(2):
        training.fit(*parts(), hopeless, tmp_path, on_progress=lambda done, total, epoch, loss: epochs.append(epoch))
    assert epochs[-1] == max(epochs) < 30
    assert epochs.count(max(epochs)) == 2  # the second had nothing to do


def test_fit_learns_and_goes_on_from_a_model() -> None:
    losses: list[float] = []
    tensors = training.fit(*parts(), SETTINGS, on_progress=lambda *told: losses.append(told[-1]))
    assert losses[-1] < np.nanmax(losses)
    assert tensors.keys() == {name for name in SHAPES if not name.startswith("calibration.")}
    for name, tensor in tensors.items():
        assert tensor.shape == SHAPES[name]
    warm: list[float] = []
    small = SETTINGS.model_copy(update={"epochs": 1, "learning_rate": 1e-9})
    again = training.fit(*parts(), small, start=tensors, on_progress=lambda *told: warm.append(told[-1]))
    assert warm[-1] < losses[-1] + 0.5
    for name in tensors:
        np.testing.assert_allclose(again[name], tensors[name], atol=1e-5)


def test_it_leaves_random_numbers_threads_and_signals_alone() -> None:
    torch.manual_seed(1)
    np.random.seed(1)  # noqa: NPY002 - others may use it
    before = torch.get_rng_state(), np.random.get_state()[1].copy(), torch.get_num_threads()  # type: ignore[index, union-attr]  # noqa: NPY002
    handler = signal.getsignal(signal.SIGINT)
    with pytest.raises(KeyboardInterrupt):
        training.fit(*parts(), SETTINGS, on_progress=ctrl_c_after(1))
    assert torch.equal(torch.get_rng_state(), before[0])
    assert np.array_equal(np.random.get_state()[1], before[1])  # type: ignore[index]  # noqa: NPY002
    assert torch.get_num_threads() == before[2]
    assert signal.getsignal(signal.SIGINT) is handler


def test_seeds_decide() -> None:
    short = SETTINGS.model_copy(update={"epochs": 1})
    first, again, other = (
        training.fit(*parts(), short.model_copy(update={"seed": seed}))["head.net.0.weight"] for seed in (0, 0, 1)
    )
    np.testing.assert_array_equal(first, again)
    assert not np.array_equal(first, other)


def test_what_cannot_be_trained_is_told(data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(BadInputError, match="0 examples to train with"):
        training.fit(parts()[0].select(np.arange(0)), parts()[1], SETTINGS)
    with pytest.raises(BadInputError, match="weights that are no numbers; try a smaller learning_rate"):
        training.fit(*parts(), SETTINGS.model_copy(update={"learning_rate": 1e30}))
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(BadInputError, match="torch finds no GPU on this machine"):
        training.fit(*parts(), SETTINGS.model_copy(update={"device": "gpu"}))
    with pytest.raises(BadInputError, match="there is no manifest"):
        training.train(tmp_path, tmp_path / "model", SETTINGS)
    assert not (tmp_path / "model").exists()
