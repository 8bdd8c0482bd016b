"""The trained surrogate without torch: weights and model card in a folder, predictions from sums of embeddings."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, fields
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field, ValidationError
from safetensors import SafetensorError
from safetensors.numpy import load as load_tensors
from safetensors.numpy import save as save_tensors

from loraplan.errors import BadInputError
from loraplan.files import write_bytes, write_text
from loraplan.profiles import first_problem
from loraplan.workload import Floats
from surrogate import features, kernel
from surrogate.calibration import NAMES, Calibration
from surrogate.examples import TARGETS, Examples
from surrogate.features import BENDS
from surrogate.kernel import ROWS, TERMS, WAYS

Floats32 = NDArray[np.float32]

WEIGHTS, CARD = "weights.safetensors", "card.json"
SHIPPED = Path(__file__).parent / "default"
"""The folder of the model that comes with the package."""
RANGE_SLACK = 0.05
"""Of the range of an input in training, how far beyond its ends it is still not out of range."""
AT_ONCE = 512
"""Examples whose servers are prepared together (24 kB each)."""
CACHE_LINE = 64
"""Bytes."""


class Card(BaseModel):
    """What is known of a model: data, settings, errors, the range of what it was trained on."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    schema_version: Literal[1] = 1
    name: str = Field(min_length=1)
    loraplan: str = Field(description="version that trained it")
    created: str = Field(description="UTC time, ISO 8601")
    weights_sha256: str = Field(description="of the weights file")
    data: dict[str, Any] = Field(description="dataset: design, rows, workloads, parts, hashes of profiles")
    settings: dict[str, Any] = Field(description="of the training")
    errors: dict[str, float] = Field(description="on workloads that were not trained on")
    low: tuple[float, ...] = Field(description="least of each input in training")
    high: tuple[float, ...] = Field(description="largest of each input in training")


@dataclass(frozen=True, eq=False)
class Judged:
    """What a model says of n loads.

    Attributes:
        score: shape (n,), how far beyond what the server can carry: logarithm of the share of it that the load takes,
            in units of the server's sharpness, in the best way to serve it. Above 0 a load rather starves than not.
        log_share: shape (n,), the same without the sharpness.
        figures: shape (n, quantiles, targets): ``features.QUANTILES`` of ``examples.TARGETS``, in their units.
    """

    score: Floats
    log_share: Floats
    figures: Floats

    def median(self, target: str) -> Floats:
        """The median of a target, shape (n,)."""
        return self.figures[:, features.QUANTILES.index(0.5), TARGETS.index(target)]


@dataclass(frozen=True, eq=False)
class Servers:
    """What a model makes of servers, ready for `kernel.judge_sums`; first axis: servers."""

    terms: Floats
    weights: Floats32
    factors: Floats32
    context: Floats32
    beta: Floats

    def extended(self, other: Servers) -> Servers:
        """These and then the others."""
        parts = ((getattr(self, field.name), getattr(other, field.name)) for field in fields(self))
        return Servers(*(np.concatenate(pair) for pair in parts))


