"""The model types that arXiv 2602.24044 trained on its twin's data, to compare the surrogate with.

As published: seven features of a load (sum and standard deviation of the rates; largest, mean and standard deviation
of the ranks; slots; adapters), one model per GPU profile, and scikit-learn's models with its default settings. They
know neither the requests' lengths nor the server, nor how bursty arrivals are.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from loraplan.errors import BadInputError
from loraplan.files import write_bytes
from loraplan.workload import Floats
from surrogate.scores import RANDOM, Said, adapters_of, groups_of
from surrogate.split import split
from twin.agreement import STARVED_BELOW

FEATURES = ("rate_sum", "rate_std", "rank_max", "rank_mean", "rank_std", "slots", "adapters")
OUTPUTS = ("throughput_tok_s", "itl_ms", "served_fraction")
FILE = "published_features.parquet"
"""In the folder of a model: what its comparison models are trained on."""
MODELS = ("random_forest", "nearest_neighbour", "svm")
MOST_SVM_ROWS = 5000
"""Rows per profile that a support vector machine is trained on: its time grows with their square."""
SEED = 0
INSTALL = "the comparison models need scikit-learn, which is not installed: pip install 'loraplan[train]'"


@dataclass(frozen=True, eq=False)
class Rows:
    """n rows to train on.

    Attributes:
        base: shape (n,), profile of each.
        features: shape (n, len(FEATURES)).
        outputs: shape (n, len(OUTPUTS)).
    """

    base: NDArray[np.str_]
    features: Floats
    outputs: Floats

    @classmethod
    def of(cls, table: pa.Table) -> Rows:
        """The rows of a table of `training_rows`."""

        def together(names: tuple[str, ...]) -> Floats:
            return np.column_stack([table[name].to_numpy().astype(np.float64) for name in names])

        return cls(np.array(table["base"].to_pylist(), dtype=np.str_), together(FEATURES), together(OUTPUTS))

    def __len__(self) -> int:
        """Number of rows."""
        return int(self.base.size)

    def select(self, which: NDArray[Any]) -> Rows:
        """Those rows."""
        return Rows(*(getattr(self, field.name)[which] for field in fields(self)))


def features_of(table: pa.Table) -> Floats:
    """The published features of a dataset's rows, shape (n, len(FEATURES))."""
    sizes = adapters_of(table).astype(np.float64)
    ends = np.cumsum(adapters_of(table))
    starts = np.concatenate(([0], ends[:-1]))
    rates = _flat(table, "rates")
    ranks = _flat(table, "ranks")

    def spread(values: Floats, means: Floats) -> Floats:
        off = values - np.repeat(means, sizes.astype(np.int64))
        return np.asarray(np.sqrt(np.add.reduceat(off**2, starts) / sizes))

    if sizes.size == 0:
        return np.zeros((0, len(FEATURES)))
    total, mean_rank = np.add.reduceat(rates, starts), np.add.reduceat(ranks, starts) / sizes
    columns = (
        *(total, spread(rates, total / sizes)),
        *(np.maximum.reduceat(ranks, starts), mean_rank, spread(ranks, mean_rank)),
        *(table["slots"].to_numpy().astype(np.float64), sizes),
    )
    return np.column_stack(columns)


def _flat(table: pa.Table, column: str) -> Floats:
    """All values of a column of lists, one after the other."""
    return np.asarray(table[column].combine_chunks().flatten(), dtype=np.float64)


def training_rows(table: pa.Table) -> pa.Table:
    """What the comparison models learn of a dataset: rows on the named profiles as they are, of the training split.

    Returns:
        ``base``, and ``FEATURES`` and ``OUTPUTS`` as float32.
    """
    base = groups_of(table)
    kept = split(table["workload"].to_numpy())[0] & (base != RANDOM)
    chosen = table.filter(pa.array(kept))
    columns = dict(zip(FEATURES, features_of(chosen).T, strict=True))
    columns |= {name: chosen[name].to_numpy() for name in OUTPUTS}
    arrays = {name: pa.array(values.astype(np.float32)) for name, values in columns.items()}
    return pa.table({"base": pa.array(base[kept].tolist(), type=pa.string()), **arrays})


