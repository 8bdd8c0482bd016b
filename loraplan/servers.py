"""Servers in force as part of a problem: what runs cannot change its slots nor its max rank."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from importlib.metadata import version

import numpy as np

from loraplan.api import input_files
from loraplan.assembly import figures
from loraplan.config import Config
from loraplan.constraints import Constraints
from loraplan.errors import BadInputError, NoPlanError, did_you_mean
from loraplan.files import sha256
from loraplan.plan import (
    ObjectiveValue,
    OracleRecord,
    Plan,
    PlannedAdapter,
    PlannedGPU,
    Provenance,
    SolverRecord,
    finite,
)
from loraplan.problem import Fleet, GPULoad, GPUType, Problem
from loraplan.profiles import Profile
from loraplan.reserve import evacuate
from loraplan.run import Run
from loraplan.workload import Adapter
from solvers import Search
from solvers.construction import SlotChoices

FIXED = " --max-lora-rank "
"""Between a profile's name and the rank with which a server in force was started."""
ROOM, USUAL_SLOTS = 512, 32
"""Of a new server: up to how many slots are tried, and about how many it gets if several numbers do."""


@dataclass
class Server:
    """A server: its id in the plan, its adapters now, and whether it was there before."""

    id: str
    load: GPULoad
    old: bool


