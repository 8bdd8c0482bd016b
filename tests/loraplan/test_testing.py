"""The checks for plugin authors: plugins that are right pass, and whatever is wrong is found and named."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import numpy as np
import pytest
from support import plugins
from support.plugins import NoParams, OneEach, Rent

from loraplan.errors import BadInputError
from loraplan.oracle import ORACLES, Oracle, Predictions
from loraplan.problem import GPULoad, Problem
from loraplan.testing import ContractError, TokenBudgetOracle, check_objective, check_oracle, check_solver
from loraplan.workload import Floats
from objectives import Objective
from solvers import Search, Solution, Solver
from solvers.best_fit import BestFit, BestFitParams


def test_registered_plugins_pass(monkeypatch: pytest.MonkeyPatch) -> None:
    plugins.install(monkeypatch)
    check_objective("rent")
    check_objective(Rent, {"euros": 3.5})
    check_objective("migration", {"placement": [["a0", "a1"], ["a3"]]})
    check_oracle("token_budget")
    check_solver("best_fit", strict=True)
    check_solver(BestFit, {"slots": [4]}, oracles=["fluid"], seeds=1)


@pytest.mark.parametrize(
    ("name", "settings"), [("fluid", None), ("surrogate", None), ("twin", {"horizon_s": 60.0})], ids=ORACLES.names()[:3]
)
def test_the_oracles_pass(name: str, settings: dict[str, Any] | None) -> None:
    check_oracle(name, settings)


def test_names_and_settings_are_checked_first() -> None:
    with pytest.raises(BadInputError, match="did you mean 'gpu_count'"):
        check_objective("gpu_cuont")
    with pytest.raises(BadInputError, match="has no setting 'dollars'"):
        check_objective(Rent, {"dollars": 1})
    with pytest.raises(BadInputError, match="expected plan"):
        check_objective("migration")


def test_a_contract_error_is_an_assertion() -> None:
    assert issubclass(ContractError, AssertionError)


# ---- objectives that are wrong ----


@dataclass
class Melting:
    """Settings that can be changed."""

    euros: float = 2.0


class WrongObjective(Rent):
    """One that is right but for what a test changes."""

    wrong: ClassVar[Callable[[Floats], Any]]

    def gpu_costs(self, problem: Problem, loads: Sequence[GPULoad], predicted: Predictions) -> Floats:
        costs: Floats = type(self).wrong(super().gpu_costs(problem, loads, predicted))
        return costs


def objective_that(wrong: Callable[[Floats], Any]) -> type[Objective]:
    return type("Wrong", (WrongObjective,), {"wrong": staticmethod(wrong)})


_calls = itertools.count()


@pytest.mark.parametrize(
    ("wrong", "complaint"),
    [
        (lambda costs: costs - 5, "at least 0"),
        (lambda costs: costs * np.nan, "finite"),
        (lambda costs: costs.sum(), "must return an array"),
        (lambda costs: np.array(costs.sum()), r"shape \(4,\)"),
        (lambda costs: np.ones(4), r"no loads must have shape \(0,\)"),
        (lambda costs: costs / max(1, costs.size), "alone"),
        (lambda costs: costs * np.arange(costs.size), "alone"),
        (lambda costs: costs + 1e-15 * next(_calls), "something else again"),
    ],
    ids=["negative", "nan", "number", "one", "fixed", "shared", "ordered", "changing"],
)
def test_costs_that_are_wrong(wrong: Callable[[Floats], Any], complaint: str) -> None:
    with pytest.raises(ContractError, match=complaint):
        check_objective(objective_that(wrong))


def test_other_faults_of_objectives() -> None:
    with pytest.raises(ContractError, match="unit must name"):
        check_objective(type("NoUnit", (Rent,), {"unit": ""}))
    with pytest.raises(ContractError, match="must be frozen"):
        check_objective(type("Thawed", (Rent,), {"Params": Melting}))
    with pytest.raises(ContractError, match="must be a dataclass"):
        check_objective(type("Plain", (Rent,), {"Params": dict}))


def test_an_objective_that_waits_without_end() -> None:
    class Waiting(Rent):
        def gpu_costs(self, problem: Problem, loads: Sequence[GPULoad], predicted: Predictions) -> Floats:
            return np.nan_to_num(predicted.ttft_s, nan=0.0, posinf=np.inf)

    with pytest.raises(ContractError, match="finite where ttft_s is inf"):
        check_objective(Waiting)


def test_an_objective_that_writes_into_the_predictions() -> None:
    class Writing(Rent):
        def gpu_costs(self, problem: Problem, loads: Sequence[GPULoad], predicted: Predictions) -> Floats:
            predicted.itl_ms[:] = 1.0
            return np.ones(len(loads))

    with pytest.raises(ContractError, match=r"changes predicted\.itl_ms"):
        check_objective(Writing)


# ---- oracles that are wrong ----


class Distorted(TokenBudgetOracle):
    """One that is right but for what a test changes."""

    distort: ClassVar[Callable[[Predictions, Sequence[GPULoad]], Predictions]]

    def predict(self, loads: Sequence[GPULoad]) -> Predictions:
        return type(self).distort(super().predict(loads), loads)


def _served(
    change: Callable[[Floats, Sequence[GPULoad]], Any],
) -> Callable[[Predictions, Sequence[GPULoad]], Predictions]:
    return lambda says, loads: replace(says, served_fraction=change(says.served_fraction, loads))


@pytest.mark.parametrize(
    ("distort", "complaint"),
    [
        (_served(lambda served, loads: served * 1.1), "served_fraction must be 0 to 1"),
        (_served(lambda served, loads: served * 0.99), "without requests"),
        (_served(lambda served, loads: np.ones(7)), "must have shape"),
        (_served(lambda served, loads: np.maximum(served, 0.95)), "serves nothing"),
        (lambda says, loads: replace(says, starts=says.starts * 1.0), "truth values"),
        (lambda says, loads: replace(says, itl_ms=-says.itl_ms), "itl_ms must be at least 0"),
    ],
)
def test_predictions_that_are_wrong(
    distort: Callable[[Predictions, Sequence[GPULoad]], Predictions], complaint: str
) -> None:
    oracle: type[Oracle] = type("Wrong", (Distorted,), {"distort": staticmethod(distort)})
    with pytest.raises(ContractError, match=complaint):
        check_oracle(oracle)


def test_a_claim_to_be_hereditary_that_is_wrong() -> None:
    class Sociable(TokenBudgetOracle):
        """Starves a busy adapter that is alone."""

        def predict(self, loads: Sequence[GPULoad]) -> Predictions:
            says = super().predict(loads)
            lonely = np.array(
                [len(load.adapters) == 1 and not np.isnan(itl) for load, itl in zip(loads, says.itl_ms, strict=True)]
            )
            return replace(says, served_fraction=np.where(lonely, 0.5 * says.served_fraction, says.served_fraction))

    with pytest.raises(ContractError, match="it is called hereditary, but"):
        check_oracle(Sociable)
    check_oracle(type("Honest", (Sociable,), {"hereditary": False}))


def test_an_oracle_that_remembers() -> None:
    class Tired(TokenBudgetOracle):
        def predict(self, loads: Sequence[GPULoad]) -> Predictions:
            self.asked = getattr(self, "asked", 0) + len(loads)
            says = super().predict(loads)
            return replace(says, itl_ms=says.itl_ms + self.asked)

    with pytest.raises(ContractError, match="itl_ms asked again is"):
        check_oracle(Tired)


# ---- solvers that are wrong ----


class Changed(Solver):
    """Best-fit, but for what a test changes in its solutions."""

    Params: ClassVar[type[Any]] = NoParams
    change: ClassVar[Callable[[Search, Solution], Solution]]

    def __init__(self, params: NoParams) -> None: ...

    def solve(self, search: Search) -> Solution:
        return type(self).change(search, BestFit(BestFitParams()).solve(search))


def _torn(search: Search, solution: Solution) -> Solution:
    """The last GPU twice: its adapters are placed two times."""
    return replace(solution, loads=(*solution.loads, *solution.loads[-1:]))


def _unpublished(search: Search, solution: Solution) -> Solution:
    search.publish([])
    return solution


@pytest.mark.parametrize(
    ("change", "complaint"),
    [
        (_torn, "is placed 2 times"),
        (_unpublished, "was not published"),
        (lambda search, solution: replace(solution, reason="fine"), "a plan needs no reason"),
        (lambda search, solution: Solution("unknown"), "needs a reason of one line"),
        (lambda search, solution: replace(solution, lower_bound=99.0), "the lower bound is 99"),
        (lambda search, solution: Solution("infeasible", reason="no"), "but there is a plan|one adapter needs one GPU"),
        (
            lambda search, solution: replace(
                solution, loads=tuple(replace(load, slots=9999) for load in solution.loads)
            ),
            "was not published|does not start",
        ),
    ],
    ids=["twice", "unpublished", "reason", "no_reason", "bound", "proof", "slots"],
)
def test_solutions_that_are_wrong(change: Callable[[Search, Solution], Solution], complaint: str) -> None:
    solver: type[Solver] = type("Wrong", (Changed,), {"change": staticmethod(change)})
    with pytest.raises(ContractError, match=complaint):
        check_solver(solver)


def test_a_plan_that_is_called_optimal_and_is_not() -> None:
    class Wasteful(OneEach):
        """A GPU for every adapter, of any type that has one left."""

        def solve(self, search: Search) -> Solution:
            types = [t for t, kind in enumerate(search.problem.fleet.types) for _ in range(kind.count)]
            n = len(search.problem.adapters)
            loads = tuple(GPULoad(t, (i,), 1) for i, t in enumerate(types[:n]))
            kept, _ = search.judge(loads)
            if len(loads) < n or not kept.all() or any(len(unit) > 1 for unit in search.problem.units):
                return Solution("unknown", reason="there are not enough GPUs")
            search.publish(loads)
            return Solution("optimal", loads)

    with pytest.raises(ContractError, match="it is called optimal at"):
        check_solver(Wasteful)


def test_one_gpu_for_each_adapter_is_no_plan_of_a_small_fleet() -> None:
    with pytest.raises(ContractError, match=r"a GPU starves or breaks a limit|it uses \d+ of \d"):
        check_solver(OneEach)


def test_a_solver_that_asks_chance() -> None:
    chance = np.random.default_rng(0)

    class Dicey(Changed):
        @staticmethod
        def change(search: Search, solution: Solution) -> Solution:
            loads = tuple(chance.permutation(np.arange(len(solution.loads))))
            mixed = tuple(solution.loads[i] for i in loads)
            if solution.status == "feasible":
                search.publish(mixed)
            return replace(solution, loads=mixed)

    with pytest.raises(ContractError, match="the same seed gives other loads"):
        check_solver(Dicey, oracles=[TokenBudgetOracle], seeds=0)


def test_a_heuristic_may_give_up_unless_it_is_to_be_strict() -> None:
    class Timid(Changed):
        @staticmethod
        def change(search: Search, solution: Solution) -> Solution:
            if solution.status == "infeasible" or len(search.problem.adapters) > 30:
                return Solution("unknown", reason="too hard")
            return solution

    check_solver(Timid, oracles=[TokenBudgetOracle], seeds=1)
    with pytest.raises(ContractError, match="no plan for 1000 adapters"):
        check_solver(Timid, oracles=[TokenBudgetOracle], seeds=1, strict=True)
