"""The capacity of a GPU: against a linear scan, and against the twin's own runs."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
from support.oracles import ScriptedOracle, TokenBudgetOracle, TokenBudgetParams, server, small_problem

from loraplan.capacity import LADDER, Capacity, bisect, capacity
from loraplan.capacity_check import check
from loraplan.errors import BadInputError, NothingFitsError
from loraplan.oracle import Oracle, Predictions
from loraplan.problem import Fleet, GPULoad, GPUType, Problem
from loraplan.sources import nested_adapters
from loraplan.validation import FIRST_FRESH_SEED
from loraplan.workload import Ints, Lengths, RateWorkload
from twin.batch import Simulation
from twin.fluid import FluidOracle, FluidParams

DEAL = [(8, 2.0), (16, 0.5), (8, 0.25)]
LENGTHS = Lengths.constant(200, 150)
LAW = RateWorkload((), horizon_s=120.0)


def problem(count: int = 60, deal: Sequence[tuple[int, float]] = DEAL, max_slots: int | None = None) -> Problem:
    return small_problem([deal[i % len(deal)] for i in range(count)], (1,), [server(max_slots=max_slots)])


def scanned(task: Problem, oracle: Oracle, slots: int) -> int:
    """The most adapters, asked one by one."""
    loads = [GPULoad(0, tuple(range(n)), slots) for n in range(1, len(task.adapters) + 1)]
    starved = oracle.predict(loads).starved(task.constraints.served_fraction)
    return int(starved.argmax()) if starved.any() else len(loads)


def fluid(task: Problem) -> Oracle:
    return FluidOracle(task, FluidParams())


def budget(task: Problem, capacity_tok_s: float = 10_000.0) -> Oracle:
    return TokenBudgetOracle(task, TokenBudgetParams(capacity_tok_s=(capacity_tok_s,)))


# ---- what the oracle says ----


@pytest.mark.parametrize("tok_s", [500.0, 3_000.0, 10_000.0, 1e9])
@pytest.mark.parametrize("slots", [None, (1, 5, 6, 17, 40)])
@pytest.mark.parametrize("max_slots", [None, 12])
def test_every_line_is_what_a_scan_finds(tok_s: float, slots: Sequence[int] | None, max_slots: int | None) -> None:
    task = problem(deal=[(8, 1.0), (16, 0.5), (8, 0.25)], max_slots=max_slots)
    oracle = budget(task, tok_s)
    found = capacity(task, oracle, slots)
    assert [line.adapters for line in found.by_slots] == [scanned(task, oracle, each.slots) for each in found.by_slots]
    assert found.best.adapters == max(line.adapters for line in found.by_slots)


@pytest.mark.parametrize("deal", [DEAL, [(8, 10.0)], [(32, 0.05), (8, 0.4)]])
def test_the_fluid_oracle_s_capacity_is_what_a_scan_finds(deal: list[tuple[int, float]]) -> None:
    task = problem(150, deal, max_slots=80)
    oracle = fluid(task)
    found = capacity(task, oracle)
    assert len(found.by_slots) > 1
    for line in found.by_slots:
        assert line.adapters == scanned(task, oracle, line.slots)
        assert line.kv_tokens == task.fleet.types[0].profile.kv_tokens(line.slots, line.max_rank)
        if line.adapters:
            said = oracle.predict([GPULoad(0, tuple(range(line.adapters)), line.slots)])
            assert (line.served_fraction, line.itl_ms) == (said.served_fraction[0], said.itl_ms[0])
            assert line.offered_tok_s == pytest.approx(task.offered[: line.adapters].sum())
            assert line.throughput_tok_s == pytest.approx(line.offered_tok_s * line.served_fraction)


def test_the_ladder_ends_at_memory_and_at_what_is_of_use_and_is_fine_around_the_best() -> None:
    task = problem(400, [(8, 0.4)], max_slots=100)
    found = capacity(task, fluid(task))
    slots = [line.slots for line in found.by_slots]
    assert slots == sorted(set(slots))
    assert set(slots) >= {each for each in LADDER if each < found.best.adapters}
    assert slots[-1] <= 100
    gaps = [after - before for before, after in pairwise(slots) if before <= found.best.slots <= after]
    assert max(gaps) <= 8
    assert found.best.adapters >= max(scanned(task, fluid(task), each) for each in LADDER if each <= 100)
    few = capacity(problem(400, [(8, 8.0)]), fluid(problem(400, [(8, 8.0)])))
    assert few.by_slots[-1].slots <= 2 * few.best.adapters


def test_of_equal_capacities_that_of_lowest_itl_is_the_best() -> None:
    class Tied(ScriptedOracle):
        def predict(self, loads: Sequence[GPULoad]) -> Predictions:
            said = super().predict(loads)
            itl_ms = np.array([abs(load.slots - 6.0) for load in loads])
            return Predictions(said.starts, said.served_fraction, said.throughput_tok_s, itl_ms, itl_ms, itl_ms)

    task = problem(20)
    found = capacity(task, Tied(task, lambda load: (float(len(load.adapters) <= 7), 1.0)), [2, 5, 6, 9])
    assert [line.adapters for line in found.by_slots] == [7, 7, 7, 7]
    assert found.best.slots == 6


def test_a_line_says_why_there_is_not_one_more() -> None:
    ranks = [(8, 0.01)] * 5 + [(16, 0.01)]
    task = problem(40, ranks, max_slots=30)
    found = capacity(task, budget(task), [10, 25])
    assert [(line.adapters, line.limited_by, line.max_rank) for line in found.by_slots] == [
        (40, "adapters", 16),
        (5, "memory", 8),
    ]
    assert found.best.adapters == found.most_asked == 40
    assert capacity(task, budget(task, 30.0), [1]).best.limited_by == "starvation"


def test_the_curve_runs_through_the_best_load() -> None:
    task = problem(300, [(8, 0.4), (16, 0.05)])
    found = capacity(task, fluid(task))
    place = found.curve.adapters.tolist().index(found.best.adapters)
    assert found.curve.predicted.itl_ms[place] == found.best.itl_ms
    assert found.curve.offered_tok_s[place] == pytest.approx(found.best.offered_tok_s)
    assert (np.diff(found.curve.adapters) > 0).all()
    assert found.curve.predicted.starved(0.9)[-1]


def test_nothing_fits() -> None:
    task = problem(9, [(8, 100.0)])
    with pytest.raises(
        NothingFitsError, match=r"starvation, its served fraction is 0.\d+ with one of rank 8 and 100 req"
    ):
        capacity(task, fluid(task))
    with pytest.raises(
        NothingFitsError, match="memory, its server does not start with 5000 slots of rank 8, which leave -"
    ):
        capacity(task, fluid(task), [5000, 6000])
    small = problem(9, max_slots=1)
    with pytest.raises(NothingFitsError, match="memory") as caught:
        capacity(small, fluid(small), [2])
    assert caught.value.exit_code == 1


@pytest.mark.parametrize("slots", [[], [0], [4, -1]])
def test_wrong_slots(slots: list[int]) -> None:
    with pytest.raises(BadInputError, match="slots: expected numbers of at least 1"):
        capacity(problem(), budget(problem()), slots)


@pytest.mark.parametrize("within", [1, 5])
def test_bisections_side_by_side(within: int) -> None:
    truth = np.array([0, 1, 2, 3, 17, 99, 100])
    asked: dict[int, list[int]] = {lane: [] for lane in range(truth.size)}

    def fits(lanes: Ints, counts: Ints) -> Any:
        for lane, count in zip(lanes.tolist(), counts.tolist(), strict=True):
            asked[lane].append(count)
        return counts <= truth[lanes]

    low = np.zeros(truth.size, dtype=np.int64)
    most = bisect(low, np.full(truth.size, 101), fits, within)
    assert (most <= truth).all()
    assert (truth - most < within).all()
    assert all(len(counts) == len(set(counts)) <= 14 for counts in asked.values())
    assert all(max(counts) <= 2 * known + 1 for counts, known in zip(asked.values(), truth, strict=True))
    assert not low.any()


def test_the_deal_is_nested_and_even_and_keeps_rates_and_ranks_apart() -> None:
    rates, ranks = (0.4, 0.1, 0.02), (8, 16, 32)
    many = nested_adapters(rates, ranks, LENGTHS, 270, seed=3)
    assert len(many) == 270
    for count in (1, 8, 100):
        assert nested_adapters(rates, ranks, LENGTHS, count, seed=3) == many[:count]
    assert [adapter.rate for adapter in many] == [rates[i % 3] for i in range(270)]
    for start in range(0, 270, 9):
        assert sorted(adapter.rank for adapter in many[start : start + 9]) == [8] * 3 + [16] * 3 + [32] * 3
    assert {(adapter.rate, adapter.rank) for adapter in many} == {(rate, rank) for rate in rates for rank in ranks}
    assert nested_adapters(rates, ranks, LENGTHS, 270, seed=4) != many


# ---- what the twin says ----


def small_task(rate: float = 3.0, count: int = 60) -> Problem:
    adapters = nested_adapters((rate, rate / 4), (8, 16), LENGTHS, count, seed=0)
    return Problem(adapters, Fleet((GPUType(server(max_slots=60), 1),)))


def served(task: Problem, slots: int, count: int, seed: int) -> float:
    workload = RateWorkload(task.adapters[:count], LAW.horizon_s)
    return Simulation.of(workload, task.fleet.types[0].profile, slots, seed).metrics().served_fraction


def says(task: Problem, most: int, slots: int = 8) -> Capacity:
    """What an oracle that knows no better says."""
    return capacity(task, ScriptedOracle(task, lambda load: (float(len(load.adapters) <= most), 1.0)), [slots])


def test_the_twin_s_verdict_is_that_of_its_own_runs_and_its_capacity_lies_between_two_of_them() -> None:
    task = small_task()
    found = capacity(task, fluid(task))
    checked = check(task, found, LAW, seeds=2)
    best = found.best
    assert checked.seeds == (FIRST_FRESH_SEED, FIRST_FRESH_SEED + 1)
    by_seed = [served(task, best.slots, best.adapters, seed) for seed in checked.seeds]
    assert checked.best.load.seen.served_fraction.mean == pytest.approx(np.mean(by_seed))
    assert [(line.slots, line.load.adapters) for line in checked.by_slots] == [
        (line.slots, line.adapters) for line in found.by_slots
    ]
    assert checked.best.load in checked.points
    for seed, most in zip(checked.seeds, checked.best.carries, strict=True):
        assert served(task, best.slots, most, seed) >= 0.9
        assert min(served(task, best.slots, most + more, seed) for more in range(1, checked.best.within + 1)) < 0.9
    assert check(task, found, LAW, seeds=2).best.carries == checked.best.carries


@pytest.mark.parametrize("most", [1, 2, 50])
def test_the_twin_finds_its_capacity_wherever_the_oracle_errs(most: int) -> None:
    task = small_task()
    right = check(task, says(task, 17), LAW, seeds=1).best.carries[0]
    assert 10 < right < 35
    checked = check(task, says(task, most), LAW, seeds=1)
    assert checked.best.carries[0] == pytest.approx(right, abs=1)
    assert checked.best.load.seen.starved == (most == 50)


def test_the_twin_may_have_other_best_slots() -> None:
    """More adapters that are always busy than slots: some never get one, which this oracle does not know."""
    adapters = nested_adapters((4.0,), (8,), LENGTHS, 40, seed=0)
    task = Problem(adapters, Fleet((GPUType(server(), 1),)))
    oracle = ScriptedOracle(task, lambda load: (float(len(load.adapters) <= (12 if load.slots == 6 else 11)), 1.0))
    checked = check(task, capacity(task, oracle, [4, 6, 12]), LAW, seeds=2)
    assert checked.best.load.seen.starved
    assert (checked.best.slots, checked.own_best.slots) == (6, 12)
    assert min(checked.own_best.carries) >= 11 > max(checked.best.carries)
    assert (checked.own_load.slots, checked.own_load.adapters) == (12, min(checked.own_best.carries))
    assert not checked.own_load.seen.starved
    alone = check(task, capacity(task, oracle, [12]), LAW, seeds=2)
    assert alone.own_best == alone.best
    assert alone.best.carries == checked.own_best.carries


def test_the_twin_may_carry_all_there_is() -> None:
    task = small_task(rate=0.1, count=12)
    checked = check(task, says(task, 3), LAW, seeds=1)
    assert checked.best.carries == (12,)
    assert checked.own_load.adapters == 12


def test_a_load_that_does_not_start_is_not_carried() -> None:
    task = problem(40, [(8, 0.1)] * 5 + [(16, 0.1)], max_slots=30)
    checked = check(task, capacity(task, fluid(task), [25]), LAW, seeds=2)
    assert checked.best.carries == (5, 5)
    assert not checked.points[-1].seen.starts
    assert checked.points[-1].seen.binding == "memory"


def test_progress_is_told_and_nothing_is_run_twice() -> None:
    seen: list[tuple[int, int]] = []
    task = small_task()
    checked = check(task, says(task, 20), LAW, seeds=2, on_progress=lambda *at: seen.append(at))
    assert [done for done, _ in seen] == list(range(1, checked.simulations + 1))
    assert all(done <= total for done, total in seen)
    assert checked.simulations < 60
