"""Adapter tables: CSV or YAML, one adapter per row."""

from __future__ import annotations

import csv
from collections import Counter
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Annotated, Any, TypeVar

from pydantic import AliasChoices, BaseModel, ConfigDict, Field, TypeAdapter, ValidationError

from loraplan.errors import BadInputError, did_you_mean
from loraplan.files import read_yaml
from loraplan.sources.laws import LengthsLaw, skewed_lengths
from loraplan.workload import MOST_RANK, MOST_RATE, MOST_TOKENS, Adapter


class _RankRow(BaseModel):
    """An adapter beside a trace that gives the rates and lengths."""

    model_config = ConfigDict(frozen=True, coerce_numbers_to_str=True, str_strip_whitespace=True)

    name: str = Field(min_length=1)
    rank: int = Field(gt=0, le=MOST_RANK)


class _RateRow(_RankRow):
    """An adapter beside a trace that does not say who asks."""

    rate: float = Field(ge=0, le=MOST_RATE, allow_inf_nan=False)


_MeanTokens = Annotated[float, Field(ge=1, le=MOST_TOKENS, allow_inf_nan=False)]


class _FullRow(_RateRow):
    """An adapter on its own."""

    tokens_in: _MeanTokens = Field(validation_alias=AliasChoices("tokens_in", "input_tokens"))
    tokens_out: _MeanTokens = Field(validation_alias=AliasChoices("tokens_out", "output_tokens"))


_Row = TypeVar("_Row", bound=_RankRow)


def read_table(path: Path, lengths: LengthsLaw = skewed_lengths) -> tuple[Adapter, ...]:
    """Read adapters from a CSV file with a header, or a YAML list of mappings (``.yaml``, ``.yml``).

    Columns: name, rank, rate (requests/s), tokens_in and tokens_out (mean tokens per request; also called input_tokens
    and output_tokens); others are ignored. Adapters with equal means share one ``Lengths``.

    Raises:
        BadInputError: naming the file and, where one is at fault, the row (the first below the header is 1) and field.
    """
    shared = cache(lengths)
    return tuple(
        Adapter(row.name, row.rank, row.rate, shared(row.tokens_in, row.tokens_out))
        for row in _read_rows(path, _FullRow)
    )


def read_ranks(path: Path) -> dict[str, int]:
    """Read only the name and rank of each adapter of a table; same checks as ``read_table``."""
    return {row.name: row.rank for row in _read_rows(path, _RankRow)}


def read_rates(path: Path) -> dict[str, float]:
    """Read only the name and rate (requests/s) of each adapter of a table; same checks as ``read_table``."""
    return {row.name: row.rate for row in _read_rows(path, _RateRow)}


def _read_rows(path: Path, row_type: type[_Row]) -> list[_Row]:
    try:
        raw = _read_yaml(path) if path.suffix in {".yaml", ".yml"} else _read_csv(path, row_type)
    except OSError as error:
        raise BadInputError(f"table {path}: {error.strerror or error}") from None
    except (csv.Error, UnicodeDecodeError) as error:
        raise BadInputError(f"table {path}: cannot be read: {' '.join(str(error).split())}") from None
    if not raw:
        raise BadInputError(f"table {path}: it has no rows")
    try:
        rows: list[_Row] = TypeAdapter(list[row_type]).validate_python(raw)  # type: ignore[valid-type]
    except ValidationError as error:
        raise BadInputError(f"table {path}: {_explain(error)}") from None
    seen: set[str] = set()
    for number, row in enumerate(rows, start=1):
        if row.name in seen:
            raise BadInputError(f"table {path}: row {number}, name: {row.name!r} is listed twice")
        seen.add(row.name)
    return rows


def _explain(error: ValidationError) -> str:
    first = error.errors()[0]
    index, *field = first["loc"]
    row = ", ".join([f"row {int(index) + 1}", *map(str, field)])
    given = "" if first["type"] == "missing" else f" (got {first['input']!r:.80})"
    return f"{row}: {first['msg'] if field else 'expected a mapping'}{given}"


def _read_csv(path: Path, row_type: type[BaseModel]) -> list[dict[str, str]]:
    with path.open(encoding="utf-8-sig", newline="") as file:
        reader = csv.DictReader(file, skipinitialspace=True)
        _check_columns(path, reader.fieldnames or (), row_type)
        rows = list(reader)
    for number, row in enumerate(rows, start=1):
        if None in row:  # where DictReader puts what is left over
            raise BadInputError(f"table {path}: row {number} has more cells than there are columns")
    # An empty cell is a missing value, and so is the cell that a short row lacks.
    return [{name: cell for name, cell in row.items() if cell not in ("", None)} for row in rows]


def _check_columns(path: Path, columns: Sequence[str], row_type: type[BaseModel]) -> None:
    if not columns:
        raise BadInputError(f"table {path}: the file is empty")
    twice = [name for name, times in Counter(columns).items() if name and times > 1]
    if twice:
        raise BadInputError(f"table {path}: column {twice[0]!r} is there twice")
    for name, field in row_type.model_fields.items():
        alias = field.validation_alias
        names = [str(choice) for choice in alias.choices] if isinstance(alias, AliasChoices) else [name]
        if not any(accepted in columns for accepted in names):
            raise BadInputError(f"table {path}: no column {name!r}{did_you_mean(name, columns)}")


def _read_yaml(path: Path) -> list[Any]:
    data = read_yaml(path, f"table {path}")
    if data is not None and not isinstance(data, list):
        raise BadInputError(f"table {path}: expected a list of adapters, got {type(data).__name__}")
    return data or []
