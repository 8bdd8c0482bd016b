"""Rows of a dataset as arrays: what the surrogate is told of each load, and what it should say."""

from __future__ import annotations

from dataclasses import dataclass, fields
from functools import cache

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from loraplan.profiles import Profile
from loraplan.workload import Floats, Ints
from surrogate import features, kernel

TARGETS = ("served_fraction", "itl_ms", "ttft_s", "kv_utilisation")


@dataclass(frozen=True, eq=False)
class Examples:
    """n loads.

    Attributes:
        workload: shape (n,), which rows belong together.
        sums: shape (n, EMBEDDING), sums of the adapters' embeddings.
        server, context, inputs: shapes (n, ...), see `surrogate.features` (inputs of the predictions).
        targets: shape (n, len(TARGETS)), what the twin said; nan where nothing was served.
        offered_tok_s: shape (n,), tokens that the rates stand for.
        throughput_tok_s: shape (n,), what the twin served.
    """

    workload: Ints
    sums: Floats
    server: Floats
    context: Floats
    inputs: Floats
    targets: Floats
    offered_tok_s: Floats
    throughput_tok_s: Floats

    def __len__(self) -> int:
        """Number of loads."""
        return int(self.workload.size)

    def select(self, which: NDArray[np.bool_] | NDArray[np.intp]) -> Examples:
        """Those loads."""
        return Examples(*(getattr(self, field.name)[which] for field in fields(self)))


def examples_of(table: pa.Table) -> Examples:
    """The rows of a dataset (`surrogate.design.SCHEMA`)."""
    n = table.num_rows
    profiles = [_profile(text) for text in table["profile"].to_pylist()]
    slots, ranks, cv = (table[name].to_numpy() for name in ("slots", "max_rank", "cv"))
    server = np.array([features.server(p, int(s), int(r)) for p, s, r in zip(profiles, slots, ranks, strict=True)])
    context = np.array([features.context(p, int(s), float(c)) for p, s, c in zip(profiles, slots, cv, strict=True)])
    sums = np.zeros((n, kernel.EMBEDDING))
    start = 0
    for batch in table.to_batches():
        rows = slice(start, start + batch.num_rows)
        ends, traffic = _traffic(batch)
        kernel.sum_up(traffic, ends, server[rows, kernel.SERVER["base_s"]], sums[rows])
        start += batch.num_rows
    inputs = np.zeros((n, kernel.HEAD_INPUTS))
    kernel.all_head_inputs(sums, server, inputs)
    return Examples(
        workload=table["workload"].to_numpy(),
        sums=sums,
        server=server,
        context=context,
        inputs=inputs,
        targets=np.column_stack([table[name].to_numpy() for name in TARGETS]),
        offered_tok_s=table["offered_tok_s"].to_numpy(),
        throughput_tok_s=table["throughput_tok_s"].to_numpy(),
    )


def base_figures(inputs: Floats, server: Floats) -> Floats:
    """Logarithms of what the fluid model makes of the `TARGETS`, shape (n, len(TARGETS))."""
    base_s = server[:, kernel.BASE_S]
    return np.column_stack(
        (
            np.minimum(inputs[:, 0], 0.0),
            np.log(1e3 * base_s) + inputs[:, 1],
            np.log(base_s) + inputs[:, 8],
            inputs[:, 3],
        )
    )


@cache
def _profile(text: str) -> Profile:
    return Profile.model_validate_json(text)


def _traffic(batch: pa.RecordBatch) -> tuple[Ints, NDArray[np.void]]:
    """All adapters of a batch of rows as ``kernel.TRAFFIC``, and where each row's end."""
    rates, law = batch["rates"], batch["law"]
    ends = np.asarray(rates.offsets)[1:] - rates.offsets[0].as_py()
    sizes = np.diff(ends, prepend=0)
    first = np.cumsum(np.diff(np.asarray(batch["law_tokens_in"].offsets)), dtype=np.int64)
    first = np.concatenate(([0], first[:-1]))
    which = np.repeat(first, sizes) + np.asarray(law.flatten()).astype(np.int64)
    traffic = np.zeros(int(ends[-1]), dtype=kernel.TRAFFIC)
    traffic["rate"] = np.asarray(rates.flatten())
    for name in kernel.LAW:
        traffic[name] = np.asarray(batch[f"law_{name}"].flatten())[which]
    return ends.astype(np.int64), traffic
