"""What every objective must do."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np

from loraplan.headroom import Headroom
from loraplan.oracle import ORACLES, Oracle, Predictions
from loraplan.problem import GPULoad, Problem
from loraplan.registry import Chosen, choose
from loraplan.run import Run
from loraplan.testing.contract import Settings, chosen, require
from loraplan.testing.problems import TokenBudgetOracle, TokenBudgetParams, small_problem
from loraplan.workload import Floats
from objectives import OBJECTIVES, Objective
from solvers import SOLVERS

CLOSE = 1e-12
"""Relative difference of two sums of the same numbers."""


@dataclass(frozen=True)
class ObjectiveSubject:
    """An objective under test, and what it is tried on.

    Attributes:
        chosen: the plugin and its settings.
        problem, loads: GPU loads of every kind: idle, busy, overloaded, on each GPU type.
        oracle: what judges them.
    """

    chosen: Chosen
    problem: Problem
    loads: tuple[GPULoad, ...]
    oracle: Oracle

    @cached_property
    def objective(self) -> Objective:
        """Made once, as a search does."""
        return self.make()

    @property
    def owner(self) -> str:
        """Whom complaints are about."""
        return f"objective {self.chosen.name}"

    def make(self) -> Objective:
        """An objective like it."""
        made: Objective = self.chosen.kind(self.chosen.params)
        return made

    def costs(self, loads: Sequence[GPULoad], objective: Objective | None = None) -> Floats:
        """What these loads cost."""
        return (objective or self.objective).gpu_costs(self.problem, loads, self.predict(loads))

    def predict(self, loads: Sequence[GPULoad]) -> Predictions:
        """What the oracle says of them, with headroom if the objective asks for it."""
        predicted = self.oracle.predict(loads)
        if not self.objective.needs_headroom:
            return predicted
        headroom = Headroom(self.problem, type(self.oracle), TokenBudgetParams()).of(loads)
        return replace(predicted, headroom=headroom)


def objective_subject(objective: str | type[Objective], settings: Settings | None = None) -> ObjectiveSubject:
    """An objective by its registered name or its class, on two GPU types of different price."""
    problem = small_problem([(8, 1.0), (16, 2.0), (8, 0.0), (32, 0.5), (8, 30.0)], counts=(2, 3))
    loads = GPULoad(0, (0, 1), 2), GPULoad(1, (2,), 1), GPULoad(1, (3,), 4), GPULoad(0, (4,), 1)
    oracle = TokenBudgetOracle(problem, TokenBudgetParams())
    return ObjectiveSubject(chosen(OBJECTIVES, objective, settings), problem, loads, oracle)


def check_objective(objective: str | type[Objective], settings: Settings | None = None) -> None:
    """Check all that solvers rely on: names, costs of any loads, and a plan made with it.

    Args:
        objective: its registered name, or its class.
        settings: those it cannot do without. Adapters are called a0 to a4, GPU types type0 and type1.

    Raises:
        ContractError: it does not keep its contract.
        BadInputError: the name or a setting is unknown or wrong.
    """
    subject = objective_subject(objective, settings)
    for check in OBJECTIVE_CHECKS:
        check(subject)


def unit_is_named(subject: ObjectiveSubject) -> None:
    """Tables say what a cost is in."""
    unit = getattr(subject.objective, "unit", None)
    require(isinstance(unit, str) and unit, f"{subject.owner}: unit must name what one unit of cost is (got {unit!r})")


def costs_are_finite(subject: ObjectiveSubject) -> None:
    """One finite number, at least 0, per load; also where a queue grows without end, or nobody asks for anything."""
    costs = subject.costs(subject.loads)
    n = len(subject.loads)
    require(
        isinstance(costs, np.ndarray), f"{subject.owner}: gpu_costs must return an array (got {type(costs).__name__})"
    )
    require(costs.shape == (n,), f"{subject.owner}: costs of {n} loads must have shape ({n},) (got {costs.shape})")
    require(np.isfinite(costs).all(), f"{subject.owner}: costs must be finite (got {costs.tolist()})")
    require((costs >= 0).all(), f"{subject.owner}: costs must be at least 0 (got {costs.tolist()})")
    endless = replace(subject.predict(subject.loads), ttft_s=np.full(n, np.inf), ttft_p95_s=np.full(n, np.inf))
    costs = subject.objective.gpu_costs(subject.problem, subject.loads, endless)
    require(
        np.isfinite(costs).all(), f"{subject.owner}: costs must be finite where ttft_s is inf (got {costs.tolist()})"
    )


def no_loads_cost_nothing(subject: ObjectiveSubject) -> None:
    """Searches begin with none."""
    shape = subject.costs([]).shape
    require(shape == (0,), f"{subject.owner}: costs of no loads must have shape (0,) (got {shape})")


def costs_are_independent(subject: ObjectiveSubject) -> None:
    """The cost of a load depends on no other load: solvers add up costs that they asked for at different times."""
    together = subject.costs(subject.loads)
    alone = np.array([subject.costs([load])[0] for load in subject.loads])
    turned = subject.costs(subject.loads[::-1])[::-1]
    for other, what in ((alone, "alone"), (turned, "in another order")):
        fine = np.allclose(together, other, rtol=CLOSE, atol=0.0)
        require(fine, f"{subject.owner}: loads cost {together.tolist()} together, {other.tolist()} {what}")


def costs_are_repeatable(subject: ObjectiveSubject) -> None:
    """Asked again, and of another instance, the same."""
    first, again = subject.costs(subject.loads), subject.costs(subject.loads)
    other = subject.costs(subject.loads, subject.make())
    require(
        (first == again).all() and (first == other).all(), f"{subject.owner}: the same loads cost something else again"
    )


def arguments_are_left_alone(subject: ObjectiveSubject) -> None:
    """Predictions are shared: what is asked of others afterwards must be what the oracle said."""
    predicted = subject.predict(subject.loads)
    before = {name: value.copy() for name, value in vars(predicted).items()}
    subject.objective.gpu_costs(subject.problem, subject.loads, predicted)
    for name, value in before.items():
        fine = np.array_equal(getattr(predicted, name), value, equal_nan=True)
        require(fine, f"{subject.owner}: gpu_costs changes predicted.{name}")


def plans_are_made_with_it(subject: ObjectiveSubject) -> None:
    """A solver that asks for costs at every step finds a plan of the cost that the objective says."""
    run = Run(choose(SOLVERS, "best_fit"), subject.chosen, choose(ORACLES, "fluid"), seed=0)
    search, solution = run.search(subject.problem)
    require(solution.status == "feasible", f"{subject.owner}: best_fit finds no plan with it: {solution.reason}")
    costs = search.costs(solution.loads, search.oracle.predict(solution.loads))
    require(np.isfinite(costs).all(), f"{subject.owner}: a plan costs {costs.tolist()}")


OBJECTIVE_CHECKS = (
    unit_is_named,
    costs_are_finite,
    no_loads_cost_nothing,
    costs_are_independent,
    costs_are_repeatable,
    arguments_are_left_alone,
    plans_are_made_with_it,
)
