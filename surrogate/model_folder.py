"""The folder in which a model is trained: what the training was begun with, so that only the same one goes on in it."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from importlib.metadata import version
from pathlib import Path
from typing import Any

from loraplan.errors import BadInputError
from loraplan.files import locked, make_folder, write_text
from surrogate.manifest import Manifest
from surrogate.model import CARD, SHAPES, WEIGHTS, Model
from surrogate.settings import TrainSettings

BEGUN, LOCK, CHECKPOINTS, LOGS = "training.json", ".lock", "checkpoints", "logs"
PACKAGES = ("loraplan", "torch", "pytorch-lightning")


def fingerprint(manifest: Manifest) -> str:
    """SHA-256 of what rows a dataset has: its design's and those that were added."""
    parts = {name: part.sha256 for name, part in sorted(manifest.parts.items())}
    return _digest([[shard.sha256 for shard in manifest.shards], parts])


def made_from(manifest: Manifest, settings: TrainSettings) -> dict[str, Any]:
    """All that a training depends on, by names for messages."""
    return {
        "dataset": fingerprint(manifest),
        **{f"settings.{name}": value for name, value in settings.model_dump(mode="json").items()},
        **{f"versions.{name}": version(name) for name in PACKAGES},
        "versions.network": _digest([(name, *shape) for name, shape in SHAPES.items()])[:12],
    }


@contextmanager
def begun(folder: Path, made_from: Mapping[str, Any]) -> Iterator[None]:
    """Make the folder of a model, or see that its training was begun with the same; others are kept out in the block.

    Raises:
        BadInputError: it was begun with something else, or holds something else; another process trains there.
    """
    names = make_folder(folder, "model")
    foreign = [name for name in names if name != LOCK and not name.startswith(f".{BEGUN}.")]
    if foreign and BEGUN not in names:
        raise BadInputError(
            f"model {folder}: the folder holds something else ({min(foreign)}) and no {BEGUN}; choose another one"
        )
    with locked(folder / LOCK, f"model {folder}"):
        if BEGUN in names:
            _check_same(folder, made_from)
        else:
            write_text(folder / BEGUN, json.dumps(made_from, indent=1) + "\n")
        yield


def finished(folder: Path) -> Model | None:
    """The model whose training has ended, if there is one and it is sound."""
    if not ((folder / CARD).exists() and (folder / WEIGHTS).exists()):
        return None
    try:
        return Model.load(folder)
    except BadInputError:
        return None  # damaged: the last checkpoint gives it again


def _check_same(folder: Path, made_from: Mapping[str, Any]) -> None:
    try:
        before = json.loads((folder / BEGUN).read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise BadInputError(f"model {folder / BEGUN}: not valid JSON ({error})") from None
    if not isinstance(before, dict):
        raise BadInputError(f"model {folder / BEGUN}: expected a mapping")
    for name in {**before, **made_from}:
        old, new = before.get(name), made_from.get(name)
        if old != new:
            raise BadInputError(
                f"model {folder}: its training was begun with {name} = {old}, and now that is {new}; "
                "go on with what it was begun with, or choose another folder"
            )


def _digest(value: Any) -> str:
    return hashlib.sha256(json.dumps(value).encode()).hexdigest()
