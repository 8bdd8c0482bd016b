"""Calibrating on a live vLLM: probe it while the budget lasts, fit what it said, check on what the fit has not seen."""

from __future__ import annotations

import asyncio
import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, replace
from typing import Any, Protocol

import pandas as pd

from loraplan.errors import BadInputError, ServerError
from loraplan.live.client import client, now_s
from loraplan.live.facts import AdapterFiles, Facts, facts_of
from loraplan.live.launch import LaunchedServer, Launcher
from loraplan.live.notebook import Notebook
from loraplan.live.probes import MOST_LOADS, OPEN_IN, OPEN_OUT, Ask, Prober, closed_probes
from loraplan.profiles import Profile
from twin.metrics import measure
from twin.probe_fit import Probe, ProbeFit, fit_probes

ROUNDS = 3
OPEN_LOADS = {"open 1": 0.35, "open 2": 0.7, "check 1": 0.5, "check 2": 0.8}
"""Open-loop runs, as parts of the load that the server can take by the closed probes; the checks are not fitted."""
OPEN_S = 20.0
SHARE_OF_OPEN = 0.1
"""Part of the budget that each of them may take at most."""

OnProbe = Callable[[int, str], None]
"""Called with the number of probes made and the name of the next."""


@dataclass(frozen=True)
class Setting:
    """A server that is probed: its slots, adapters in CPU memory, and max rank."""

    slots: int
    cpu_slots: int | None
    max_rank: int


class Place(Protocol):
    """Where the servers are: one that runs, or such as we start."""

    @property
    def settings(self) -> Sequence[Setting]:
        """The servers, the most important first."""

    def server(self, setting: Setting) -> AbstractContextManager[tuple[str, LaunchedServer | None]]:
        """A server as ``setting`` says, at a URL, and the process if it is ours."""


@dataclass(frozen=True)
class Running:
    """A server that somebody else has started."""

    url: str
    setting: Setting

    @property
    def settings(self) -> Sequence[Setting]:
        """There is one."""
        return (self.setting,)

    @contextmanager
    def server(self, setting: Setting) -> Iterator[tuple[str, LaunchedServer | None]]:
        """It runs already."""
        yield self.url, None


@dataclass(frozen=True)
class Launching:
    """Servers of our own, one after the other: one per number of slots, the largest first.

    That one holds all adapters in CPU memory, the others as few as they can: their loads are from disk.
    """

    model: str
    adapters: Sequence[AdapterFiles]
    slots: Sequence[int]
    max_rank: int
    like: Profile
    launcher: Launcher

    @property
    def settings(self) -> Sequence[Setting]:
        """The largest number of slots first."""
        first, *others = sorted(set(self.slots), reverse=True)
        everything = max(first, len(self.adapters))
        return (
            Setting(first, everything, self.max_rank),
            *(Setting(slots, slots, self.max_rank) for slots in others),
        )

    @contextmanager
    def server(self, setting: Setting) -> Iterator[tuple[str, LaunchedServer | None]]:
        """Start it; it ends with the block."""
        limits = self.like.limits
        numbers = {
            "--max-model-len": limits.max_model_len,
            "--max-num-seqs": limits.max_num_seqs,
            "--max-num-batched-tokens": limits.max_num_batched_tokens,
            "--max-loras": setting.slots,
            "--max-cpu-loras": setting.cpu_slots,
            "--max-lora-rank": setting.max_rank,
        }
        options = [part for option, value in numbers.items() for part in (option, str(value))]
        modules = [f"{adapter.name}={adapter.path}" for adapter in self.adapters]
        serve = [self.model, *options, "--enable-lora", "--no-enable-prefix-caching", "--lora-modules", *modules]
        with self.launcher.start([serve], [f"server-{setting.slots}-slots"]) as (server,):
            yield server.url, server


@dataclass(frozen=True)
class Check:
    """The twin with the new profile beside a run that the fit has not seen; errors in percent of what was measured."""

    name: str
    requests: int
    served_fraction: float
    throughput_tok_s: float
    twin_throughput_tok_s: float
    itl_ms: float
    twin_itl_ms: float
    ttft_s: float
    twin_ttft_s: float


@dataclass(frozen=True, eq=False)
class LiveCalibration:
    """What came of a live calibration.

    Attributes:
        fit: the profile, its constants and residuals.
        checks: held-out runs.
        probes: how many there are.
        complete: the budget sufficed for one round of all probes at least.
    """

    fit: ProbeFit
    checks: tuple[Check, ...]
    probes: int
    complete: bool


