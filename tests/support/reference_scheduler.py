"""A naive model of one vLLM V1 server with LoRA adapters: lists, loops, nothing clever.

It is written from the scheduling rules, not from the compiled twin, and is slow on purpose: every rule is meant to be
checked by eye against its statement, so that agreement with the twin means something.
"""

from __future__ import annotations

import math
from collections import deque
from dataclasses import dataclass, field

import numpy as np

from loraplan.profiles import Profile
from loraplan.workload import Floats, Ints, Requests
from twin.server import order_of_use


@dataclass
class ReferenceRun:
    """What one run yields, with the field names of the twin's result."""

    first_token_s: Floats
    finish_s: Floats
    preempted: Ints
    steps: int = 0
    loads_from_cpu: int = 0
    loads_from_disk: int = 0
    preemptions: int = 0
    rejected: int = 0
    blocked_s: dict[str, float] = field(default_factory=lambda: {"slots": 0.0, "kv": 0.0, "tokens": 0.0, "seqs": 0.0})
    running_s: float = 0.0
    waiting_s: float = 0.0
    kv_token_s: float = 0.0
    busy_s: float = 0.0
    max_kv_tokens: int = 0
    max_waiting: int = 0
    gaps_s: list[float] = field(default_factory=list)  # between one token of a request and its next


@dataclass(eq=False)
class _Request:
    index: int
    adapter: int
    prompt: int
    to_produce: int
    produced: int = 0
    computed: int = 0
    blocks: int = 0
    decoding: bool = False
    last_token_s: float = math.nan

    @property
    def known(self) -> int:
        return self.prompt + self.produced


@dataclass
class _Step:
    """What the scheduler decided: who computes how many tokens, and why the others wait."""

    tokens: list[tuple[_Request, int]] = field(default_factory=list)
    budget_left: int = 0
    preempted: list[_Request] = field(default_factory=list)
    kv_gate_failed: bool = False


class _Scheduler:
    def __init__(self, profile: Profile, slots: int, max_rank: int) -> None:
        self.profile = profile
        self.slots = slots
        self.free_blocks = profile.kv_blocks(slots, max_rank)
        self.running: list[_Request] = []
        self.waiting: deque[_Request] = deque()

    def schedule(self) -> _Step:
        step = _Step(budget_left=self.profile.limits.max_num_batched_tokens)
        self._serve_running(step)
        if not step.preempted:
            self._admit(step)
        return step

    def release(self, request: _Request) -> None:
        self.running.remove(request)
        self.free_blocks += request.blocks
        request.blocks = 0

    def _blocks(self, tokens: int) -> int:
        return math.ceil(tokens / self.profile.kv.block_tokens)

    def _take(self, request: _Request, blocks: int) -> None:
        assert 0 <= blocks <= self.free_blocks
        request.blocks += blocks
        self.free_blocks -= blocks

    def _serve_running(self, step: _Step) -> None:
        position = 0
        while position < len(self.running) and step.budget_left > 0:
            request = self.running[position]
            new = min(request.known - request.computed, step.budget_left)
            missing = self._blocks(request.computed + new) - request.blocks
            while missing > self.free_blocks:
                last = self.running[-1]
                self._preempt(last)
                step.preempted.append(last)
                if last is request:
                    return
            self._take(request, missing)
            step.tokens.append((request, new))
            step.budget_left -= new
            position += 1

    def _preempt(self, request: _Request) -> None:
        self.release(request)
        request.computed = 0
        request.decoding = False
        self.waiting.appendleft(request)

    def _admit(self, step: _Step) -> None:
        skipped: list[_Request] = []
        while self.waiting and step.budget_left > 0 and len(self.running) < self.profile.limits.max_num_seqs:
            request = self.waiting.popleft()
            adapters = {scheduled.adapter for scheduled, _ in step.tokens}
            if len(adapters) == self.slots and request.adapter not in adapters:
                skipped.append(request)
                continue
            new = min(request.known, step.budget_left)
            gate = request.known if self.profile.rules == "vllm-0.32" else new
            if self._blocks(gate) > self.free_blocks:
                self.waiting.appendleft(request)
                step.kv_gate_failed = True
                break
            self._take(request, self._blocks(new))
            self.running.append(request)
            step.tokens.append((request, new))
            step.budget_left -= new
        self.waiting.extendleft(reversed(skipped))

    def why_waiting(self, step: _Step) -> str | None:
        if not self.waiting:
            return None
        if step.preempted or step.kv_gate_failed:
            return "kv"
        if step.budget_left == 0:
            return "tokens"
        if len(self.running) == self.profile.limits.max_num_seqs:
            return "seqs"
        return "slots"


