"""Smallest conflicts and what resolves them, where both are known."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from dataclasses import replace
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import pytest
from support import plugins
from support.oracles import server, small_problem

from loraplan.api import solve
from loraplan.conflict import Ask, Conflict, Solved, find_conflict, limits_of, only, smallest
from loraplan.constraints import Constraints
from loraplan.errors import BadInputError
from loraplan.plan import Plan
from loraplan.problem import Problem
from loraplan.remedies import Impasse, Remedy, explain_conflict
from loraplan.run import INTERRUPTED


@pytest.fixture(autouse=True)
def installed(monkeypatch: pytest.MonkeyPatch) -> None:
    plugins.install(monkeypatch)


LOSSLESS = {"name": "token_budget", "per_slot": 0.0, "per_rank": 0.0, "swapping": 0.0}
"""10,000 tokens/s, whatever the slots: 25 req/s of 400 tokens; 27.7 with 0.9 of them served."""


def ask(problem: Problem) -> Plan:
    return solve(problem, solver="best_fit", oracle=LOSSLESS)


def constrained(adapters: Sequence[tuple[int, float]], counts: Sequence[int] = (2,), **limits: Any) -> Problem:
    return replace(small_problem(adapters, counts), constraints=Constraints(**limits))


def impasse_of(problem: Problem, by: Ask = ask) -> Impasse:
    return explain_conflict(problem, by, most_solves=300)


def texts(found: Conflict) -> set[str]:
    return {limit.text for limit in found.limits}


def remedies(found: Impasse) -> dict[str, float | None]:
    return {remedy.text: remedy.value for remedy in found.remedies}


def assert_smallest(problem: Problem, found: Conflict, by: Ask = ask) -> None:
    """There is no plan within the conflict; and one without any one of its limits or adapters."""
    solved = Solved(problem, by, most=1000)
    limits = [
        n
        for n, limit in enumerate(solved.limits)
        if (limit.name, limit.text) in {(k.name, k.text) for k in found.limits}
    ]
    assert len(limits) == len(found.limits)
    adapters = [problem.index[name] for name in found.adapters]
    assert not solved.possible(limits, adapters)
    for n in limits:
        assert solved.possible([m for m in limits if m != n], adapters)
    for i in adapters:
        assert solved.possible(limits, [j for j in adapters if j != i])


# ---- constructed conflicts ----


def test_more_adapters_to_be_apart_than_gpus() -> None:
    problem = constrained([(8, 0.1)] * 9, separate=(("a2", "a5", "a7"),))
    found = impasse_of(problem)
    assert texts(found.conflict) == {"separate: a2, a5, a7", "2 GPUs of type0"}
    assert set(found.conflict.adapters) == {"a2", "a5", "a7"}
    assert found.conflict.minimal
    assert remedies(found) == {
        "without separate: a2, a5, a7": None,
        "1 more GPU of type0": 1,
        "without adapter a2": None,
        "without adapter a5": None,
        "without adapter a7": None,
    }
    assert_smallest(problem, found.conflict)


def test_two_hot_adapters_pinned_to_the_only_gpu_of_a_type() -> None:
    problem = constrained([(8, 0.1), (8, 20.0), (8, 0.2), (8, 15.0)], (3, 1), pins={"a1": ("type1",), "a3": ("type1",)})
    found = impasse_of(problem)
    assert texts(found.conflict) == {
        "served_fraction 0.9",
        "pins: a1 on type1",
        "pins: a3 on type1",
        "1 GPU of type1",
    }
    assert set(found.conflict.adapters) == {"a1", "a3"}
    given = remedies(found)
    assert given["1 more GPU of type1"] == 1
    assert given["79 % of the rates"] == 0.79  # 27.78 / 35
    assert given["served_fraction 0.71"] == 0.71  # 25 / 35
    assert {"without pins: a1 on type1", "without pins: a3 on type1"} <= given.keys()
    assert_smallest(problem, found.conflict)


def test_a_fleet_too_small_for_the_traffic() -> None:
    problem = constrained([(8, 1.0)] * 100, (2,))  # 27 adapters a GPU
    found = impasse_of(problem)
    assert texts(found.conflict) == {"served_fraction 0.9", "2 GPUs of type0"}
    assert len(found.conflict.adapters) == 2 * 27 + 1
    assert found.conflict.requests_per_s == pytest.approx(55.0)
    assert remedies(found) == {
        "served_fraction 0.5": 0.5,
        "2 more GPUs of type0": 2,
        "55 % of the rates": 0.55,  # 50 a GPU at 27.78
    }
    assert_smallest(problem, found.conflict)


@pytest.mark.parametrize(
    ("limits", "expected", "helps"),
    [
        ({"max_adapters": 2}, {"max_adapters 2", "2 GPUs of type0"}, {"max_adapters 3": 3, "1 more GPU of type0": 1}),
        ({"max_gpus": 1, "itl_ms": 23.0}, {"itl_ms 23", "max_gpus 1"}, {"itl_ms 30.13": 30.13, "max_gpus 2": 2}),
        ({"together": (("a0", "a1", "a2", "a3", "a4"),), "itl_ms": 23.0}, None, {"itl_ms 30.13": 30.13}),
        ({"ttft_p95_s": 0.06}, {"ttft_p95_s 0.06", "2 GPUs of type0"}, {"1 more GPU of type0": 1}),
    ],
    ids=lambda value: "-".join(value) if isinstance(value, dict) else "",
)
def test_each_kind_of_limit(limits: dict[str, Any], expected: set[str] | None, helps: dict[str, float]) -> None:
    """Five adapters of 1 req/s: ITL is 10 + 4 ms for each on a GPU + 0.1 for each slot; TTFT p95 3 times as many s."""
    problem = constrained([(8, 1.0)] * 5, **limits)
    found = impasse_of(problem)
    if expected is not None:
        assert texts(found.conflict) == expected
    assert helps.items() <= remedies(found).items()
    assert_smallest(problem, found.conflict)


def test_an_adapter_that_must_not_be_split() -> None:
    problem = constrained([(8, 1.0), (8, 50.0)], (4,), split=False)
    found = impasse_of(problem)
    assert texts(found.conflict) == {"served_fraction 0.9", "split: false"}
    assert found.conflict.adapters == ("a1",)
    assert found.conflict.proven
    assert {"split: true", "without adapter a1"} <= remedies(found).keys()


def test_a_reserve_on_too_few_gpus() -> None:
    problem = constrained([(8, 5.0)] * 8, (2,), reserve=True)  # 40 req/s: two GPUs without a reserve, three with one
    found = impasse_of(problem)
    assert "reserve: true" in texts(found.conflict)
    assert "reserve: false" in remedies(found)
    assert "1 more GPU of type0" in remedies(found)


def test_more_gpus_than_max_gpus_allows() -> None:
    problem = constrained([(8, 20.0)] * 4, (2,), max_gpus=2, split=False)
    found = impasse_of(problem)
    assert {"max_gpus 2"} <= texts(found.conflict) or {"2 GPUs of type0"} <= texts(found.conflict)
    assert remedies(found)["2 more GPUs of type0 and max_gpus 4"] == 2


def test_memory_is_no_limit_that_can_be_left_out() -> None:
    problem = small_problem([(8, 0.1), (256, 0.1), (8, 0.1)], counts=(2,), profiles=[server(max_slots=8)])
    found = impasse_of(problem)
    assert found.conflict.limits == ()
    assert found.conflict.adapters == ("a1",)
    assert found.conflict.proven
    assert found.remedies == (Remedy("adapter", "without adapter a1"),)


@pytest.mark.parametrize("solver", ["greedy", "best_fit"])
@pytest.mark.parametrize("seed", range(4))
def test_random_problems(solver: str, seed: int) -> None:
    rng = np.random.default_rng(seed)

    def by(problem: Problem) -> Plan:
        return solve(problem, solver=solver, oracle="token_budget")

    def drawn() -> Problem:
        rates = rng.lognormal(1.0, 1.0, size=12)
        adapters = [(int(rng.choice([8, 16])), float(rate)) for rate in rates]
        most = int(rng.integers(3, 7))
        return constrained(adapters, (1, 1), max_adapters=most, separate=(("a0", "a1"), ("a2", "a3", "a4")))

    problem = next(one for one in iter(drawn, None) if not by(one).complete)
    found = impasse_of(problem, by)
    assert found.conflict.minimal
    assert_smallest(problem, found.conflict, by)
    for remedy in found.remedies:
        if remedy.name == "rates":
            assert remedy.value is not None
            assert by(problem.scaled(remedy.value)).complete


# ---- how it is found ----


def test_quickxplain_finds_a_smallest_set() -> None:
    """Of every monotone property of four items that is made of up to three sets."""
    items = tuple(range(4))
    sets = [set(some) for size in (1, 2, 3) for some in itertools.combinations(items, size)]
    for cores in itertools.combinations(sets, 2):

        def breaks(some: Sequence[int], cores: tuple[set[int], ...] = cores) -> bool:
            return any(core <= set(some) for core in cores)

        found = smallest(items, breaks)
        assert breaks(found)
        assert not any(breaks([item for item in found if item != left]) for left in found)


def test_quickxplain_asks_few_questions_for_a_small_set() -> None:
    asked = 0

    def breaks(some: Sequence[int]) -> bool:
        nonlocal asked
        asked += 1
        return {5, 700, 999} <= set(some)

    assert smallest(tuple(range(1000)), breaks) == (5, 700, 999)
    assert asked < 80


def answers(complete: Callable[[Problem], bool], reason: str = "") -> Ask:
    """A solver that finds a plan for the problems of which ``complete`` is true."""

    def by(problem: Problem) -> Plan:
        done = complete(problem)
        return cast("Plan", SimpleNamespace(complete=done, status="feasible" if done else "unknown", reason=reason))

    return by


def test_a_heuristic_that_fails_on_less_than_it_can() -> None:
    """It finds a plan for an odd number of adapters only, or with more than ten GPUs."""
    by = answers(lambda problem: len(problem.adapters) % 2 == 1 or problem.fleet.count > 10)
    problem = constrained([(8, 0.1)] * 8, (3,))
    found = find_conflict(Solved(problem, by))
    assert found.minimal
    assert len(found.adapters) == 2
    assert texts(found) == {"3 GPUs of type0"}
    assert not found.proven


def test_a_search_that_ends_early_says_so() -> None:
    problem = constrained([(8, 1.0 + 0.001 * i) for i in range(100)], (2,))
    for most in (1, 4, 12, 20):
        solved = Solved(problem, ask, most)
        found = find_conflict(solved)
        assert not found.minimal
        assert found.solves == most == solved.solves
        assert not ask(only(problem, [problem.index[name] for name in found.adapters])).complete


def test_an_interrupted_solver_ends_the_search() -> None:
    by = answers(lambda problem: False, reason=f"{INTERRUPTED} when 1 of 8 adapters were placed")
    with pytest.raises(KeyboardInterrupt):
        find_conflict(Solved(constrained([(8, 0.1)] * 8), by))


def test_where_there_is_a_plan_there_is_no_conflict() -> None:
    with pytest.raises(BadInputError, match="there is a plan"):
        impasse_of(constrained([(8, 0.1)]))


def test_progress_counts_the_problems() -> None:
    seen: list[tuple[int, int]] = []
    explain_conflict(constrained([(8, 1.0)] * 5, max_adapters=2), ask, 50, lambda *now: seen.append(now))
    assert seen[:3] == [(1, 50), (2, 50), (3, 50)]


def test_the_problem_of_some_adapters_names_no_others() -> None:
    problem = constrained(
        [(8, 0.1)] * 5,
        (2, 2),
        pins={"a0": ("type0",), "a4": ("type1",)},
        separate=(("a0", "a1", "a4"), ("a3", "a4")),
        together=(("a0", "a2"),),
        replicas={"a3": 2, "a1": 1},
    )
    part = only(problem, [0, 1, 3])
    assert [adapter.name for adapter in part.adapters] == ["a0", "a1", "a3"]
    limits = part.constraints
    assert (limits.pins, limits.separate, limits.together) == ({"a0": ("type0",)}, (("a0", "a1"),), ())
    assert limits.replicas == {"a3": 2, "a1": 1}


def test_every_limit_can_be_left_out() -> None:
    problem = constrained(
        [(8, 0.1)] * 6,
        (2, 2),
        adapter_served_fraction=0.8,
        itl_ms=100.0,
        ttft_p95_s=1.0,
        max_adapters=4,
        max_gpus=3,
        pins={"a0": ("type0",)},
        separate=(("a0", "a1"),),
        together=(("a2", "a3"),),
        split=False,
        replicas={"a4": 2},
        reserve=True,
    )
    relaxed = problem
    for limit in limits_of(problem):
        relaxed = limit.relax(relaxed)
    expected = Constraints(served_fraction=relaxed.constraints.served_fraction)
    assert relaxed.constraints == expected
    assert expected.served_fraction < 1e-6
    assert all(gpu_type.count > 6 for gpu_type in relaxed.fleet.types)
    assert len(limits_of(problem)) == 14
