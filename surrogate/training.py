"""Training of the surrogate with PyTorch Lightning, from a dataset to a model that needs no torch.

Life cycle of a model's folder: ``train`` begins, and writes a checkpoint after every epoch; interrupted in any way, the
same call goes on from the last one, with the result of a training that was not. At the end the weights of the epoch
with the least validation loss, thresholds and card are written (`surrogate.model`). ``fit`` is the training alone.
"""

from __future__ import annotations

import logging
import random
import signal
import threading
import warnings
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pytorch_lightning as pl
import torch
from lightning_fabric.plugins.environments.lightning import LightningEnvironment
from numpy.typing import NDArray
from pytorch_lightning.callbacks import Callback, EarlyStopping, ModelCheckpoint
from pytorch_lightning.loggers import CSVLogger, Logger, TensorBoardLogger

from loraplan.errors import BadInputError
from loraplan.workload import Ints
from surrogate.batches import SurrogateData
from surrogate.calibration import NOTHING
from surrogate.dataset import read_dataset
from surrogate.examples import Examples, examples_of
from surrogate.judgement import calibrated
from surrogate.manifest import DESIGN_PART, Manifest, read_manifest
from surrogate.model import SHAPES, Card, Floats32, Model
from surrogate.model_folder import CHECKPOINTS, LOGS, begun, fingerprint, finished, made_from
from surrogate.module import SurrogateModule
from surrogate.settings import TrainSettings
from surrogate.split import split

MONITOR = "val_loss"
CLIP = 1.0
"""Largest norm of a gradient."""
THREADS = 1
"""The networks are small: several threads gain little, wait for each other on a busy machine, and round differently."""
UNWANTED = (
    r".*isinstance\(treespec, LeafSpec\)",  # Lightning's own use of torch
    "GPU available but not used",  # device=cpu
    "Checkpoint directory .* exists and is not empty",  # training goes on
    "Experiment logs directory .* exists and is not empty",  # of TensorBoard, a moment ago
)
BEST, LAST = "best.ckpt", "last.ckpt"

OnProgress = Callable[[int, int, int, float], None]
"""Called with (steps done, steps at most, epochs done, last validation loss: nan before the first)."""


@dataclass(frozen=True)
class Trained:
    """A trained model's card, and whether this call had anything to do."""

    card: Card
    new: bool


def train(
    folder: Path,
    out: Path,
    settings: TrainSettings,
    on_progress: OnProgress | None = None,
    parts: Collection[str] | None = None,
    start: Model | None = None,
) -> Trained:
    """Train a model on the dataset in ``folder`` and write it to ``out``, or go on where an earlier call ended.

    Args:
        folder: of a complete dataset.
        out: folder of the model; made if need be. Logs, checkpoints and the model are written there.
        settings: of the training.
        on_progress: told after every step.
        parts: added parts of the dataset to train on, beside its design's rows; None for all.
        start: whose weights to begin with; None begins with the fluid model.

    Raises:
        BadInputError: the dataset cannot be read or is too small; ``out`` holds something else, or what was begun with
            another dataset, other settings or versions; another process trains there; or as ``fit``.
    """
    manifest, table = read_manifest(folder), read_dataset(folder)
    if parts is not None:
        manifest = manifest.model_copy(update={"parts": {name: manifest.parts[name] for name in parts}})
        table = table.filter(pc.is_in(table["part"], pa.array([DESIGN_PART, *parts])))
    with begun(out, made_from(manifest, settings)):
        there = finished(out)
        if there is not None:
            return Trained(there.card, new=False)
        examples = examples_of(table)
        masks = _split(table, examples.workload)
        if not all(mask.any() for mask in masks):
            raise BadInputError(
                f"dataset {folder}: {len(np.unique(examples.workload))} workloads are too few to train, validate and "
                "calibrate with; make some hundred at least"
            )
        training, validation, calibration = (examples.select(mask) for mask in masks)
        tensors = fit(training, validation, settings, out, start.tensors if start else None, on_progress)
        limits = np.concatenate((training.inputs, training.context), axis=1)
        card = Card(
            name=out.resolve().name or "surrogate",
            loraplan=version("loraplan"),
            created=datetime.now(UTC).isoformat(timespec="seconds"),
            weights_sha256="",
            data=_data(manifest, examples, masks),
            settings=settings.model_dump(mode="json"),
            errors={},
            low=tuple(limits.min(0).tolist()),
            high=tuple(limits.max(0).tolist()),
        )
        model = calibrated(Model(tensors, NOTHING, card), validation, drawn=calibration)
        model.save(out)
        return Trained(model.card, new=True)