class _Adapters:
    """GPU slots and CPU memory: two caches that lose their oldest adapter first, as in vllm/lora/worker_manager.py."""

    def __init__(self, profile: Profile, ranks: list[int], slots: int, cpu_slots: int, max_rank: int) -> None:
        assert cpu_slots >= slots
        self.times = profile.load_ms
        self.ranks = ranks
        self.slots = slots
        self.cpu_slots = cpu_slots
        self.max_rank = max_rank
        n = len(ranks)
        self.order = order_of_use(n)
        self.on_gpu = dict.fromkeys(range(n)[-slots:])
        self.on_cpu = dict.fromkeys(range(n)[-cpu_slots:])
        self.loads_from_cpu = 0
        self.loads_from_disk = 0

    def use(self, used: set[int]) -> float:
        """Bring the adapters of a step to the GPU, one after the other; the milliseconds that this takes."""
        ms = 0.0
        for adapter in sorted(used, key=lambda adapter: int(self.order[adapter])):
            in_cpu = adapter in self.on_cpu
            if not in_cpu:
                ms += self.times.disk + self.times.disk_per_rank * self.ranks[adapter]
                if len(self.on_cpu) == self.cpu_slots:
                    oldest = next(iter(self.on_cpu))
                    del self.on_cpu[oldest]
                    self.on_gpu.pop(oldest, None)
            self._renew(self.on_cpu, adapter)
            if adapter not in self.on_gpu:
                ms += self.times.to_gpu + (self.times.smaller_rank if self.ranks[adapter] < self.max_rank else 0.0)
                self.loads_from_cpu += in_cpu
                self.loads_from_disk += not in_cpu
                if len(self.on_gpu) == self.slots:
                    del self.on_gpu[next(iter(self.on_gpu))]
            self._renew(self.on_gpu, adapter)
            assert set(self.on_gpu) <= set(self.on_cpu)
        assert used <= set(self.on_gpu)
        return ms

    @staticmethod
    def _renew(cache: dict[int, None], adapter: int) -> None:
        cache.pop(adapter, None)
        cache[adapter] = None


def _forward_ms(profile: Profile, step: _Step, server: _Adapters, waiting: int) -> float:
    law = profile.step_ms
    requests = len(step.tokens)
    kv = sum(request.computed + new for request, new in step.tokens)
    adapters = len({request.adapter for request, _ in step.tokens})
    prefill = sum(new for request, new in step.tokens if not request.decoding)
    total = sum(new for _, new in step.tokens)
    registered = min(len(server.ranks), server.cpu_slots)
    small = total <= 120
    per_adapter = law.per_small_adapter + law.per_small_adapter_rank * server.max_rank if small else law.per_adapter
    shrink = math.ceil(server.max_rank / 16) * math.ceil(total / 32) * (1 if small else 1 / 8)
    return (
        law.base
        + law.per_request * requests
        + law.per_kv_token * kv
        + law.per_prefill_token * prefill
        + law.per_waiting * waiting
        + (law.eager if total > 512 else 0.0)
        + (per_adapter + law.per_registered * registered + law.per_adapter_request * requests) * adapters
        + (law.per_slot_shrink * shrink + law.per_slot_expand * math.ceil(total / 64)) * server.slots
    )


def reference_simulate(
    profile: Profile,
    slots: int,
    max_rank: int,
    adapter_ranks: Ints,
    requests: Requests,
    horizon_s: float,
    cpu_slots: int | None = None,
) -> ReferenceRun:
    """Replay ``requests`` on one server until ``horizon_s``."""
    n = len(requests)
    run = ReferenceRun(np.full(n, np.nan), np.full(n, np.nan), np.zeros(n, dtype=np.int64))
    ranks = [int(rank) for rank in adapter_ranks]
    adapters = _Adapters(profile, ranks, slots, max(slots, len(ranks)) if cpu_slots is None else cpu_slots, max_rank)
    scheduler = _Scheduler(profile, slots, max_rank)
    arrivals = [float(arrival) for arrival in requests.arrival_s]
    # What needs more blocks than there are could never run: it counts as too long.
    max_len = min(profile.limits.max_model_len, scheduler.free_blocks * profile.kv.block_tokens)
    to_come = deque(range(n))

    too_long = (requests.tokens_in >= max_len) & (requests.arrival_s < horizon_s)
    run.rejected = int(too_long.sum())

    t = 0.0
    while t < horizon_s:
        while to_come and arrivals[to_come[0]] <= t:
            i = to_come.popleft()
            prompt = int(requests.tokens_in[i])
            if prompt >= max_len:
                continue
            to_produce = min(int(requests.tokens_out[i]), max_len - prompt)
            scheduler.waiting.append(_Request(i, int(requests.adapter[i]), prompt, to_produce))

        step = scheduler.schedule()
        for request in step.preempted:
            run.preempted[request.index] += 1
            run.preemptions += 1
        if not step.tokens:
            if scheduler.waiting:
                raise RuntimeError("requests wait for an empty server: one of them can never run")
            if not to_come:
                break
            t = arrivals[to_come[0]]
            continue

        load_ms = adapters.use({request.adapter for request, _ in step.tokens})
        start = t
        t += (_forward_ms(profile, step, adapters, len(scheduler.waiting)) + load_ms) / 1000.0
        in_horizon = min(t, horizon_s) - start
        run.steps += 1

        for request, new in step.tokens:
            request.computed += new
        kv = sum(request.computed for request in scheduler.running)
        run.busy_s += in_horizon
        run.running_s += len(scheduler.running) * in_horizon
        run.waiting_s += len(scheduler.waiting) * in_horizon
        run.kv_token_s += kv * in_horizon
        run.max_kv_tokens = max(run.max_kv_tokens, kv)
        run.max_waiting = max(run.max_waiting, len(scheduler.waiting))
        reason = scheduler.why_waiting(step)
        if reason is not None:
            run.blocked_s[reason] += in_horizon

        for request, _ in step.tokens:
            if request.computed < request.known:
                continue
            request.produced += 1
            request.decoding = True
            if request.produced == 1 and t <= horizon_s:
                run.first_token_s[request.index] = t
            if request.produced > 1 and t <= horizon_s:
                run.gaps_s.append(t - request.last_token_s)
            request.last_token_s = t
            if request.produced == request.to_produce:
                scheduler.release(request)
                if t <= horizon_s:
                    run.finish_s[request.index] = t

    run.loads_from_cpu = adapters.loads_from_cpu
    run.loads_from_disk = adapters.loads_from_disk
    return run