def write_training_rows(table: pa.Table, folder: Path) -> Path:
    """Write the `training_rows` of a dataset (``surrogate.dataset.read_dataset``) into the folder of a model.

    Raises:
        BadInputError: the file cannot be written.
    """
    sink = pa.BufferOutputStream()
    pq.write_table(training_rows(table), sink, compression="zstd")
    write_bytes(folder / FILE, bytes(sink.getvalue()))
    return folder / FILE


def read_training_rows(path: Path) -> pa.Table:
    """Read what `write_training_rows` wrote.

    Raises:
        BadInputError: it cannot be read, or has other columns.
    """
    try:
        table = pq.ParquetFile(pa.BufferReader(path.read_bytes())).read()
    except (pa.ArrowException, OSError, ValueError) as error:
        raise BadInputError(
            f"{path}: missing, truncated or not Parquet ({' '.join(str(error).split()):.200})"
        ) from None
    for name in ("base", *FEATURES, *OUTPUTS):
        if name not in table.column_names:
            raise BadInputError(f"{path}: column {name!r} is missing")
    return table


# ---- the models ----


@dataclass(frozen=True, eq=False)
class Trained:
    """One model type on one profile: scikit-learn's models for throughput, ITL and starvation.

    Attributes:
        trained_on: rows.
    """

    throughput: Any
    itl: Any
    starved: Any
    trained_on: int

    def predict(self, features: Floats) -> Said:
        """What it says of loads, shape (n, len(FEATURES))."""
        figures = {"throughput": self.throughput.predict(features), "itl": self.itl.predict(features)}
        return Said(figures, np.asarray(self.starved.predict(features), dtype=np.bool_))


def installed() -> bool:
    """Whether scikit-learn is."""
    return importlib.util.find_spec("sklearn") is not None


def require_sklearn() -> None:
    """Refuse to go on without scikit-learn.

    Raises:
        BadInputError: it is not installed.
    """
    if not installed():
        raise BadInputError(INSTALL)


def train(rows: Rows, models: Sequence[str] = MODELS) -> dict[str, Trained]:
    """Train each of ``models`` on the rows of one profile, of which there is at least one.

    Raises:
        BadInputError: scikit-learn is not installed; in no row anything was served.
    """
    require_sklearn()
    few = rows
    if len(rows) > MOST_SVM_ROWS:
        few = rows.select(np.sort(np.random.default_rng(SEED).choice(len(rows), MOST_SVM_ROWS, replace=False)))
    makers = _makers()
    return {name: _fit(few if name == "svm" else rows, *makers[name]) for name in models}


Maker = Callable[[], Any]


def _makers() -> Mapping[str, tuple[Maker, Maker]]:
    """Regressor and classifier of each model type, untrained."""
    from sklearn.compose import TransformedTargetRegressor
    from sklearn.ensemble import RandomForestClassifier, RandomForestRegressor
    from sklearn.neighbors import KNeighborsClassifier, KNeighborsRegressor
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler
    from sklearn.svm import SVC, SVR

    return {
        "random_forest": (
            lambda: RandomForestRegressor(random_state=SEED),
            lambda: RandomForestClassifier(random_state=SEED),
        ),
        "nearest_neighbour": (lambda: KNeighborsRegressor(1), lambda: KNeighborsClassifier(1)),
        "svm": (
            lambda: TransformedTargetRegressor(make_pipeline(StandardScaler(), SVR()), transformer=StandardScaler()),
            lambda: make_pipeline(StandardScaler(), SVC()),
        ),
    }


def _fit(rows: Rows, regressor: Maker, classifier: Maker) -> Trained:
    from sklearn.dummy import DummyClassifier

    throughput, itl, served = rows.outputs.T
    known = np.isfinite(itl)
    if not known.any():
        raise BadInputError("the comparison models: nothing was served in any row that they are to be trained on")
    starved = served < STARVED_BELOW
    labelled = classifier() if starved.any() and not starved.all() else DummyClassifier()  # one label is no task
    return Trained(
        throughput=regressor().fit(rows.features, throughput),
        itl=regressor().fit(rows.features[known], itl[known]),
        starved=labelled.fit(rows.features, starved),
        trained_on=len(rows),
    )
