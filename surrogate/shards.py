"""Rows as tables, and tables as files: Parquet of one schema, checked whenever it is read."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from loraplan.errors import BadInputError
from surrogate.design import SCHEMA


def table_of(rows: Sequence[Mapping[str, Any]]) -> pa.Table:
    """Rows as a table of the design's schema.

    Raises:
        BadInputError: a row has other columns, or a value of another type.
    """
    for place, row in enumerate(rows):
        for wrong in row.keys() ^ set(SCHEMA.names):
            raise BadInputError(f"row {place}: column {wrong!r} is {'unknown' if wrong in row else 'missing'}")
    try:
        table = pa.Table.from_pylist([dict(row) for row in rows], schema=SCHEMA)
        table.validate(full=True)
    except (pa.ArrowException, TypeError, ValueError, OverflowError) as error:
        raise BadInputError(f"the rows do not fit the schema: {_line(error)}") from None
    for name in ("workload", "row"):
        if table[name].null_count:
            raise BadInputError(f"column {name!r} has no value in some row")
    return table


def encode(table: pa.Table) -> bytes:
    """A table as the content of a Parquet file; the same rows give the same bytes, however the table is chunked."""
    sink = pa.BufferOutputStream()
    pq.write_table(table.combine_chunks(), sink, compression="zstd")
    return bytes(sink.getvalue())


def digest(content: bytes) -> str:
    """Hex SHA-256."""
    return hashlib.sha256(content).hexdigest()


def read_rows(path: Path, sha256: str, rows: int) -> pa.Table:
    """Read a file of rows, if it is the one that the manifest lists.

    Args:
        path: a Parquet file.
        sha256: hex digest that its content must have.
        rows: how many it must hold.

    Raises:
        BadInputError: one line that names the file and what is wrong with it.
    """
    try:
        content = path.read_bytes()
    except OSError as error:
        raise BadInputError(f"{path}: {error.strerror or error}") from None
    try:
        table = pq.ParquetFile(pa.BufferReader(content)).read()
    except (pa.ArrowException, OSError, ValueError) as error:
        raise BadInputError(f"{path}: truncated, corrupt or not Parquet ({_line(error)})") from None
    if not table.schema.equals(SCHEMA):
        raise BadInputError(f"{path}: {_other_column(table.schema)}")
    if digest(content) != sha256:
        raise BadInputError(f"{path}: it is not the file that was written: its SHA-256 is another one")
    if table.num_rows != rows:
        raise BadInputError(f"{path}: expected {rows} rows, got {table.num_rows}")
    return pa.Table.from_arrays(table.columns, schema=SCHEMA)  # without the metadata that Parquet adds to its fields


def check_numbering(table: pa.Table, workloads: range) -> None:
    """Check that rows are those of ``workloads`` in order: each workload's numbered from 0, none lost, none twice.

    Raises:
        BadInputError: they are not.
    """
    workload, row = table["workload"].to_numpy(), table["row"].to_numpy()
    if workload.size == 0:
        return
    if workload[0] not in workloads or workload[-1] not in workloads or np.any(np.diff(workload) < 0):
        raise BadInputError(f"expected rows of workloads {workloads.start} to {workloads.stop - 1}, ascending")
    starts = np.flatnonzero(np.diff(workload, prepend=-1))
    counts = np.diff(starts, append=workload.size)
    if not np.array_equal(row, np.arange(workload.size) - np.repeat(starts, counts)):
        raise BadInputError("expected the rows of each workload to be numbered 0, 1, 2, ...")


def _other_column(schema: pa.Schema) -> str:
    """By which column a schema is not that of the design."""
    for field in SCHEMA:
        if field.name not in schema.names:
            return f"there is no column {field.name!r}"
        found = schema.field(field.name)
        if not found.equals(field):
            return f"column {field.name!r} holds {found.type}; expected {field.type}"
    others = [name for name in schema.names if name not in SCHEMA.names]
    return f"column {others[0]!r} is unknown" if others else "the columns are in another order"


def _line(error: Exception) -> str:
    return f"{' '.join(str(error).split()):.200}"