def fit(
    training: Examples,
    validation: Examples,
    settings: TrainSettings,
    folder: Path | None = None,
    start: Mapping[str, Floats32] | None = None,
    on_progress: OnProgress | None = None,
) -> dict[str, Floats32]:
    """Train the networks.

    Args:
        training, validation: examples of different workloads.
        settings: of the training.
        folder: for checkpoints (training goes on from the last one that is there) and logs; None keeps neither.
        start: tensors of a model to begin with, its normalisation among them; None begins with the fluid model.
        on_progress: told after every step.

    Returns:
        The tensors of the epoch with the least validation loss, by their names in ``surrogate.model.SHAPES``.

    Raises:
        BadInputError: there are no examples, no GPU where one is asked for, a checkpoint cannot be read, or training
            gave weights that are no numbers.
        KeyboardInterrupt: on Ctrl-C.
    """
    if not (len(training) and len(validation)):
        raise BadInputError(f"{len(training)} examples to train with and {len(validation)} to validate are too few")
    accelerator = _accelerator(settings)
    with ExitStack() as stack:
        stack.enter_context(_quiet())
        stack.enter_context(_one_thread())
        stack.enter_context(_seeded(settings.seed))
        home = folder or Path(stack.enter_context(TemporaryDirectory(prefix="loraplan-")))
        module = SurrogateModule(settings, training)
        if start is not None:
            given = {name: torch.tensor(tensor) for name, tensor in start.items()}
            for network in (module.surrogate, module.averaged):
                network.load_state_dict(given, strict=False)  # a guess of the served fraction is not exported
        checkpoints = home / CHECKPOINTS
        last = checkpoints / LAST if (checkpoints / LAST).exists() else None
        if last is not None:
            _read_checkpoint(last)
        trainer = pl.Trainer(
            accelerator=accelerator,
            devices=1,
            plugins=[LightningEnvironment()],  # one process, also where a cluster's scheduler started it
            max_epochs=settings.epochs,
            gradient_clip_val=CLIP,
            callbacks=[
                _Stop(MONITOR, patience=settings.patience),
                _Save(checkpoints, BEST, MONITOR),
                _Save(checkpoints, LAST, None),
                *([_Progress(on_progress)] if on_progress else []),
            ],
            logger=_loggers(folder) if folder else False,
            log_every_n_steps=1,
            num_sanity_val_steps=0,
            enable_progress_bar=False,
            enable_model_summary=False,
            default_root_dir=home,
        )
        _run(trainer, module, SurrogateData(training, validation, settings), last)
        return _exported(_read_checkpoint(checkpoints / BEST))


def _split(table: pa.Table, workload: Ints) -> tuple[NDArray[np.bool_], ...]:
    """Rows for training, validation and calibration.

    Thresholds come from the first load of each workload, which is drawn from all there are: the others were put where
    the twin had just begun to starve. What was added to the design's rows is trained on.
    """
    drawn = np.array(table["part"].to_pylist()) == DESIGN_PART
    first = table["row"].to_numpy() == 0
    training, validation, calibration = split(workload)
    return training | ~drawn, validation & drawn, calibration & first & drawn


def _data(manifest: Manifest, examples: Examples, masks: tuple[NDArray[np.bool_], ...]) -> dict[str, Any]:
    """What a card says of the dataset."""
    return {
        "design": manifest.design.model_dump(mode="json"),
        "dataset_sha256": fingerprint(manifest),
        "versions": manifest.versions,
        "profiles": manifest.profiles,
        "rows": len(examples),
        "workloads": len(np.unique(examples.workload)),
        "parts": {name: part.rows for name, part in manifest.parts.items()},
        "rows_for": dict(
            zip(("training", "validation", "calibration"), (int(mask.sum()) for mask in masks), strict=True)
        ),
    }


# ---- Lightning ----


class _Stop(EarlyStopping):
    """Stops as well where a training that had stopped is started again."""

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        trainer.should_stop = trainer.should_stop or self.wait_count >= self.patience


