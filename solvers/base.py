"""What a solver is, and what it is given."""

from __future__ import annotations

import time
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from numbers import Integral
from typing import Any, ClassVar, Literal, Protocol

import numpy as np
from numpy.typing import NDArray

from loraplan.errors import LoraplanError
from loraplan.oracle import Oracle, Predictions
from loraplan.problem import GPULoad, Problem
from loraplan.replicas import Split
from loraplan.workload import Floats
from objectives.base import Objective

Status = Literal["optimal", "feasible", "infeasible", "unknown"]


class SearchStoppedError(LoraplanError):
    """The time is up or the user asked to stop; whoever started the search takes its incumbent."""


@dataclass(frozen=True)
class Solution:
    """What a solver found.

    Attributes:
        status: ``optimal`` (proven), ``feasible``, ``infeasible`` (proven: no plan exists) or ``unknown`` (the solver
            found none, or was stopped before it placed every adapter). ``infeasible`` is about plans that keep each
            adapter on one GPU, as all solvers here do.
        loads: the GPUs in use; for ``unknown`` and ``infeasible`` possibly a part of the adapters only.
        lower_bound: no plan costs less, with respect to the oracle; None where the solver proves nothing.
        reason: for ``unknown`` and ``infeasible``, one line: which adapters, which limit.
        replicas: the search's problem with adapters divided among GPUs, if the solver did so; the adapters of ``loads``
            are then those of its problem.
        certificate: what proves the bound, as plain data, for `loraplan.certificate`; None where nothing does.
    """

    status: Status
    loads: tuple[GPULoad, ...] = ()
    lower_bound: float | None = None
    reason: str = ""
    replicas: Split | None = None
    certificate: dict[str, Any] | None = None


class Excluded(Protocol):
    """Loads that are known not to do (`solvers.cuts`)."""

    def allow(self, loads: Sequence[GPULoad]) -> NDArray[np.bool_]:
        """Which loads are not among them, shape (loads,)."""


@dataclass(frozen=True)
class Event:
    """What a search had at a time: seconds since it began, GPUs, cost (None: not complete), bound (None: none)."""

    seconds: float
    gpus: int
    value: float | None
    bound: float | None


@dataclass
class Search:
    """One search: the problem, how to judge a load, when to stop, and the best found so far.

    Solvers call ``check`` between units of work (it raises when the time is up), ``publish`` whenever they have
    something that a user who stops now would want, and ``prove`` when they know that no plan costs less than something.

    Attributes:
        deadline: ``time.monotonic()`` after which to stop; None for no limit.
        on_progress: called by ``publish`` with (adapters placed, adapters in all, GPUs in use).
        headroom: says how far loads are from starving (`loraplan.headroom`), for objectives that ask for it.
        start: GPUs of a plan to begin with, for solvers that improve one; it may have become infeasible.
        oracle_of: makes the oracle of another problem, for solvers that divide adapters among GPUs.
        cuts: loads that are not allowed, whatever the oracle says.
        bound: what no plan costs less than, as far as is proven; None if nothing is.
        events: the better plans and bounds, as they came.
    """

    problem: Problem
    objective: Objective
    oracle: Oracle
    seed: int
    deadline: float | None = None
    on_progress: Callable[[int, int, int], None] | None = None
    headroom: Callable[[Sequence[GPULoad]], Floats] | None = None
    start: tuple[GPULoad, ...] = ()
    oracle_of: Callable[[Problem], Oracle] | None = None
    cuts: Excluded | None = None
    incumbent: tuple[GPULoad, ...] = field(default=(), init=False)
    bound: float | None = field(default=None, init=False)
    events: list[Event] = field(default_factory=list, init=False)
    _begun: float = field(default_factory=time.monotonic, init=False)

    def check(self) -> None:
        """Raise SearchStoppedError if the time is up."""
        if self.deadline is not None and time.monotonic() >= self.deadline:
            raise SearchStoppedError("the time limit was reached")

    def publish(self, loads: Sequence[GPULoad], value: float | None = None) -> None:
        """Keep ``loads`` (complete or not) as what the search has to show so far; ``value``: their cost, if known."""
        self.incumbent = tuple(loads)
        if value is not None and not any(event.value is not None and event.value <= value for event in self.events):
            self._record(value)
        if self.on_progress is not None:
            placed = sum(len(load.adapters) for load in loads)
            self.on_progress(placed, len(self.problem.adapters), len(loads))

    def prove(self, bound: float) -> None:
        """Keep it in mind that no plan costs less than ``bound``, with respect to the oracle."""
        if self.bound is None or bound > self.bound:
            self.bound = bound
            self._record(min((event.value for event in self.events if event.value is not None), default=None))

    def _record(self, value: float | None) -> None:
        self.events.append(Event(time.monotonic() - self._begun, len(self.incumbent), value, self.bound))

    def judge(self, loads: Sequence[GPULoad]) -> tuple[NDArray[np.bool_], Predictions]:
        """Which loads keep the constraints, shape (loads,), and what the oracle says of them."""
        self.check()
        predicted = self.oracle.predict(loads)
        kept = predicted.keeps(self.problem.constraints)
        if self.problem.restricted:
            kept &= np.fromiter(map(self.problem.allows, loads), np.bool_, len(loads))
        if self.cuts is not None:
            kept &= self.cuts.allow(loads)
        return kept, predicted

    def on(self, problem: Problem) -> Search:
        """The same search, of another problem."""
        if problem is self.problem:
            return self
        if self.oracle_of is None:
            raise LoraplanError("this search cannot judge other problems")
        return replace(self, problem=problem, oracle=self.oracle_of(problem), on_progress=None)

    def costs(self, loads: Sequence[GPULoad], predicted: Predictions) -> Floats:
        """What each load costs, shape (loads,)."""
        if self.objective.needs_headroom and self.headroom is not None:
            predicted = replace(predicted, headroom=self.headroom(loads))
        return self.objective.gpu_costs(self.problem, loads, predicted)

    @property
    def hereditary(self) -> bool:
        """Whether taking an adapter away never makes a load break a limit."""
        return self.oracle.hereditary and not self.problem.constraints.latency


