"""Arrival laws: when the requests of adapters come, given their mean rates."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from loraplan.errors import BadInputError

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]
Stream = tuple[Floats, Ints]
"""Arrivals: their times (s), ascending, and the index of the adapter that each asks for; both of shape (requests,)."""

# Far above any workload; with more, a stream would not fit into memory.
MOST_REQUESTS = 1e8
MOST_PIECES = 2e7

HOUR_S = 3600.0


class Arrivals(ABC):
    """A law of arrivals: adapters ask independently of each other, each by the same law at its own rate."""

    @property
    def peak(self) -> float:
        """The most that the law ever multiplies a rate by."""
        return 1.0

    @property
    def cycle_s(self) -> float | None:
        """Seconds after which the rates repeat; None if they do not."""
        return None

    def check(self, rates: Floats, horizon_s: float) -> None:
        """Check that a stream can be drawn.

        Raises:
            BadInputError: it would have too many requests, were the rates at their peak all the time.
        """
        expected = float(rates.sum()) * horizon_s * self.peak
        if expected > MOST_REQUESTS:
            at_peak = f" at peak rates ({self.peak:g} times the mean ones)" if self.peak > 1 else ""
            raise BadInputError(
                f"workload: {expected:.3g} requests are expected in {horizon_s:g} s{at_peak}, more than "
                f"{MOST_REQUESTS:g}; lower the rates or the horizon"
            )

    @abstractmethod
    def draw(self, rng: np.random.Generator, rates: Floats, horizon_s: float) -> Stream:
        """Draw the arrivals of all adapters from 0 to ``horizon_s``; ``rates`` has shape (adapters,), requests/s."""


@dataclass(frozen=True)
class Poisson(Arrivals):
    """Requests come independently of each other, at constant rates."""

    def draw(self, rng: np.random.Generator, rates: Floats, horizon_s: float) -> Stream:
        """Draw superposed Poisson processes."""
        return _poisson(rng, rates, horizon_s)


@dataclass(frozen=True)
class Gamma(Arrivals):
    """The gaps between an adapter's requests are Gamma with coefficient of variation ``cv``; 1 is Poisson."""

    cv: float

    def __post_init__(self) -> None:
        """Check the coefficient of variation."""
        if not 0 < self.cv <= 20:
            raise BadInputError(f"arrivals: cv must be above 0 and at most 20 (got {self.cv})")

    def draw(self, rng: np.random.Generator, rates: Floats, horizon_s: float) -> Stream:
        """Draw superposed stationary Gamma renewal processes."""
        if self.cv == 1.0:
            return _poisson(rng, rates, horizon_s)
        shape = 1.0 / max(self.cv, 1e-6) ** 2  # below, gaps are equal to the last bit that matters
        asked = np.flatnonzero(rates > 0)
        past, which = _renewals(
            rates[asked] * horizon_s,
            first=lambda n: rng.random(n) * rng.gamma(shape + 1.0, 1.0 / shape, n),
            gaps=lambda n: rng.gamma(shape, 1.0 / shape, n),
        )
        return _in_order(past * horizon_s, asked[which])


