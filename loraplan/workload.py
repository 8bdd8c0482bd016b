"""Workloads: who asks for what, when. What a plan must carry, and what the twin replays."""

from __future__ import annotations

import math
import numbers
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from loraplan.arrivals import MOST_REQUESTS, Arrivals, Poisson
from loraplan.errors import BadInputError

Ints = NDArray[np.int64]
Floats = NDArray[np.float64]

# Far above any workload; with more, sums and products would overflow, or a stream would not fit into memory.
MOST_TOKENS = 10**9
MOST_RANK = 1_000_000
LEAST_RATE = 1e-12
"""Requests/s below which an adapter counts as idle: one in 30,000 years."""
MOST_RATE = 1e9


def is_number(value: Any, kind: type = numbers.Real) -> bool:
    """Whether ``value`` is a number of this kind, of Python or numpy; truth values are none."""
    return isinstance(value, kind) and not isinstance(value, bool)


@dataclass(frozen=True, eq=False)
class Lengths:
    """Request lengths as joint pairs (tokens in, tokens out), drawn together, with equal weight.

    Pairs, because the correlation between the two decides how much KV cache a running request holds.

    Attributes:
        tokens_in: shape (n,), prompt tokens, >= 1.
        tokens_out: shape (n,), produced tokens, >= 1.
    """

    tokens_in: Ints
    tokens_out: Ints

    def __post_init__(self) -> None:
        """Freeze and check the arrays."""
        for name in ("tokens_in", "tokens_out"):
            given = np.asarray(getattr(self, name))
            if given.ndim != 1 or given.size == 0:
                raise BadInputError(f"lengths: {name} must be a non-empty list")
            if given.dtype.kind not in "iuf":  # text, truth values, integers beyond 64 bits
                raise BadInputError(f"lengths: {name} must be numbers of tokens (got {given[0]!r:.80})")
            # Before the cast: it would make nonsense of what no int64 holds. A nan is neither.
            for fine, bound in ((given >= 1, "at least 1"), (given <= MOST_TOKENS, f"at most {MOST_TOKENS}")):
                if not fine.all():
                    raise BadInputError(f"lengths: {name} must be {bound} (got {given[np.argmin(fine)]})")
            array = given.astype(np.int64)
            array.flags.writeable = False
            object.__setattr__(self, name, array)
        if self.tokens_in.shape != self.tokens_out.shape:
            raise BadInputError("lengths: tokens_in and tokens_out must have equal lengths")

    @classmethod
    def constant(cls, tokens_in: float, tokens_out: float) -> Lengths:
        """Every request has these lengths, rounded to whole tokens."""
        for name, value in (("tokens_in", tokens_in), ("tokens_out", tokens_out)):
            if not (is_number(value) and -math.inf < value < math.inf):
                raise BadInputError(f"lengths: {name} must be a number of tokens (got {value!r:.80})")
            if value > MOST_TOKENS:
                raise BadInputError(f"lengths: {name} must be at most {MOST_TOKENS} (got {value!r:.80})")
        return cls(np.array([round(tokens_in)]), np.array([round(tokens_out)]))

    @cached_property
    def mean_in(self) -> float:
        """Mean prompt tokens."""
        return float(self.tokens_in.mean())

    @cached_property
    def mean_out(self) -> float:
        """Mean produced tokens."""
        return float(self.tokens_out.mean())

    @cached_property
    def mean_kv(self) -> float:
        """Mean KV tokens held by a running request, over the steps it runs: E[in*out + out(out+1)/2] / E[out]."""
        held = self.tokens_in * self.tokens_out + self.tokens_out * (self.tokens_out + 1) / 2
        return float(held.mean()) / self.mean_out

    def accepted(self, max_len: int) -> float:
        """Share of the tokens asked that a server of this ``max_model_len`` takes on.

        It refuses prompts of that length or more, and ends answers there.
        """
        taken = self.tokens_in < max_len
        answers = np.where(taken, np.minimum(self.tokens_out, max_len - self.tokens_in), self.tokens_out)
        tokens = self.tokens_in + answers
        return float(tokens[taken].sum() / tokens.sum())