def complaint(problem: Problem, solution: Solution) -> str:
    """What makes ``solution`` no solution of ``problem``, whatever an oracle says of it; empty if nothing does."""
    times = Counter(i for load in solution.loads for i in load.adapters)
    total = len(problem.adapters)
    if not all(isinstance(i, Integral) and 0 <= i < total for i in times):
        return f"it places adapters other than 0 to {total - 1}"
    twice = next((i for i, count in times.items() if count > 1), None)
    if twice is not None:
        return f"adapter {problem.adapters[twice].name} is placed {times[twice]} times"
    if solution.status in ("optimal", "feasible") and len(times) < total:
        return f"it is called {solution.status}, but {total - len(times)} of {total} adapters are not placed"
    if not all(load.adapters and load.slots >= 1 for load in solution.loads):
        return "a GPU in use has no adapter or no slot"
    gpu_of = {i: row for row, load in enumerate(solution.loads) for i in load.adapters}
    torn = next((unit for unit in problem.units if len({gpu_of.get(i) for i in unit}) > 1), None)
    if torn is not None:
        return f"it does not put {', '.join(problem.adapters[i].name for i in torn)} on one GPU"
    for index, count in Counter(load.gpu_type for load in solution.loads).items():
        if not 0 <= index < len(problem.fleet.types):
            return f"it uses GPU type {index}, which the fleet does not have"
        gpu_type = problem.fleet.types[index]
        if count > gpu_type.count:
            return f"it uses {count} of {gpu_type.count} {gpu_type.profile.name}"
    if len(solution.loads) > problem.gpus:
        return f"it uses {len(solution.loads)} of {problem.gpus} GPUs"
    return ""


class Solver(ABC):
    """Searches a placement of all adapters that keeps the constraints at low cost.

    Life cycle: made once with its params; ``solve`` may be called with any number of searches and must depend on
    nothing but the search (its seed included). It never imports an oracle: what a load does is asked of ``search``.
    """

    Params: ClassVar[type[Any]]
    """Frozen dataclass of the solver's settings."""

    baseline: ClassVar[bool] = False
    """Whether it is a published baseline that goes its own way: the oracle only says whether that makes a plan."""

    @abstractmethod
    def __init__(self, params: Any) -> None:
        """Take the settings; ``params`` is an instance of ``Params``."""

    @abstractmethod
    def solve(self, search: Search) -> Solution:
        """Search until done or until ``search.check`` raises."""
