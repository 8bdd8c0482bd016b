"""The format of a configuration file: what to plan, on which fleet, how. Pure data."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Discriminator,
    Field,
    GetJsonSchemaHandler,
    Tag,
    ValidationInfo,
    model_validator,
)
from pydantic.json_schema import JsonSchemaValue
from pydantic_core import CoreSchema, PydanticCustomError

from loraplan.config.laws import ArrivalsSpec, LengthsSpec, PopularitySpec
from loraplan.config.part import Count, MeanTokens, Part, Rank, Scale, Seed
from loraplan.oracle import DEFAULT_ORACLE
from loraplan.profiles import NonNegative, Positive
from loraplan.registry import in_full
from loraplan.workload import MOST_RATE


def _beside_config(path: Path, info: ValidationInfo) -> Path:
    """A path of a config file counts from that file's folder."""
    return info.context["folder"] / path if info.context else path


def _profile_beside_config(profile: str, info: ValidationInfo) -> str:
    return str(_beside_config(Path(profile), info)) if profile.endswith((".yaml", ".yml")) else profile


def _one_or_more(value: Any) -> Any:
    return (value,) if isinstance(value, str) else value


InputPath = Annotated[Path, AfterValidator(_beside_config)]
Window = tuple[NonNegative, NonNegative]


class TraceAdaptersSpec(Part):
    """The adapters that a trace's requests go to."""

    count: Count | None = None
    """How many adapters share the requests; only for a trace that names none."""
    ranks: tuple[Rank, ...] = Field(min_length=1)
    """LoRA ranks, dealt round-robin over the adapters (those named by the trace: in order of first arrival)."""
    popularity: PopularitySpec | None = None
    """How the requests are shared (if not given, uniformly); only for a trace that names no adapters."""
    seed: Seed = 0
    """Decides the shares, and which requests the planner saw."""


class GenerateSpec(Part):
    """Adapters made from laws."""

    count: Count
    """Number of adapters."""
    ranks: tuple[Rank, ...] = Field(min_length=1)
    """LoRA ranks, dealt round-robin over the adapters in random order."""
    rates: tuple[Annotated[NonNegative, Field(le=MOST_RATE)], ...] | None = Field(default=None, min_length=1)
    """Request rates (requests/s), dealt round-robin. Give these or total_rate."""
    total_rate: Annotated[Positive, Field(le=MOST_RATE)] | None = None
    """Requests/s of all adapters together, shared by popularity. Give this or rates."""
    popularity: PopularitySpec | None = None
    """How total_rate is shared; uniformly if not given."""
    rate_scale: Scale = 1.0
    """Multiplies every rate."""
    input_tokens: MeanTokens
    """Mean prompt tokens per request."""
    output_tokens: MeanTokens
    """Mean produced tokens per request."""
    seed: Seed = 0
    """Decides the shares, and which adapter gets which rank."""

    @model_validator(mode="after")
    def _one_law_of_rates(self) -> GenerateSpec:
        if (self.rates is None) == (self.total_rate is None):
            raise ValueError("expected exactly one of rates and total_rate")
        if self.popularity is not None and self.rates is not None:
            raise ValueError("popularity shares total_rate; it makes no sense with rates")
        return self


def _adapters_form(value: Any) -> str:
    return "table" if isinstance(value, str | Path) else "dealt"


AdaptersSource = Annotated[
    Annotated[InputPath, Tag("table")] | Annotated[TraceAdaptersSpec, Tag("dealt")], Discriminator(_adapters_form)
]

SourceKind = Literal["trace", "adapter table", "generate"]

# Settings of a workload that make sense with some sources only.
_BELONGS: dict[str, tuple[SourceKind, ...]] = {
    "plan_window": ("trace",),
    "replay_window": ("trace",),
    "horizon_s": ("adapter table", "generate"),
    "arrivals": ("adapter table", "generate"),
    "lengths": ("adapter table", "generate"),
}


class WorkloadSpec(Part):
    """Who asks for what, when: a recorded trace and its adapters, a table of adapters, or laws to generate them."""

    trace: InputPath | None = None
    """CSV or Parquet file with columns arrived_at, num_prefill_tokens, num_decode_tokens and, optionally, adapter."""
    adapters: AdaptersSource | None = None
    """A table (CSV or YAML) with columns name, rank, rate, tokens_in, tokens_out; or, with a trace, how to deal them.

    Of a table beside a trace that names its adapters only names and ranks count; beside one that does not, the table's
    rates are the popularity.
    """
    generate: GenerateSpec | None = None
    """Adapters made from laws, in the place of a trace or a table."""
    rate_scale: Scale = 1.0
    """Multiplies the rates of a trace or a table."""
    plan_window: Window | None = None
    """Seconds of the trace whose requests set the rates to plan for; the whole trace if not given."""
    replay_window: Window | None = None
    """Seconds of the trace that validation replays; plan_window if not given."""
    horizon_s: Positive | None = None
    """Seconds that validation replays of a table's or generated workload; if not given, a cycle of arrivals that have
    one (diurnal, hourly), else 3600."""
    arrivals: ArrivalsSpec | None = None
    """When an adapter's requests come, for a table or generated workload; Poisson if not given."""
    lengths: LengthsSpec | None = None
    """Law of the request lengths, for a table or generated workload; lognormal, as ShareGPT, if not given."""
    headroom: Scale = 1.0
    """The plan is made for rates so many times the mean ones; validation replays the workload as it is."""

    @property
    def kind(self) -> SourceKind:
        """What the workload is made from."""
        if self.generate is not None:
            return "generate"
        return "adapter table" if self.trace is None else "trace"

    @model_validator(mode="after")
    def _one_source(self) -> WorkloadSpec:
        if self.generate is not None and (self.trace is not None or self.adapters is not None):
            other = "adapters" if self.trace is None else "trace"
            raise ValueError(f"generate makes the adapters; it makes no sense with {other}")
        if self.generate is None and self.trace is None and self.adapters is None:
            raise ValueError("expected a trace, a table of adapters, or generate")
        if self.trace is not None and self.adapters is None:
            raise ValueError("trace needs adapters: a table, or ranks (and a count, if the trace names no adapters)")
        if self.trace is None and isinstance(self.adapters, TraceAdaptersSpec):
            raise ValueError("adapters without a trace must be a table (a path); to make them from laws, use generate")
        return self

    @model_validator(mode="after")
    def _settings_fit_source(self) -> WorkloadSpec:
        for name, kinds in _BELONGS.items():
            if getattr(self, name) is not None and self.kind not in kinds:
                raise ValueError(f"{name} makes no sense with {self.kind}, only with {' or '.join(kinds)}")
        if self.generate is not None and self.rate_scale != 1.0:
            raise ValueError("rate_scale makes no sense with generate, which has its own")
        for name, window in (("plan_window", self.plan_window), ("replay_window", self.replay_window)):
            if window is not None and window[0] >= window[1]:
                raise ValueError(f"{name} must end after it starts (got [{window[0]:g}, {window[1]:g}])")
        return self