class _Progress(Callback):
    """Tells how far training is."""

    def __init__(self, tell: OnProgress) -> None:
        self.tell = tell

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._tell(trainer)

    def on_train_batch_end(self, trainer: pl.Trainer, *_: Any) -> None:
        self._tell(trainer)

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._tell(trainer, 1)

    def _tell(self, trainer: pl.Trainer, more: int = 0) -> None:
        loss = float(trainer.callback_metrics.get(MONITOR, torch.tensor(np.nan)))
        self.tell(trainer.global_step, int(trainer.estimated_stepping_batches), trainer.current_epoch + more, loss)


class _Save(ModelCheckpoint):
    """Saves after every epoch, or every one with a better ``monitor``; a file is replaced as a whole."""

    def __init__(self, folder: Path, name: str, monitor: str | None) -> None:
        super().__init__(
            dirpath=folder,
            filename=Path(name).stem,
            monitor=monitor,
            save_on_train_epoch_end=True,
            enable_version_counter=False,
        )

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """What was best so far, also if the folder has been moved, which Lightning takes for another training."""
        here = str(Path(str(self.dirpath)) / f"{self.filename}.ckpt")
        paths = {name: here for name in ("best_model_path", "kth_best_model_path") if state_dict[name]}
        scores = dict.fromkeys([here] if state_dict["best_k_models"] else [], state_dict["best_model_score"])
        super().load_state_dict(state_dict | paths | {"best_k_models": scores, "dirpath": self.dirpath})


def _loggers(folder: Path) -> list[Logger]:
    """CSV and TensorBoard, a folder ``version_N`` for each time that training is started."""
    number = len(list((folder / LOGS).glob("version_*")))
    return [kind(folder, name=LOGS, version=number) for kind in (CSVLogger, TensorBoardLogger)]


def _run(trainer: pl.Trainer, module: SurrogateModule, data: SurrogateData, checkpoint: Path | None) -> None:
    """Train; Ctrl-C is a KeyboardInterrupt again, which Lightning takes for the end of the program."""
    handler = signal.getsignal(signal.SIGINT)
    try:
        trainer.fit(module, data, ckpt_path=checkpoint)
    except SystemExit:
        if not trainer.interrupted:
            raise
    finally:
        if threading.current_thread() is threading.main_thread() and handler is not None:
            signal.signal(signal.SIGINT, handler)
    if trainer.interrupted:
        raise KeyboardInterrupt


def _read_checkpoint(path: Path) -> dict[str, Any]:
    try:
        found: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=True)
        return {"state_dict": found["state_dict"]}
    except Exception as error:  # torch raises all kinds, according to where the file is damaged
        reason = str(error).partition("\n")[0][:200]
        raise BadInputError(
            f"checkpoint {path}: truncated, corrupt or not one ({reason}); remove {path.parent} to begin anew"
        ) from None


def _exported(checkpoint: Mapping[str, Any]) -> dict[str, Floats32]:
    state = checkpoint["state_dict"]
    names = [name for name in SHAPES if not name.startswith("calibration.")]
    tensors: dict[str, Floats32] = {name: state[f"averaged.{name}"].numpy() for name in names}
    if not all(np.isfinite(tensor).all() for tensor in tensors.values()):
        raise BadInputError("training gave weights that are no numbers; try a smaller learning_rate")
    return tensors


def _accelerator(settings: TrainSettings) -> str:
    there = torch.cuda.is_available()
    if settings.device == "gpu" and not there:
        raise BadInputError("device: torch finds no GPU on this machine; set it to cpu or auto")
    return "cuda" if there and settings.device != "cpu" else "cpu"


@contextmanager
def _one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(THREADS)
    try:
        yield
    finally:
        torch.set_num_threads(before)


@contextmanager
def _seeded(seed: int) -> Iterator[None]:
    """Seed all random numbers; afterwards they go on as if nothing had been."""
    before = random.getstate(), np.random.get_state(), torch.get_rng_state()  # noqa: NPY002 - what Lightning seeds
    pl.seed_everything(seed % 2**32, verbose=False)
    try:
        yield
    finally:
        random.setstate(before[0])
        np.random.set_state(before[1])  # noqa: NPY002
        torch.set_rng_state(before[2])


@contextmanager
def _quiet() -> Iterator[None]:
    """No chatter of Lightning's, nor its warnings of what is meant to be as it is."""
    log = logging.getLogger("pytorch_lightning")
    children = [log, logging.getLogger("pytorch_lightning.utilities.rank_zero")]
    before = [child.level for child in children]
    for child in children:
        child.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            for message in UNWANTED:
                warnings.filterwarnings("ignore", message)
            yield
    finally:
        for child, level in zip(children, before, strict=True):
            child.setLevel(level)
