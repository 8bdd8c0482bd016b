"""What a benchmark consists of: cells, each a solver on an instance with a seed, and the limits of all of them."""

from __future__ import annotations

import json
import os
import platform
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from hashlib import sha256
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from benchmarks.suites import Suite, fingerprint
from loraplan.config import Config, PluginSpec
from loraplan.oracle import ORACLES
from objectives import OBJECTIVES
from solvers import SOLVERS
from surrogate.model import CARD, SHIPPED

SOLVERS_BY_DEFAULT = ("greedy", "best_fit", "local_search", "milp", "cp_sat", "column_generation")
"""As far as they are there."""
MADE_BY = ("loraplan", "numpy", "numba", "scipy", "highspy", "ortools", "pyomo")
"""Packages whose versions may change a result."""


@dataclass(frozen=True)
class Limits:
    """What every cell keeps.

    Attributes:
        time_limit_s: that the solver is told.
        grace_s: how much longer it may take before it is killed.
        memory_gb: resident memory above which it is killed.
        twin_seeds: fresh seeds on which its plan is replayed; 0 for none.
    """

    time_limit_s: float = 60.0
    grace_s: float = 20.0
    memory_gb: float = 4.0
    twin_seeds: int = 3


@dataclass(frozen=True)
class Cell:
    """A solver on an instance with a seed.

    Attributes:
        config: all that is run, as plain data; the time limit is in it.
        problem: fingerprint of the problem; of its model, too, where the oracle is one that was trained.
    """

    suite: str
    instance: str
    solver: str
    objective: str
    oracle: str
    seed: int
    config: dict[str, Any]
    problem: str

    @property
    def config_hash(self) -> str:
        """Digest of what is run, whatever the paths of files are: the problem, who solves it, and the time limit."""
        asked = {key: self.config[key] for key in ("solver", "objective", "oracle", "seed", "time_limit_s")}
        return sha256(json.dumps([self.problem, asked], sort_keys=True).encode()).hexdigest()[:16]

    @property
    def name(self) -> str:
        """The name of its files."""
        words = (self.suite, self.instance, self.solver, self.objective, self.oracle, f"s{self.seed}")
        return re.sub(r"[^A-Za-z0-9+._-]", "_", "__".join(words)) + f"__{self.config_hash[:8]}"


def make_cells(
    suites: Sequence[Suite],
    solvers: Sequence[str],
    objectives: Sequence[str],
    oracles: Sequence[str],
    seeds: int,
    limits: Limits,
) -> Iterator[Cell]:
    """All cells, instance by instance; without ``objectives``, each suite's own.

    Raises:
        BadInputError: a name is unknown.
    """
    for registry, names in ((SOLVERS, solvers), (OBJECTIVES, objectives), (ORACLES, oracles)):
        for name in names:
            registry.entry(name)
    for suite in suites:
        for instance in suite.instances:
            problem = fingerprint(instance.config)
            for objective in objectives or suite.objectives:
                for oracle in oracles:
                    for solver in solvers:
                        for seed in range(seeds):
                            config = _chosen(instance.config, solver, objective, oracle, seed, limits.time_limit_s)
                            data = config.model_dump(mode="json")
                            words = (suite.name, instance.name, solver, objective, oracle, seed)
                            yield Cell(*words, config=data, problem=_judged(problem, config.oracle))


def _chosen(config: Config, solver: str, objective: str, oracle: str, seed: int, time_limit_s: float) -> Config:
    def spec(now: PluginSpec, name: str) -> PluginSpec:
        return now if now.name == name else PluginSpec(name=name)

    changes = {
        "solver": spec(config.solver, solver),
        "objective": spec(config.objective, objective),
        "oracle": spec(config.oracle, oracle),
        "seed": seed,
        "time_limit_s": time_limit_s,
    }
    return config.model_copy(update=changes)


def _judged(problem: str, oracle: PluginSpec) -> str:
    """What is known of a problem by one model says nothing of it by another."""
    if oracle.name != "surrogate":
        return problem
    card = Path(oracle.params.get("model") or SHIPPED) / CARD
    return sha256(problem.encode() + (card.read_bytes() if card.is_file() else b"")).hexdigest()[:16]


def default_solvers() -> list[str]:
    """Those that are there of ``SOLVERS_BY_DEFAULT``."""
    return [name for name in SOLVERS_BY_DEFAULT if name in SOLVERS.names()]


@cache
def made_by() -> dict[str, str]:
    """Versions of what the results depend on, the shipped model among them."""
    found = {"python": platform.python_version(), "model": sha256((SHIPPED / CARD).read_bytes()).hexdigest()[:8]}
    for package in MADE_BY:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue
    return found


@cache
def machine() -> str:
    """The processor, how many cores of it, and the system, in a line."""
    name = platform.machine()
    info = Path("/proc/cpuinfo")
    if info.exists():
        lines = [line.partition(":")[2].strip() for line in info.read_text().splitlines() if "model name" in line]
        name = lines[0] if lines else name
    return f"{name}, {os.cpu_count()} cores, {platform.system()}"
