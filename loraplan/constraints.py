"""What a plan must keep, as the user states it: by the names of adapters and profiles."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from itertools import chain

from loraplan.errors import BadInputError

Groups = tuple[tuple[str, ...], ...]


@dataclass(frozen=True)
class Constraints:
    """Limits on every GPU, on all of them together, and on where adapters may be.

    Attributes:
        served_fraction: below this share of the tokens that arrive, a GPU is starved (arXiv 2602.24044 uses 0.9).
        adapter_served_fraction: the same of every adapter by itself, for oracles that tell adapters apart (the twin);
            for others it is a limit of the GPU.
        itl_ms: most a GPU's mean inter-token latency may be, ms.
        ttft_p95_s: most the 95th percentile of a GPU's time to first token may be, s.
        max_adapters: most adapters of a GPU.
        max_gpus: most GPUs in use, of all types together.
        pins: adapter -> names of the profiles on which it may be.
        separate: groups of adapters no two of which share a GPU.
        together: groups of adapters that share one GPU.
        split: whether an adapter that no GPU carries alone is split over replicas.
        replicas: adapter -> on how many GPUs it is to be, each with an equal share of its requests.
        reserve: whether the loss of any one GPU must leave a plan that keeps the limits, its adapters moved to the
            others, which run on as they are.
    """

    served_fraction: float = 0.9
    adapter_served_fraction: float | None = None
    itl_ms: float | None = None
    ttft_p95_s: float | None = None
    max_adapters: int | None = None
    max_gpus: int | None = None
    pins: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    separate: Groups = ()
    together: Groups = ()
    split: bool = True
    replicas: Mapping[str, int] = field(default_factory=dict)
    reserve: bool = False

    def __post_init__(self) -> None:
        """Check every limit by itself."""
        for name in ("served_fraction", "adapter_served_fraction"):
            value = getattr(self, name)
            if value is not None and not 0 < value <= 1:
                raise BadInputError(f"constraints: {name} must be in (0, 1] (got {value})")
        for name in ("itl_ms", "ttft_p95_s"):
            value = getattr(self, name)
            if value is not None and not value > 0:
                raise BadInputError(f"constraints: {name} must be above 0 (got {value})")
        for name in ("max_adapters", "max_gpus"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise BadInputError(f"constraints: {name} must be at least 1 (got {value})")
        for adapter, profiles in self.pins.items():
            if not profiles:
                raise BadInputError(f"constraints: pins of adapter {adapter} name no profile")
        for name in ("separate", "together"):
            for group in getattr(self, name):
                if len(set(group)) < 2 or len(set(group)) < len(group):
                    raise BadInputError(
                        f"constraints: {name}: a group needs two adapters or more, each once (got {group})"
                    )
        for adapter, count in self.replicas.items():
            if count < 1:
                raise BadInputError(f"constraints: replicas of adapter {adapter} must be at least 1 (got {count})")

    @property
    def named(self) -> tuple[tuple[str, str], ...]:
        """Every adapter that a constraint names, with the constraint's name."""
        lists = {
            "pins": self.pins,
            "separate": chain.from_iterable(self.separate),
            "together": chain.from_iterable(self.together),
            "replicas": self.replicas,
        }
        return tuple((constraint, adapter) for constraint, adapters in lists.items() for adapter in adapters)

    @property
    def latency(self) -> bool:
        """Whether there are limits on latencies, which an oracle need not predict hereditarily."""
        return self.itl_ms is not None or self.ttft_p95_s is not None
