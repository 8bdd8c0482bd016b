"""Why a plan is as it is: how far each of its GPUs is from its limits, what holds it back, what each adapter costs."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from loraplan.config import Config, build_constraints, build_workload, parse_config
from loraplan.constraints import Constraints
from loraplan.errors import BadInputError
from loraplan.headroom import FINE_FACTORS, Headroom
from loraplan.oracle import ORACLES
from loraplan.plan import Plan, PlannedGPU
from loraplan.problem import Fleet, GPULoad, GPUType, Problem
from loraplan.profiles import Profile
from loraplan.registry import Chosen, Spec, choose
from loraplan.resources import LIMITS, RESOURCES, TIMES, Server, improved
from loraplan.validation import recorded_workload
from loraplan.workload import Adapter, Floats

Progress = Callable[[int, int], None]
"""Called with (loads judged, about how many there are in all)."""

NOTICEABLE = 0.1
"""A limit binds if more of it gives at least this part of what steps that are as much faster give."""
NOTHING = 1e-4
"""Headroom that grows by less than this part is taken as unchanged."""
ROUNDS = math.ceil(math.log2(FINE_FACTORS.size))


@dataclass(frozen=True)
class Gain:
    """What more of one resource would do for a GPU.

    Attributes:
        resource: a key of `loraplan.resources.RESOURCES`.
        change: what was changed, in words.
        headroom: the GPU's headroom then.
    """

    resource: str
    change: str
    headroom: float


@dataclass(frozen=True)
class GPUExplained:
    """One GPU of a plan.

    Attributes:
        id, profile, slots, max_rank: as in the plan.
        adapters: how many there are on it.
        headroom: the factor on all its rates up to which it keeps its limits; 0 if it does not even with few requests.
        at_least: the headroom is that or more: nobody looked any further.
        use: 1 / headroom: the part of what the GPU carries that is in use; infinite if the headroom is 0.
        binding: the resource that holds it back; ``none`` if more of nothing would help.
        gains: headroom with more of each resource, the largest first.
        cost: what the GPU adds to the plan's objective; None if the plan does not say.
    """

    id: str
    profile: str
    slots: int
    max_rank: int
    adapters: int
    headroom: float
    at_least: bool
    use: float
    binding: str
    gains: tuple[Gain, ...]
    cost: float | None


@dataclass(frozen=True)
class AdapterExplained:
    """One adapter on one GPU.

    Attributes:
        name, rank: the adapter.
        gpu: where it is.
        rate: requests/s that it gets there.
        part: its part of the GPU; those of a GPU add up to 1.
        use: the same in the GPU's use: those of a GPU add up to its use.
        cost: the same in the objective's unit: those of a GPU add up to its cost.
    """

    name: str
    gpu: str
    rank: int
    rate: float
    part: float
    use: float
    cost: float | None


@dataclass(frozen=True)
class Explanation:
    """What there is to say of a plan.

    Attributes:
        oracle: whose word it is.
        unit: of the costs.
        gpus: in the plan's order.
        adapters: the most expensive first.
    """

    oracle: str
    unit: str
    gpus: tuple[GPUExplained, ...]
    adapters: tuple[AdapterExplained, ...]


def explain(
    plan: Plan,
    config: Config | None = None,
    oracle: Spec | None = None,
    on_progress: Progress | None = None,
) -> Explanation:
    """Explain a complete plan.

    Args:
        plan: as `loraplan.solve` or a file has it.
        config: whose workload the GPUs carry; the one that the plan records if not given.
        oracle: who judges; the plan's own oracle if not given.
        on_progress: called now and then.

    Raises:
        BadInputError: the plan is not complete, its workload is not known or does not fit, or the oracle is unknown.
    """
    if not plan.complete:
        raise BadInputError(f"there is no complete plan to explain: its status is {plan.status} ({plan.reason})")
    chosen = choose(ORACLES, oracle or {"name": plan.oracle.name, "params": plan.oracle.params})
    servers = _servers(plan, planned_adapters(plan, config))
    limits = _limits(plan)
    work = _Work(chosen, limits, on_progress)
    leaving = [(row, place) for row, server in enumerate(servers) for place in _one_of_each(server)]
    work.total = ROUNDS * (len(servers) * (1 + len(RESOURCES)) + len(leaving))
    headroom = work.headroom(servers)
    gpus = tuple(
        _gpu(gpu, factor, gains)
        for gpu, factor, gains in zip(plan.gpus, headroom, _gains(work, servers, headroom), strict=True)
    )
    adapters = _adapters(plan, servers, gpus, _parts(work, servers, headroom, leaving))
    return Explanation(chosen.name, plan.objective.unit, gpus, adapters)


def planned_adapters(plan: Plan, config: Config | None = None) -> dict[str, Adapter]:
    """The adapters of ``config``, or of the config that a plan records, at the rates that are planned for, by name.

    Raises:
        BadInputError: the plan records no config, or one of its input files is missing or has changed.
    """
    if config is None:
        workload = recorded_workload(plan)
        config = parse_config(plan.provenance.config, source="the config that the plan records")
    else:
        workload = build_workload(config)
    factor = config.workload.headroom
    return {adapter.name: replace(adapter, rate=adapter.rate * factor) for adapter in workload.adapters}


def planned_problem(plan: Plan) -> Problem:
    """The problem that a plan was made for: its recorded config with the profiles as they were.

    Raises:
        BadInputError: as `planned_adapters`.
    """
    adapters = planned_adapters(plan)
    config = parse_config(plan.provenance.config, source="the config that the plan records")
    profiles = tuple(plan.provenance.profiles.values())
    if len(profiles) != len(config.fleet):
        raise BadInputError(f"the plan records {len(profiles)} profiles, but its config a fleet of {len(config.fleet)}")
    types = (GPUType(p, item.count, item.price_per_hour) for p, item in zip(profiles, config.fleet, strict=True))
    return Problem(tuple(adapters.values()), Fleet(tuple(types)), build_constraints(config))


def _limits(plan: Plan) -> Constraints:
    """The limits on predicted figures of a plan's GPUs."""
    if plan.provenance.config is None:
        return Constraints(plan.provenance.served_fraction)
    given = build_constraints(parse_config(plan.provenance.config, source="the config that the plan records"))
    return Constraints(given.served_fraction, given.adapter_served_fraction, given.itl_ms, given.ttft_p95_s)


