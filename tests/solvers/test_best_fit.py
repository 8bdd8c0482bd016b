"""Best-fit: near the optimum on tiny instances, and the rules by which it chooses."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

import numpy as np
import pytest
from support.brute_force import fewest_gpus
from support.oracles import TokenBudgetOracle, TokenBudgetParams, small_problem

from loraplan.errors import BadInputError
from loraplan.oracle import Predictions
from loraplan.problem import GPULoad, Problem
from objectives.gpu_count import GPUCount, GPUCountParams
from solvers import Search, Solution
from solvers.base import SearchStoppedError
from solvers.best_fit import PUBLISH_EVERY, BestFit, BestFitParams


class Recorder(TokenBudgetOracle):
    """A token budget that keeps the loads it was asked for."""

    def __init__(self, problem: Problem, params: TokenBudgetParams) -> None:
        super().__init__(problem, params)
        self.asked: list[GPULoad] = []

    def predict(self, loads: Sequence[GPULoad]) -> Predictions:
        self.asked += loads
        return super().predict(loads)


PLAIN = TokenBudgetParams(per_slot=0.0, per_rank=0.0, swapping=0.0)
"""A GPU carries 10,000 tokens/s, which is 25 req/s of ``small_problem``, 27.7 at a served fraction of 0.9."""


def run(
    problem: Problem, params: TokenBudgetParams = PLAIN, slots: tuple[int, ...] | None = None
) -> tuple[Solution, list[GPULoad]]:
    oracle = Recorder(problem, params)
    search = Search(problem, GPUCount(GPUCountParams()), oracle, seed=0)
    return BestFit(BestFitParams(slots)).solve(search), oracle.asked


def test_within_one_gpu_of_brute_force_and_mostly_equal() -> None:
    rng = np.random.default_rng(1)
    excess: Counter[int] = Counter()
    for _ in range(25):
        n = int(rng.integers(3, 10))
        ranks = [int(rank) for rank in rng.choice([8, 16, 32], size=n)]
        rates = [float(rate) for rate in rng.uniform(1.0, 14.0, size=n)]
        problem = small_problem(list(zip(ranks, rates, strict=True)), counts=(9,))
        solution, _ = run(problem, TokenBudgetParams())
        fewest = fewest_gpus(problem, TokenBudgetOracle(problem, TokenBudgetParams()))
        assert solution.status == "feasible"
        assert fewest is not None
        excess[len(solution.loads) - fewest] += 1
    assert set(excess) <= {0, 1}
    assert excess[0] >= 20


def test_the_fullest_gpu_that_takes_an_adapter_gets_it() -> None:
    # 20 and 17 open a GPU each; 6 goes to the fuller one, 9 only fits on the other
    problem = small_problem([(8, 17.0), (8, 6.0), (8, 20.0), (8, 9.0)])
    solution, _ = run(problem)
    assert {load.adapters for load in solution.loads} == {(1, 2), (0, 3)}


def test_large_ranks_come_first() -> None:
    _, asked = run(small_problem([(8, 9.0), (32, 1.0), (16, 3.0)]))
    assert asked[0].adapters == (1,)
    assert next(load for load in asked if len(load.adapters) == 2).adapters == (1, 2)


def test_current_slots_are_kept_while_they_do() -> None:
    solution, asked = run(small_problem([(8, 1.0)] * 10))
    assert [load.slots for load in solution.loads] == [1]
    assert len(asked) == 10


def test_of_the_slots_that_do_those_of_lowest_itl_are_taken() -> None:
    # for 4 adapters, 7,360 tokens/s, the capacity is 6,500 with 1 slot, 7,000 with 2, 8,000 with 4
    params = TokenBudgetParams(per_slot=0.05, per_rank=0.0, swapping=0.4)
    solution, asked = run(small_problem([(8, 4.6)] * 4), params)
    assert [load.slots for load in solution.loads] == [4]
    assert [(len(load.adapters), load.slots) for load in asked if len(load.adapters) == 4] == [(4, 1), (4, 2), (4, 4)]


def test_slots_that_do_not_carry_the_present_load_are_not_tried_for_a_larger_one() -> None:
    # 20 slots cost all capacity. The third adapter makes the GPU look beyond 1 slot, the fifth beyond 4
    params = TokenBudgetParams(per_slot=0.05, per_rank=0.0, swapping=0.9)
    solution, asked = run(small_problem([(8, 5.0)] * 5), params, slots=(1, 4, 20))
    assert [(len(load.adapters), load.slots) for load in solution.loads] == [(4, 4), (1, 1)]
    # on the two empty GPUs, and in between once for the two adapters that were there when the third came
    assert [len(load.adapters) for load in asked if load.slots == 20] == [1, 2, 1]


def test_a_kind_that_was_refused_is_not_asked_again_until_the_gpu_changes() -> None:
    problem = small_problem([(8, 25.0)] + [(8, 13.0)] * 4)
    solution, asked = run(problem)
    assert len(solution.loads) == 3
    refusals = [load for load in asked if 0 in load.adapters and len(load.adapters) == 2]
    assert {load.adapters for load in refusals} == {(0, 1)}


def test_given_slots_are_the_only_ones() -> None:
    solution, asked = run(small_problem([(8, 5.0)] * 10), slots=(4, 16))
    assert {load.slots for load in solution.loads} <= {4, 16}
    assert {load.slots for load in asked} <= {4, 16}


def test_given_slots_that_do_not_start_are_unknown_with_the_reason() -> None:
    solution, _ = run(small_problem([(8, 5.0)] * 3), slots=(5000,))
    assert solution.status == "unknown"
    assert "memory: type0 does not start with 5000 slots of rank 8" in solution.reason


def test_types_are_opened_in_the_fleets_order_and_the_first_that_takes_it_wins() -> None:
    # 20 req/s need the large type 1; the rest fits on type 0 as well
    params = TokenBudgetParams((5_000.0, 10_000.0), per_slot=0.0, per_rank=0.0, swapping=0.0)
    solution, _ = run(small_problem([(8, 20.0), (8, 12.0), (8, 11.0), (8, 10.0)], counts=(2, 2)), params)
    assert [(load.gpu_type, load.adapters) for load in solution.loads] == [(1, (0,)), (0, (1,)), (0, (2,)), (1, (3,))]


def test_when_only_small_types_are_left_the_reason_names_the_limit() -> None:
    params = TokenBudgetParams((5_000.0, 10_000.0), per_slot=0.0, per_rank=0.0, swapping=0.0)
    solution, _ = run(small_problem([(8, 20.0), (8, 20.0), (8, 1.0)], counts=(2, 1)), params)
    assert solution.status == "unknown"
    assert solution.reason == (
        "best_fit: 1 of 3 adapters (first: a1) were left: an empty GPU does not take the next adapter "
        "(served fraction 0.625 is below 0.9 with 1 slot on type0)"
    )
    assert sum(len(load.adapters) for load in solution.loads) == 2


def test_a_fleet_that_is_used_up_is_unknown_and_the_others_are_placed() -> None:
    solution, _ = run(small_problem([(8, 20.0), (8, 20.0), (8, 1.0)], counts=(1,)))
    assert solution.status == "unknown"
    assert solution.reason == "best_fit: 1 of 3 adapters (first: a1) were left when the only GPU of the fleet was used"
    assert [load.adapters for load in solution.loads] == [(0, 2)]


def test_a_search_that_is_stopped_leaves_most_of_its_work() -> None:
    problem = small_problem([(8, 1.0)] * 60)
    oracle = Recorder(problem, PLAIN)
    search = Search(problem, GPUCount(GPUCountParams()), oracle, seed=0)
    stop_after = 40

    def check() -> None:
        if len(oracle.asked) >= stop_after:
            raise SearchStoppedError("enough")

    search.check = check  # type: ignore[method-assign]
    with pytest.raises(SearchStoppedError):
        BestFit(BestFitParams()).solve(search)
    assert sum(len(load.adapters) for load in search.incumbent) > 20 - PUBLISH_EVERY


@pytest.mark.parametrize("slots", [(), (0, 8)])
def test_slots_must_be_positive(slots: tuple[int, ...]) -> None:
    with pytest.raises(BadInputError, match="slots"):
        BestFitParams(slots)
