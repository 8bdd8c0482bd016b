"""Why there is no plan: limits and adapters that cannot be had together, as few of them as can be."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, Protocol

from loraplan.constraints import Constraints
from loraplan.plan import Plan
from loraplan.problem import Fleet, Problem
from loraplan.run import INTERRUPTED

Ask = Callable[[Problem], Plan]
"""Solves a problem, as `loraplan.solve` does with a solver of one's choice."""

Progress = Callable[[int, int], None]
"""Called with (problems solved, most that will be)."""

MOST_SOLVES = 500
NO_FRACTION = 1e-9
"""Stands for no limit on a served fraction, which must be above 0."""


@dataclass(frozen=True)
class Limit:
    """Something that a problem asks for.

    Attributes:
        name: the setting of a config: ``served_fraction``, ``pins``, ``fleet``, ...
        text: what it asks for, in words.
        relax: the problem without it.
        key: what it is about: the adapter of a pin, the adapters of a group, the GPU type.
    """

    name: str
    text: str
    relax: Callable[[Problem], Problem]
    key: Any = None


@dataclass(frozen=True)
class Conflict:
    """What stands against a plan: without any one of its limits or adapters the solver finds one for the rest.

    Attributes:
        limits, adapters: the conflict; memory and the ranks that servers take are always asked for.
        requests_per_s: of these adapters together.
        proven: the solver proved that there is no plan; otherwise it only found none.
        minimal: that each is needed was tried; False if that would have taken too many tries.
        solves: problems solved to find it.
    """

    limits: tuple[Limit, ...]
    adapters: tuple[str, ...]
    requests_per_s: float
    proven: bool
    minimal: bool
    solves: int


class _EnoughError(Exception):
    """No more problems are to be solved."""


class Solved:
    """Which parts of a problem can be solved; each is asked for once."""

    def __init__(
        self, problem: Problem, ask: Ask, most: int = MOST_SOLVES, on_progress: Progress | None = None
    ) -> None:
        """Prepare to ask, ``most`` times at the most."""
        self.problem, self.limits = problem, limits_of(problem)
        self._ask, self._most, self._on_progress = ask, most, on_progress
        self._known: dict[tuple[frozenset[int], frozenset[int]], Plan] = {}
        self.solves = 0

    def possible(self, limits: Sequence[int], adapters: Sequence[int]) -> bool:
        """Whether there is a plan for these adapters within these limits (indices of both)."""
        if not adapters:
            return True
        key = frozenset(limits), frozenset(adapters)
        if key not in self._known:
            part = self.problem
            for place, limit in enumerate(self.limits):
                part = part if place in key[0] else limit.relax(part)
            self._known[key] = self.solve(only(part, adapters))
        return self._known[key].complete

    def proven(self, limits: Sequence[int], adapters: Sequence[int]) -> bool:
        """Whether the solver was asked for these and proved that there is no plan."""
        plan = self._known.get((frozenset(limits), frozenset(adapters)))
        return plan is not None and plan.status == "infeasible"

    def solve(self, problem: Problem) -> Plan:
        """Solve any problem, and count it.

        Raises:
            KeyboardInterrupt: the user asked to stop.
        """
        if self.solves >= self._most:
            raise _EnoughError
        self.solves += 1
        if self._on_progress is not None:
            self._on_progress(self.solves, self._most)
        plan = self._ask(problem)
        if plan.reason.startswith(INTERRUPTED):
            raise KeyboardInterrupt
        return plan


def find_conflict(solved: Solved) -> Conflict:
    """A smallest conflict of a problem that the solver finds no plan for.

    QuickXplain (Junker 2004) over the limits, then over the adapters, the busiest first; then each part is left out
    once more, because a heuristic may find a plan for more and none for less.
    """
    everything = tuple(range(len(solved.problem.adapters)))
    limits, adapters, minimal = tuple(range(len(solved.limits))), everything, False
    try:
        limits = smallest(limits, lambda some: not solved.possible(some, everything))
        adapters = _busiest(solved, limits)
        found: list[tuple[int, ...]] = [adapters]

        def breaks(some: Sequence[int]) -> bool:
            broken = not solved.possible(limits, some)
            if broken and len(some) < len(found[-1]):
                found.append(tuple(some))
            return broken

        try:
            adapters = smallest(adapters, breaks)
        except _EnoughError:
            adapters = found[-1]
            raise
        limits, adapters = _without_any(solved, limits, adapters)
        minimal = True
    except _EnoughError:
        pass
    return Conflict(
        limits=tuple(solved.limits[place] for place in limits),
        adapters=tuple(solved.problem.adapters[i].name for i in adapters),
        requests_per_s=sum(solved.problem.adapters[i].rate for i in adapters),
        proven=solved.proven(limits, adapters),
        minimal=minimal,
        solves=solved.solves,
    )


