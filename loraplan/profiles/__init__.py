"""Profiles: the calibrated constants of one (GPU, base model, engine version)."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from loraplan.errors import BadInputError
from loraplan.files import read_yaml
from loraplan.registry import Registry

NonNegative = Annotated[float, Field(ge=0, allow_inf_nan=False)]
Positive = Annotated[float, Field(gt=0, allow_inf_nan=False)]

# Far above any server; with more, capacities and times would overflow what computes with them.
MOST_TOKENS, MOST_MS = 10**9, 1e10
TokenCount = Annotated[int, Field(gt=0, le=MOST_TOKENS)]
Milliseconds = Annotated[NonNegative, Field(le=MOST_MS)]

RuleSet = Literal["vllm-0.8.5", "vllm-0.32", "vllm-0.32-async", "vllm-0.32-async-ignore-eos"]
"""The scheduler whose behaviour the twin reproduces: docs/simulate.md says how they differ."""


class _Part(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class KVLaw(_Part):
    """KV-cache capacity in tokens: ``tokens - slots * (per_slot + per_slot_rank * max_rank)``.

    vLLM takes the memory of ``max_loras`` x ``max_lora_rank`` from the KV cache at start, whatever is loaded later.
    """

    tokens: Annotated[Positive, Field(le=10 * MOST_TOKENS)]  # room for requests of the most tokens
    per_slot: Annotated[NonNegative, Field(le=MOST_TOKENS)]
    per_slot_rank: float = Field(ge=1e-9, le=MOST_TOKENS)  # below, slots without end
    block_tokens: TokenCount


SMALL_TOKENS = 120
"""Steps of up to so many tokens are small: padded to a captured CUDA graph, a multiple of 8, they have less than the
128 from which vLLM's shrink kernel splits its inner dimension by 8 instead of 64 (lora/ops/triton_ops/lora_shrink.py).
"""
LARGE_STEP_SPLIT = 8 / 64
SHRINK_TILE, EXPAND_TILE, RANK_TILE = 32, 64, 16
"""Tokens per thread block of vLLM's two LoRA kernels, and ranks per thread block of the first."""
GRAPH_TOKENS = 512
"""Steps of more tokens run without CUDA graphs (vLLM's default capture sizes)."""


