"""Laws that a configuration can name: popularity, arrivals, request lengths; each with its settings."""

from __future__ import annotations

from functools import partial
from typing import Annotated, Literal

from pydantic import Field, field_validator

from loraplan import arrivals, sources
from loraplan.config.part import Part, Spread
from loraplan.profiles import NonNegative, Positive
from loraplan.workload import Floats, Lengths


class DirichletSpec(Part):
    """Shares of the requests drawn from a symmetric Dirichlet law."""

    law: Literal["dirichlet"]
    alpha: float = Field(default=0.5, gt=0, le=1e6)
    """Smaller is more skewed; arXiv 2602.24044 uses 0.5."""

    def weights(self, count: int, seed: int) -> Floats:
        """Shape (count,), sum 1."""
        return sources.dirichlet_popularity(count, self.alpha, seed)


class ZipfSpec(Part):
    """Shares of the requests in proportion to 1 / place**exponent; who takes which place is drawn."""

    law: Literal["zipf"]
    exponent: NonNegative = 1.0
    """Larger is more skewed; 0 is uniform."""

    def weights(self, count: int, seed: int) -> Floats:
        """Shape (count,), sum 1."""
        return sources.zipf_popularity(count, self.exponent, seed)


class UniformSpec(Part):
    """Equal shares of the requests."""

    law: Literal["uniform"]

    def weights(self, count: int, seed: int) -> Floats:
        """Shape (count,), sum 1; the seed plays no part."""
        return sources.uniform_popularity(count)


PopularitySpec = Annotated[DirichletSpec | ZipfSpec | UniformSpec, Field(discriminator="law")]


class PoissonSpec(Part):
    """Each adapter's requests arrive independently of each other."""

    law: Literal["poisson"]

    def make(self) -> arrivals.Arrivals:
        """The law of the arrivals."""
        return arrivals.Poisson()


class GammaSpec(Part):
    """Each adapter's requests arrive in bursts (cv above 1) or evenly (cv below 1)."""

    law: Literal["gamma"]
    cv: float = Field(gt=0, le=20)
    """Coefficient of variation of the gaps between an adapter's requests; 1 is Poisson."""

    def make(self) -> arrivals.Arrivals:
        """The law of the arrivals."""
        return arrivals.Gamma(self.cv)


class UnpredictableSpec(Part):
    """Rates that wander and laws of gaps that change: the unpredictable workload of arXiv 2602.24044."""

    law: Literal["unpredictable"]
    every_s: float = Field(default=300.0, ge=1, allow_inf_nan=False)
    """Seconds between changes: each adapter's rate goes up or down, the law of its gaps is drawn anew."""
    step: float = Field(default=1.5, ge=1, le=1000)
    """Factor by which a rate goes up or down."""
    swing: float = Field(default=7.5, ge=1, le=1000)
    """A rate stays between 1/swing and swing times the adapter's own."""
    sigma: float = Field(default=1.0, ge=0, le=2.5)
    """Shape of the lognormal gaps: the standard deviation of their logarithm."""

    def make(self) -> arrivals.Arrivals:
        """The law of the arrivals."""
        return arrivals.Unpredictable(self.every_s, self.step, self.swing, self.sigma)


class DiurnalSpec(Part):
    """Poisson arrivals whose rates swell and ebb as a cosine around their means."""

    law: Literal["diurnal"]
    amplitude: float = Field(default=0.8, ge=0, le=1)
    """How far the rates swing, relative to their means: 0 not at all, 1 down to 0 and up to twice."""
    peak_hours: tuple[Annotated[float, Field(allow_inf_nan=False)], ...] = Field(default=(14.0,), min_length=1)
    """Hours, from the start, at which the rates are highest; several are dealt over the adapters in random order."""
    period_hours: Positive = 24.0
    """Hours after which the rates repeat."""

    def make(self) -> arrivals.Arrivals:
        """The law of the arrivals."""
        return arrivals.Diurnal(self.amplitude, self.peak_hours, self.period_hours)


class HourlySpec(Part):
    """Poisson arrivals whose rates change every hour, by a table that repeats."""

    law: Literal["hourly"]
    weights: tuple[NonNegative, ...] = Field(min_length=1)
    """A number for each hour from the start on, say the requests counted in it; only their ratios matter. 24 are a day,
    168 a week."""

    @field_validator("weights")
    @classmethod
    def _some_hour_counts(cls, weights: tuple[float, ...]) -> tuple[float, ...]:
        if not any(weights):
            raise ValueError("expected a weight above 0")
        return weights

    def make(self) -> arrivals.Arrivals:
        """The law of the arrivals."""
        return arrivals.Hourly(self.weights)


ArrivalsSpec = Annotated[
    PoissonSpec | GammaSpec | UnpredictableSpec | DiurnalSpec | HourlySpec, Field(discriminator="law")
]


class LognormalSpec(Part):
    """Skewed request lengths, prompt and output joint; the defaults are those of ShareGPT (arXiv 2508.08343)."""

    law: Literal["lognormal"]
    input_cv: Spread = 1.12
    """Standard deviation / mean of the prompt tokens."""
    output_cv: Spread = 1.07
    """Standard deviation / mean of the produced tokens."""
    correlation: float = Field(default=-0.3, ge=-1, le=1)
    """Correlation of prompt and produced tokens; it decides how much KV cache a running request holds."""

    def make(self) -> sources.LengthsLaw:
        """The law, still without its means."""
        return partial(
            sources.skewed_lengths, input_cv=self.input_cv, output_cv=self.output_cv, correlation=self.correlation
        )


class ConstantSpec(Part):
    """Every request of an adapter has the mean lengths, rounded to whole tokens."""

    law: Literal["constant"]

    def make(self) -> sources.LengthsLaw:
        """The law, still without its means."""
        return Lengths.constant


LengthsSpec = Annotated[LognormalSpec | ConstantSpec, Field(discriminator="law")]
