"""From the plan in force to one for another workload: few moves, and an order in which nothing breaks on the way.

Servers run on as they are: with their slots and their max rank, which only a restart could change. What moves is
adapters, which vLLM loads and unloads at run time; new servers may be started and empty ones stopped.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from loraplan.config import Config, build
from loraplan.errors import BadInputError, NoPlanError
from loraplan.plan import Plan, PlannedGPU, SolverRecord
from loraplan.problem import Problem
from loraplan.profiles import Profile
from loraplan.run import Run
from loraplan.servers import Servers, grown, in_force, shrunk
from loraplan.validation import FIRST_FRESH_SEED, share_of
from loraplan.workload import Workload
from twin.batch import Simulation

Unit = tuple[int, ...]
Fits = Callable[[PlannedGPU, Profile], bool]


@dataclass(frozen=True)
class Step:
    """One thing to do, after the one before it is done.

    Attributes:
        action: ``start`` or ``stop`` a server; ``load`` an adapter onto it and send the adapter's requests there;
            ``drain``: wait until the server that had it has answered the rest; ``unload`` it there; ``reload``: load
            it again where it is, because it is another one now, of another rank.
        gpu: the server's id in the plan.
        adapter: what is loaded, drained, unloaded or reloaded; empty for a server.
    """

    action: Literal["start", "load", "drain", "unload", "reload", "stop"]
    gpu: str
    adapter: str = ""


@dataclass(frozen=True, eq=False)
class Replanned:
    """The new plan and the way to it.

    Attributes:
        plan: the new plan; its ``reason`` names the servers that do not keep the limits, if the moves did not do.
        steps: in order.
        moved: adapters that changed servers, at most as many as allowed.
        overloaded: servers in force that do not keep the limits with the new workload, before anything moves.
    """

    plan: Plan
    steps: tuple[Step, ...]
    moved: tuple[str, ...]
    overloaded: tuple[str, ...]


def replan(
    plan: Plan,
    config: Config,
    run: Run,
    max_moves: int,
    fits: Fits | None = None,
    on_progress: Callable[[int, int], None] | None = None,
) -> Replanned:
    """A plan for the config's workload that is close to ``plan``.

    First the adapters that are new get a place, then servers that do not keep the limits give adapters away, then moves
    that are left make the plan cheaper. Every move is one that the server which takes the adapter survives at that
    moment, with all that is still there; so the order in which the moves are found is one in which nothing breaks.

    Args:
        plan: in force; complete.
        config: of the new workload.
        run: what was chosen: the objective and the oracle (its solver plays no part).
        max_moves: adapters, at most, that change servers; new ones do not count.
        fits: asked of each move that the oracle takes: whether the server that gets the adapters, as it is then,
            survives it; see ``in_the_twin``.
        on_progress: called with (moves made, moves at most).

    Raises:
        BadInputError: the plan is not complete, a server of it has a profile that is not in the fleet, or has only one
            part of a group that is to go together.
        NoPlanError: a new adapter finds no place, or one stays on a server that does not take its new rank.
    """
    if not plan.complete:
        raise BadInputError(f"there is no complete plan to begin with: its status is {plan.status} ({plan.reason})")
    started = time.monotonic()
    problem = build(config).problem
    servers, new = in_force(plan, problem, run)
    overloaded = tuple(server.id for server, kept in zip(servers.each, servers.kept(), strict=True) if not kept)
    left_empty = [server.id for server in servers.each if not server.load.adapters]
    moves = _Moves(servers, max_moves, fits, on_progress)
    moves.place(new)
    moves.relieve()
    moves.improve()
    moved = dict.fromkeys(servers.names[i] for unit, source, _ in moves.done if source is not None for i in unit)
    solver = SolverRecord(
        name="replan", params={"max_moves": max_moves}, seed=run.seed, runtime_s=round(time.monotonic() - started, 6)
    )
    texts = _shortfalls(servers, problem, moves.left)
    fallbacks, fatal = servers.fallbacks() if problem.constraints.reserve else ({}, [])
    if fatal:
        texts.append(f"reserve: the loss of {', '.join(fatal)} would not be survived")
    made = servers.plan(config, run, solver).model_copy(
        update={"reason": "; ".join(texts), "fallbacks": {} if fatal else fallbacks}
    )
    steps = (*_first_steps(plan, problem, made, left_empty), *_steps(servers, moves.done, left_empty))
    return Replanned(made, steps, tuple(moved), overloaded)


def _shortfalls(servers: Servers, problem: Problem, moves_left: int) -> list[str]:
    """What the servers do not keep in the end, in words."""
    texts = []
    busy = [server for server in servers.each if server.load.adapters]
    broken = [server.id for server, kept in zip(servers.each, servers.kept(), strict=True) if not kept]
    if broken:
        why = "no move that the others survive helps" if moves_left > 0 else "too few moves"
        texts.append(f"{why}: the limits are not kept by {', '.join(broken)}")
    if len(busy) > (problem.constraints.max_gpus or len(busy)):
        texts.append(f"{len(busy)} servers are in use, but max_gpus is {problem.constraints.max_gpus}")
    counts = Counter(servers.profile_of(server) for server in busy)
    for gpu_type in problem.fleet.types:
        used = counts[gpu_type.profile.name]
        if used > gpu_type.count:
            texts.append(f"{used} servers of {gpu_type.profile.name} are in use, of {gpu_type.count} in the fleet")
    return texts


def in_the_twin(workload: Workload, limit: float, seeds: int = 1) -> Fits:
    """Whether a server serves ``limit`` of what arrives in the twin, in the mean over the seeds."""
    streams = [workload.requests(seed) for seed in range(FIRST_FRESH_SEED, FIRST_FRESH_SEED + seeds)]
    names = [adapter.name for adapter in workload.adapters]

    def fits(gpu: PlannedGPU, profile: Profile) -> bool:
        placed = [(adapter.name, adapter.share) for adapter in gpu.adapters]
        asked = (share_of(stream, names, placed) for stream in streams)
        ranks = np.array([adapter.rank for adapter in gpu.adapters], dtype=np.int64)
        runs = [
            Simulation(
                profile=profile,
                slots=gpu.slots,
                max_rank=gpu.max_rank,
                ranks=ranks,
                workload=one,
                horizon_s=workload.horizon_s,
                name=f"GPU {gpu.id}",
            ).metrics()
            for one in asked
        ]
        return float(np.mean([run.served_fraction for run in runs])) >= limit

    return fits


class _Moves:
    """Makes the moves, one after another."""

    def __init__(
        self,
        servers: Servers,
        most: int,
        fits: Fits | None,
        tell: Callable[[int, int], None] | None,
    ) -> None:
        self._servers, self._most, self._fits, self._tell = servers, most, fits, tell
        self.done: list[tuple[Unit, int | None, int]] = []
        self._refused: set[tuple[Unit, int]] = set()
        self._unit = {unit[0]: unit for unit in servers.search.problem.units}

    @property
    def left(self) -> int:
        """Moves that may still be made."""
        return self._most - sum(len(unit) for unit, source, _ in self.done if source is not None)

    def place(self, new: Sequence[Unit]) -> None:
        """Give new adapters a place, those with most traffic first.

        Where some of a group have one, the others follow; if they do not fit there, all of them move, if they may.
        """
        for unit in sorted(new, key=lambda unit: -self._offered(unit)):
            row, old = self._servers.home(unit)
            rest = tuple(i for i in unit if i not in old)
            if not (self._move(unit, None) if row is None else self._join(rest, old, row)):
                name = self._servers.names[rest[0]]
                raise NoPlanError(f"no feasible plan: no server in force or on offer takes the new adapter {name}")

    def _join(self, rest: Unit, old: Unit, row: int) -> bool:
        """Put new adapters beside those of their group, which are on the server at ``row``."""
        if self._servers.takes(row, rest) and self._try(rest, None, row):
            return True
        whole = tuple(sorted((*old, *rest)))
        if len(old) > self.left:
            return False
        for to in self._servers.takers(whole, row):
            if self._try(old, row, to):
                return self._try(rest, None, to)
        return False

    def relieve(self) -> None:
        """Move adapters away from servers that do not keep the limits, until they do or no move is left.

        Those first whose loss mends most, which makes for few moves: what then keeps the limits, what keeps more of the
        constraints on where adapters may be, and what serves more.
        """
        search = self._servers.search
        for row in range(len(self._servers.each)):
            while self.left > 0 and not self._servers.kept()[row]:
                units = [unit for unit in self._units(row) if len(unit) <= self.left]
                rest = [shrunk(self._servers.each[row].load, unit) for unit in units]
                if not all(load.adapters for load in rest):
                    break  # a single unit, which is too much even alone
                kept, predicted = search.judge(rest)
                breaches = [search.problem.breaches(load) for load in rest]
                served = predicted.served_fraction.tolist()
                order = sorted(
                    range(len(units)), key=lambda n: (not kept[n], breaches[n], -served[n], -self._offered(units[n]))
                )
                if not any(self._move(units[n], row) for n in order):
                    break

    def improve(self) -> None:
        """Use the moves that are left to make the plan cheaper: by emptying servers, then one by one."""
        each = self._servers.each
        for row in sorted(range(len(each)), key=lambda row: len(each[row].load.adapters)):
            self._empty(row)
        while self.left > 0 and self._cheaper():
            pass

    def _empty(self, row: int) -> None:
        """Empty a server, if that pays and all of its adapters find a place."""
        servers = self._servers
        if not 0 < len(servers.each[row].load.adapters) <= self.left:
            return
        before, loads, done = self._cost(), [server.load for server in servers.each], list(self.done)
        units = sorted(self._units(row), key=lambda unit: -self._offered(unit))
        if not all(self._move(unit, row, new_server=False) for unit in units) or self._cost() >= before:
            self.done = done
            for server, load in zip(servers.each, loads, strict=True):
                server.load = load

    def _cheaper(self) -> bool:
        """Make the single move that saves most; false if none saves anything."""
        each, search = self._servers.each, self._servers.search
        trials = [
            (unit, a, b)
            for a in range(len(each))
            for unit in self._units(a)
            for b in range(len(each))
            if a != b and each[b].load.adapters and (unit, b) not in self._refused and len(unit) <= self.left
        ]
        if not trials:
            return False
        pairs = [(shrunk(each[a].load, unit), grown(each[b].load, unit)) for unit, a, b in trials]
        asked = [load for pair in pairs for load in pair if load.adapters]
        kept, predicted = search.judge(asked)
        cost = dict(zip(asked, np.where(kept, search.costs(asked, predicted), np.inf), strict=True))
        now = [server.load for server in each if server.load.adapters]
        cost_now = dict(zip(now, search.costs(now, search.oracle.predict(now)), strict=True))
        gains = [
            cost_now[each[a].load] + cost_now[each[b].load] - sum(cost.get(load, 0.0) for load in pair)
            for (_, a, b), pair in zip(trials, pairs, strict=True)
        ]
        best = int(np.argmax(gains))
        if gains[best] <= 1e-6 * sum(cost_now.values()):
            return False
        unit, a, b = trials[best]
        self._try(unit, a, b)  # if the twin refuses it, the next best is found next time
        return True

    def _cost(self) -> float:
        search = self._servers.search
        busy = [server.load for server in self._servers.each if server.load.adapters]
        return float(search.costs(busy, search.oracle.predict(busy)).sum())

    def _units(self, row: int) -> list[Unit]:
        return [self._unit[i] for i in self._servers.each[row].load.adapters if i in self._unit]

    def _offered(self, unit: Unit) -> float:
        return float(self._servers.search.problem.offered[list(unit)].sum())

    def _move(self, unit: Unit, source: int | None, new_server: bool = True) -> bool:
        """Move a unit to the fullest server that takes it, else to a new one."""
        for to in self._servers.takers(unit, source):
            if (unit, to) not in self._refused and self._try(unit, source, to):
                return True
        opened = self._servers.open(unit) if new_server else None
        return opened is not None and self._try(unit, source, opened)

    def _try(self, unit: Unit, source: int | None, to: int) -> bool:
        """Make a move, unless ``fits`` refuses it."""
        each = self._servers.each
        before = [server.load for server in each]
        each[to].load = grown(each[to].load, unit)
        if source is not None:
            each[source].load = shrunk(each[source].load, unit)
        if self._fits is not None and not self._fits(*self._servers.planned(each[to])):
            for server, load in zip(each, before, strict=True):
                server.load = load
            self._refused.add((unit, to))
            return False
        self.done.append((unit, source, to))
        if self._tell is not None:
            self._tell(self._most - self.left, self._most)
        return True


def _first_steps(old: Plan, problem: Problem, new: Plan, left_empty: Sequence[str]) -> Iterator[Step]:
    """What makes room before anything moves: adapters that nobody asks for go; those of another rank are renewed."""
    stays = {(gpu.id, adapter.name) for gpu in new.gpus for adapter in gpu.adapters}
    for gpu in old.gpus:
        if gpu.id in left_empty:
            yield Step("stop", gpu.id)
            continue
        for adapter in gpu.adapters:
            if adapter.name not in problem.index:
                yield Step("unload", gpu.id, adapter.name)
            elif (gpu.id, adapter.name) in stays and problem.ranks[problem.index[adapter.name]] != adapter.rank:
                yield Step("reload", gpu.id, adapter.name)


def _steps(servers: Servers, done: Sequence[tuple[Unit, int | None, int]], stopped: Sequence[str]) -> Iterator[Step]:
    """The moves, in order; servers start before they get their first adapter, and stop when they have none."""
    started: set[int] = set()
    for unit, source, to in done:
        target, names = servers.each[to], [servers.names[i] for i in unit]
        if not target.old and to not in started:
            started.add(to)
            yield Step("start", target.id)
        for name in names:
            yield Step("load", target.id, name)
        if source is not None:
            for name in names:
                yield Step("drain", servers.each[source].id, name)
                yield Step("unload", servers.each[source].id, name)
    for server in servers.each:
        if server.old and not server.load.adapters and server.id not in stopped:
            yield Step("stop", server.id)
