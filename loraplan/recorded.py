"""What a plan was made for, from what it records."""

from __future__ import annotations

from collections import Counter, defaultdict
from dataclasses import dataclass, replace

from loraplan.config import Config, build, parse_config
from loraplan.constraints import Constraints
from loraplan.errors import BadInputError, did_you_mean
from loraplan.plan import Plan
from loraplan.problem import Fleet, GPULoad, Problem
from loraplan.reserve import one_rank
from loraplan.validation import check_inputs
from loraplan.workload import Adapter


@dataclass(frozen=True, eq=False)
class Recorded:
    """A plan as solvers see it.

    Attributes:
        config: that it was made from.
        problem: its problem; an adapter on several GPUs is one adapter for each of them, with its share of the rate.
        loads: its GPUs.
    """

    config: Config
    problem: Problem
    loads: tuple[GPULoad, ...]


def recorded_config(plan: Plan) -> Config:
    """The config that a plan was made from.

    Raises:
        BadInputError: the plan records none, or an input file is missing or has changed.
    """
    if plan.provenance.config is None:
        raise BadInputError("this plan records no config, so its problem is not known; make it with `loraplan solve`")
    check_inputs(plan)
    return parse_config(plan.provenance.config, source="the config that the plan records")


def recorded(plan: Plan, config: Config | None = None) -> Recorded:
    """The problem and the GPU loads of ``plan``.

    Args:
        plan: complete or not.
        config: instead of the one that the plan records: its adapters must be the plan's.

    Raises:
        BadInputError: as ``recorded_config``; or an adapter or a profile of the plan is not in the config.
    """
    config = config or recorded_config(plan)
    problem = build(config).problem
    if problem.constraints.reserve:
        problem = one_rank(problem)  # as its servers are started
    types = {gpu_type.profile.name: t for t, gpu_type in enumerate(problem.fleet.types)}
    adapters: list[Adapter] = []
    names: dict[str, list[str]] = defaultdict(list)
    rows: list[list[int]] = []
    for gpu in plan.gpus:
        rows.append([])
        if gpu.profile not in types:
            hint = did_you_mean(gpu.profile, types)
            raise BadInputError(f"GPU {gpu.id} of the plan has profile {gpu.profile!r}, not in the fleet{hint}")
        for placed in gpu.adapters:
            if placed.name not in problem.index:
                raise BadInputError(f"adapter {placed.name!r} of the plan is not in the config's workload")
            whole = problem.adapters[problem.index[placed.name]]
            name = whole.name if placed.share == 1.0 else f"{whole.name}#{len(names[whole.name]) + 1}"
            names[whole.name].append(name)
            rows[-1].append(len(adapters))
            adapters.append(replace(whole, name=name, rate=whole.rate * placed.share))
    adapters += [adapter for adapter in problem.adapters if adapter.name not in names]
    made = Problem(tuple(adapters), _big_enough(problem.fleet, plan), _renamed(problem.constraints, names))
    loads = [
        GPULoad(types[gpu.profile], tuple(sorted(row)), gpu.slots) for gpu, row in zip(plan.gpus, rows, strict=True)
    ]
    return Recorded(config, made, tuple(loads))


def _big_enough(fleet: Fleet, plan: Plan) -> Fleet:
    """The fleet, with GPUs at least as many as the plan has."""
    used = Counter(gpu.profile for gpu in plan.gpus)
    return Fleet(tuple(replace(t, count=max(t.count, used[t.profile.name])) for t in fleet.types))


def _renamed(limits: Constraints, names: dict[str, list[str]]) -> Constraints:
    """The constraints, about the replicas that there are."""
    parts = {name: tuple(replicas) for name, replicas in names.items()}
    return replace(
        limits,
        pins={part: pin for name, pin in limits.pins.items() for part in parts.get(name, (name,))},
        separate=tuple(tuple(p for name in group for p in parts.get(name, (name,))) for group in limits.separate),
        replicas={},
    )