def rank_tiles(max_rank: int) -> int:
    """Thread blocks of the shrink kernel that ``max_rank`` takes."""
    return -(-max_rank // RANK_TILE)


class StepLaw(_Part):
    """Milliseconds that one engine step takes, as a sum of non-negative terms.

    ``base + per_request*B + per_kv_token*KV + per_prefill_token*P + per_waiting*W + eager*[T > 512]
    + (per_adapter + per_registered*N + per_adapter_request*B) * A
    + (per_slot_shrink*ceil(R/16)*ceil(T/32)/8 + per_slot_expand*ceil(T/64)) * S`` + loads,
    and in a small step, of T <= 120, without the division by 8 and with ``per_small_adapter +
    per_small_adapter_rank*R`` for ``per_adapter``; with T tokens in the step, P of them of prompts, B requests, KV
    tokens they hold in the cache after the step, A distinct adapters, W requests left waiting, S slots, R
    ``max_lora_rank``, N adapters in CPU memory.

    Slots cost time even if empty: the grids of vLLM's LoRA kernels have thread blocks for every slot and tile of
    tokens, and those without work exit early (lora/ops/triton_ops/lora_shrink.py and lora_expand.py). The worker lists
    all registered adapters once for each adapter of the step (lora/worker_manager.py, ``add_adapter``), hence A*N. A
    request that waits for a slot is looked at in every step (v1/core/sched/scheduler.py), hence W.
    """

    base: Annotated[Positive, Field(le=MOST_MS)]
    per_request: Milliseconds
    per_kv_token: Milliseconds
    per_prefill_token: Milliseconds
    per_waiting: Milliseconds = 0.0
    eager: Milliseconds = 0.0
    per_adapter: Milliseconds
    per_small_adapter: Milliseconds
    per_small_adapter_rank: Milliseconds = 0.0
    per_registered: Milliseconds = 0.0
    per_adapter_request: Milliseconds = 0.0
    per_slot_shrink: Milliseconds = 0.0
    per_slot_expand: Milliseconds = 0.0

    def adapter_ms(self, registered: int) -> float:
        """What each distinct adapter of a step costs, ``registered`` of them in CPU memory, but for A*B."""
        return self.per_adapter + self.per_registered * registered

    def small_adapter_ms(self, registered: int, max_rank: int) -> float:
        """The same in a small step."""
        return self.per_small_adapter + self.per_small_adapter_rank * max_rank + self.per_registered * registered


class LoadTimes(_Part):
    """Milliseconds that a step waits for one adapter to be loaded.

    From CPU memory to a slot: ``to_gpu`` (+ ``smaller_rank`` if the adapter's rank is below ``max_lora_rank``); from
    disk to CPU memory first, if it is not there: ``disk + disk_per_rank * rank``.
    """

    to_gpu: Milliseconds
    smaller_rank: Milliseconds = 0.0
    disk: Milliseconds
    disk_per_rank: Milliseconds = 0.0


class Frontend(_Part):
    """The HTTP server before the engine, and a monitor that reads its ``/metrics`` every ``scrape_s`` seconds.

    vLLM's gauge ``lora_requests_info`` is a new time series for every set of adapters that runs and waits
    (v1/metrics/loggers.py), and none is ever dropped: writing them down stops the server for ``per_series`` +
    ``per_name`` * names in it, each, in ms. The first request of every adapter stops it too, for ``tokenizer`` ms, to
    load a tokenizer for this adapter (transformers_utils/tokenizer_group.py). Requests that come meanwhile reach the
    engine, and tokens the client, afterwards. Without that a first token takes ``ttft`` + ``ttft_per_request`` *
    running requests, ms, on its way.
    """

    scrape_s: Annotated[Positive, Field(le=1e9)]
    per_series: Milliseconds
    per_name: Milliseconds
    tokenizer: Milliseconds = 0.0
    ttft: Milliseconds
    ttft_per_request: Milliseconds


class Power(_Part):
    """What the GPU draws: ``idle`` watts while nothing runs, ``busy`` watts while steps run."""

    idle: Annotated[NonNegative, Field(le=1e6)]
    busy: Annotated[NonNegative, Field(le=1e6)]

    @model_validator(mode="after")
    def _more_when_busy(self) -> Power:
        if self.busy < self.idle:
            raise ValueError("busy is below idle")
        return self


class Limits(_Part):
    """The server's settings: vLLM's ``--max-model-len``, ``--max-num-seqs``, ``--max-num-batched-tokens``.

    ``lora_ranks`` are the values that ``--max-lora-rank`` takes; an adapter of another rank is padded to the next one.
    """

    max_model_len: TokenCount
    max_num_seqs: TokenCount
    max_num_batched_tokens: TokenCount
    lora_ranks: tuple[Annotated[int, Field(gt=0, le=1_000_000)], ...] = Field(
        default=(8, 16, 32, 64, 128, 256), min_length=1
    )


class Profile(_Part):
    """One server type: what its KV cache holds, how long its steps take, what it refuses.

    Units: milliseconds and tokens. ``rules`` names the scheduler whose behaviour the twin reproduces.
    ``sources`` says where the constants come from.
    """

    schema_version: Literal[1] = 1
    name: str = Field(min_length=1)
    gpu: str = Field(min_length=1)
    base_model: str = Field(min_length=1)
    engine: str = Field(min_length=1)
    rules: RuleSet
    kv: KVLaw
    step_ms: StepLaw
    load_ms: LoadTimes
    frontend: Frontend | None = None
    limits: Limits
    power: Power | None = None
    sources: tuple[str, ...] = Field(min_length=1)

    @model_validator(mode="after")
    def _consistent(self) -> Profile:
        if self.limits.max_num_seqs > self.limits.max_num_batched_tokens:
            raise ValueError("limits.max_num_seqs must not exceed limits.max_num_batched_tokens")
        if self.kv.tokens < self.limits.max_model_len:
            raise ValueError("kv.tokens is below limits.max_model_len: the server would never start")
        return self

    def server_rank(self, rank: int) -> int:
        """The smallest ``--max-lora-rank`` that carries an adapter of ``rank``.

        Raises:
            BadInputError: the engine takes no rank that large.
        """
        for allowed in sorted(self.limits.lora_ranks):
            if rank <= allowed:
                return allowed
        raise BadInputError(
            f"profile {self.name}: no --max-lora-rank of {self.engine} carries an adapter of rank {rank}"
        )

    def kv_tokens(self, slots: int, max_rank: int) -> float:
        """KV-cache tokens left when ``slots`` slots of ``max_rank`` are reserved; may be negative."""
        return self.kv.tokens - slots * (self.kv.per_slot + self.kv.per_slot_rank * max_rank)

    def starts(self, slots: int, max_rank: int) -> bool:
        """Whether the server starts: vLLM refuses when the KV cache cannot hold one request of ``max_model_len``."""
        fits = self.kv_tokens(slots, max_rank) >= self.limits.max_model_len
        return fits and self.kv_blocks(slots, max_rank) > 0

    def kv_blocks(self, slots: int, max_rank: int) -> int:
        """KV blocks a scheduler may give out; vLLM V1 keeps one as the null block (v1/core/block_pool.py)."""
        return int(self.kv_tokens(slots, max_rank) // self.kv.block_tokens) - 1

    def max_slots(self, max_rank: int) -> int:
        """The largest number of slots with which the server starts; 0 if none."""
        per_slot = self.kv.per_slot + self.kv.per_slot_rank * max_rank
        return int((self.kv.tokens - self.limits.max_model_len) // per_slot)


PROFILES: Registry[Path] = Registry("profile", "loraplan.profiles")
SHIPPED = Path(__file__).parent
H100_LLAMA = SHIPPED / "h100-64gb" / "llama-3.1-8b.yaml"
H100_QWEN = SHIPPED / "h100-64gb" / "qwen-2.5-7b.yaml"
PROFILES.register("h100-64gb/llama-3.1-8b", "loraplan.profiles:H100_LLAMA", "Llama-3.1-8B on H100 64 GB, vLLM 0.8.5")
PROFILES.register("h100-64gb/qwen-2.5-7b", "loraplan.profiles:H100_QWEN", "Qwen-2.5-7B on H100 64 GB, vLLM 0.8.5")


def read_profile(path: Path) -> Profile:
    """Read and check a profile file (YAML).

    Raises:
        BadInputError: the file is missing, not YAML, or a field is missing, unknown or wrong.
    """
    data = read_yaml(path, f"profile {path}")
    if data is None:  # what YAML makes of nothing
        raise BadInputError(f"profile {path}: the file is empty")
    if not isinstance(data, dict):
        raise BadInputError(f"profile {path}: expected a mapping of fields, got {type(data).__name__}")
    try:
        return Profile.model_validate(data)
    except ValidationError as error:
        raise BadInputError(f"profile {path}: {first_problem(error)}") from None


def load_profile(name: str) -> Profile:
    """The profile registered as ``name``, or read from the file ``name`` (``.yaml``)."""
    if name.endswith((".yaml", ".yml")):
        return read_profile(Path(name))
    return read_profile(PROFILES.get(name))


def first_problem(error: ValidationError) -> str:
    """The first complaint of a pydantic error in one line: field, what was wrong, what was given."""
    first = error.errors()[0]
    where = ".".join(str(part) for part in first["loc"])
    given = "" if first["type"] in {"missing", "extra_forbidden"} else f" (got {first['input']!r:.80})"
    return f"{where}: {first['msg']}{given}" if where else f"{first['msg']}"
