"""The problem: adapters to serve, GPUs on offer, limits to keep. Immutable once built."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

import numpy as np

from loraplan.constraints import Constraints
from loraplan.errors import BadInputError, did_you_mean
from loraplan.profiles import Profile, load_profile
from loraplan.workload import Adapter, Floats, Ints, Lengths


@dataclass(frozen=True, slots=True)
class GPUType:
    """One kind of server on offer: its profile, how many of it there are, what an hour of one costs."""

    profile: Profile
    count: int
    price_per_hour: float | None = None

    def __post_init__(self) -> None:
        """Check the count and the price."""
        if self.count < 1:
            raise BadInputError(f"fleet: count of {self.profile.name} must be at least 1 (got {self.count})")
        price = self.price_per_hour
        if price is not None and not 0 <= price < math.inf:
            raise BadInputError(f"fleet: price_per_hour of {self.profile.name} must be at least 0 (got {price})")


@dataclass(frozen=True)
class Fleet:
    """The GPU types on offer, in the order in which solvers try them."""

    types: tuple[GPUType, ...]

    def __post_init__(self) -> None:
        """Check that there is something on offer, once each."""
        if not self.types:
            raise BadInputError("fleet: expected at least one GPU type")
        names = Counter(gpu_type.profile.name for gpu_type in self.types)
        twice = [name for name, times in names.items() if times > 1]
        if twice:
            raise BadInputError(f"fleet: profile {twice[0]} is listed twice; add the counts up")

    @property
    def count(self) -> int:
        """Number of GPUs of all types together."""
        return sum(gpu_type.count for gpu_type in self.types)


@dataclass(frozen=True, slots=True)
class GPULoad:
    """What is put on one GPU: index of its type in the fleet, adapter indices (ascending), slots (``--max-loras``)."""

    gpu_type: int
    adapters: tuple[int, ...]
    slots: int


@dataclass(frozen=True, eq=False)
class Problem:
    """Adapters, fleet and constraints; what solvers and oracles read.

    The arrays have shape (adapters,): ``ranks``, ``rates`` (req/s), ``mean_in`` and ``mean_out`` (tokens per request),
    ``mean_kv`` (KV tokens held by a running request), ``offered`` (tokens/s that arrive, prompt and output).
    """

    adapters: tuple[Adapter, ...]
    fleet: Fleet
    constraints: Constraints = field(default_factory=Constraints)

    def __post_init__(self) -> None:
        """Check that there are adapters, each once, and that some GPU type takes each one's rank."""
        if not self.adapters:
            raise BadInputError("problem: expected at least one adapter")
        twice = [name for name, times in Counter(adapter.name for adapter in self.adapters).items() if times > 1]
        if twice:
            raise BadInputError(f"problem: adapter {twice[0]} is listed twice")
        widest = max(self.adapters, key=lambda adapter: adapter.rank)
        largest = max(max(gpu_type.profile.limits.lora_ranks) for gpu_type in self.fleet.types)
        if widest.rank > largest:
            raise BadInputError(
                f"adapter {widest.name}: rank {widest.rank} is above {largest}, the largest --max-lora-rank on offer"
            )
        self._check_names()
        self._check_latency()
        if self.constraints.reserve and self.gpus < 2:
            raise BadInputError("constraints: reserve: if the only GPU is lost, nothing is left; offer two at least")

    def _check_names(self) -> None:
        limits, known = self.constraints, self.index
        for constraint, name in limits.named:
            if name not in known:
                raise BadInputError(f"constraints: {constraint}: unknown adapter {name!r}{did_you_mean(name, known)}")
        profiles = [gpu_type.profile.name for gpu_type in self.fleet.types]
        for adapter, pinned in limits.pins.items():
            for profile in set(pinned) - set(profiles):
                raise BadInputError(
                    f"constraints: pins: adapter {adapter} is pinned to {profile!r}, which is not in the fleet"
                    f"{did_you_mean(profile, profiles)}"
                )
        together = {i: unit for unit in self.units for i in unit}
        for group in self.separate:
            for unit, times in Counter(together[i] for i in group).items():
                if times > 1:
                    first, second, *_ = (self.adapters[i].name for i in unit if i in group)
                    raise BadInputError(f"constraints: adapters {first} and {second} are to be together and separate")
        for unit in self.units:
            if self.constraints.pins and not self.types_of(unit):
                names = ", ".join(self.adapters[i].name for i in unit)
                raise BadInputError(f"constraints: pins leave no GPU type of the fleet for {names}, which go together")
            if limits.max_adapters is not None and len(unit) > limits.max_adapters:
                raise BadInputError(
                    f"constraints: {len(unit)} adapters are to be together, but max_adapters is {limits.max_adapters}"
                )

    def _check_latency(self) -> None:
        """A step of an empty server is the least that any latency can be."""
        fastest = min((t.profile for t in self.fleet.types), key=lambda profile: profile.step_ms.base)
        base, limits = fastest.step_ms.base, self.constraints
        for name, value in (("itl_ms", limits.itl_ms), ("ttft_p95_s", limits.ttft_p95_s)):
            least = base if name == "itl_ms" else 1e-3 * base
            if value is not None and value < least:
                raise BadInputError(
                    f"constraints: {name} {value:g} is below {least:.4g}, a step of an empty server of {fastest.name}: "
                    "no load keeps it"
                )

    @cached_property
    def index(self) -> dict[str, int]:
        """Adapters by name."""
        return {adapter.name: i for i, adapter in enumerate(self.adapters)}

    @cached_property
    def separate(self) -> tuple[tuple[int, ...], ...]:
        """Adapters of which no two share a GPU, group by group."""
        return tuple(tuple(sorted(self.index[name] for name in group)) for group in self.constraints.separate)

    @cached_property
    def units(self) -> tuple[tuple[int, ...], ...]:
        """What is placed as a whole, by its first adapter: groups that go together, every other adapter by itself."""
        unit_of: dict[int, tuple[int, ...]] = {i: (i,) for i in range(len(self.adapters))}
        for group in self.constraints.together:
            merged = tuple(sorted({i for name in group for i in unit_of[self.index[name]]}))
            unit_of.update(dict.fromkeys(merged, merged))
        return tuple(sorted(set(unit_of.values())))

    def types_of(self, unit: Sequence[int]) -> tuple[int, ...]:
        """The GPU types on which the adapters of ``unit`` may all be."""
        pins = [self.constraints.pins.get(self.adapters[i].name) for i in unit] if self.constraints.pins else []
        types = enumerate(self.fleet.types)
        return tuple(t for t, kind in types if all(pin is None or kind.profile.name in pin for pin in pins))

    @property
    def restricted(self) -> bool:
        """Whether there is anything that ``allows`` has to look at."""
        limits = self.constraints
        return bool(limits.max_adapters or limits.pins or limits.separate)

    def breaches(self, load: GPULoad) -> int:
        """How far ``load`` is from keeping what ``allows`` looks at: about as many adapters have to leave."""
        limits = self.constraints
        count = 0 if limits.max_adapters is None else max(0, len(load.adapters) - limits.max_adapters)
        if limits.pins:
            count += sum(load.gpu_type not in self.types_of((i,)) for i in load.adapters)
        return count + sum(max(0, len(group.intersection(load.adapters)) - 1) for group in self._apart)

    def allows(self, load: GPULoad) -> bool:
        """Whether ``load`` keeps what needs no oracle to tell: pins, separate groups, the number of adapters."""
        limits = self.constraints
        if limits.max_adapters is not None and len(load.adapters) > limits.max_adapters:
            return False
        if limits.pins and load.gpu_type not in self.types_of(load.adapters):
            return False
        return not self.separate or not any(len(group.intersection(load.adapters)) > 1 for group in self._apart)

    @cached_property
    def _apart(self) -> tuple[frozenset[int], ...]:
        return tuple(map(frozenset, self.separate))

    @property
    def gpus(self) -> int:
        """Most GPUs that a plan may use."""
        return min(self.fleet.count, self.constraints.max_gpus or self.fleet.count)

    def scaled(self, factor: float) -> Problem:
        """The same with every rate multiplied by ``factor``."""
        return replace(self, adapters=tuple(replace(a, rate=a.rate * factor) for a in self.adapters))

    @cached_property
    def ranks(self) -> Ints:
        """LoRA rank of each adapter."""
        return np.array([adapter.rank for adapter in self.adapters], dtype=np.int64)

    @cached_property
    def rates(self) -> Floats:
        """Requests/s of each adapter."""
        return np.array([adapter.rate for adapter in self.adapters])

    @cached_property
    def mean_in(self) -> Floats:
        """Mean prompt tokens of each adapter's requests."""
        return np.array([adapter.lengths.mean_in for adapter in self.adapters])

    @cached_property
    def mean_out(self) -> Floats:
        """Mean produced tokens of each adapter's requests."""
        return np.array([adapter.lengths.mean_out for adapter in self.adapters])

    @cached_property
    def mean_kv(self) -> Floats:
        """Mean KV tokens that one running request of each adapter holds."""
        return np.array([adapter.lengths.mean_kv for adapter in self.adapters])

    @cached_property
    def offered(self) -> Floats:
        """Tokens/s that arrive for each adapter, prompt and output."""
        return self.rates * (self.mean_in + self.mean_out)

    def profile(self, load: GPULoad) -> Profile:
        """The profile of the GPU that carries ``load``."""
        return self.fleet.types[load.gpu_type].profile

    def max_rank(self, gpu_type: int, adapters: Sequence[int]) -> int:
        """The ``--max-lora-rank`` a GPU of this type needs for these adapters.

        Raises:
            BadInputError: the GPU type takes no rank that large.
        """
        profile = self.fleet.types[gpu_type].profile
        return profile.server_rank(self._widest(adapters))

    def starts(self, load: GPULoad) -> bool:
        """Whether the server of ``load`` starts: its rank is taken, and memory holds its slots and one long request."""
        profile = self.profile(load)
        rank = self._widest(load.adapters)
        if rank > max(profile.limits.lora_ranks):
            return False
        return profile.starts(load.slots, profile.server_rank(rank))

    def _widest(self, adapters: Sequence[int]) -> int:
        return int(self.ranks[list(adapters)].max()) if adapters else 1


