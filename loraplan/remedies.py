"""What would make a plan possible where there is none: by how much a limit has to give, one at a time."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Any

from loraplan.conflict import Ask, Conflict, Limit, Progress, Solved, find_conflict, more_gpus, only
from loraplan.errors import BadInputError
from loraplan.problem import Fleet, Problem

FEW_ADAPTERS = 8
"""A conflict of so many adapters is also tried without each of them."""

MANY = ("pins", "together", "separate", "replicas")
"""Limits of which there may be many."""

MOST_TRIES = 10_000
"""For the problems that remedies solve: those of one are few, about twice the logarithm of what it finds."""


@dataclass(frozen=True)
class Remedy:
    """One change with which the solver finds a plan.

    Attributes:
        name: the setting that changes, or ``rates``, or ``adapter``.
        text: the change, in words.
        value: what it is set to, or by how much there is more; None where something is left out.
    """

    name: str
    text: str
    value: float | None = None


@dataclass(frozen=True)
class Impasse:
    """Why there is no plan, and what would help; ``remedies`` are of the whole problem, each of them alone."""

    conflict: Conflict
    remedies: tuple[Remedy, ...]


def explain_conflict(problem: Problem, ask: Ask, most_solves: int, on_progress: Progress | None = None) -> Impasse:
    """The smallest conflict of a problem that ``ask`` finds no plan for, and what would resolve it.

    Args:
        problem: the whole problem.
        ask: solves a problem.
        most_solves: problems that may be solved in search of the conflict; remedies come on top.
        on_progress: called for each problem solved.

    Raises:
        BadInputError: there is a plan, or a problem cannot be asked for at all.
    """
    if ask(problem).complete:
        raise BadInputError("there is a plan, so there is no conflict to explain")
    conflict = find_conflict(Solved(problem, ask, most_solves, on_progress))
    solved = Solved(problem, ask, MOST_TRIES, on_progress)
    return Impasse(conflict, tuple(_remedies(solved, conflict)))


def _remedies(solved: Solved, conflict: Conflict) -> Iterator[Remedy]:
    problem = solved.problem

    def fits(changed: Problem) -> bool:
        return solved.solve(changed).complete

    named = {limit.text for limit in conflict.limits}
    for limit in solved.limits:
        # Of a heuristic, what is not in the conflict may help as well; but there may be thousands of pins.
        if (limit.text in named or limit.name not in MANY) and fits(limit.relax(problem)):
            yield from _by_limit(problem, limit, fits)
    if problem.constraints.max_gpus is not None:
        yield from _more_of_all(problem, fits)
    percent = _largest(lambda p: fits(problem.scaled(p / 100)), 99)
    if percent is not None:
        yield Remedy("rates", f"{percent} % of the rates", percent / 100)
    if len(conflict.adapters) <= FEW_ADAPTERS:
        for name in conflict.adapters:
            rest = [i for i in range(len(problem.adapters)) if i != problem.index[name]]
            if rest and fits(only(problem, rest)):
                yield Remedy("adapter", f"without adapter {name}")


def _by_limit(problem: Problem, limit: Limit, fits: Callable[[Problem], bool]) -> Iterator[Remedy]:
    """How far the limit has to give; without it there is a plan."""
    name = limit.name
    if name == "fleet":
        yield from _more_of(problem, limit.key, fits)
        return
    current: Any = getattr(problem.constraints, name)
    if name in ("served_fraction", "adapter_served_fraction"):
        percent = _largest(lambda p: fits(_with(problem, name, p / 100)), int(100 * current - 1e-6))
        value = None if percent is None else percent / 100
    elif name in ("itl_ms", "ttft_p95_s"):
        steps = _least(lambda k: fits(_with(problem, name, _percent_more(current, k))), 100_000)
        value = None if steps is None else _percent_more(current, steps)
    elif name in ("max_adapters", "max_gpus"):
        top = len(problem.adapters) if name == "max_adapters" else problem.fleet.count
        more = _least(lambda k: fits(_with(problem, name, current + k)), top - current)
        value = None if more is None else current + more
    else:
        yield Remedy(name, {"split": "split: true", "reserve": "reserve: false"}.get(name, f"without {limit.text}"))
        return
    if value is not None:
        yield Remedy(name, f"{name} {value:g}", value)


def _more_of(problem: Problem, place: int, fits: Callable[[Problem], bool]) -> Iterator[Remedy]:
    more = _least(lambda k: fits(more_gpus(problem, place, k)), len(problem.adapters))
    if more is not None:
        name = problem.fleet.types[place].profile.name
        yield Remedy("fleet", f"{more} more GPU{'s' * (more != 1)} of {name}", more)


def _more_of_all(problem: Problem, fits: Callable[[Problem], bool]) -> Iterator[Remedy]:
    """More GPUs of a type where ``max_gpus`` has to grow with them."""

    def grown(place: int, more: int) -> Problem:
        larger = more_gpus(problem, place, max(0, problem.gpus + more - problem.fleet.count))
        return _with(larger, "max_gpus", problem.gpus + more)

    grow = Fleet(
        tuple(replace(gpu_type, count=gpu_type.count + len(problem.adapters)) for gpu_type in problem.fleet.types)
    )
    if fits(_with(problem, "max_gpus", None)) or not fits(_with(replace(problem, fleet=grow), "max_gpus", None)):
        return  # no more GPUs are needed, or no number of them would do
    for place, gpu_type in enumerate(problem.fleet.types):
        more = _least(lambda k, place=place: fits(grown(place, k)), len(problem.adapters))  # type: ignore[misc]
        if more is not None:
            extra = problem.gpus + more - problem.fleet.count
            text = f"{extra} more GPU{'s' * (extra != 1)} of {gpu_type.profile.name} and max_gpus {problem.gpus + more}"
            yield Remedy("fleet", text, extra)


def _percent_more(value: float, percent: int) -> float:
    """Rounded, so that what is printed is what was tried."""
    return float(f"{value * (1 + percent / 100):.4g}")


def _with(problem: Problem, name: str, value: Any) -> Problem:
    return replace(problem, constraints=replace(problem.constraints, **{name: value}))


def _least(fits: Callable[[int], bool], most: int) -> int | None:
    """The least of 1 to ``most`` that fits, by doubling and bisection; None if none of those tried does."""
    low, high = 0, 1
    while True:
        high = min(high, most)
        if high <= low:
            return None
        if fits(high):
            break
        low, high = high, 2 * high
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if fits(middle) else (middle, high)
    return high


def _largest(fits: Callable[[int], bool], most: int) -> int | None:
    """The largest of 1 to ``most`` that fits, by bisection; None if 1 does not."""
    if most < 1 or not fits(1):
        return None
    low, high = 1, most + 1
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if fits(middle) else (low, middle)
    return low
