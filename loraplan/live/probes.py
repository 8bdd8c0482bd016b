"""What a calibration asks a server: batches that decode, prompts, adapters one after the other, open-loop runs."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np

from loraplan.arrivals import MOST_REQUESTS
from loraplan.errors import ServerError
from loraplan.live.client import Answer, Client, Target
from loraplan.live.measured import figures
from loraplan.profiles import Limits
from loraplan.workload import Adapter, Lengths, RateWorkload, Requests

DECODE_TOKENS = 48
SHORT = 8
"""Tokens of a prompt that costs next to nothing."""
PREFILL_REPEATS = 5
LOAD_ROUNDS = 2
SETTLE_S = 0.5
"""Until what was broken off has left the server."""
MOST_LOADS = 12
"""Adapters that are loaded one after the other."""
OPEN_IN, OPEN_OUT = (16, 160), (12, 64)
"""Bounds of the lengths in open-loop runs; uniform."""

ProbeKind = Literal["decode", "prefill", "open", "check", "loads"]


@dataclass(frozen=True)
class Ask:
    """A probe yet to be made.

    Attributes:
        name: what the notebook calls it.
        kind: ``check`` is an open-loop run that the fit does not see.
        batch, adapters: requests at once, and the distinct adapters they name.
        tokens_in, tokens_out: lengths of the requests.
        rate, seconds, seed: of an open-loop run: requests/s in all.
    """

    name: str
    kind: ProbeKind
    batch: int = 1
    adapters: int = 1
    tokens_in: int = SHORT
    tokens_out: int = 1
    rate: float = 0.0
    seconds: float = 0.0
    seed: int = 0

    def requests(self) -> Requests:
        """What is sent, when; adapters are counted from 0."""
        if self.kind in ("open", "check"):
            return open_requests(self.adapters, self.rate, self.seconds, self.seed)
        n, asked = np.arange(self.batch), np.full(self.batch, self.tokens_out)
        return Requests(np.zeros(self.batch), n % self.adapters, np.full(self.batch, self.tokens_in), asked)


def open_requests(adapters: int, rate: float, seconds: float, seed: int) -> Requests:
    """Poisson arrivals of so many adapters with equal rates, lengths uniform within OPEN_IN and OPEN_OUT."""
    rng = np.random.default_rng([seed, 7])
    lengths = Lengths(rng.integers(OPEN_IN[0], OPEN_IN[1] + 1, 256), rng.integers(OPEN_OUT[0], OPEN_OUT[1] + 1, 256))
    names = tuple(Adapter(f"a{n}", 1, min(rate, MOST_REQUESTS) / adapters, lengths) for n in range(adapters))
    return RateWorkload(names, seconds).requests(seed)


def closed_probes(limits: Limits, slots: int, adapters: int, kv_tokens: int, turn: int) -> list[Ask]:
    """The sweeps: batch x distinct adapters, long prompts in the cache, prompt lengths; first a few of each."""
    most = min(slots, adapters)
    full = [2**n for n in range(11) if 2**n <= limits.max_num_seqs and 2**n * (SHORT + DECODE_TOKENS) < 0.9 * kv_tokens]
    decodes = [
        Ask(f"decode {batch} x {distinct}", "decode", batch, distinct, SHORT, DECODE_TOKENS)
        for batch in full
        for distinct in sorted({1, max(1, most // 2), most})
        if distinct <= batch
    ]
    for batch in [one for one in full if one in (4, 16)]:
        room = limits.max_model_len - DECODE_TOKENS - 1
        long = min(room, limits.max_num_batched_tokens, int(0.8 * kv_tokens / batch) - DECODE_TOKENS)
        if long > 4 * SHORT:
            decodes.append(Ask(f"decode {batch} of {long}", "decode", batch, 1, long, DECODE_TOKENS))
    longest = min(limits.max_model_len - 2, kv_tokens)
    lengths = [tokens for tokens in (SHORT, 32, 64, 128, 256, 512, 1024, 2048) if tokens < longest]
    prompts = [Ask(f"prefill {tokens}", "prefill", 1, 1, tokens, 1) for tokens in lengths]
    asks = [*decodes[::2], *prompts[::2], *decodes[1::2], *prompts[1::2]]
    return [replace(ask, name=f"{slots} slots, {ask.name}, round {turn}") for ask in asks]


class Prober:
    """Makes probes on one server."""

    def __init__(self, client: Client, url: str, adapters: Sequence[str], key: str | None = None) -> None:
        """Probe the server at ``url`` that serves ``adapters``."""
        self._client = client
        self._targets = [Target(url, name, key) for name in adapters]

    async def warm(self, adapters: Sequence[int]) -> None:
        """Ask each of these adapters for a token, one by one, so that it is loaded."""
        for adapter in adapters:
            await self._one(adapter, SHORT, 2)

    async def make(self, ask: Ask, into: list[Answer] | None = None) -> dict[str, Any]:
        """Make a probe; what the notebook keeps of it."""
        if ask.kind == "prefill":
            await self.warm([0])
            firsts = [await self._one(0, ask.tokens_in, ask.tokens_out, seed=n) for n in range(PREFILL_REPEATS)]
            return {"ms": 1e3 * float(np.median([one.first_s - one.due_s for one in firsts]))}
        await self.warm(range(ask.adapters if ask.kind == "decode" else 0))
        requests = ask.requests()
        horizon = ask.seconds if ask.kind in ("open", "check") else float("inf")
        answers = await self._client.play(requests, lambda _, a: self._targets[a], horizon, ask.seed, into)
        _check(answers)
        note: dict[str, Any] = {"ms": 1e3 * between_tokens(answers)}
        if ask.kind != "decode":
            await asyncio.sleep(SETTLE_S)
            seen = vars(figures(answers, ask.seconds))
            note["seen"] = {name: value for name, value in seen.items() if np.isfinite(value)}
        return note

    async def loads(self, adapters: Sequence[int]) -> list[float]:
        """Milliseconds by which the first token comes later when the adapter has to be loaded, one per load.

        All adapters in turn, more of them than there is place for: the one that is asked for has just been dropped.
        """
        waits = []
        for turn in range(LOAD_ROUNDS + 1):
            for adapter in adapters:
                first = await self._one(adapter, SHORT, 2)
                again = await self._one(adapter, SHORT, 2)
                if turn:  # before that, some were there
                    waits.append(1e3 * ((first.first_s - first.due_s) - (again.first_s - again.due_s)))
        return waits

    async def _one(self, adapter: int, tokens_in: int, tokens_out: int, seed: int = 0) -> Answer:
        n = np.ones(1, dtype=np.int64)
        requests = Requests(np.zeros(1), 0 * n, tokens_in * n, tokens_out * n)
        answers = await self._client.play(requests, lambda *_: self._targets[adapter], seed=seed + 1000 * tokens_in)
        _check(answers)
        return answers[0]


def _check(answers: Sequence[Answer]) -> None:
    """Raise ServerError if a request failed: a probe with fewer requests would be another one."""
    for answer in answers:
        if answer.error:
            raise ServerError(f"a request failed: {answer.error}")


def between_tokens(answers: Sequence[Answer]) -> float:
    """Seconds between two tokens, mean over all of the finished answers; 0 if there are none.

    In how many chunks they came plays no part.
    """
    done = [answer for answer in answers if answer.finished]
    tokens = sum(answer.tokens_out - 1 for answer in done)
    return sum(answer.last_s - answer.first_s for answer in done) / tokens if tokens else 0.0