def _servers(plan: Plan, known: Mapping[str, Adapter]) -> list[Server]:
    """The GPUs of a plan with their part of each adapter's requests."""
    servers = []
    for gpu in plan.gpus:
        members = []
        for placed in gpu.adapters:
            if placed.name not in known:
                raise BadInputError(f"adapter {placed.name!r} of the plan is not in the workload")
            asked = known[placed.name]
            if asked.rank != placed.rank:
                raise BadInputError(
                    f"adapter {asked.name!r} has rank {asked.rank} in the workload, {placed.rank} in the plan"
                )
            members.append(replace(asked, rate=asked.rate * placed.share))
        servers.append(Server(_profile(plan, gpu, members), gpu.slots, tuple(members)))
    return servers


def _profile(plan: Plan, gpu: PlannedGPU, members: Sequence[Adapter]) -> Profile:
    """The GPU's profile; one that is to take larger ranks than its adapters need (a reserve) takes no smaller ones."""
    profile = plan.provenance.profiles[gpu.profile]
    if profile.server_rank(max(adapter.rank for adapter in members)) == gpu.max_rank:
        return profile
    ranks = (gpu.max_rank, *(rank for rank in profile.limits.lora_ranks if rank > gpu.max_rank))
    return profile.model_copy(update={"limits": profile.limits.model_copy(update={"lora_ranks": ranks})})


@dataclass
class _Work:
    """What the oracle is asked, and how much of it is done."""

    oracle: Chosen
    limits: Constraints
    on_progress: Progress | None
    total: int = 0
    done: int = 0

    def headroom(self, servers: Sequence[Server]) -> Floats:
        """The headroom of each server by itself, shape (servers,)."""
        problem, loads = _together(servers, self.limits)
        return self.within(problem, loads)

    def within(self, problem: Problem, loads: Sequence[GPULoad]) -> Floats:
        """The headroom of each load, shape (loads,)."""
        judge = Headroom(problem, self.oracle.kind, self.oracle.params, FINE_FACTORS, self._asked, keep=False)
        return judge.within(loads)

    def _asked(self, loads: int) -> None:
        self.done += loads
        if self.on_progress is not None:
            self.on_progress(min(self.done, self.total), self.total)


def _together(servers: Sequence[Server], limits: Constraints) -> tuple[Problem, list[GPULoad]]:
    """One problem with a load for each server, in which a replica is an adapter of its own: all are judged at once."""
    types: dict[Profile, int] = {}
    adapters: list[Adapter] = []
    loads = []
    for row, server in enumerate(servers):
        kind = types.setdefault(server.profile, len(types))
        first = len(adapters)
        adapters += [replace(adapter, name=f"{adapter.name}@{row}") for adapter in server.adapters]
        loads.append(GPULoad(kind, tuple(range(first, len(adapters))), server.slots))
    named = [profile.model_copy(update={"name": f"{profile.name}#{kind}"}) for profile, kind in types.items()]
    fleet = Fleet(tuple(GPUType(profile, 1) for profile in named))
    return Problem(tuple(adapters), fleet, limits), loads


