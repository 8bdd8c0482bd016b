"""How fast is the twin? Wall time of one simulated hour on one core, after compilation.

Run: ``python -m benchmarks.twin_speed``
"""

from __future__ import annotations

import platform
import time
from statistics import median

import numpy as np

from loraplan.profiles import load_profile
from loraplan.workload import Adapter, Lengths, RateWorkload
from twin.metrics import measure
from twin.server import simulate

HOUR_S = 3600.0
REPEATS = 5
ADAPTERS = 256
PUBLISHED_S = 34.7
"""Seconds per simulated hour of the twin of arXiv 2508.08343: mean of ``sim_wall_s`` over its 748 published results."""

CASES = {
    "light": ((0.0125, 0.00625, 0.003125), 256),
    "moderate": ((0.05, 0.025, 0.0125), 256),
    "scarce slots": ((0.05, 0.025, 0.0125), 64),
    "overloaded": ((0.2, 0.1, 0.05), 128),
    "overloaded, KV full": ((0.4, 0.2, 0.1), 256),
}
"""Rates (requests/s) dealt over the adapters, and slots."""


def main() -> None:
    """Time every case and print a table with the ratio to the published twin."""
    profile = load_profile("h100-64gb/llama-3.1-8b")
    rng = np.random.default_rng(0)
    pairs = np.clip(np.exp(rng.multivariate_normal([5.0, 4.8], [[0.8, -0.2], [-0.2, 0.8]], 4096)), 4, 1024)
    lengths = Lengths(pairs[:, 0].astype(np.int64), pairs[:, 1].astype(np.int64))
    ranks = np.full(ADAPTERS, 8)
    print(
        f"{ADAPTERS} adapters, {HOUR_S:.0f} simulated seconds, {platform.machine()}, Python {platform.python_version()}"
    )
    print(f"{'case':20} {'requests':>9} {'steps':>8} {'served':>7} {'ms':>7} {'us/step':>8} {'vs 34.7 s':>9}")
    for name, (rates, slots) in CASES.items():
        adapters = tuple(Adapter(f"a{i}", 8, rates[i % len(rates)], lengths) for i in range(ADAPTERS))
        requests = RateWorkload(adapters, HOUR_S).requests(seed=0)
        simulate(profile, slots, 8, ranks, requests, 1.0)  # compiles
        seconds = []
        for _ in range(REPEATS):
            started = time.perf_counter()
            run = simulate(profile, slots, 8, ranks, requests, HOUR_S)
            seconds.append(time.perf_counter() - started)
        took, served = median(seconds), measure(run, ADAPTERS).served_fraction
        print(
            f"{name:20} {len(requests):9,} {run.steps:8,} {served:7.3f} {1e3 * took:7.1f} "
            f"{1e6 * took / run.steps:8.2f} {PUBLISHED_S / took:8,.0f}x"
        )


if __name__ == "__main__":
    main()
