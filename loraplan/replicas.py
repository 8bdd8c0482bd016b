"""Adapters that are split over several GPUs: a problem in which every replica is an adapter of its own."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from loraplan.errors import BadInputError
from loraplan.oracle import Oracle
from loraplan.problem import GPULoad, Problem
from loraplan.workload import Adapter, Floats

FEW_SLOTS = (1, 2, 4, 8)
"""Numbers of slots with which an adapter is tried alone."""


@dataclass(frozen=True, eq=False)
class Split:
    """A problem of replicas.

    Attributes:
        problem: what solvers see; an adapter that is not split is in it as it was.
        origin: for each of its adapters the index of the one in the original problem.
        shares: for each of its adapters, its share of that one's requests.
    """

    problem: Problem
    origin: tuple[int, ...]
    shares: Floats

    def then(self, further: Split) -> Split:
        """Both, one after the other: ``further`` splits this one's problem."""
        origin = tuple(self.origin[i] for i in further.origin)
        return Split(further.problem, origin, self.shares[list(further.origin)] * further.shares)


def whole(problem: Problem) -> Split:
    """Nothing is split."""
    return Split(problem, tuple(range(len(problem.adapters))), np.ones(len(problem.adapters)))


def split(problem: Problem, oracle_of: Callable[[Problem], Oracle]) -> Split:
    """Split the adapters for which the constraints give a number of replicas and, if they allow it, those too hot.

    Too hot is an adapter that no GPU carries alone: it gets the fewest replicas of equal shares that fit. One for which
    as many as there are GPUs would not do stays whole.

    Raises:
        BadInputError: an adapter with replicas is to be kept together with others, or has more than there are GPUs.
    """
    limits = problem.constraints
    counts = {problem.index[name]: count for name, count in limits.replicas.items() if count > 1}
    if limits.split:
        hot = [i for i in _too_hot(problem, oracle_of(problem)) if problem.adapters[i].name not in limits.replicas]
        counts.update(_fewest_replicas(problem, hot, oracle_of) if hot else {})
    for i, count in counts.items():
        name = problem.adapters[i].name
        if count > problem.gpus:
            raise BadInputError(f"constraints: {count} replicas of adapter {name} need as many GPUs, of {problem.gpus}")
        if any(name in group for group in limits.together):
            raise BadInputError(f"adapter {name} needs {count} replicas, so it cannot be kept together with others")
    return divide(problem, {i: [1.0 / count] * count for i, count in counts.items()})


def _too_hot(problem: Problem, oracle: Oracle) -> list[int]:
    """Adapters that no GPU type carries alone; of equal rank and lengths the busier are asked first, until one fits."""
    kinds: dict[tuple[int, int, tuple[int, ...]], list[int]] = {}
    together = {name for group in problem.constraints.together for name in group}
    for i in np.argsort(-problem.rates, kind="stable"):
        adapter = problem.adapters[i]
        if adapter.name not in together:
            kinds.setdefault((adapter.rank, id(adapter.lengths), problem.types_of((i,))), []).append(int(i))
    hot: list[int] = []
    waiting = list(kinds.values())
    while waiting:
        fits = _fit_alone(problem, [members[0] for members in waiting], oracle)
        hot += [members[0] for members, fine in zip(waiting, fits, strict=True) if not fine]
        waiting = [members[1:] for members, fine in zip(waiting, fits, strict=True) if not fine and members[1:]]
    return hot


def _fit_alone(problem: Problem, adapters: list[int], oracle: Oracle) -> list[bool]:
    """Whether some GPU type carries each of these adapters alone."""
    loads = [
        GPULoad(t, (i,), slots)
        for i in adapters
        for t in problem.types_of((i,))
        for slots in FEW_SLOTS
        if problem.starts(GPULoad(t, (i,), slots))
    ]
    kept = oracle.predict(loads).keeps(problem.constraints)
    carried = {load.adapters[0] for load, fine in zip(loads, kept, strict=True) if fine}
    return [i in carried for i in adapters]


def _fewest_replicas(problem: Problem, hot: list[int], oracle_of: Callable[[Problem], Oracle]) -> dict[int, int]:
    """For each hot adapter the least number of replicas that fit; none for one of which as many as GPUs would not."""
    found: dict[int, int] = {}
    for count in range(2, problem.gpus + 1):
        left = [i for i in hot if i not in found]
        if not left:
            break
        parts = list(problem.adapters)
        for i in left:
            parts[i] = replace(parts[i], rate=parts[i].rate / count)
        smaller = replace(problem, adapters=tuple(parts))
        fits = _fit_alone(smaller, left, oracle_of(smaller))
        found.update({i: count for i, fine in zip(left, fits, strict=True) if fine})
    return found


def divide(problem: Problem, shares: Mapping[int, Sequence[float]]) -> Split:
    """Replace adapters by replicas.

    Args:
        problem: whose adapters are divided.
        shares: adapter -> the shares of its replicas, two or more that add up to 1.
    """
    if not shares:
        return whole(problem)
    adapters: list[Adapter] = []
    origin: list[int] = []
    parts: list[float] = []
    names: dict[str, tuple[str, ...]] = {}
    for i, adapter in enumerate(problem.adapters):
        mine = tuple(shares.get(i, (1.0,)))
        labels = tuple(_name(problem, adapter.name, k) for k in range(len(mine))) if len(mine) > 1 else (adapter.name,)
        names[adapter.name] = labels
        adapters += [replace(adapter, name=n, rate=adapter.rate * part) for n, part in zip(labels, mine, strict=True)]
        origin += [i] * len(mine)
        parts += mine
    limits = problem.constraints
    groups = [tuple(replica for name in group for replica in names[name]) for group in limits.separate]
    limits = replace(
        limits,
        pins={replica: pin for name, pin in limits.pins.items() for replica in names[name]},
        separate=(*groups, *(names[problem.adapters[i].name] for i in shares)),
        replicas={},
    )
    return Split(replace(problem, adapters=tuple(adapters), constraints=limits), tuple(origin), np.array(parts))


def _name(problem: Problem, name: str, number: int) -> str:
    """A name for a replica that no adapter has."""
    made = f"{name}#{number + 1}"
    while made in problem.index:
        made += "'"
    return made