def _gains(work: _Work, servers: Sequence[Server], headroom: Floats) -> list[list[Gain]]:
    """For each server what more of every resource gives, the largest headroom first."""
    gains: list[list[Gain]] = [[] for _ in servers]
    for resource in RESOURCES:
        changed = {row: new for row, server in enumerate(servers) if (new := improved(server, resource)) is not None}
        if changed:
            found = work.headroom([server for server, _ in changed.values()])
            for (row, (_, words)), factor in zip(changed.items(), found, strict=True):
                gains[row].append(Gain(resource, words, float(factor)))
    return [sorted(mine, key=lambda gain: -gain.headroom) for mine in gains]


def binding(headroom: float, gains: Sequence[Gain]) -> str:
    """The resource that holds a GPU back, given what more of each would do.

    Where steps are faster, everything else is given back sooner: so they help as much as any other resource, whichever
    is scarce. A limit is named first, therefore: the one of which more helps most, if that is a noticeable part of what
    faster steps give.
    """
    most = {gain.resource: gain.headroom / headroom - 1.0 if headroom > 0 else gain.headroom for gain in gains}
    by_limit = max((name for name in LIMITS if name in most), key=lambda name: most[name], default=None)
    by_time = max((name for name in TIMES if name in most), key=lambda name: most[name], default=None)
    faster = most[by_time] if by_time is not None else 0.0
    if by_limit is not None and most[by_limit] > max(NOTHING, NOTICEABLE * faster):
        return by_limit
    return by_time if by_time is not None and faster > NOTHING else "none"


def _gpu(gpu: PlannedGPU, headroom: float, gains: Sequence[Gain]) -> GPUExplained:
    return GPUExplained(
        id=gpu.id,
        profile=gpu.profile,
        slots=gpu.slots,
        max_rank=gpu.max_rank,
        adapters=len(gpu.adapters),
        headroom=float(headroom),
        at_least=bool(headroom >= FINE_FACTORS[-1]),
        use=_use(float(headroom)),
        binding=binding(float(headroom), gains),
        gains=tuple(gains),
        cost=gpu.cost,
    )


def _use(headroom: float) -> float:
    return 1.0 / headroom if headroom > 0 else math.inf


def _kind(adapter: Adapter) -> tuple[int, float, int]:
    """What it is like: nothing can tell two adapters of one kind apart."""
    return adapter.rank, adapter.rate, id(adapter.lengths)


def _one_of_each(server: Server) -> list[int]:
    """The places of the first adapter of each kind on a server; none if it has a single adapter."""
    first: dict[tuple[int, float, int], int] = {}
    for place, adapter in enumerate(server.adapters):
        first.setdefault(_kind(adapter), place)
    return list(first.values()) if len(server.adapters) > 1 else []


def _parts(
    work: _Work, servers: Sequence[Server], headroom: Floats, leaving: Sequence[tuple[int, int]]
) -> list[list[float]]:
    """Each adapter's part of its server, which add up to 1: by how much the use falls if only it were not there.

    What such losses leave unexplained (two wide adapters, neither of which alone sets the max rank) is shared in their
    proportion; where nothing falls, by the tokens that arrive.
    """
    problem, loads = _together(servers, work.limits)
    without = [
        replace(loads[row], adapters=tuple(i for n, i in enumerate(loads[row].adapters) if n != place))
        for row, place in leaving
    ]
    freed: list[dict[tuple[int, float, int], float]] = [{} for _ in servers]
    for (row, place), factor in zip(leaving, work.within(problem, without), strict=True):
        before, after = _use(float(headroom[row])), _use(float(factor))
        freed[row][_kind(servers[row].adapters[place])] = max(0.0, before - after) if math.isfinite(before) else 0.0
    parts = []
    for server, mine in zip(servers, freed, strict=True):
        weights = np.array([mine.get(_kind(adapter), 1.0) for adapter in server.adapters])
        if not weights.sum() > 0:
            weights = np.array([a.rate * (a.lengths.mean_in + a.lengths.mean_out) for a in server.adapters])
        if not weights.sum() > 0:
            weights = np.ones(len(server.adapters))
        parts.append([float(part) for part in weights / weights.sum()])
    return parts


def _adapters(
    plan: Plan, servers: Sequence[Server], gpus: Sequence[GPUExplained], parts: Sequence[Sequence[float]]
) -> tuple[AdapterExplained, ...]:
    found = [
        AdapterExplained(
            name=adapter.name,
            gpu=gpu.id,
            rank=adapter.rank,
            rate=adapter.rate,
            part=part,
            use=part * gpus[row].use,
            cost=None if gpu.cost is None else part * gpu.cost,
        )
        for row, gpu in enumerate(plan.gpus)
        for adapter, part in zip(servers[row].adapters, parts[row], strict=True)
    ]
    return tuple(sorted(found, key=lambda one: (-(one.cost or 0.0), -one.use, one.name)))