@dataclass(eq=False)
class Servers:
    """All servers, empty ones among them, and the problem whose adapters they hold.

    Attributes:
        search: judges loads; its problem has a GPU type for each max rank of servers in force, behind the fleet's own.
        names, shares: of each adapter of the problem: its name in the plan, and its share of that one's requests.
        each: the servers.
    """

    search: Search
    names: tuple[str, ...]
    shares: tuple[float, ...]
    each: list[Server]

    def kept(self) -> list[bool]:
        """Which servers keep the limits; an empty one does."""
        busy = [server.load for server in self.each if server.load.adapters]
        fine = iter(self.search.judge(busy)[0].tolist() if busy else [])
        return [next(fine) if server.load.adapters else True for server in self.each]

    def takers(self, unit: Sequence[int], but: int | None) -> list[int]:
        """The busy servers that keep the limits with these adapters as well, the fullest first."""
        rows = [row for row, server in enumerate(self.each) if row != but and server.load.adapters]
        if not rows:
            return []
        kept, predicted = self.search.judge([grown(self.each[row].load, unit) for row in rows])
        itl_ms = np.nan_to_num(predicted.itl_ms)
        return [rows[n] for n in np.argsort(-itl_ms, kind="stable") if kept[n]]

    def open(self, unit: Sequence[int]) -> int | None:
        """Add an empty server that takes these adapters, and return its place; None if there is none on offer."""
        problem = self.search.problem
        choices = SlotChoices(problem)
        rank = int(problem.ranks[list(unit)].max())
        for t, spare in enumerate(self._spare()):
            loads = [GPULoad(t, tuple(sorted(unit)), slots) for slots in choices.on(t, rank, ROOM)] if spare > 0 else []
            kept = self.search.judge(loads)[0] if loads else np.zeros(0, np.bool_)
            if kept.any():
                best = min(np.flatnonzero(kept), key=lambda n: abs(loads[n].slots - USUAL_SLOTS))
                taken = {server.id for server in self.each}
                name = next(f"gpu-{n}" for n in range(len(taken) + 1) if f"gpu-{n}" not in taken)
                self.each.append(Server(name, replace(loads[best], adapters=()), old=False))
                return len(self.each) - 1
        return None

    def _spare(self) -> list[int]:
        """GPUs left of each type; none of those that stand for servers in force."""
        problem = self.search.problem
        busy = [server.load for server in self.each if server.load.adapters]
        if len(busy) >= problem.gpus:
            return []
        names = [gpu_type.profile.name.partition(FIXED)[0] for gpu_type in problem.fleet.types]
        used = [names[load.gpu_type] for load in busy]
        return [
            0 if FIXED in gpu_type.profile.name else gpu_type.count - used.count(name)
            for gpu_type, name in zip(problem.fleet.types, names, strict=True)
        ]

    def takes(self, row: int, unit: Sequence[int]) -> bool:
        """Whether a server keeps the limits with these adapters as well."""
        return bool(self.search.judge([grown(self.each[row].load, unit)])[0][0])

    def home(self, unit: Sequence[int]) -> tuple[int | None, tuple[int, ...]]:
        """The server that has some of these adapters, and which ones."""
        for row, server in enumerate(self.each):
            old = tuple(i for i in unit if i in server.load.adapters)
            if old:
                return row, old
        return None, ()

    def profile_of(self, server: Server) -> str:
        """The name that the server's profile has in the fleet."""
        return self.search.problem.profile(server.load).name.partition(FIXED)[0]

    def planned(self, server: Server) -> tuple[PlannedGPU, Profile]:
        """A busy server as it is now, and its profile.

        Raises:
            NoPlanError: it has an adapter of a rank that it does not take.
        """
        search, load = self.search, server.load
        problem = search.problem
        widest = max(load.adapters, key=lambda i: problem.adapters[i].rank)
        profile = problem.profile(load)
        if problem.adapters[widest].rank > max(profile.limits.lora_ranks):
            raise NoPlanError(
                f"no feasible plan: adapter {self.names[widest]} has rank {problem.adapters[widest].rank} now, above "
                f"{max(profile.limits.lora_ranks)}, the largest that {server.id} takes, and finds no other server"
            )
        predicted = search.oracle.predict([load])
        gpu = PlannedGPU(
            id=server.id,
            profile=self.profile_of(server),
            slots=load.slots,
            max_rank=problem.max_rank(load.gpu_type, load.adapters),
            adapters=tuple(
                PlannedAdapter(
                    name=self.names[i],
                    rank=problem.adapters[i].rank,
                    rate=problem.adapters[i].rate / self.shares[i],
                    share=self.shares[i],
                )
                for i in load.adapters
            ),
            cost=finite(search.costs([load], predicted)[0]),
            predicted=figures(predicted, 0, search.oracle.outside(load)),
        )
        return gpu, profile

    def fallbacks(self) -> tuple[dict[str, dict[str, str]], list[str]]:
        """Where the adapters of each busy server go if it is lost; and the servers whose loss is not survived."""
        busy = [server for server in self.each if server.load.adapters]
        found: dict[str, dict[str, str]] = {}
        for row, server in enumerate(busy):
            goes = evacuate(self.search, [one.load for one in busy], row)
            if goes is not None:
                found[server.id] = {self.names[i]: busy[to].id for i, to in goes.items()}
        return found, [server.id for server in busy if server.id not in found]

    def plan(self, config: Config, run: Run, solver: SolverRecord) -> Plan:
        """The plan that these servers are."""
        gpus = tuple(self.planned(server)[0] for server in self.each if server.load.adapters)
        problem = self.search.problem
        return Plan(
            status="feasible",
            objective=ObjectiveValue(
                name=run.objective.name,
                params=run.objective.settings,
                unit=self.search.objective.unit,
                value=sum(gpu.cost or 0.0 for gpu in gpus),
                lower_bound=None,
                gap=None,
            ),
            gpus=gpus,
            solver=solver,
            oracle=OracleRecord(name=run.oracle.name, params=run.oracle.settings),
            provenance=Provenance(
                loraplan=version("loraplan"),
                created=datetime.now(UTC).isoformat(timespec="seconds"),
                profiles={t.profile.name: t.profile for t in problem.fleet.types if FIXED not in t.profile.name},
                served_fraction=problem.constraints.served_fraction,
                config=config.model_dump(mode="json"),
                inputs={str(path): sha256(path) for path in input_files(config)},
            ),
        )