@dataclass(frozen=True, slots=True)
class Adapter:
    """A LoRA adapter: its rank, its request rate (requests/s; below LEAST_RATE it is 0) and its requests' lengths."""

    name: str
    rank: int
    rate: float
    lengths: Lengths

    def __post_init__(self) -> None:
        """Check the fields; numbers of numpy become Python's."""
        if not isinstance(self.name, str):
            raise BadInputError(f"adapter: name must be text (got {self.name!r:.80})")
        if not self.name:
            raise BadInputError("adapter: name must not be empty")
        if not is_number(self.rank, numbers.Integral):
            raise BadInputError(f"adapter {self.name}: rank must be a whole number (got {self.rank!r:.80})")
        if self.rank < 1:
            raise BadInputError(f"adapter {self.name}: rank must be at least 1 (got {self.rank})")
        if self.rank > MOST_RANK:
            raise BadInputError(f"adapter {self.name}: rank must be at most {MOST_RANK} (got {self.rank!r:.80})")
        if not (is_number(self.rate) and 0 <= self.rate < math.inf):
            raise BadInputError(f"adapter {self.name}: rate must be a number >= 0 requests/s (got {self.rate!r:.80})")
        if self.rate > MOST_RATE:
            raise BadInputError(
                f"adapter {self.name}: rate must be at most {MOST_RATE:g} requests/s (got {self.rate!r:.80})"
            )
        if not isinstance(self.lengths, Lengths):
            raise BadInputError(f"adapter {self.name}: lengths must be Lengths (got {self.lengths!r:.80})")
        object.__setattr__(self, "rank", int(self.rank))
        object.__setattr__(self, "rate", float(self.rate) if self.rate >= LEAST_RATE else 0.0)


@dataclass(frozen=True, eq=False)
class Requests:
    """A concrete stream of requests in order of arrival: what one run of the twin replays.

    Attributes:
        arrival_s: shape (n,), seconds since the start, non-decreasing.
        adapter: shape (n,), index of the adapter asked for.
        tokens_in: shape (n,), prompt tokens.
        tokens_out: shape (n,), produced tokens.
    """

    arrival_s: Floats
    adapter: Ints
    tokens_in: Ints
    tokens_out: Ints

    def __post_init__(self) -> None:
        """Check the lengths: a request of no tokens would never end."""
        if len(self) and min(self.tokens_in.min(), self.tokens_out.min()) < 1:
            raise BadInputError("requests: tokens_in and tokens_out must be at least 1")

    def __len__(self) -> int:
        """Number of requests."""
        return int(self.arrival_s.size)

    def select(self, mask: NDArray[np.bool_]) -> Requests:
        """The requests where ``mask`` is true."""
        return Requests(self.arrival_s[mask], self.adapter[mask], self.tokens_in[mask], self.tokens_out[mask])


class Workload(Protocol):
    """Adapters and the requests they get over ``horizon_s`` seconds.

    ``adapters[i]`` is what index ``i`` of the requests means. A workload is a law, not a list: every seed gives another
    stream with the same statistics.
    """

    @property
    def adapters(self) -> tuple[Adapter, ...]:
        """Whose requests these are."""

    @property
    def horizon_s(self) -> float:
        """Seconds that a stream covers."""

    def requests(self, seed: int) -> Requests:
        """Draw one stream; the same seed gives the same stream."""


@dataclass(frozen=True)
class RateWorkload:
    """Every adapter asks at its own rate by one law of arrivals, independently, with lengths of its own pairs."""

    adapters: tuple[Adapter, ...]
    horizon_s: float = 3600.0
    arrivals: Arrivals = field(default_factory=Poisson)

    def __post_init__(self) -> None:
        """Check the horizon, and that a stream of these rates can be drawn."""
        _check_horizon(self.horizon_s)
        self.arrivals.check(self._rates, self.horizon_s)

    @property
    def _rates(self) -> Floats:
        return np.array([adapter.rate for adapter in self.adapters])

    def requests(self, seed: int) -> Requests:
        """Draw one stream of all adapters, superposed."""
        from loraplan import draws  # not above: it takes a while to import

        rng = np.random.default_rng(seed)
        times, owner = self.arrivals.draw(rng, self._rates, self.horizon_s)
        tokens_in, tokens_out = draws.pairs(rng, *_tables_of_lengths(self.adapters), owner)
        return Requests(times, owner, tokens_in, tokens_out)


