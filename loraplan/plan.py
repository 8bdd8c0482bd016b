"""Plans: which adapters and how many slots every GPU gets, how good that is, and how it came about."""

from __future__ import annotations

import json
import math
from collections import Counter, defaultdict
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from loraplan.errors import BadInputError
from loraplan.files import write_text
from loraplan.profiles import Profile, first_problem

Status = Literal["optimal", "feasible", "infeasible", "unknown"]
NonNegative = Annotated[float, Field(ge=0, allow_inf_nan=False)]


class _Part(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class PlannedAdapter(_Part):
    """One adapter on one GPU."""

    name: str = Field(min_length=1)
    rank: int = Field(gt=0, description="LoRA rank")
    rate: NonNegative = Field(description="requests/s of the adapter in all, as planned")
    share: float = Field(default=1.0, gt=0, le=1, description="share of the adapter's requests that this GPU gets")


class Predicted(_Part):
    """What the oracle says of one GPU; null where it has no finite figure."""

    served_fraction: NonNegative = Field(description="tokens served / tokens that arrive")
    throughput_tok_s: NonNegative = Field(description="prompt and output tokens/s")
    itl_ms: NonNegative | None = Field(description="mean inter-token latency, ms")
    ttft_s: NonNegative | None = Field(description="mean time to first token, s")
    ttft_p95_s: NonNegative | None = Field(default=None, description="its 95th percentile, s")
    kv_utilisation: NonNegative = Field(description="time-mean share of the KV cache in use")
    outside: tuple[str, ...] = Field(
        default=(), description="what of this load is out of the range that the oracle knows: it extrapolates there"
    )


class PlannedGPU(_Part):
    """One GPU of the plan: the vLLM server it runs and the adapters on it."""

    id: str = Field(min_length=1)
    profile: str = Field(description="name of the profile, a key of provenance.profiles")
    slots: int = Field(gt=0, description="--max-loras")
    max_rank: int = Field(gt=0, description="--max-lora-rank")
    adapters: tuple[PlannedAdapter, ...] = Field(min_length=1)
    cost: float | None = Field(default=None, description="what this GPU adds to the objective")
    predicted: Predicted


class ObjectiveValue(_Part):
    """The cost of the plan and what is proven about it."""

    name: str
    params: dict[str, Any] = Field(default_factory=dict)
    unit: str
    value: float | None = Field(description="null if there is no complete plan")
    lower_bound: float | None = Field(description="no plan costs less, with respect to the oracle; null if not proven")
    gap: NonNegative | None = Field(description="(value - lower_bound) / value; null without a bound")


class SolverRecord(_Part):
    """Who made the plan."""

    name: str
    params: dict[str, Any] = Field(default_factory=dict)
    seed: int
    runtime_s: NonNegative


class OracleRecord(_Part):
    """Who judged the GPU loads."""

    name: str
    params: dict[str, Any] = Field(default_factory=dict)


class LogEntry(_Part):
    """What the search had at a time."""

    seconds: NonNegative = Field(description="since it began")
    gpus: int
    value: float | None = Field(description="cost of the best plan; null before there was a complete one")
    bound: float | None = Field(description="no plan costs less; null before anything was proven")


class AdapterWorth(_Part):
    """What an adapter, or a replica of it, is worth at the prices of a certificate."""

    name: str
    worth: NonNegative
    item: int | None = Field(
        default=None, description="adapters of one number may be checked as one, as light as the lightest of them"
    )


class Fork(_Part):
    """At most so many GPUs are of the bin types of a box, or more; bin types have places, as oracles number them."""

    least: tuple[int, ...] = Field(description="of places in the box, in each coordinate")
    most: tuple[int, ...] = Field(description="of places in the box, in each coordinate")
    gpus: int = Field(ge=0, description="in the one case there are no more than these")
    fewer: Branch
    more: Branch


class BranchPrices(_Part):
    """What plans of a branch cost at least is proven by these."""

    worth: tuple[NonNegative, ...] = Field(description="of an adapter of each item")
    rents: tuple[float, ...] = Field(
        description="of the limits: on all GPUs, on those of each type, and of each fork on the way"
    )


class BranchPacking(_Part):
    """The GPUs that plans of a branch have do not take all adapters."""

    packed: tuple[tuple[tuple[int, ...], int], ...] = Field(
        description="places of bin types, and how many GPUs of each"
    )


Branch = Fork | BranchPrices | BranchPacking


class Branches(_Part):
    """What is proven beyond the prices (`loraplan.branches`)."""

    most: float = Field(description="no plan costs this or less")
    tree: Branch


class Certificate(_Part):
    """What proves the lower bound; `loraplan check` verifies it without the solvers."""

    kind: Literal["prices", "listing"] = Field(
        description="prices: no load is worth more than its cost and rents; listing: all loads there are were compared"
    )
    bound: float = Field(description="what is proven, before it is rounded up to a cost that a plan can have")
    adapters: tuple[AdapterWorth, ...] = Field(default=(), description="of kind prices: in the objective's unit")
    rents: dict[str, NonNegative] = Field(default_factory=dict, description="by profile: for a GPU of a scarce type")
    rent: NonNegative = Field(default=0.0, description="for any GPU, where all are scarce")
    branches: Branches | None = Field(default=None, description="of kind prices, where prices leave a gap")


class Verification(_Part):
    """How the twin took part in the search."""

    rounds: int = Field(ge=1, description="solved and replayed so many times")
    cuts: int = Field(ge=0, description="GPU loads cut off because they starved in the twin")
    planned_for: float = Field(description="the rates that the solver was told / those there are, in the last round")
    confirmed: bool = Field(description="no GPU of the plan starved in the twin")
    seeds: tuple[int, ...] = Field(description="of the replays")


class Provenance(_Part):
    """All it takes to make the plan again or to replay its workload."""

    loraplan: str = Field(description="version that made the plan")
    created: str = Field(description="UTC time, ISO 8601")
    profiles: dict[str, Profile] = Field(description="the profiles of the GPUs, as they were")
    served_fraction: float = Field(gt=0, le=1, description="below this share of the arriving tokens a GPU is starved")
    config: dict[str, Any] | None = Field(default=None, description="the config that the plan was made from")
    inputs: dict[str, str] = Field(default_factory=dict, description="files that the config names, with their SHA-256")


class Plan(_Part):
    """The answer to a problem, as it is saved to plan.json (schema version 1)."""

    schema_version: Literal[1] = 1
    status: Status
    reason: str = Field(default="", description="why there is no complete plan, in one line")
    objective: ObjectiveValue
    gpus: tuple[PlannedGPU, ...]
    unplaced: tuple[str, ...] = Field(
        default=(), description="adapters not, or not all of whose requests, placed; empty if the plan is complete"
    )
    fallbacks: dict[str, dict[str, str]] = Field(
        default_factory=dict, description="GPU -> its adapters -> the GPU that takes each over if that GPU is lost"
    )
    solver: SolverRecord
    oracle: OracleRecord
    verification: Verification | None = Field(default=None, description="null if the twin was not asked")
    certificate: Certificate | None = Field(default=None, description="null if no bound is proven that can be checked")
    log: tuple[LogEntry, ...] = Field(default=(), description="better plans and bounds, as they were found")
    provenance: Provenance

    @model_validator(mode="after")
    def _consistent(self) -> Plan:
        twice = [name for name, times in Counter(gpu.id for gpu in self.gpus).items() if times > 1]
        if twice:
            raise ValueError(f"GPU id {twice[0]!r} is used twice")
        shares: dict[str, float] = defaultdict(float)
        for gpu in self.gpus:
            if gpu.profile not in self.provenance.profiles:
                raise ValueError(f"GPU {gpu.id}: profile {gpu.profile!r} is not in provenance.profiles")
            names = Counter(adapter.name for adapter in gpu.adapters)
            for adapter in gpu.adapters:
                shares[adapter.name] += adapter.share
                if names[adapter.name] > 1:
                    raise ValueError(f"GPU {gpu.id}: adapter {adapter.name!r} is listed twice")
                if adapter.rank > gpu.max_rank:
                    raise ValueError(f"GPU {gpu.id}: adapter {adapter.name!r} has a rank above max_rank")
        unplaced = set(self.unplaced)
        for name, share in shares.items():
            whole = math.isclose(share, 1.0, abs_tol=1e-6)
            if name in unplaced and (whole or share > 1):
                raise ValueError(f"adapter {name!r} is both placed and unplaced")
            if not whole and name not in unplaced:
                raise ValueError(f"adapter {name!r}: shares add up to {share:.6g}, expected 1")
        return self

    @property
    def complete(self) -> bool:
        """Whether every adapter is placed."""
        return self.status in ("optimal", "feasible")

    def to_json(self) -> str:
        """The plan as the text of plan.json."""
        return json.dumps(self.model_dump(mode="json"), indent=1, allow_nan=False) + "\n"

    def save(self, path: Path | str) -> None:
        """Write plan.json atomically."""
        write_text(Path(path), self.to_json())


def read_plan(path: Path | str) -> Plan:
    """Read and check a plan file.

    Raises:
        BadInputError: the file is missing, truncated or not a plan of a known schema version.
    """
    try:
        data = json.loads(Path(path).read_text(encoding="utf-8"))
    except OSError as error:
        raise BadInputError(f"plan {path}: {error.strerror or error}") from None
    except (json.JSONDecodeError, UnicodeDecodeError, RecursionError) as error:
        raise BadInputError(f"plan {path}: not valid JSON ({error}); is the file complete?") from None
    if not isinstance(data, dict) or "schema_version" not in data:
        raise BadInputError(f"plan {path}: expected a plan with a schema_version; was it written by `loraplan solve`?")
    if data["schema_version"] != 1:
        raise BadInputError(f"plan {path}: schema_version {data['schema_version']!r} is not known; expected 1")
    try:
        return Plan.model_validate(data)
    except ValidationError as error:
        raise BadInputError(f"plan {path}: {first_problem(error)}") from None


def finite(value: float) -> float | None:
    """``value``, or None where it is nan or infinite, for JSON."""
    return float(value) if math.isfinite(value) else None
