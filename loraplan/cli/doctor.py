"""What ``loraplan doctor`` checks."""

from __future__ import annotations

import importlib
import platform
import time
from collections.abc import Callable
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import numpy as np

from loraplan.profiles import PROFILES, load_profile
from loraplan.workload import Adapter, Lengths, RateWorkload
from twin.server import simulate

PACKAGES = ("loraplan", "twin", "surrogate", "objectives", "solvers", "benchmarks")
LIBRARIES = ("numpy", "numba", "pandas", "pyarrow", "pydantic", "scipy")


@dataclass(frozen=True)
class Check:
    """One thing that was looked at."""

    name: str
    ok: bool
    found: str


def run(advance: Callable[[int, int], None]) -> list[Check]:
    """Make every check."""
    steps = (_versions, _one_root, _profiles, _twin)
    found = []
    for done, step in enumerate(steps, start=1):
        found.append(step())
        advance(done, len(steps))
    return found


def _versions() -> Check:
    missing, seen = [], [f"python {platform.python_version()}", f"loraplan {version('loraplan')}"]
    for library in LIBRARIES:
        try:
            seen.append(f"{library} {version(library)}")
        except PackageNotFoundError:
            missing.append(library)
    return Check("versions", not missing, ", ".join(seen) + (f"; missing: {', '.join(missing)}" if missing else ""))


def _one_root() -> Check:
    """All packages must come from one folder: names like ``twin`` could be shadowed by another project's."""
    roots = {name: Path(str(importlib.import_module(name).__file__)).resolve().parents[1] for name in PACKAGES}
    home = roots["loraplan"]
    strays = [f"{name} from {root}" for name, root in roots.items() if root != home]
    return Check("packages", not strays, f"{'; '.join(strays)}, expected {home}" if strays else f"all six from {home}")


def _profiles() -> Check:
    names = PROFILES.names()
    for name in names:
        load_profile(name)
    return Check("profiles", True, ", ".join(names))


def _twin() -> Check:
    """Compile the twin (the first time only) and time one simulated hour of 256 adapters."""
    profile = load_profile("h100-64gb/llama-3.1-8b")
    rates = (0.1, 0.05, 0.025)
    lengths = Lengths.constant(220, 200)
    adapters = tuple(Adapter(f"a{i}", 8, rates[i % len(rates)], lengths) for i in range(256))
    requests = RateWorkload(adapters).requests(seed=0)
    ranks = np.full(len(adapters), 8)
    simulate(profile, 128, 8, ranks, requests, 1.0)
    started = time.perf_counter()
    simulate(profile, 128, 8, ranks, requests, 3600.0)
    return Check(
        "twin", True, f"compiled; {1e3 * (time.perf_counter() - started):.0f} ms per simulated hour, 256 adapters"
    )