@dataclass(frozen=True)
class TraceWorkload:
    """A window of a recorded trace, replayed ``scale`` times as dense.

    Each recorded request is replayed floor(scale) times and once more with probability scale - floor(scale); the first
    copy keeps its time, the others are delayed by up to ``jitter_s`` (the replication of arXiv 2602.24044). Requests
    that name no adapter (index -1) get one drawn by ``popularity``, each copy its own.

    Attributes:
        recorded: the whole trace, times in the trace's own seconds, adapter -1 where it names none.
        window_s: (start, end) of the part that is replayed; time 0 of a stream is its start.
        popularity: shape (adapters,), probabilities for requests without a name; None if every request names one.
    """

    adapters: tuple[Adapter, ...]
    recorded: Requests
    window_s: tuple[float, float]
    scale: float = 1.0
    popularity: Floats | None = None
    jitter_s: float = 5.0

    def __post_init__(self) -> None:
        """Check the window and the scale."""
        _check_horizon(self.horizon_s)
        if not (math.isfinite(self.scale) and self.scale > 0):
            raise BadInputError(f"trace: rate_scale must be above 0 (got {self.scale})")
        expected = len(self.recorded) * self.scale
        if expected > MOST_REQUESTS:
            raise BadInputError(
                f"trace: {len(self.recorded)} requests, {self.scale:g} times as dense, are {expected:.3g}, more than "
                f"{MOST_REQUESTS:g}; lower rate_scale"
            )

    @property
    def horizon_s(self) -> float:
        """Seconds replayed."""
        return self.window_s[1] - self.window_s[0]

    def requests(self, seed: int) -> Requests:
        """Draw one stream: copies, their delays and the names that the trace does not give."""
        rng = np.random.default_rng(seed)
        whole = math.floor(self.scale)
        copies = whole + (rng.random(len(self.recorded)) < self.scale - whole)
        source = np.repeat(np.arange(len(self.recorded)), copies)
        first = np.concatenate(([True], source[1:] != source[:-1])) if source.size else np.zeros(0, np.bool_)
        delay = np.where(first, 0.0, rng.random(source.size) * self.jitter_s)
        times = self.recorded.arrival_s[source] + delay
        owner = self.recorded.adapter[source]
        if self.popularity is not None:
            owner = np.where(owner < 0, rng.choice(len(self.adapters), size=owner.size, p=self.popularity), owner)
        order = np.argsort(times, kind="stable")
        start, end = self.window_s
        order = order[(times[order] >= start) & (times[order] < end)]
        source = source[order]
        return Requests(
            times[order] - start, owner[order], self.recorded.tokens_in[source], self.recorded.tokens_out[source]
        )


def _check_horizon(horizon_s: float) -> None:
    if not (math.isfinite(horizon_s) and horizon_s > 0):
        raise BadInputError(f"workload: the horizon must be above 0 s (got {horizon_s})")


def _tables_of_lengths(adapters: Sequence[Adapter]) -> tuple[Ints, Ints, NDArray[np.int32]]:
    """All pairs of lengths in one table: (each adapter's first row, how many are its own, the rows)."""
    first, laws, size = {}, [], 0
    for lengths in (adapter.lengths for adapter in adapters):
        if id(lengths) not in first:
            first[id(lengths)] = size
            laws.append(lengths)
            size += lengths.tokens_in.size
    rows = np.empty((size, 2), dtype=np.int32)
    for lengths in laws:
        own = rows[first[id(lengths)] :][: lengths.tokens_in.size]
        own[:, 0], own[:, 1] = lengths.tokens_in, lengths.tokens_out
    return (
        np.array([first[id(adapter.lengths)] for adapter in adapters], dtype=np.int64),
        np.array([adapter.lengths.tokens_in.size for adapter in adapters], dtype=np.int64),
        rows,
    )
