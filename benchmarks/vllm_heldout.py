"""The twin beside a real vLLM on workloads that its profile was not calibrated on.

``python -m benchmarks.vllm_heldout PROFILE.yaml MODEL LORAS --vllm .venv-vllm/bin/vllm --cpu --case 8:4:0.5 ...``:
each case is adapters : slots : load, the load in parts of what the twin serves 0.9 of. Cases of equal slots are
measured in turn, ``--repeats`` times over, each time with other requests. The twin replays the very requests that
were sent.
"""

from __future__ import annotations

import argparse
import asyncio
import json
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np

from loraplan.cli.live import launcher
from loraplan.live.calibration import Launching, Setting
from loraplan.live.client import Target, client
from loraplan.live.facts import adapters_in
from loraplan.live.measured import Figures, figures
from loraplan.live.probes import OPEN_IN, OPEN_OUT
from loraplan.profiles import Profile, read_profile
from loraplan.workload import Adapter, Lengths, RateWorkload, Requests
from twin.batch import Simulation
from twin.metrics import Metrics

MAX_RANK = 8


@dataclass(frozen=True)
class Case:
    """A workload: adapters, half of which are asked three times as often as the others; slots; requests/s in all."""

    adapters: int
    slots: int
    rate: float

    def requests(self, seconds: float, seed: int) -> Requests:
        """One draw; lengths skewed, unlike those of the calibration."""
        rng = np.random.default_rng([seed, self.adapters, self.slots])
        tokens_in = np.clip(rng.lognormal(np.log(60), 0.7, 512), *OPEN_IN)
        tokens_out = np.clip(rng.lognormal(np.log(28), 0.6, 512), *OPEN_OUT)
        lengths = Lengths(tokens_in.round().astype(np.int64), tokens_out.round().astype(np.int64))
        weights = np.where(np.arange(self.adapters) % 2, 3.0, 1.0)
        rates = self.rate * weights / weights.sum()
        adapters = tuple(Adapter(f"a{n}", MAX_RANK, float(rate), lengths) for n, rate in enumerate(rates))
        return RateWorkload(adapters, seconds).requests(seed)

    def simulate(self, profile: Profile, requests: Requests, seconds: float) -> Metrics:
        """The twin's figures for these requests."""
        ranks = np.full(self.adapters, MAX_RANK)
        return Simulation(
            profile=profile, slots=self.slots, max_rank=MAX_RANK, ranks=ranks, workload=requests, horizon_s=seconds
        ).metrics()


def capacity(profile: Profile, adapters: int, slots: int) -> float:
    """Requests/s at which the server is busy all the time in the twin, about: found by halving."""
    low, high = 0.0, 200.0
    for _ in range(12):
        middle = (low + high) / 2
        case = Case(adapters, slots, middle)
        seen = case.simulate(profile, case.requests(120.0, 1), 120.0)
        low, high = (middle, high) if seen.served_fraction > 0.9 else (low, middle)
    return low


async def measure(url: str, names: list[str], case: Case, requests: Requests, seconds: float) -> Figures:
    """Warm the adapters up, then play the requests."""
    async with client() as session:
        one = np.ones(case.adapters, dtype=np.int64)
        places = np.arange(case.adapters)
        warm = Requests(np.linspace(0.0, 1.0, case.adapters), places, 8 * one, 2 * one)
        await session.play(warm, lambda _, adapter: Target(url, names[adapter]))
        answers = await session.play(requests, lambda _, adapter: Target(url, names[adapter]), seconds)
        await asyncio.sleep(1.0)  # what was broken off leaves the server
    return figures(answers, seconds)


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.vllm_heldout", description=__doc__.split("\n")[0])
    parser.add_argument("profile", type=Path)
    parser.add_argument("model")
    parser.add_argument("loras", type=Path)
    parser.add_argument("--vllm", default="vllm")
    parser.add_argument("--vllm-args", default="")
    parser.add_argument("--cpu", action="store_true")
    parser.add_argument("--case", action="append", required=True, help="adapters:slots:load")
    parser.add_argument("--seconds", type=float, default=60.0)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--output", type=Path, default=Path("heldout.jsonl"))
    given = parser.parse_args()
    profile = read_profile(given.profile)
    cases = []
    for text in given.case:
        adapters, slots, load = text.split(":")
        rate = float(load) * capacity(profile, int(adapters), int(slots))
        cases.append(Case(int(adapters), int(slots), rate))
        print(f"{text}: {rate:.2f} requests/s", flush=True)
    files = [adapter for adapter in adapters_in(given.loras) if adapter.rank <= MAX_RANK]
    start = launcher(given.vllm, given.output.parent, given.vllm_args, None, given.cpu)
    for slots in sorted({case.slots for case in cases}):
        place = Launching(given.model, files, (slots,), MAX_RANK, profile, start)
        with place.server(Setting(slots, max(slots, len(files)), MAX_RANK)) as (url, _):
            for repeat in range(given.repeats):
                for case in (case for case in cases if case.slots == slots):
                    requests = case.requests(given.seconds, repeat)
                    names = [adapter.name for adapter in files]
                    seen = asyncio.run(measure(url, names, case, requests, given.seconds))
                    twin = case.simulate(profile, requests, given.seconds)
                    row = {
                        **asdict(case),
                        "repeat": repeat,
                        **asdict(seen),
                        "twin_throughput_tok_s": twin.throughput_tok_s,
                        "twin_itl_ms": twin.itl_ms.mean,
                        "twin_ttft_s": twin.ttft_s.mean,
                        "twin_served_fraction": twin.served_fraction,
                    }
                    with given.output.open("a") as file:
                        file.write(json.dumps(row) + "\n")
    summarise(given.output, cases)


def summarise(path: Path, cases: list[Case]) -> None:
    """A line per case: means over the repeats, their spread, and the twin's error against the mean."""
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    for case in cases:
        mine = [row for row in rows if case == Case(row["adapters"], row["slots"], row["rate"])]
        words = [f"{case.adapters} adapters, {case.slots} slots, {case.rate:.2f}/s, {len(mine)} runs:"]
        for name, unit, digits in (("throughput_tok_s", "tok/s", 0), ("itl_ms", "ms", 1), ("served_fraction", "", 3)):
            measured = np.array([row[name] for row in mine])
            twin = np.mean([row[f"twin_{name}"] for row in mine])
            spread = (measured.max() - measured.min()) / measured.mean()
            words.append(
                f"{name} {measured.mean():.{digits}f} {unit} (spread {100 * spread:.0f} %), "
                f"twin {twin:.{digits}f} ({100 * (twin / measured.mean() - 1):+.1f} %);"
            )
        print(" ".join(words), flush=True)


if __name__ == "__main__":
    main()
