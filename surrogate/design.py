"""What a dataset consists of: a sampling design over servers, adapters and loads, and their simulation in the twin.

A workload is a server with a set of adapters; its rows are loads on it, each with slots of its own, simulated for an
hour. Two kinds: **published**, the loads of arXiv 2602.24044 as they are (triples of rates, sizes from a list), on the
shipped profiles; and **boundary**, any adapters on shipped and random profiles, with the traffic (their rates or their
number) turned to where the server just starves: first by the fluid model, then by what the twin said of rows before.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pyarrow as pa
from pydantic import Field

from loraplan.arrivals import Gamma
from loraplan.config.part import Count, Part, Seed
from loraplan.problem import Fleet, GPULoad, GPUType, Problem
from loraplan.profiles import Positive, Profile, load_profile
from loraplan.workload import Adapter, Floats, Ints, Lengths, RateWorkload
from surrogate import sampling
from surrogate.features import length_means
from surrogate.kernel import LAW
from twin.agreement import STARVED_BELOW
from twin.batch import Simulation
from twin.fluid import FluidOracle, FluidParams
from twin.measured import MAX_OUTSTANDING

SLOTS = (4, 8, 16, 24, 32, 48, 64, 96, 128, 160, 192, 256, 320, 384, 448, 512, 640, 768)
"""Slots that loads have, beside one for each adapter."""

LOADS_OF_A_SEARCH = 3
MOST_REQUESTS_PER_S = 700.0
"""Offered at most; as much as the published loads with the most traffic."""


class Design(Part):
    """Which workloads a dataset has; its rows depend on nothing else."""

    seed: Seed = 0
    """Of everything that is drawn."""
    workloads: Count = 22_000
    """How many; each gives ``loads`` rows."""
    loads: Count = 3
    """Rows of a workload: few, as those of one workload are alike."""
    profiles: tuple[str, ...] = Field(
        default=("h100-64gb/llama-3.1-8b", "h100-64gb/qwen-2.5-7b"), min_length=1, max_length=100
    )
    """Servers to learn, and to vary."""
    published: float = Field(default=0.15, ge=0, le=1)
    """Share of the workloads that are those of arXiv 2602.24044."""
    random_profiles: float = Field(default=0.55, ge=0, le=1)
    """Share of the other workloads that run on random servers around the named ones."""
    bursty: float = Field(default=0.2, ge=0, le=1)
    """Share of the other workloads whose arrivals are not Poisson."""
    most_adapters: int = Field(default=1500, ge=8, le=10_000)
    """Adapters of a workload: from 8 to so many."""
    horizon_s: Positive = 3600.0
    """Seconds that each row is simulated."""
    max_outstanding: Count = MAX_OUTSTANDING
    """Requests that a client of the published loads leaves unanswered at most, as that of the measured runs did."""


_FLOATS, _INTS = pa.list_(pa.float32()), pa.list_(pa.int16())

SCHEMA = pa.schema(
    [
        ("workload", pa.int64()),
        ("row", pa.int64()),
        ("kind", pa.string()),
        ("base", pa.string()),
        ("profile", pa.string()),
        ("slots", pa.int32()),
        ("max_rank", pa.int32()),
        ("cv", pa.float64()),
        ("horizon_s", pa.float64()),
        ("seed", pa.int64()),
        ("rates", _FLOATS),
        ("ranks", _INTS),
        ("law", _INTS),
        *((f"law_{name}", _FLOATS) for name in LAW),
        ("offered_tok_s", pa.float64()),
        ("arrived_tok_s", pa.float64()),
        ("served_fraction", pa.float64()),
        ("throughput_tok_s", pa.float64()),
        ("itl_ms", pa.float64()),
        ("ttft_s", pa.float64()),
        ("ttft_p95_s", pa.float64()),
        ("kv_utilisation", pa.float64()),
        ("running", pa.float64()),
        ("waiting", pa.float64()),
        ("preemptions", pa.int64()),
        ("loads", pa.int64()),
        ("binding", pa.string()),
    ]
)
"""Columns of a row: which load (``profile`` as JSON, ``base`` the named profile that it is or varies; rates in
requests/s, ranks and laws of lengths of the adapters in order; each law's means, by the names of `kernel.LAW`), and
what the twin made of it (as ``twin.metrics.Metrics``; ``offered_tok_s`` is what the rates stand for, ``arrived_tok_s``
what was drawn)."""


@dataclass(frozen=True, eq=False)
class Load:
    """A GPU load to be simulated: a server, the adapters on it and its slots; ``cv`` of the gaps between arrivals.

    Clients leave ``max_outstanding`` requests unanswered at most; None for no limit.
    """

    profile: Profile
    adapters: tuple[Adapter, ...]
    slots: int
    cv: float
    seed: int
    horizon_s: float
    max_outstanding: int | None = None

    def row(self, **names: Any) -> dict[str, Any]:
        """Simulate it: a row of a dataset, whose columns ``workload``, ``row``, ``kind`` and ``base`` are ``names``."""
        workload = RateWorkload(self.adapters, self.horizon_s, Gamma(self.cv))
        simulation = Simulation.of(workload, self.profile, self.slots, self.seed, name=f"load {names}")
        seen = replace(simulation, max_outstanding=self.max_outstanding).metrics()
        laws = {id(adapter.lengths): adapter.lengths for adapter in self.adapters}
        place = {key: number for number, key in enumerate(laws)}
        known = [length_means(lengths) for lengths in laws.values()]
        return names | {
            "profile": _engine(self.profile),
            "slots": self.slots,
            "max_rank": simulation.max_rank,
            "cv": self.cv,
            "horizon_s": self.horizon_s,
            "seed": self.seed,
            "rates": [adapter.rate for adapter in self.adapters],
            "ranks": [adapter.rank for adapter in self.adapters],
            "law": [place[id(adapter.lengths)] for adapter in self.adapters],
            **{f"law_{name}": [means[name] for means in known] for name in LAW},
            "offered_tok_s": sum(a.rate * (a.lengths.mean_in + a.lengths.mean_out) for a in self.adapters),
            "arrived_tok_s": seen.offered_tok_s,
            "served_fraction": seen.served_fraction,
            "throughput_tok_s": seen.throughput_tok_s,
            "itl_ms": seen.itl_ms.mean,
            "ttft_s": seen.ttft_s.mean,
            "ttft_p95_s": seen.ttft_s.p95,
            "kv_utilisation": seen.kv_utilisation,
            "running": seen.running,
            "waiting": seen.waiting,
            "preemptions": seen.preemptions,
            "loads": seen.loads_from_cpu + seen.loads_from_disk,
            "binding": seen.binding,
        }


def rows_of(design: Design, workload: int) -> list[dict[str, Any]]:
    """Simulate workload number ``workload`` of a design: its rows, as `SCHEMA` has them.

    Raises:
        BadInputError: a profile of the design is not known.
    """
    rng = np.random.default_rng([design.seed, workload])
    base = str(rng.choice(design.profiles))
    shipped = load_profile(base)
    names = {"workload": workload, "base": base}
    if rng.random() < design.published:
        loads = _published(rng, design, shipped)
        return [load.row(row=i, kind="published", **names) for i, load in enumerate(loads)]
    profile = shipped
    if rng.random() < design.random_profiles:
        profile = sampling.random_profile(rng, shipped, f"random-{design.seed}-{workload}")
    return _boundary(rng, design, profile, names)


def profile_hashes(design: Design) -> dict[str, str]:
    """SHA-256 of the profiles that a design names, as the rows have them.

    Raises:
        BadInputError: a profile is not known.
    """
    return {name: hashlib.sha256(_engine(load_profile(name)).encode()).hexdigest() for name in design.profiles}


def _engine(profile: Profile) -> str:
    """A profile as JSON, without its frontend, which rows know nothing of."""
    return profile.model_copy(update={"frontend": None}).model_dump_json()


def _published(rng: np.random.Generator, design: Design, profile: Profile) -> list[Load]:
    """Loads of the twin data of arXiv 2602.24044: a triple of rates and a mix of ranks at several sizes."""
    rates = np.sort(rng.choice(sampling.PUBLISHED_RATES, 3))[::-1]
    ranks = rng.choice([8, 16, 32], 3)
    lengths = sampling.published_lengths(rng)
    top = profile.server_rank(int(ranks.max()))
    loads = []
    for _ in range(design.loads):
        served = int(rng.choice(sampling.PUBLISHED_SIZES))
        slots = int(rng.choice([size for size in sampling.PUBLISHED_SIZES if size <= served]))
        slots = min(slots, profile.max_slots(top))
        dealt = deal(np.resize(rates, served), np.resize(ranks, served), [lengths], rng)
        loads.append(Load(profile, dealt, slots, 1.0, _seed(rng), design.horizon_s, design.max_outstanding))
    return loads


def _boundary(
    rng: np.random.Generator, design: Design, profile: Profile, names: dict[str, Any]
) -> list[dict[str, Any]]:
    """Rows around the limit of a random set of adapters, with new slots after every three."""
    count = round(float(np.exp(rng.uniform(np.log(8), np.log(design.most_adapters)))))
    rates, ranks = sampling.random_rates(rng, count), sampling.random_ranks(rng, count)
    laws = [sampling.random_lengths(rng) for _ in range(1 if rng.random() < 0.75 else int(rng.integers(2, 5)))]
    by_count = bool(rng.random() < 0.4)
    adapters = deal(rates, ranks, laws, rng)
    most = profile.max_slots(profile.server_rank(int(ranks.max())))
    bursty = rng.random() < design.bursty
    cv = float(np.exp(rng.uniform(np.log(0.5), np.log(4.0)))) if bursty else 1.0
    rows: list[dict[str, Any]] = []
    while len(rows) < design.loads:
        slots = _slots(rng, count, most)
        critical = critical_rates(profile, adapters, slots)
        if by_count and not rows:  # so that all adapters together are too many
            adapters = turned(adapters, critical * float(rng.uniform(1.0, 3.0)))
        search = _Search(rng, _critical_part(profile, adapters, slots) if by_count else critical, by_count)
        for _ in range(min(LOADS_OF_A_SEARCH, design.loads - len(rows))):
            factor = search.next()
            some = adapters[: max(1, round(factor * count))] if by_count else turned(adapters, factor)
            load = Load(profile, some, slots, cv, _seed(rng), design.horizon_s)
            rows.append(load.row(row=len(rows), kind="boundary", **names))
            search.saw(factor, rows[-1]["served_fraction"] < STARVED_BELOW)
    return rows


@dataclass
class _Search:
    """Which parts of the traffic to simulate: first anything between little and far too much, then around the limit.

    Attributes:
        critical: the part at which the fluid model says that the server begins to starve.
        by_count: whether the part is one of the adapters' number: at most 1.
        low, high: largest part that was not starved, smallest that was.
    """

    rng: np.random.Generator
    critical: float
    by_count: bool
    low: float = 0.0
    high: float = np.inf

    def next(self) -> float:
        """The next part."""
        if self.low == 0.0 and self.high == np.inf:
            factor = self.critical * float(np.exp(self.rng.uniform(np.log(0.35), np.log(1.5))))
        elif self.low == 0.0:
            factor = self.high * float(self.rng.uniform(0.6, 1.0))
        elif self.high == np.inf:
            factor = self.low * float(self.rng.uniform(1.05, 2.0))
        else:
            factor = float(self.rng.uniform(0.97 * self.low, 1.03 * self.high))
        return min(factor, 1.0) if self.by_count else factor

    def saw(self, factor: float, starved: bool) -> None:
        """Take note of what the twin said."""
        if starved:
            self.high = min(self.high, factor)
        else:
            self.low = max(self.low, factor)


def critical_rates(profile: Profile, adapters: tuple[Adapter, ...], slots: int) -> float:
    """The factor on all rates at which the fluid model says that the server begins to starve."""
    oracle = FluidOracle(Problem(adapters, Fleet((GPUType(profile, 1),))), FluidParams())
    factor = oracle.critical_rates(GPULoad(0, tuple(range(len(adapters))), slots), STARVED_BELOW)
    return min(factor, MOST_REQUESTS_PER_S / sum(adapter.rate for adapter in adapters))


def _critical_part(profile: Profile, adapters: tuple[Adapter, ...], slots: int) -> float:
    """The part of the adapters with which the fluid model says that the server begins to starve."""
    oracle = FluidOracle(Problem(adapters, Fleet((GPUType(profile, 1),))), FluidParams())
    sizes = np.unique(np.linspace(1, len(adapters), 60).astype(int))
    loads = [GPULoad(0, tuple(range(size)), min(slots, int(size))) for size in sizes]
    starved = np.flatnonzero(oracle.predict(loads).served_fraction < STARVED_BELOW)
    return float(sizes[starved[0]] / len(adapters)) if starved.size else 1.0


def turned(adapters: tuple[Adapter, ...], factor: float) -> tuple[Adapter, ...]:
    """Adapters with all rates multiplied, and rounded to what a dataset stores."""
    return tuple(Adapter(a.name, a.rank, float(np.float32(factor * a.rate)), a.lengths) for a in adapters)


def deal(rates: Floats, ranks: Ints, laws: Sequence[Lengths], rng: np.random.Generator) -> tuple[Adapter, ...]:
    """Adapters of these rates (requests/s) and ranks, each with one of the laws of lengths."""
    which = rng.integers(len(laws), size=len(rates)) if len(laws) > 1 else np.zeros(len(rates), dtype=np.int64)
    return tuple(
        Adapter(f"a{i}", int(rank), float(np.float32(rate)), laws[law])
        for i, (rate, rank, law) in enumerate(zip(rates, ranks, which, strict=True))
    )


def _slots(rng: np.random.Generator, count: int, most: int) -> int:
    """As many slots as adapters, a few less, or a size from a list down to a tenth; at most what memory allows."""
    fewer = [slots for slots in SLOTS if count / 12 <= slots < count]
    kind = rng.random()
    if not fewer or kind < 0.25:
        slots = count
    elif kind < 0.4:
        slots = round(count * rng.uniform(0.6, 1.0))
    else:
        slots = int(rng.choice(fewer))
    return max(1, min(slots, most))


def _seed(rng: np.random.Generator) -> int:
    return int(rng.integers(1 << 31))