def smallest(items: tuple[int, ...], breaks: Callable[[tuple[int, ...]], bool]) -> tuple[int, ...]:
    """Items that break together, none of which can be left out; of several choices rather the first items.

    QuickXplain, for ``breaks`` that stays true when items are added.
    """
    if breaks(()):
        return ()

    def needed(base: tuple[int, ...], new: bool, rest: tuple[int, ...]) -> tuple[int, ...]:
        if new and breaks(base):
            return ()
        if len(rest) == 1:
            return rest
        first, second = rest[: len(rest) // 2], rest[len(rest) // 2 :]
        late = needed(base + first, True, second)
        return needed(base + late, bool(late), first) + late

    return needed((), False, items) if items else ()


def _busiest(solved: Solved, limits: tuple[int, ...]) -> tuple[int, ...]:
    """The fewest adapters, counted from the busiest, that cannot be had: by bisection."""
    offered = solved.problem.offered
    order = tuple(sorted(range(len(offered)), key=lambda i: (-offered[i], i)))
    low, high = 0, len(order)
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if solved.possible(limits, order[:middle]) else (low, middle)
    return order[:high]


def _without_any(
    solved: Solved, limits: tuple[int, ...], adapters: tuple[int, ...]
) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Leave out whatever need not be there, until nothing is; of adapters that nothing tells apart one is tried."""
    named = {name for _, name in solved.problem.constraints.named}
    while True:
        spare = next((n for n in limits if not solved.possible([m for m in limits if m != n], adapters)), None)
        if spare is not None:
            limits = tuple(n for n in limits if n != spare)
            continue
        one_of_each = {_kind(solved.problem, named, i): i for i in adapters}.values()
        spare = next((i for i in one_of_each if not solved.possible(limits, [j for j in adapters if j != i])), None)
        if spare is None:
            return limits, adapters
        adapters = tuple(i for i in adapters if i != spare)


def _kind(problem: Problem, named: set[str], i: int) -> object:
    adapter = problem.adapters[i]
    return i if adapter.name in named else (adapter.rank, adapter.rate, id(adapter.lengths))


def only(problem: Problem, adapters: Sequence[int]) -> Problem:
    """The problem of some of the adapters; what the constraints say of others is left out."""
    if len(adapters) == len(problem.adapters):
        return problem
    kept = tuple(problem.adapters[i] for i in sorted(adapters))
    names = {adapter.name for adapter in kept}
    limits = problem.constraints

    def groups(given: Sequence[tuple[str, ...]]) -> tuple[tuple[str, ...], ...]:
        left = (tuple(name for name in group if name in names) for group in given)
        return tuple(group for group in left if len(group) > 1)

    fewer = replace(
        limits,
        pins={name: pin for name, pin in limits.pins.items() if name in names},
        replicas={name: count for name, count in limits.replicas.items() if name in names},
        separate=groups(limits.separate),
        together=groups(limits.together),
    )
    return replace(problem, adapters=kept, constraints=fewer)


class _Change(Protocol):
    def __call__(self, limits: Constraints) -> dict[str, Any]: ...


def _without(change: _Change) -> Callable[[Problem], Problem]:
    def relax(problem: Problem) -> Problem:
        return replace(problem, constraints=replace(problem.constraints, **change(problem.constraints)))

    return relax


def _set(name: str, value: Any) -> Callable[[Problem], Problem]:
    return _without(lambda limits: {name: value})


def limits_of(problem: Problem) -> tuple[Limit, ...]:
    """All that the problem asks for; first what a conflict should rather name."""
    limits = problem.constraints
    found = [
        Limit("served_fraction", f"served_fraction {limits.served_fraction:g}", _set("served_fraction", NO_FRACTION))
    ]
    for name in ("adapter_served_fraction", "itl_ms", "ttft_p95_s", "max_adapters", "max_gpus"):
        value = getattr(limits, name)
        if value is not None:
            found.append(Limit(name, f"{name} {value:g}", _set(name, None)))
    found += _placing(limits)
    if not limits.split:
        found.append(Limit("split", "split: false", _set("split", True)))
    if limits.reserve:
        found.append(Limit("reserve", "reserve: true", _set("reserve", False)))
    for place, gpu_type in enumerate(problem.fleet.types):
        text = f"{gpu_type.count} GPU{'s' * (gpu_type.count != 1)} of {gpu_type.profile.name}"
        found.append(Limit("fleet", text, partial(_plenty, place), place))
    return tuple(found)


def _placing(limits: Constraints) -> list[Limit]:
    found = []
    for name in limits.pins:
        text = f"pins: {name} on {' or '.join(limits.pins[name])}"
        found.append(Limit("pins", text, _dropped("pins", name), name))
    for kind in ("together", "separate"):
        for group in getattr(limits, kind):
            found.append(Limit(kind, f"{kind}: {', '.join(group)}", _dropped(kind, group), group))
    for name, count in limits.replicas.items():
        found.append(Limit("replicas", f"replicas: {count} of {name}", _dropped("replicas", name), name))
    return found


def _dropped(kind: str, key: Any) -> Callable[[Problem], Problem]:
    """One pin, group or number of replicas less."""

    def change(limits: Constraints) -> dict[str, Any]:
        given = getattr(limits, kind)
        if isinstance(given, tuple):
            return {kind: tuple(group for group in given if group != key)}
        return {kind: {name: value for name, value in given.items() if name != key}}

    return _without(change)


def _plenty(place: int, problem: Problem) -> Problem:
    """As many GPUs of a type as anybody could use."""
    return more_gpus(problem, place, len(problem.adapters) + sum(problem.constraints.replicas.values()))


def more_gpus(problem: Problem, place: int, more: int) -> Problem:
    """The problem with ``more`` GPUs of one type of the fleet."""
    types = list(problem.fleet.types)
    types[place] = replace(types[place], count=types[place].count + more)
    return replace(problem, fleet=Fleet(tuple(types)))
