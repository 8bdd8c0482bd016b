"""The problem: adapters to serve, GPUs on offer, limits to keep. Immutable once built."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property

import numpy as np

from loraplan.errors import BadInputError
from loraplan.profiles import Profile, load_profile
from loraplan.workload import Adapter, Floats, Ints, Lengths


@dataclass(frozen=True, slots=True)
class GPUType:
    """One kind of server on offer: its profile and how many of it there are."""

    profile: Profile
    count: int

    def __post_init__(self) -> None:
        """Check the count."""
        if self.count < 1:
            raise BadInputError(f"fleet: count of {self.profile.name} must be at least 1 (got {self.count})")


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
class Constraints:
    """What every GPU of a plan must keep.

    Attributes:
        served_fraction: below this share of the tokens that arrive, a GPU is starved (arXiv 2602.24044 uses 0.9).
    """

    served_fraction: float = 0.9

    def __post_init__(self) -> None:
        """Check the bound."""
        if not 0 < self.served_fraction <= 1:
            raise BadInputError(f"constraints: served_fraction must be in (0, 1] (got {self.served_fraction})")


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

    def gpus(self, profile: Profile | str, count: int) -> ProblemBuilder:
        """Put ``count`` GPUs on offer; ``profile`` is a Profile, a registered name or a YAML file."""
        self._types.append(GPUType(load_profile(profile) if isinstance(profile, str) else profile, count))
        return self

    def constraints(self, served_fraction: float) -> ProblemBuilder:
        """Replace the constraints."""
        self._constraints = Constraints(served_fraction)
        return self

    def build(self) -> Problem:
        """Check everything and return the problem."""
        return Problem(tuple(self._adapters), Fleet(tuple(self._types)), self._constraints)