class FleetItem(Part):
    """GPUs of one kind on offer."""

    profile: Annotated[str, AfterValidator(_profile_beside_config)] = Field(min_length=1)
    """A registered profile, or a profile file (.yaml)."""
    count: int = Field(gt=0)
    """How many there are."""
    price_per_hour: NonNegative | None = None
    """What an hour of one costs, in any currency; objective `cost` needs it of every item."""


Fraction = Annotated[float, Field(gt=0, le=1)]
Names = tuple[str, ...]


class ConstraintsSpec(Part):
    """Limits on every GPU, on all together, and on where adapters may be."""

    served_fraction: Fraction = 0.9
    """A GPU that serves less than this share of the tokens that arrive is starved."""
    adapter_served_fraction: Fraction | None = None
    """The same for every adapter by itself; only the twin tells the adapters of a GPU apart."""
    itl_ms: Positive | None = None
    """Most a GPU's mean inter-token latency may be, ms."""
    ttft_p95_s: Positive | None = None
    """Most the 95th percentile of a GPU's time to first token may be, s."""
    max_adapters: Count | None = None
    """Most adapters of a GPU."""
    max_gpus: Count | None = None
    """Most GPUs in use, of all types together."""
    pins: dict[str, Annotated[Names, BeforeValidator(_one_or_more)]] = Field(default_factory=dict)
    """Adapter: the profile, or profiles, of the fleet on which it may be."""
    separate: tuple[Names, ...] = ()
    """Groups of adapters no two of which share a GPU."""
    together: tuple[Names, ...] = ()
    """Groups of adapters that share one GPU."""
    split: bool = True
    """Whether an adapter that no GPU carries alone is split over replicas, each with an equal share of its requests."""
    replicas: dict[str, Count] = Field(default_factory=dict)
    """Adapter: on how many GPUs it is to be."""
    reserve: bool = False
    """Whether the loss of any one GPU must leave a plan that keeps the limits: its adapters fit onto the others."""


class PluginSpec(BaseModel):
    """A registered name and its settings; written as the name alone, or as a mapping of name and settings."""

    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True)

    name: str = Field(min_length=1)
    """The registered name."""
    params: dict[str, Any] = Field(default_factory=dict)
    """Its settings; they may also stand beside the name."""

    @model_validator(mode="before")
    @classmethod
    def _from_short_forms(cls, data: Any) -> Any:
        try:
            return in_full(data)
        except ValueError as error:
            raise PydanticCustomError("settings_twice", "{text}", {"text": str(error)}) from None

    @classmethod
    def __get_pydantic_json_schema__(cls, core_schema: CoreSchema, handler: GetJsonSchemaHandler) -> JsonSchemaValue:
        """Describe the short forms as well."""
        schema = handler.resolve_ref_schema(handler(core_schema))
        mapping = schema | {"additionalProperties": True}
        return {"description": mapping.pop("description"), "anyOf": [{"type": "string", "minLength": 1}, mapping]}


class Config(Part):
    """A planning task: the workload, the fleet on offer, what to optimise and how."""

    schema_version: Literal[1] = 1
    """Version of this format."""
    workload: WorkloadSpec
    """Who asks for what, when."""
    fleet: tuple[FleetItem, ...] = Field(min_length=1)
    """GPUs on offer, in the order in which solvers try them."""
    objective: PluginSpec = PluginSpec(name="gpu_count")
    """What makes a plan better."""
    constraints: ConstraintsSpec = ConstraintsSpec()
    """What every plan must keep."""
    solver: PluginSpec = PluginSpec(name="auto")
    """What searches for the plan."""
    oracle: PluginSpec = PluginSpec(name=DEFAULT_ORACLE)
    """What predicts how a loaded GPU behaves."""
    verify: Literal["none", "twin"] = "none"
    """Whether every GPU of the plan is replayed in the twin, with the workload that is planned for; what starves there
    is cut off, and the solver goes on until nothing does."""
    verify_seeds: Annotated[int, Field(ge=1, le=1000)] = 3
    """Seeds of these replays."""
    time_limit_s: NonNegative | None = None
    """Seconds the solver may take; no limit if not given."""
    seed: Seed = 0
    """Seed of everything random that has no seed of its own."""
