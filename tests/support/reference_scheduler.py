"""A naive model of one vLLM V1 server with LoRA adapters: lists, loops, nothing clever.

It is written from the scheduling rules, not from the compiled twin, and is slow on purpose: every rule is meant to be
checked by eye against its statement, so that agreement with the twin means something.

The loop is vLLM's (0.32.0, v1/engine/core.py, ``step_with_batch_queue``): steps that are scheduled and not yet known to
be done wait in a queue, one at most, or two with async scheduling (v1/core/sched/async_scheduler.py). There, what a
request is scheduled to produce is a placeholder until the step is done.
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
    end_foreseen: bool  # it ends by its length, not by what it says
    produced: int = 0
    placeholders: int = 0
    computed: int = 0
    in_flight: int = 0  # tokens in steps that are not done
    stale: int = 0  # those of them that were scheduled before it was preempted
    blocks: int = 0
    decoding: bool = False  # the last chunk of its prefill has been scheduled
    finished: bool = False
    last_token_s: float = math.nan

    @property
    def known(self) -> int:
        return self.prompt + self.produced

    @property
    def only_the_end_is_missing(self) -> bool:
        return self.placeholders > 0 and self.computed + 2 - self.placeholders >= self.prompt + self.to_produce


@dataclass
class _Part:
    """A request in a step: ``new`` tokens, ``computed`` in all with them; whether a token comes out."""

    request: _Request
    new: int
    computed: int
    prefill: bool
    samples: bool


@dataclass
class _Step:
    """What the scheduler decided: who computes how many tokens, who waits and why."""

    parts: list[_Part] = field(default_factory=list)
    budget_left: int = 0
    preempted: list[_Request] = field(default_factory=list)
    kv_gate_failed: bool = False
    seqs_left: int = 0
    waiting: list[_Request] = field(default_factory=list)

    @property
    def adapters(self) -> set[int]:
        return {part.request.adapter for part in self.parts}

    def still_waiting(self) -> int:
        """Those who wait when it starts: the end of a preempted request may have come out in the meantime."""
        return sum(not request.finished for request in self.waiting)

    def why_waiting(self) -> str:
        if self.preempted or self.kv_gate_failed:
            return "kv"
        if self.budget_left == 0:
            return "tokens"
        return "seqs" if self.seqs_left == 0 else "slots"


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
        step.seqs_left = self.profile.limits.max_num_seqs - len(self.running)
        step.waiting = list(self.waiting)
        for part in step.parts:
            part.request.computed = part.computed
            part.request.in_flight += part.new
            if part.samples:
                part.request.placeholders += 1
        return step

    def update(self, step: _Step) -> list[_Request]:
        """Take note of what a step produced; those who got a token that counts."""
        answered = []
        for part in step.parts:
            request = part.request
            stale = request.stale > 0
            request.in_flight -= part.new
            request.stale -= part.new if stale else 0
            assert request.stale >= 0
            if request.finished or not part.samples:
                continue
            request.produced += 1
            request.placeholders -= 0 if stale else 1
            assert request.placeholders >= 0
            answered.append(request)
            if request.produced == request.to_produce:
                request.finished = True
                (self.running if request in self.running else self.waiting).remove(request)
                self._give_back(request)
        return answered

    def _blocks(self, tokens: int) -> int:
        return math.ceil(tokens / self.profile.kv.block_tokens)

    def _take(self, request: _Request, blocks: int) -> None:
        assert 0 <= blocks <= self.free_blocks
        request.blocks += blocks
        self.free_blocks -= blocks

    def _give_back(self, request: _Request) -> None:
        self.free_blocks += request.blocks
        request.blocks = 0

    def _schedule(self, step: _Step, request: _Request, new: int) -> None:
        done = request.computed + new
        samples = done == request.known + request.placeholders
        step.parts.append(_Part(request, new, done, prefill=not request.decoding, samples=samples))
        request.decoding = samples
        step.budget_left -= new

    def _serve_running(self, step: _Step) -> None:
        position = 0
        while position < len(self.running) and step.budget_left > 0:
            request = self.running[position]
            if request.end_foreseen and request.only_the_end_is_missing:
                position += 1
                continue
            new = min(request.known + request.placeholders - request.computed, step.budget_left)
            missing = self._blocks(request.computed + new) - request.blocks
            while missing > self.free_blocks:
                last = self.running.pop()
                self._preempt(last)
                step.preempted.append(last)
                if last is request:
                    return
            self._take(request, missing)
            self._schedule(step, request, new)
            position += 1

    def _preempt(self, request: _Request) -> None:
        self._give_back(request)
        request.computed = 0
        request.decoding = False
        request.placeholders = 0
        request.stale = request.in_flight
        self.waiting.appendleft(request)

    def _admit(self, step: _Step) -> None:
        skipped: list[_Request] = []
        while self.waiting and step.budget_left > 0 and len(self.running) < self.profile.limits.max_num_seqs:
            request = self.waiting.popleft()
            if request.stale > 0:
                skipped.append(request)
                continue
            if len(step.adapters) == self.slots and request.adapter not in step.adapters:
                skipped.append(request)
                continue
            new = min(request.known, step.budget_left)
            gate = new if self.profile.rules == "vllm-0.8.5" else request.known
            if self._blocks(gate) > self.free_blocks:
                self.waiting.appendleft(request)
                step.kv_gate_failed = True
                break
            self._take(request, self._blocks(new))
            self.running.append(request)
            self._schedule(step, request, new)
        self.waiting.extendleft(reversed(skipped))


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


def _forward_ms(profile: Profile, step: _Step, server: _Adapters) -> float:
    law = profile.step_ms
    requests = len(step.parts)
    kv = sum(part.computed for part in step.parts)
    adapters = len(step.adapters)
    prefill = sum(part.new for part in step.parts if part.prefill)
    total = sum(part.new for part in step.parts)
    registered = min(len(server.ranks), server.cpu_slots)
    small = total <= 120
    per_adapter = law.per_small_adapter + law.per_small_adapter_rank * server.max_rank if small else law.per_adapter
    shrink = math.ceil(server.max_rank / 16) * math.ceil(total / 32) * (1 if small else 1 / 8)
    return (
        law.base
        + law.per_request * requests
        + law.per_kv_token * kv
        + law.per_prefill_token * prefill
        + law.per_waiting * step.still_waiting()
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

    at_most_in_flight = 2 if profile.rules.startswith("vllm-0.32-async") else 1
    in_flight: deque[_Step] = deque()
    t = 0.0
    while t < horizon_s:
        while to_come and arrivals[to_come[0]] <= t:
            i = to_come.popleft()
            prompt, answer = int(requests.tokens_in[i]), int(requests.tokens_out[i])
            if prompt >= max_len:
                continue
            by_length = profile.rules == "vllm-0.32-async-ignore-eos" or answer >= max_len - prompt
            answer = min(answer, max_len - prompt)
            scheduler.waiting.append(_Request(i, int(requests.adapter[i]), prompt, answer, by_length))

        if scheduler.waiting or scheduler.running:
            in_flight.append(scheduler.schedule())
            if len(in_flight) < at_most_in_flight and in_flight[-1].parts:
                continue
        elif not in_flight:
            if not to_come:
                break
            t = arrivals[to_come[0]]
            continue
        step = in_flight.popleft()
        t = _execute(run, profile, adapters, step, t, horizon_s)
        _answer(run, scheduler.update(step), t, horizon_s)
        if not (step.parts or in_flight or scheduler.running) and scheduler.waiting:
            raise RuntimeError("requests wait for an empty server: one of them can never run")

    run.loads_from_cpu = adapters.loads_from_cpu
    run.loads_from_disk = adapters.loads_from_disk
    return run


def _execute(
    run: ReferenceRun, profile: Profile, adapters: _Adapters, step: _Step, start: float, horizon_s: float
) -> float:
    """Run a step from ``start``, at which the one before is done; when it is done."""
    for request in step.preempted:
        run.preempted[request.index] += 1
        run.preemptions += 1
    if not step.parts:
        return start
    load_ms = adapters.use(step.adapters)
    end = start + (_forward_ms(profile, step, adapters) + load_ms) / 1000.0
    in_horizon = min(end, horizon_s) - start
    kv = sum(part.computed for part in step.parts)
    waiting = step.still_waiting()
    run.steps += 1
    run.busy_s += in_horizon
    run.running_s += len(step.parts) * in_horizon
    run.waiting_s += waiting * in_horizon
    run.kv_token_s += kv * in_horizon
    run.max_kv_tokens = max(run.max_kv_tokens, kv)
    run.max_waiting = max(run.max_waiting, waiting)
    if waiting > 0:
        run.blocked_s[step.why_waiting()] += in_horizon
    return end


def _answer(run: ReferenceRun, answered: list[_Request], t: float, horizon_s: float) -> None:
    for request in answered:
        if t <= horizon_s:
            if request.produced == 1:
                run.first_token_s[request.index] = t
            else:
                run.gaps_s.append(t - request.last_token_s)
            if request.finished:
                run.finish_s[request.index] = t
        request.last_token_s = t