@dataclass(frozen=True)
class Unpredictable(Arrivals):
    """The unpredictable workload of arXiv 2602.24044: rates that wander, and laws of gaps that change.

    An adapter starts at its own rate. Every ``every_s`` seconds its rate is multiplied or divided by ``step``, by a
    fair coin, and held between 1/``swing`` and ``swing`` times its own rate. For every such interval, the law of the
    gaps is exponential or lognormal, by a fair coin. Within an interval, arrivals are a stationary renewal process.

    A rate goes up as often as down, by equal factors, so its mean over time is above the adapter's own rate: with the
    published settings 1.5 times as high over an hour, 2.0 times in the long run.

    Attributes:
        every_s: seconds between changes.
        step: factor of a change.
        swing: largest factor between a rate and the adapter's own.
        sigma: shape of the lognormal gaps, the standard deviation of their logarithm. The paper gives none; 1 makes
            them somewhat burstier than exponential ones (coefficient of variation 1.31, not 1).
    """

    every_s: float = 300.0
    step: float = 1.5
    swing: float = 7.5
    sigma: float = 1.0

    def __post_init__(self) -> None:
        """Check the settings."""
        if not (math.isfinite(self.every_s) and self.every_s > 0):
            raise BadInputError(f"arrivals: every_s must be above 0 (got {self.every_s})")
        for name, factor in (("step", self.step), ("swing", self.swing)):
            if not 1 <= factor <= 1000:
                raise BadInputError(f"arrivals: {name} must be between 1 and 1000 (got {factor})")
        if not 0 <= self.sigma <= 2.5:
            raise BadInputError(f"arrivals: sigma must be between 0 and 2.5 (got {self.sigma})")

    @property
    def peak(self) -> float:
        """The most that the law ever multiplies a rate by."""
        return self.swing

    def check(self, rates: Floats, horizon_s: float) -> None:
        """Check that a stream can be drawn.

        Raises:
            BadInputError: it would have too many requests at peak rates, or too many changes.
        """
        super().check(rates, horizon_s)
        pieces = rates.size * max(1.0, horizon_s / self.every_s)
        if pieces > MOST_PIECES:
            raise BadInputError(
                f"arrivals: {rates.size} adapters that change every {self.every_s:g} s for {horizon_s:g} s are "
                f"{pieces:.3g} intervals, more than {MOST_PIECES:g}; raise every_s or lower the horizon"
            )

    def factors(self, rng: np.random.Generator, adapters: int, intervals: int) -> Floats:
        """Draw what the rates are multiplied by, as a random walk; shape (intervals, adapters), 1 at first."""
        walk = np.ones((intervals, adapters))
        for i in range(1, intervals):
            turned = np.where(rng.random(adapters) < 0.5, self.step, 1.0 / self.step)
            walk[i] = np.clip(walk[i - 1] * turned, 1.0 / self.swing, self.swing)
        return walk

    def draw(self, rng: np.random.Generator, rates: Floats, horizon_s: float) -> Stream:
        """Draw the walks of the rates, the laws, and then the arrivals in each interval of each adapter."""
        asked = np.flatnonzero(rates > 0)
        starts = np.arange(math.ceil(horizon_s / self.every_s)) * self.every_s
        start = np.repeat(starts, asked.size)
        length_s = np.clip(horizon_s - start, 0.0, self.every_s)
        expected = (self.factors(rng, asked.size, starts.size) * rates[asked]).ravel() * length_s
        coins = rng.random(expected.size) < 0.5
        skewed, plain = np.flatnonzero(coins), np.flatnonzero(~coins)
        sigma = self.sigma
        past, which = _renewals(
            expected[skewed],
            # A size-biased lognormal is the lognormal whose logarithm has its mean higher by sigma ** 2.
            first=lambda n: rng.random(n) * rng.lognormal(0.5 * sigma**2, sigma, n),
            gaps=lambda n: rng.lognormal(-0.5 * sigma**2, sigma, n),
        )
        uniform = np.repeat(plain, rng.poisson(expected[plain]))
        piece = np.concatenate((skewed[which], uniform))
        times = start[piece] + length_s[piece] * np.concatenate((past, rng.random(uniform.size)))
        inside = times < horizon_s  # the sum may round up to it
        return _in_order(times[inside], asked[piece[inside] % max(asked.size, 1)])


@dataclass(frozen=True)
class Diurnal(Arrivals):
    """Poisson arrivals whose rates swell and ebb as a cosine around their means.

    The rate is 1 + ``amplitude`` * cos(2 pi (t - peak) / period) times the adapter's mean. Time 0 is hour 0.

    Attributes:
        amplitude: 0 is a constant rate, 1 comes down to 0 at the bottom.
        peak_hours: when the rates are highest; several hours are dealt over the adapters, anew in each stream.
        period_hours: after which the rates repeat.
    """

    amplitude: float = 0.8
    peak_hours: tuple[float, ...] = (14.0,)
    period_hours: float = 24.0

    def __post_init__(self) -> None:
        """Check the curve."""
        if not 0 <= self.amplitude <= 1:
            raise BadInputError(f"arrivals: amplitude must be between 0 and 1 (got {self.amplitude})")
        if not (math.isfinite(self.period_hours) and self.period_hours > 0):
            raise BadInputError(f"arrivals: period_hours must be above 0 (got {self.period_hours})")
        if not (self.peak_hours and all(math.isfinite(hour) for hour in self.peak_hours)):
            raise BadInputError(f"arrivals: peak_hours must be a list of hours (got {self.peak_hours})")

    @property
    def peak(self) -> float:
        """The most that the law ever multiplies a rate by."""
        return 1.0 + self.amplitude

    @property
    def cycle_s(self) -> float:
        """Seconds after which the rates repeat."""
        return HOUR_S * self.period_hours

    def draw(self, rng: np.random.Generator, rates: Floats, horizon_s: float) -> Stream:
        """Draw superposed Poisson processes of these rates."""
        peak_hour = rng.permutation(np.resize(np.array(self.peak_hours), rates.size))

        def factor(times: Floats, owner: Ints) -> Floats:
            turns = (times / HOUR_S - peak_hour[owner]) / self.period_hours
            factors: Floats = 1.0 + self.amplitude * np.cos(2 * np.pi * turns)
            return factors

        return _thinned(rng, rates, horizon_s, self.peak, factor)