def calibrate_live(
    place: Place, like: Profile, notebook: Notebook, budget_s: float, cpu: bool, on_probe: OnProbe | None = None
) -> LiveCalibration:
    """Probe the servers of ``place`` for up to ``budget_s`` seconds, and fit a profile to all that the notebook has.

    Args:
        place: where the servers are.
        like: names, limits, and what is not measured.
        notebook: keeps what is measured; what it has already is not measured again.
        budget_s: includes the starts of servers.
        cpu: they run on CPUs.
        on_probe: told before every probe.

    Raises:
        ServerError: a server failed; the notebook has all that was measured before.
        BadInputError: too little was measured.
    """
    deadline = now_s() + budget_s
    complete = True
    for n, setting in enumerate(place.settings):
        left_s = (deadline - now_s()) / (len(place.settings) - n)
        first = n == 0
        done = f"{setting.slots} slots, done"
        if done in notebook or left_s <= 0:
            complete = complete and done in notebook
            continue
        visit = Visit(setting, like, notebook, now_s() + left_s, SHARE_OF_OPEN * budget_s, first, cpu, on_probe)
        with place.server(setting) as (url, server):
            try:
                asyncio.run(visit.probe(url))
            except ServerError:
                if server is not None:
                    server.check()  # says more, if it has ended
                raise
        complete = complete and visit.rounds > 0
        if visit.rounds == ROUNDS:
            notebook.write(done, True)
    return evaluate(notebook, place.settings, like, complete)


class Visit:
    """All that is asked of one server."""

    def __init__(
        self,
        setting: Setting,
        like: Profile,
        notebook: Notebook,
        deadline: float,
        open_s: float,
        main: bool,
        cpu: bool,
        on_probe: OnProbe | None,
    ) -> None:
        """Probe until ``deadline``; the ``main`` server also gets open-loop runs of up to ``open_s`` seconds."""
        self.setting, self.like, self.notebook, self.deadline = setting, like, notebook, deadline
        self.open_s, self.main, self.cpu, self.on_probe = min(OPEN_S, open_s), main, cpu, on_probe
        self.rounds = 0

    async def probe(self, url: str) -> None:
        """Make the probes that the notebook has not, until the time is over."""
        async with client() as session:
            facts = await facts_of(session, url, self.cpu)
            if not facts.adapters:
                raise ServerError(f"{url}: it serves no LoRA adapters")
            self.notebook.write(f"{self.setting.slots} slots, server", vars(facts))
            prober = Prober(session, url, facts.adapters)
            for turn in range(1, ROUNDS + 1):
                asks = self._closed(facts, turn)
                few = len(asks) // 2
                if not all([await self._make(prober, ask) for ask in asks[:few]]):
                    return
                if turn == 1:
                    await self._loads(prober, facts)
                    await self._opened(prober, facts)
                if not all([await self._make(prober, ask) for ask in asks[few:]]):
                    return
                self.rounds = turn

    def _closed(self, facts: Facts, turn: int) -> list[Ask]:
        limits = self.like.limits.model_copy(update={"max_model_len": facts.max_model_len})
        return closed_probes(limits, self.setting.slots, len(facts.adapters), facts.kv_tokens, turn)

    async def _make(self, prober: Prober, ask: Ask) -> bool:
        """Make a probe unless it has been made; False if there is no time for it."""
        if ask.name in self.notebook:
            return True
        if now_s() > self.deadline:
            return False
        self._tell(ask.name)
        note = await prober.make(ask)
        self.notebook.write(ask.name, {"ask": vars(ask), "setting": vars(self.setting), **note})
        return True

    async def _loads(self, prober: Prober, facts: Facts) -> None:
        name = f"{self.setting.slots} slots, loads"
        count = min(len(facts.adapters), max(self.setting.slots + 2, MOST_LOADS))
        in_cpu = self.setting.cpu_slots
        if name in self.notebook or count <= self.setting.slots or in_cpu is None or now_s() > self.deadline:
            return
        self._tell(name)
        waits = await prober.loads(range(count))
        self.notebook.write(name, {"waits": waits, "from_disk": in_cpu < count, "setting": vars(self.setting)})

    async def _opened(self, prober: Prober, facts: Facts) -> None:
        if not self.main:
            return
        most = _most_requests_s(self.notebook, self.setting)
        adapters = min(self.setting.slots, len(facts.adapters))
        for seed, (name, load) in enumerate(OPEN_LOADS.items()):
            kind = "check" if name.startswith("check") else "open"
            await prober.warm(range(adapters))
            ask = Ask(
                f"{self.setting.slots} slots, {name}",
                kind,  # type: ignore[arg-type]
                adapters=adapters,
                rate=load * most,
                seconds=self.open_s,
                seed=seed,
            )
            await self._make(prober, ask)

    def _tell(self, name: str) -> None:
        if self.on_probe is not None:
            self.on_probe(sum(1 for _ in self.notebook.items()), name)


