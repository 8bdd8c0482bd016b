"""The manifest of a dataset: what was asked for, what made it, and which files hold the rows."""

from __future__ import annotations

import json
import platform
import re
from collections.abc import Iterator, Mapping
from functools import cache
from importlib.metadata import version
from pathlib import Path
from typing import Annotated, Any, Literal

import numba
import numpy as np
from pydantic import Field, ValidationError, model_validator

from loraplan.config.part import Count, Part
from loraplan.errors import BadInputError
from loraplan.files import write_bytes
from loraplan.profiles import first_problem
from surrogate.design import SCHEMA, Design, profile_hashes

MANIFEST = "manifest.json"
WORKLOADS_PER_SHARD = 64
DESIGN_PART = "design"
"""The part that the shards are; rows added later are parts of other names."""

Digest = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
PartName = Annotated[str, Field(pattern=r"^[a-z0-9][a-z0-9_-]{0,39}$")]

OWN_FILE = re.compile(r"shard-\d{5,}\.parquet|part-[a-z0-9_-]+\.parquet")
TEMPORARY_FILE = re.compile(rf"\.({re.escape(MANIFEST)}|{OWN_FILE.pattern})\..+")


class Shard(Part):
    """A complete file with the rows of workloads ``number * workloads_per_shard`` and up."""

    number: int = Field(ge=0)
    rows: int = Field(ge=0)
    sha256: Digest

    @property
    def file(self) -> str:
        """Its name in the dataset's folder."""
        return shard_file(self.number)


class Addition(Part):
    """A file with rows that were added to the design's under a name of their own."""

    rows: int = Field(ge=0)
    sha256: Digest


class Manifest(Part):
    """All that is known of a dataset but its rows, as saved to manifest.json (schema version 1).

    A file holds rows of the dataset if and only if the manifest lists it: writing the manifest is what adds them.
    """

    schema_version: Literal[1] = 1
    status: Literal["incomplete", "complete"]
    design: Design
    versions: dict[str, str]
    """Of what makes the rows: python, numpy, numba, loraplan."""
    profiles: dict[str, Digest]
    """SHA-256 of the profiles that the design uses, by name."""
    columns: dict[str, str]
    """Arrow types of the rows' columns, by name."""
    workloads_per_shard: Count
    shards: tuple[Shard, ...] = ()
    parts: dict[PartName, Addition] = Field(default_factory=dict)

    @model_validator(mode="after")
    def _consistent(self) -> Manifest:
        numbers = [shard.number for shard in self.shards]
        if numbers != sorted(set(numbers)) or (numbers and numbers[-1] >= self.shards_in_all):
            raise ValueError(f"shards: expected numbers 0 to {self.shards_in_all - 1}, ascending")
        if (self.status == "complete") != (len(numbers) == self.shards_in_all):
            raise ValueError(f"status is {self.status!r}, but {len(numbers)} of {self.shards_in_all} shards are listed")
        if DESIGN_PART in self.parts:
            raise ValueError(f"parts: {DESIGN_PART!r} is what the shards are")
        return self

    @classmethod
    def of(cls, design: Design) -> Manifest:
        """The manifest of a dataset that this installation starts: without rows."""
        return cls(
            status="incomplete",
            design=design,
            versions=_versions(),
            profiles=profile_hashes(design),
            columns={field.name: str(field.type) for field in SCHEMA},
            workloads_per_shard=WORKLOADS_PER_SHARD,
        )

    @property
    def shards_in_all(self) -> int:
        """Shards of the complete dataset."""
        return -(-self.design.workloads // self.workloads_per_shard)

    @property
    def rows(self) -> int:
        """Rows of all complete shards; without those that were added."""
        return sum(shard.rows for shard in self.shards)

    @property
    def files(self) -> set[str]:
        """Names of all files that hold rows of the dataset."""
        return {shard.file for shard in self.shards} | {
            part_file(name, part.sha256) for name, part in self.parts.items()
        }

    def workloads_of(self, number: int) -> range:
        """The workloads that shard ``number`` covers."""
        first = number * self.workloads_per_shard
        return range(first, min(first + self.workloads_per_shard, self.design.workloads))

    def with_shards(self, shards: Mapping[int, Shard]) -> Manifest:
        """The same with ``shards``, by number, in the place of its own."""
        status: Literal["incomplete", "complete"] = "complete" if len(shards) == self.shards_in_all else "incomplete"
        return self.model_copy(update={"shards": tuple(shards[number] for number in sorted(shards)), "status": status})

    def difference(self, other: Manifest) -> tuple[str, Any, Any] | None:
        """The first thing by which ``other`` would make other rows: its name, here and there; None if there is none."""
        mine, others = dict(_made_from(self)), dict(_made_from(other))
        for name in mine | others:
            if mine.get(name) != others.get(name):
                return name, mine.get(name), others.get(name)
        return None

    def save(self, folder: Path) -> None:
        """Write the manifest of the dataset in ``folder`` atomically."""
        text = json.dumps(self.model_dump(mode="json"), indent=1, allow_nan=False) + "\n"
        write_bytes(folder / MANIFEST, text.encode())


@cache
def _versions() -> dict[str, str]:
    return {
        "loraplan": version("loraplan"),
        "numba": numba.__version__,
        "numpy": np.__version__,
        "python": platform.python_version(),
    }


def shard_file(number: int) -> str:
    """Name of the file of shard ``number``."""
    return f"shard-{number:05d}.parquet"


def part_file(name: str, digest: str) -> str:
    """Name of the file of a part that was added; other rows go to another file, so that either is whole at any time."""
    return f"part-{name}-{digest[:12]}.parquet"


def read_manifest(folder: Path) -> Manifest:
    """Read and check the manifest of the dataset in ``folder``.

    Raises:
        BadInputError: there is none, or it is not a manifest of a known schema version.
    """
    path = folder / MANIFEST
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise BadInputError(
            f"dataset {folder}: there is no {MANIFEST}; was it written by `loraplan dataset`?"
        ) from None
    except OSError as error:
        raise BadInputError(f"dataset {folder}: {MANIFEST}: {error.strerror or error}") from None
    except (json.JSONDecodeError, UnicodeDecodeError, RecursionError) as error:
        raise BadInputError(f"dataset {folder}: {MANIFEST}: not valid JSON ({error})") from None
    if not isinstance(data, dict) or "schema_version" not in data:
        raise BadInputError(f"dataset {folder}: {MANIFEST}: expected a mapping with a schema_version")
    if data["schema_version"] != 1:
        raise BadInputError(
            f"dataset {folder}: {MANIFEST}: schema_version {data['schema_version']!r:.80} is not known; expected 1"
        )
    try:
        return Manifest.model_validate(data)
    except ValidationError as error:
        raise BadInputError(f"dataset {folder}: {MANIFEST}: {first_problem(error)}") from None


def _made_from(manifest: Manifest) -> Iterator[tuple[str, Any]]:
    """All that the rows depend on, settings by their dotted names."""
    fields = {"design", "versions", "profiles", "columns", "workloads_per_shard"}
    yield from _flat("", manifest.model_dump(mode="json", include=fields))


def _flat(place: str, value: Any) -> Iterator[tuple[str, Any]]:
    if isinstance(value, dict) and value:
        for key, item in value.items():
            yield from _flat(f"{place}.{key}" if place else str(key), item)
    else:
        yield place, value