@dataclass(frozen=True)
class Hourly(Arrivals):
    """Poisson arrivals whose rates change every hour, by a table that repeats.

    Attributes:
        weights: of each hour from time 0 on, say the requests counted in it; only their ratios matter, as the mean rate
            over the table is the adapter's own. 24 of them are a day, 168 a week.
    """

    weights: tuple[float, ...]

    def __post_init__(self) -> None:
        """Check the table."""
        if not (self.weights and all(0 <= weight < math.inf for weight in self.weights) and sum(self.weights) > 0):
            raise BadInputError(f"arrivals: weights must be numbers >= 0, not all 0 (got {self.weights!r:.80})")

    @property
    def _table(self) -> Floats:
        """What each hour multiplies the rates by; shape (weights,), mean 1."""
        relative = np.array(self.weights) / max(self.weights)  # first, so that their sum cannot overflow
        table: Floats = relative / relative.mean()
        return table

    @property
    def peak(self) -> float:
        """The most that the law ever multiplies a rate by."""
        return float(self._table.max())

    @property
    def cycle_s(self) -> float:
        """Seconds after which the rates repeat."""
        return HOUR_S * len(self.weights)

    def draw(self, rng: np.random.Generator, rates: Floats, horizon_s: float) -> Stream:
        """Draw superposed Poisson processes of these rates."""
        table = self._table

        def factor(times: Floats, _: Ints) -> Floats:
            factors: Floats = table[(times // HOUR_S).astype(np.int64) % table.size]
            return factors

        return _thinned(rng, rates, horizon_s, self.peak, factor)


def _poisson(rng: np.random.Generator, rates: Floats, horizon_s: float) -> Stream:
    from loraplan import draws  # not above: it takes a while to import

    return draws.poisson(rng, rates, horizon_s)


def _thinned(
    rng: np.random.Generator, rates: Floats, horizon_s: float, peak: float, factor: Callable[[Floats, Ints], Floats]
) -> Stream:
    """Poisson processes of rates that change: drawn at the peak, kept in proportion (Lewis and Shedler, 1979)."""
    times, owner = _poisson(rng, rates * peak, horizon_s)
    kept = rng.random(times.size) * peak < factor(times, owner)
    return times[kept], owner[kept]


def _renewals(expected: Floats, first: Callable[[int], Floats], gaps: Callable[[int], Floats]) -> Stream:
    """Renewal processes: (what part of its process has passed, index of the process) of each arrival, in no order.

    With a first gap that is the residual of a size-biased one (a uniform part of it), a process is stationary: it has
    its mean rate from the start on.

    Args:
        expected: shape (processes,), mean number of arrivals of each.
        first, gaps: draw that many first gaps, and gaps, of mean 1.
    """
    last = first(expected.size)  # counted in mean gaps, as all positions here
    running = np.flatnonzero(last < expected)
    positions, which = [last[running]], [running]
    while running.size:
        left = expected[running] - last[running]
        n = np.ceil(left + 2.0 * np.sqrt(left) + 2.0).astype(np.int64)
        ends = np.cumsum(n)
        drawn = gaps(int(ends[-1]))
        sums = np.cumsum(drawn)
        sums -= np.repeat(sums[ends - n] - drawn[ends - n], n)
        process = np.repeat(running, n)
        positions.append(last[process] + sums)
        which.append(process)
        last[running] = positions[-1][ends - 1]
        running = running[last[running] < expected[running]]
    position, processes = np.concatenate(positions), np.concatenate(which)
    inside = position < expected[processes]
    return position[inside] / expected[processes[inside]], processes[inside]


def _in_order(times: Floats, owner: Ints) -> Stream:
    order = np.argsort(times, kind="stable")
    return times[order], owner[order]
