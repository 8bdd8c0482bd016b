"""Workload suites: small files that describe many instances, each a config as `loraplan solve` takes it.

An instance is a pure function of its file (all laws in it have seeds), so a plan of one can be made and validated again
by itself.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from hashlib import sha256
from itertools import product
from json import dumps
from pathlib import Path
from typing import Any

from pydantic import Field, model_validator

from loraplan.config import Config, build, load_settings, parse_config
from loraplan.config.part import Part
from loraplan.errors import BadInputError, did_you_mean
from loraplan.registry import Entry

FOLDER = Path(__file__).parent / "suites"
DATA = "LORAPLAN_DATA"
"""The environment variable that names the folder with ``traces/``; else ``shared/data`` beside the checkout."""

Overrides = dict[str, Any]


class Skip(Part):
    """Combinations that are left out."""

    where: str
    """Names of instances, with wildcards."""
    why: str
    """What they would not show."""


class SuiteFile(Part):
    """A suite as it is written."""

    summary: str
    """What it is, in a line."""
    objectives: tuple[str, ...] = ("gpu_count",)
    """What its instances are solved for, if nothing is asked for."""
    base: dict[str, Any]
    """The config that all instances have in common."""
    axes: dict[str, dict[str, Overrides]] = Field(default_factory=dict)
    """Axis -> label -> settings; there is an instance for each combination of labels, which are its name."""
    cases: dict[str, Overrides] = Field(default_factory=dict)
    """Further instances: name -> settings."""
    skip: tuple[Skip, ...] = ()
    """What is left out of the combinations."""
    rate_scale: dict[str, float] = Field(default_factory=dict)
    """Factors on the rates of generated workloads, by names with wildcards."""

    @model_validator(mode="after")
    def _has_instances(self) -> SuiteFile:
        if not self.axes and not self.cases:
            raise ValueError("expected axes or cases")
        return self

    def settings(self) -> Iterator[tuple[str, Overrides]]:
        """Name and settings of every instance."""
        made = [*self._combinations(), *self.cases.items()]
        for name, settings in made:
            factors = [factor for pattern, factor in self.rate_scale.items() if fnmatchcase(name, pattern)]
            yield name, settings | ({"workload.generate.rate_scale": factors[0]} if factors else {})

    def _combinations(self) -> Iterator[tuple[str, Overrides]]:
        for labels in product(*self.axes.values()) if self.axes else ():
            name = "-".join(labels)
            if not any(fnmatchcase(name, skip.where) for skip in self.skip):
                merged: Overrides = {}
                for axis, label in zip(self.axes.values(), labels, strict=True):
                    merged |= axis[label]
                yield name, merged


@dataclass(frozen=True)
class Instance:
    """A problem of a suite.

    Attributes:
        suite, name: what it is called.
        config: what is planned; solver, objective, oracle and seed are yet to be chosen.
    """

    suite: str
    name: str
    config: Config

    @property
    def id(self) -> str:
        """Suite and name."""
        return f"{self.suite}/{self.name}"


@dataclass(frozen=True)
class Suite:
    """Instances that belong together."""

    name: str
    summary: str
    objectives: tuple[str, ...]
    instances: tuple[Instance, ...]


def suite_names() -> tuple[str, ...]:
    """The suites that come with loraplan."""
    return tuple(sorted(path.stem for path in FOLDER.glob("*.yaml") if not path.stem.endswith(".profile")))


def suite_entries() -> list[Entry]:
    """The suites that come with loraplan, for a list of them."""
    entries = []
    for name in suite_names():
        file = load_settings(SuiteFile, FOLDER / f"{name}.yaml")
        entries.append(Entry(name, f"{sum(1 for _ in file.settings())} instances", file.summary))
    return entries


def load_suite(name: str) -> Suite:
    """A suite that comes with loraplan, or one in a file of one's own (``*.yaml``).

    Raises:
        BadInputError: there is none of this name, the file is wrong, or a trace that it names is not there.
    """
    own = name.endswith((".yaml", ".yml"))
    if not own and name not in suite_names():
        raise BadInputError(f"unknown suite {name!r}{did_you_mean(name, suite_names())}")
    path = Path(name) if own else FOLDER / f"{name}.yaml"
    file = load_settings(SuiteFile, path)
    title = path.stem
    instances = tuple(_instance(title, case, file.base, path, settings) for case, settings in file.settings())
    return Suite(title, file.summary, file.objectives, instances)


def select(patterns: Sequence[str]) -> tuple[Suite, ...]:
    """The suites that ``patterns`` name, with the instances asked for: ``SUITE`` or ``SUITE/NAME``, with wildcards.

    Raises:
        BadInputError: as ``load_suite``; or no instance has a name like that.
    """
    chosen: dict[str, tuple[Suite, dict[str, Instance]]] = {}
    for pattern in patterns:
        name, slash, wanted = pattern.partition("/") if not pattern.endswith((".yaml", ".yml")) else (pattern, "", "")
        suite = load_suite(name)
        found = {one.name: one for one in suite.instances if not slash or fnmatchcase(one.name, wanted)}
        if not found:
            names = [one.name for one in suite.instances]
            raise BadInputError(f"suite {suite.name} has no instance {wanted!r}{did_you_mean(wanted, names)}")
        chosen.setdefault(suite.name, (suite, {}))[1].update(found)
    return tuple(
        Suite(suite.name, suite.summary, suite.objectives, tuple(one for one in suite.instances if one.name in found))
        for suite, found in chosen.values()
    )


def trace_folder() -> Path:
    """Where traces are looked for."""
    given = os.environ.get(DATA)
    return (Path(given) if given else Path(__file__).resolve().parents[2] / "shared" / "data") / "traces"


def fingerprint(config: Config) -> str:
    """A digest of the problem that a config describes, whatever the paths of its files are."""
    problem = build(config).problem
    types = [[t.profile.model_dump(mode="json"), t.count, t.price_per_hour] for t in problem.fleet.types]
    limits = {key: repr(value) for key, value in config.constraints.model_dump().items()}
    text = dumps([types, limits], sort_keys=True)
    arrays = (problem.ranks, problem.rates, problem.mean_in, problem.mean_out, problem.mean_kv)
    return sha256(text.encode() + b"".join(array.tobytes() for array in arrays)).hexdigest()[:16]


def _instance(suite: str, name: str, base: Mapping[str, Any], path: Path, settings: Overrides) -> Instance:
    data = _with_trace(base, path)
    changes = [f"{key}={dumps(_in_full(value))}" for key, value in settings.items()]
    config = parse_config(data, changes, path.resolve().parent, f"suite {suite}, instance {name}")
    return Instance(suite, name, config)


def _with_trace(base: Mapping[str, Any], path: Path) -> dict[str, Any]:
    """The base with the trace that it names in full: beside the file, or where traces are looked for."""
    data = dict(base)
    workload = data.get("workload")
    if isinstance(workload, Mapping) and "trace" in workload:
        here = path.resolve().parent / str(workload["trace"])
        trace = here if here.exists() else trace_folder() / str(workload["trace"])
        if not trace.exists():
            raise BadInputError(
                f"suite {path.stem} needs the trace {trace.name}, which is not in {trace.parent}: put it there, or set "
                f"{DATA} to a folder that has it as traces/{trace.name} (github.com/Azure/AzurePublicDataset)"
            )
        data["workload"] = {**workload, "trace": str(trace)}
    return data


def _in_full(value: Any) -> Any:
    """``{value: times}`` as the list that it stands for."""
    if isinstance(value, Mapping) and value and all(isinstance(key, int | float) for key in value):
        return [item for item, times in value.items() for _ in range(times)]
    return value


def problem_size(config: Config) -> int:
    """Adapters of a config's problem."""
    return len(build(config).problem.adapters)