def _most_requests_s(notebook: Notebook, setting: Setting) -> float:
    """Requests/s that the server may take by its largest batch and its longest prompt; rough."""
    notes = [note for _, note in notebook.items() if isinstance(note, dict) and note.get("setting") == vars(setting)]
    asked = [(note["ask"], note["ms"]) for note in notes if "ask" in note and note["ms"] > 0]
    token_ms = min(ms / ask["batch"] for ask, ms in asked if ask["kind"] == "decode")
    prompts = [(ask["tokens_in"], ms) for ask, ms in asked if ask["kind"] == "prefill"]
    prompt_ms = max(prompts)[1] / max(prompts)[0]
    return 1e3 / float(sum(OPEN_IN) / 2 * prompt_ms + sum(OPEN_OUT) / 2 * token_ms)


def evaluate(notebook: Notebook, settings: Sequence[Setting], like: Profile, complete: bool) -> LiveCalibration:
    """Fit a profile to what the notebook has, and check it on the runs kept apart.

    Raises:
        BadInputError: it has too little.
    """
    notes = {name: note for name, note in notebook.items() if isinstance(note, dict)}
    servers = [(s, notes[f"{s.slots} slots, server"]) for s in settings if f"{s.slots} slots, server" in notes]
    if not servers:
        raise BadInputError("too little was measured: no server was probed")
    facts = Facts(**servers[0][1])
    limits = like.limits.model_copy(update={"max_model_len": facts.max_model_len})
    kv = like.kv.model_copy(update={"block_tokens": facts.block_tokens})
    like = like.model_copy(update={"limits": limits, "kv": kv, "rules": facts.rules, "frontend": None})
    like = like.model_copy(update={"engine": f"vLLM {facts.version}", "base_model": facts.model})
    if facts.cpu:
        like = like.model_copy(update={"gpu": "CPU", "power": None})
    capacities = pd.DataFrame(
        [
            {"status": "ok", "adapter_slots": s.slots, "max_lora_rank": s.max_rank, "kv_tokens": seen["kv_tokens"]}
            for s, seen in servers
        ]
    )
    probes = [_probe(note) for note in notes.values() if "ask" in note and note["ask"]["kind"] != "check"]
    fit = fit_probes(probes, capacities, _load_table(notes), like, f"vLLM {facts.version}")
    checks = [_check(note, fit) for note in notes.values() if "ask" in note and note["ask"]["kind"] == "check"]
    return LiveCalibration(fit, tuple(checks), len(probes) + len(checks), complete)


def _probe(note: dict[str, Any]) -> Probe:
    ask, setting = Ask(**note["ask"]), Setting(**note["setting"])
    return Probe(
        name=ask.name,
        kind=ask.kind,  # type: ignore[arg-type]
        slots=setting.slots,
        max_rank=setting.max_rank,
        adapters=ask.adapters,
        requests=ask.requests(),
        ms=note["ms"],
    )


def _load_table(notes: dict[str, Any]) -> pd.DataFrame:
    """Loads as ``adapter_loading_raw.csv`` has them; reading from disk is what a load from there takes longer."""
    rows = []
    loads = [note for name, note in notes.items() if name.endswith("loads")]
    to_gpu = [ms for note in loads if not note["from_disk"] for ms in note["waits"]]
    mean = max(0.0, sum(to_gpu) / len(to_gpu)) if to_gpu else 0.0
    for note in loads:
        rank = note["setting"]["max_rank"]
        for ms in note["waits"]:
            kind, value = ("disk_to_cpu", ms - mean) if note["from_disk"] else ("cpu_to_gpu", ms)
            row = {"kind": kind, "phase": "benchmark", "adapter_rank": rank, "max_lora_rank": rank, "ms": value}
            rows.append(row)
    return pd.DataFrame(rows, columns=["kind", "phase", "adapter_rank", "max_lora_rank", "ms"])


def _check(note: dict[str, Any], fit: ProbeFit) -> Check:
    """The same requests in the twin."""
    probe, seconds, seen = _probe(note), note["ask"]["seconds"], note["seen"]
    profile = fit.calibration.profile
    metrics = measure(replace(probe.simulation(profile), horizon_s=seconds).run(), probe.adapters)
    nothing = math.nan
    return Check(
        name=probe.name,
        requests=len(probe.requests),
        served_fraction=seen["served_fraction"],
        throughput_tok_s=seen["throughput_tok_s"],
        twin_throughput_tok_s=metrics.throughput_tok_s,
        itl_ms=seen.get("itl_ms", nothing),
        twin_itl_ms=metrics.itl_ms.mean,
        ttft_s=seen.get("ttft_s", nothing),
        twin_ttft_s=metrics.ttft_s.mean + 1e-3 * fit.on_the_way_ms,
    )