class Model:
    """Weights, calibration and card; thread-safe, as nothing in it changes."""

    def __init__(self, tensors: Mapping[str, NDArray[Any]], calibration: Calibration, card: Card) -> None:
        """Take what `load` read, or training made; tensors by their names in ``surrogate.network.Surrogate``."""
        self.tensors = {name: np.ascontiguousarray(tensor, dtype=np.float32) for name, tensor in tensors.items()}
        self.calibration = calibration
        self.card = card

    def sealed(self) -> Model:
        """The same, with the digest of its weights on the card."""
        digest = hashlib.sha256(self.to_bytes()).hexdigest()
        return Model(self.tensors, self.calibration, self.card.model_copy(update={"weights_sha256": digest}))

    def servers(self, terms: Floats, context: Floats) -> Servers:
        """Prepare servers: ``features.server`` and ``features.context`` of each, shapes (servers, ...)."""
        own = self.tensors
        normal = ((context - own["context_mean"]) / own["context_scale"]).astype(np.float32)
        octaves = np.log2(terms[:, kernel.SERVER["rank"]] / features.RANK_AT).astype(np.float32)
        sizes = np.cumsum((WAYS * ROWS * TERMS, WAYS * ROWS * BENDS))
        by_term, bend, stretch = np.split(_net(own, "margin.hyper", normal), sizes, axis=1)
        by_term = own["margin.by_term"] + by_term.reshape(-1, WAYS, ROWS, TERMS)
        slopes = np.logaddexp(0.0, own["margin.rank_slope"])
        by_term = by_term + slopes * np.maximum(octaves, 0.0)[:, None, None, None]
        bend = own["margin.bend"] + bend.reshape(-1, WAYS, ROWS, BENDS)
        bent = np.einsum("nhrb,kb->nhkr", bend, features.PACE_POWERS)
        stretched = np.exp(own["margin.stretch"] + stretch)
        factors = np.exp(bent - features.pace_logs(terms, stretched, np)).transpose(0, 3, 1, 2)
        return Servers(
            terms=terms,
            weights=_columns(np.exp(features.term_logs(terms, np) + by_term)),
            factors=factors.reshape(len(terms), kernel.COLUMNS, kernel.PACES).astype("f4"),
            context=np.concatenate((normal, octaves[:, None]), axis=1),
            beta=features.USUAL_SHARPNESS * np.exp(_net(own, "margin.sharpness", normal).astype(np.float64)),
        )

    def judge(self, sums: Floats, servers: Servers, server_of: NDArray[np.int64]) -> Judged:
        """Judge loads by their sums, shape (n, EMBEDDING); ``server_of`` says whose each is."""
        shares = np.empty((2, len(sums)))
        figures = np.empty((len(sums), len(features.QUANTILES), len(TARGETS)))
        scaling, layers = self._head
        kernel.judge_sums(
            sums,
            servers.terms,
            server_of,
            (servers.weights, servers.factors, servers.beta),
            servers.context,
            scaling,
            layers,
            shares,
            figures,
        )
        np.exp(figures, out=figures)
        low, median, high = figures.swapaxes(0, 1)
        np.divide(median, 1.0 + low, out=low)
        np.multiply(median, 1.0 + high, out=high)
        for target in ("served_fraction", "kv_utilisation"):
            place = figures[:, :, TARGETS.index(target)]
            np.minimum(place, 1.0, out=place)
        return Judged(shares[0], shares[1], figures)

    def judge_examples(self, examples: Examples) -> Judged:
        """Judge examples, each of which has a server of its own."""
        parts = []
        for start in range(0, max(len(examples), 1), AT_ONCE):
            part = examples.select(np.arange(start, min(start + AT_ONCE, len(examples))))
            parts.append(self.judge(part.sums, self.servers(part.server, part.context), np.arange(len(part))))
        return Judged(
            *(np.concatenate([getattr(p, name) for p in parts]) for name in ("score", "log_share", "figures"))
        )

    def outside(self, inputs: Floats, context: Floats) -> NDArray[np.bool_]:
        """Which inputs are out of the range of the training, shape (n, inputs); names in ``features.INPUT_NAMES``."""
        values = np.concatenate((inputs, context), axis=1)
        low, high = np.array(self.card.low), np.array(self.card.high)
        slack = RANGE_SLACK * (high - low) + 1e-6
        beyond: NDArray[np.bool_] = (values < low - slack) | (values > high + slack)
        return beyond

    @cached_property
    def _head(self) -> tuple[tuple[Floats32, ...], tuple[Floats32, ...]]:
        own = self.tensors
        layers: list[Floats32] = []
        for place in (0, 2, 4):
            layers += [aligned(own[f"head.net.{place}.weight"].T), aligned(own[f"head.net.{place}.bias"])]
        return (own["inputs_mean"], 1.0 / own["inputs_scale"]), tuple(layers)

    def save(self, folder: Path) -> None:
        """Write weights and card into ``folder``, each atomically.

        Raises:
            BadInputError: the folder cannot be written.
        """
        folder.mkdir(parents=True, exist_ok=True)
        write_bytes(folder / WEIGHTS, self.to_bytes())
        write_text(folder / CARD, json.dumps(self.card.model_dump(mode="json"), indent=1) + "\n")

    @classmethod
    def load(cls, folder: Path = SHIPPED) -> Model:
        """Read a model; nothing in its files is executed.

        Raises:
            BadInputError: a file is missing, truncated, changed, or not of a surrogate of this version.
        """
        card = _read_card(folder / CARD)
        content = _read(folder / WEIGHTS)
        if hashlib.sha256(content).hexdigest() != card.weights_sha256:
            raise BadInputError(f"model {folder / WEIGHTS}: not the file that {CARD} describes; is it complete?")
        try:
            tensors = load_tensors(content)
        except (SafetensorError, ValueError, KeyError, TypeError) as error:
            raise BadInputError(f"model {folder / WEIGHTS}: not a safetensors file ({error})") from None
        for name, shape in SHAPES.items():
            found = tensors.get(name)
            if found is None or not _fits(found.shape, shape):
                raise BadInputError(
                    f"model {folder / WEIGHTS}: tensor {name} is {'missing' if found is None else list(found.shape)}, "
                    f"expected {list(shape)}; was it trained by another version of loraplan?"
                )
            if not np.isfinite(found).all():
                raise BadInputError(f"model {folder / WEIGHTS}: tensor {name} has values that are no numbers")
        if len(card.low) != INPUTS or len(card.high) != INPUTS:
            raise BadInputError(f"model {folder / CARD}: low and high need {INPUTS} values each")
        calibration = Calibration(*(tensors[f"calibration.{name}"].astype(np.float64) for name in NAMES))
        return cls({name: tensors[name] for name in SHAPES if not name.startswith("calibration.")}, calibration, card)

    def to_bytes(self) -> bytes:
        """The weights file."""
        return bytes(save_tensors({**self.tensors, **self.calibration.tensors()}))


