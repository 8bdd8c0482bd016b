"""What vLLM's own engine does with the parity scenarios: writes ``tests/twin/vllm_0_32_steps.json.gz``.

``PYTHONPATH=.:tests .venv-vllm/bin/python -m support.vllm_engine OUT.json.gz [OLD.json.gz]`` runs them in one process:
the whole engine with its scheduler, KV cache and LoRA managers, on a model of a few thousand weights. With a second
file it says what is different there, to see what a new version of vLLM changes.
"""

from __future__ import annotations

import gzip
import json
import os
import sys
import tempfile
from pathlib import Path
from typing import Any

from support.parity_scenarios import SCENARIOS, ParityScenario

QUIET = {
    "HF_HUB_OFFLINE": "1",
    "TRANSFORMERS_OFFLINE": "1",
    "VLLM_NO_USAGE_STATS": "1",
    "VLLM_CPU_KVCACHE_SPACE": "1",
    "VLLM_CPU_OMP_THREADS_BIND": "nobind",
    "OMP_NUM_THREADS": "1",
    "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
    "VLLM_LOGGING_LEVEL": "ERROR",
}
RANK = 8


def write_weights(folder: Path) -> list[Path]:
    from benchmarks.tiny_llama import Sizes, write_all

    sizes = Sizes(hidden=128, layers=1, heads=2, inner=64, vocabulary=128, longest=512)
    return write_all(folder, max(scenario.adapters for scenario in SCENARIOS), (RANK,), sizes)


class Engine:
    """vLLM's engine with one scenario's limits, which writes down what each step schedules and loads."""

    def __init__(self, scenario: ParityScenario, model: Path, adapters: list[Path]) -> None:
        from vllm import EngineArgs, LLMEngine
        from vllm.lora.request import LoRARequest

        arguments = {
            "model": str(model),
            "dtype": "float32",
            "enforce_eager": True,
            "enable_lora": True,
            "max_loras": scenario.slots,
            "max_cpu_loras": scenario.cpu_slots,
            "max_lora_rank": RANK,
            "max_model_len": scenario.max_model_len,
            "max_num_seqs": scenario.max_num_seqs,
            "max_num_batched_tokens": scenario.max_num_batched_tokens,
            "block_size": scenario.block,
            "num_gpu_blocks_override": scenario.blocks,
            "enable_prefix_caching": False,
            "async_scheduling": False,
            "distributed_executor_backend": "uni",
            "disable_log_stats": True,
        }
        self.engine = LLMEngine.from_engine_args(EngineArgs(**arguments))
        self.adapters = [LoRARequest(f"a{n}", n + 1, str(path)) for n, path in enumerate(adapters[: scenario.adapters])]
        for adapter in self.adapters:
            self.engine.add_lora(adapter)
        self.steps: list[dict[str, Any]] = []
        self._watch()

    def _watch(self) -> None:
        core: Any = self.engine.engine_core.engine_core
        schedule, scheduler = core.scheduler.schedule, core.scheduler

        def watched(*given: Any, **named: Any) -> Any:
            before = {name: request.num_preemptions for name, request in scheduler.requests.items()}
            output = schedule(*given, **named)
            parts = [[int(name.split("-")[0]), new] for name, new in output.num_scheduled_tokens.items()]
            gone = [
                int(name.split("-")[0])
                for name, request in scheduler.requests.items()
                if request.num_preemptions > before[name]
            ]
            if parts or gone:
                waiting = len(scheduler.waiting) + len(getattr(scheduler, "skipped_waiting", ()))
                self.steps.append({"parts": parts, "preempted": gone, "waiting": waiting, "disk": 0, "slots": 0})
            return output

        core.scheduler.schedule = watched
        manager = core.model_executor.driver_worker.worker.model_runner.lora_manager
        load, activate = manager._load_adapter, manager._adapter_manager.activate_adapter

        def loading(request: Any) -> Any:
            self.steps[-1]["disk"] += 1
            return load(request)

        def activating(number: int, *more: Any) -> Any:
            done = activate(number, *more)
            self.steps[-1]["slots"] += bool(done)
            return done

        manager._load_adapter = loading
        manager._adapter_manager.activate_adapter = activating

    def run(self, scenario: ParityScenario) -> dict[str, Any]:
        """Play the scenario; ticks at which tokens came first and last, and the steps."""
        from vllm import SamplingParams
        from vllm.inputs import TokensPrompt

        first: list[int | None] = [None] * len(scenario.requests)
        last: list[int | None] = [None] * len(scenario.requests)
        tick, i = 0, 0
        while True:
            while i < len(scenario.requests) and scenario.requests[i][0] <= tick:
                _, adapter, tokens_in, tokens_out = scenario.requests[i]
                self.engine.add_request(
                    str(i),
                    TokensPrompt(prompt_token_ids=[5 + (7 * i + n) % 100 for n in range(tokens_in)]),
                    SamplingParams(max_tokens=tokens_out, ignore_eos=True, temperature=0.0, detokenize=False),
                    lora_request=self.adapters[adapter],
                )
                i += 1
            if not self.engine.has_unfinished_requests():
                if i == len(scenario.requests):
                    break
                tick = scenario.requests[i][0]
                continue
            before = len(self.steps)
            outputs = self.engine.step()
            ran = len(self.steps) > before and bool(self.steps[-1]["parts"])
            tick += ran
            if ran:
                self.steps[-1]["tick"] = tick - 1
            for output in outputs:
                n = int(output.request_id)
                if output.outputs[0].token_ids and first[n] is None:
                    first[n] = tick
                if output.finished:
                    last[n] = tick
        return {"first_token": first, "finish": last, "steps": self.steps}