def in_force(plan: Plan, problem: Problem, run: Run) -> tuple[Servers, list[tuple[int, ...]]]:
    """The servers of a plan with another workload, and the adapters that are new, as units.

    Args:
        plan: in force.
        problem: of the new workload.
        run: says by what is judged.

    Raises:
        BadInputError: a server has a profile that is not in the fleet, or several have parts of a group.
    """
    types = {gpu_type.profile.name: gpu_type for gpu_type in problem.fleet.types}
    fixed: dict[str, GPUType] = {}
    adapters: list[Adapter] = []
    names: list[str] = []
    shares: list[float] = []
    homes: list[tuple[str, str, list[int], int]] = []
    for gpu in plan.gpus:
        if gpu.profile not in types:
            hint = did_you_mean(gpu.profile, types)
            raise BadInputError(f"GPU {gpu.id} of the plan has profile {gpu.profile!r}, not in the fleet{hint}")
        kind = f"{gpu.profile}{FIXED}{gpu.max_rank}"
        fixed.setdefault(kind, _fixed(types[gpu.profile], kind, gpu.max_rank, len(plan.gpus)))
        homes.append((gpu.id, kind, [], gpu.slots))
        for placed in gpu.adapters:
            if placed.name in problem.index:  # else nobody asks for it any more
                whole = problem.adapters[problem.index[placed.name]]
                homes[-1][2].append(len(adapters))
                label = whole.name if placed.share == 1.0 else f"{whole.name} on {gpu.id}"
                adapters.append(replace(whole, name=label, rate=whole.rate * placed.share))
                names.append(whole.name)
                shares.append(placed.share)
    known = set(names)
    new = [adapter for adapter in problem.adapters if adapter.name not in known]
    first = len(adapters)
    adapters += new
    made = Problem(
        tuple(adapters),
        Fleet((*problem.fleet.types, *fixed.values())),
        _constraints(problem, adapters, [*names, *(adapter.name for adapter in new)], list(fixed)),
    )
    place = {name: len(problem.fleet.types) + n for n, name in enumerate(fixed)}
    servers = [Server(gpu, GPULoad(place[kind], tuple(mine), slots), old=True) for gpu, kind, mine, slots in homes]
    all_names = (*names, *(adapter.name for adapter in new))
    _check_together(made, servers)
    unplaced = [unit for unit in made.units if unit[-1] >= first]
    return Servers(run.prepare(made), all_names, (*shares, *[1.0] * len(new)), servers), unplaced


def _check_together(problem: Problem, servers: Sequence[Server]) -> None:
    for unit in problem.units:
        homes = [server for server in servers if not set(unit).isdisjoint(server.load.adapters)]
        if len(homes) > 1:
            first, second = (next(i for i in unit if i in server.load.adapters) for server in homes[:2])
            raise BadInputError(
                f"constraints: adapters {problem.adapters[first].name} and {problem.adapters[second].name} are to be "
                f"together, but are on {homes[0].id} and {homes[1].id}; replan keeps groups, it does not make them"
            )


def _fixed(gpu_type: GPUType, name: str, max_rank: int, count: int) -> GPUType:
    """A type whose servers all have this max rank."""
    profile = gpu_type.profile
    limits = profile.limits.model_copy(update={"lora_ranks": (max_rank,)})
    return replace(gpu_type, profile=profile.model_copy(update={"limits": limits, "name": name}), count=count)


def _constraints(
    problem: Problem, adapters: Sequence[Adapter], names: Sequence[str], fixed: Sequence[str]
) -> Constraints:
    """The limits, about the replicas that there are, and about servers in force as about new ones of their profile."""
    limits = problem.constraints
    parts: dict[str, list[str]] = defaultdict(list)
    for adapter, name in zip(adapters, names, strict=True):
        parts[name].append(adapter.name)
    pins = {
        part: tuple(profile for profile in (*pinned, *fixed) if profile.partition(FIXED)[0] in pinned)
        for name, pinned in limits.pins.items()
        for part in parts[name]
    }
    split = [tuple(replicas) for replicas in parts.values() if len(replicas) > 1]
    groups = [tuple(part for name in group for part in parts[name]) for group in limits.separate]
    return replace(limits, pins=pins, separate=(*groups, *split), replicas={}, reserve=False)


def grown(load: GPULoad, unit: Sequence[int]) -> GPULoad:
    """The load with more adapters."""
    return replace(load, adapters=tuple(sorted((*load.adapters, *unit))))


def shrunk(load: GPULoad, unit: Sequence[int]) -> GPULoad:
    """The load with fewer."""
    return replace(load, adapters=tuple(i for i in load.adapters if i not in unit))