def aligned(array: NDArray[Any]) -> NDArray[Any]:
    """A copy that begins where a cache line does: rows that lie across lines take a third longer to add up."""
    raw = np.empty(array.nbytes + CACHE_LINE, dtype=np.uint8)
    start = -raw.ctypes.data % CACHE_LINE
    copy = raw[start : start + array.nbytes].view(array.dtype).reshape(array.shape)
    copy[...] = array
    return copy


def _columns(weights: Floats) -> Floats32:
    """Weights of shape (n, ways, rows, terms) as the kernel has them, (n, WEIGHT_TERMS, rows * ways)."""
    n, ways, rows, count = weights.shape
    terms = weights.transpose(0, 3, 2, 1).reshape(n, count, rows * ways)
    columns = np.zeros((n, kernel.WEIGHT_TERMS, rows * ways), dtype=np.float32)
    still, grown = terms[:, : kernel.STILL], terms[:, kernel.STILL : kernel.BUSY_WEIGHT]
    columns[:, : kernel.STILL], columns[:, kernel.STILL_PLACES :][:, : kernel.STILL] = still, grown
    columns[:, kernel.BUSY_TERM] = terms[:, kernel.BUSY_WEIGHT]
    columns[:, kernel.TURN_TERM] = terms[:, kernel.TURN_WEIGHT]
    return columns


INPUTS = kernel.HEAD_INPUTS + features.CONTEXT


def _shapes() -> dict[str, tuple[int, ...]]:
    inputs = INPUTS + 1 + ROWS + 1
    shapes: dict[str, tuple[int, ...]] = {
        "margin.by_term": (WAYS, ROWS, TERMS),
        "margin.rank_slope": (WAYS, ROWS, TERMS),
        "margin.bend": (WAYS, ROWS, BENDS),
        "margin.stretch": (WAYS,),
    }
    nets = {
        "margin.hyper": (features.CONTEXT, features.HYPER, WAYS * (ROWS * (TERMS + BENDS) + 1)),
        "margin.sharpness": (features.CONTEXT, features.SHARPNESS, WAYS),
        "head.net": (inputs, kernel.HEAD, len(features.QUANTILES) * len(TARGETS)),
    }
    for name, (first, hidden, last) in nets.items():
        for place, width, into in ((0, first, hidden), (2, hidden, hidden), (4, hidden, last)):
            shapes[f"{name}.{place}.weight"] = (into, width)
            shapes[f"{name}.{place}.bias"] = (into,)
    for name, width in (("context", features.CONTEXT), ("inputs", kernel.HEAD_INPUTS)):
        shapes[f"{name}_mean"] = shapes[f"{name}_scale"] = (width,)
    return shapes | {f"calibration.{name}": (-1,) for name in NAMES}


SHAPES = _shapes()
"""Of the tensors that a model consists of; -1 is any length."""


def _fits(found: tuple[int, ...], shape: tuple[int, ...]) -> bool:
    return len(found) == len(shape) and all(wanted in (-1, size) for size, wanted in zip(found, shape, strict=True))


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise BadInputError(f"model {path}: {error.strerror or error}") from None


def _read_card(path: Path) -> Card:
    try:
        return Card.model_validate_json(_read(path))
    except ValidationError as error:
        raise BadInputError(f"model {path}: {first_problem(error)}; is it the card of a surrogate?") from None


def _net(tensors: Mapping[str, Floats32], name: str, inputs: Floats32) -> Floats32:
    """A network of three layers with tanh between them."""
    for place in (0, 2, 4):
        inputs = inputs @ tensors[f"{name}.{place}.weight"].T + tensors[f"{name}.{place}.bias"]
        if place < 4:
            inputs = np.tanh(inputs)
    return inputs