class ProblemBuilder:
    """Collects a problem piece by piece; ``build`` checks it and makes it immutable.

    >>> builder = ProblemBuilder()
    >>> for i in range(64):
    ...     _ = builder.adapter(f"tenant-{i}", rank=8, rate=0.05, tokens_in=220, tokens_out=200)
    >>> problem = builder.gpus("h100-64gb/llama-3.1-8b", count=4).build()
    """

    def __init__(self) -> None:
        """Start with nothing."""
        self._adapters: list[Adapter] = []
        self._types: list[GPUType] = []
        self._constraints = Constraints()

    def adapter(
        self,
        name: str,
        rank: int,
        rate: float,
        tokens_in: float | None = None,
        tokens_out: float | None = None,
        lengths: Lengths | None = None,
    ) -> ProblemBuilder:
        """Add an adapter; its request lengths are ``lengths``, or constant ``tokens_in`` and ``tokens_out``."""
        if lengths is None:
            if tokens_in is None or tokens_out is None:
                raise BadInputError(f"adapter {name}: expected lengths, or tokens_in and tokens_out")
            lengths = Lengths.constant(tokens_in, tokens_out)
        self._adapters.append(Adapter(name, rank, rate, lengths))
        return self

    def gpus(self, profile: Profile | str, count: int, price_per_hour: float | None = None) -> ProblemBuilder:
        """Put ``count`` GPUs on offer; ``profile`` is a Profile, a registered name or a YAML file."""
        loaded = load_profile(profile) if isinstance(profile, str) else profile
        self._types.append(GPUType(loaded, count, price_per_hour))
        return self

    def constraints(self, served_fraction: float = 0.9, **limits: Any) -> ProblemBuilder:
        """Replace the constraints; ``limits`` are further attributes of `Constraints`."""
        self._constraints = Constraints(served_fraction, **limits)
        return self

    def build(self) -> Problem:
        """Check everything and return the problem."""
        return Problem(tuple(self._adapters), Fleet(tuple(self._types)), self._constraints)