def record() -> dict[str, Any]:
    """Every scenario and what the engine made of it."""
    os.environ.update(QUIET)
    import vllm

    runs = {}
    with tempfile.TemporaryDirectory() as folder:
        adapters = write_weights(Path(folder))
        for scenario in SCENARIOS:
            engine = Engine(scenario, Path(folder) / "model", adapters)
            runs[scenario.name] = engine.run(scenario)
            print(f"{scenario.name}: {len(engine.steps)} steps", file=sys.stderr)  # noqa: T201
            del engine
    return {"engine": f"vllm {vllm.__version__}", "runs": runs}


def read(path: Path) -> dict[str, Any]:
    """A recording."""
    return dict(json.loads(gzip.decompress(path.read_bytes())))


def differences(old: dict[str, Any], new: dict[str, Any]) -> list[str]:
    """A line for each scenario: whether both did the same, or the first step in which they did not."""
    lines = [f"{old['engine']} -> {new['engine']}"]
    for name, run in new["runs"].items():
        before = old["runs"].get(name)
        if before is None:
            lines.append(f"{name}: new")
            continue
        pairs = zip(before["steps"], run["steps"], strict=False)
        step = next((n for n, (a, b) in enumerate(pairs) if a != b), None)
        if step is not None:
            lines.append(f"{name}: step {step} was {before['steps'][step]}, is {run['steps'][step]}")
        else:
            same = before == run
            lines.append(f"{name}: {'the same' if same else 'other numbers of steps, or other ends'}")
    return lines


def main() -> None:
    """Record, and compare with an older recording if there is one.

    vLLM loads the adapters of a step in the order of a set of names: one order, by one seed of their hashes.
    """
    if os.environ.get("PYTHONHASHSEED") != "0":
        os.execve(sys.executable, sys.orig_argv, os.environ | {"PYTHONHASHSEED": "0"})  # noqa: S606
    new = record()
    Path(sys.argv[1]).write_bytes(gzip.compress(json.dumps(new, separators=(",", ":")).encode(), mtime=0))
    if len(sys.argv) > 2:
        print("\n".join(differences(read(Path(sys.argv[2])), new)))  # noqa: T201


if __name__ == "__main__":
    main()
