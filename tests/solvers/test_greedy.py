"""The published behaviours of the greedy solver, worked out by hand."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import pytest
from support.oracles import ScriptedOracle, server, small_problem

from loraplan.errors import BadInputError
from loraplan.problem import GPULoad, Problem
from objectives.gpu_count import GPUCount, GPUCountParams
from solvers import Search, Solution
from solvers.base import SearchStoppedError
from solvers.greedy import Greedy, GreedyParams

Answer = Callable[[GPULoad], tuple[float, float]]


def run(problem: Problem, answer: Answer, test_points: Sequence[int]) -> tuple[Solution, list[GPULoad]]:
    """What greedy finds, and the loads it asked for."""
    oracle = ScriptedOracle(problem, answer)
    search = Search(problem, GPUCount(GPUCountParams()), oracle, seed=0)
    return Greedy(GreedyParams(tuple(test_points))).solve(search), oracle.asked


def fine(load: GPULoad) -> tuple[float, float]:
    return 1.0, 1.0


def at_most(adapters: int) -> Answer:
    """A GPU carries so many adapters, with any slots."""
    return lambda load: (1.0 if len(load.adapters) <= adapters else 0.5, 1.0)


def taken_in_order(asked: Sequence[GPULoad]) -> list[int]:
    """The adapters in the order in which they joined the first GPU, tested one by one."""
    order: list[int] = []
    for load in asked:
        order += sorted(set(load.adapters) - set(order))
    return order


def placed(solution: Solution) -> list[tuple[int, ...]]:
    return [load.adapters for load in solution.loads]


def falling(n: int, rank: int = 8) -> list[tuple[int, float]]:
    """Adapters 0, 1, ... of falling rates: zigzag takes 0, n - 1, 1, n - 2, ..."""
    return [(rank, float(n - i)) for i in range(n)]


def test_rates_zigzag_inside_a_rank() -> None:
    problem = small_problem([(8, rate) for rate in (3.0, 1.0, 5.0, 2.0, 4.0)])
    _, asked = run(problem, fine, (1, 2, 3, 4, 5))
    assert taken_in_order(asked) == [2, 1, 4, 3, 0]


def test_ranks_descend_whatever_the_rates() -> None:
    problem = small_problem([(8, 9.0), (32, 1.0), (16, 5.0), (32, 2.0), (16, 4.0), (8, 8.0)])
    _, asked = run(problem, fine, (1, 2, 3, 4, 5, 6))
    assert taken_in_order(asked) == [3, 1, 2, 4, 0, 5]


def test_tests_happen_only_at_test_points_and_at_the_end_with_the_actual_set() -> None:
    _, asked = run(small_problem(falling(7)), fine, (2, 4, 8))
    assert sorted({len(load.adapters) for load in asked}) == [2, 4, 7]


def test_a_starving_block_goes_back_whole_and_in_its_old_order() -> None:
    # order 0 5 1 4 2 3; {0} is kept, the block 5 1 starves it and goes to the next GPU, 5 first
    solution, asked = run(small_problem(falling(6)), at_most(2), (1, 3))
    assert placed(solution) == [(0,), (5,), (1,), (4,), (2, 3)]
    tested = list(dict.fromkeys(load.adapters for load in asked))
    assert tested[:4] == [(0,), (0, 1, 5), (5,), (1, 4, 5)]


def test_what_was_committed_stays_when_a_later_block_starves() -> None:
    solution, _ = run(small_problem(falling(6)), at_most(3), (2, 4))
    assert placed(solution) == [(0, 5), (1, 4), (2, 3)]


def test_slots_start_at_the_first_test_point_and_grow_by_one_point_at_a_time() -> None:
    solution, asked = run(small_problem(falling(8)), lambda load: (1.0, float(load.slots)), (2, 4, 8))
    assert [(len(load.adapters), load.slots) for load in asked] == [(2, 2), (4, 2), (4, 4), (8, 4), (8, 8)]
    assert [load.slots for load in solution.loads] == [8]


def test_slots_stay_when_more_would_lower_the_throughput() -> None:
    solution, asked = run(small_problem(falling(8)), lambda load: (1.0, 1.0 / load.slots), (2, 4, 8))
    assert [load.slots for load in solution.loads] == [2]
    assert [(len(load.adapters), load.slots) for load in asked] == [(2, 2), (4, 2), (4, 4), (8, 2), (8, 4)]


@pytest.mark.parametrize(("gain", "slots"), [(0.0, 4), (-1e-12, 4), (-1e-6, 2)])
def test_a_tie_in_throughput_goes_to_more_slots(gain: float, slots: int) -> None:
    solution, _ = run(small_problem(falling(4)), lambda load: (1.0, 1.0 + gain * (load.slots - 2)), (2, 4))
    assert [load.slots for load in solution.loads] == [slots]


def test_starvation_is_judged_for_the_winner_only() -> None:
    # with 4 slots more tokens are served, but too few: the 2 slots that would do are not looked at
    solution, _ = run(small_problem(falling(4)), lambda load: (1.0 if load.slots == 2 else 0.5, load.slots), (2, 4))
    assert placed(solution) == [(0, 3), (1, 2)]


def test_pending_adapters_wait_for_the_next_rank() -> None:
    problem = small_problem([(32, 3.0), (32, 2.0), (32, 1.0), (8, 1.0), (8, 0.5)])
    solution, asked = run(problem, fine, (2, 4, 8))
    assert list(dict.fromkeys(load.adapters for load in asked)) == [(0, 2), (0, 1, 2, 3), (0, 1, 2, 3, 4)]
    assert len(solution.loads) == 1


def test_a_block_of_two_ranks_goes_back_whole() -> None:
    problem = small_problem([(32, 3.0), (32, 2.0), (32, 1.0), (8, 1.0)])
    solution, _ = run(problem, at_most(3), (2, 4))
    assert placed(solution) == [(0, 2), (1, 3)]


def test_a_gpu_closes_after_the_last_test_point() -> None:
    solution, _ = run(small_problem(falling(5)), fine, (1, 2))
    assert placed(solution) == [(0, 4), (1, 3), (2,)]


def test_slots_that_break_the_memory_are_dropped() -> None:
    problem = small_problem(falling(4), profiles=[server(max_slots=3)])
    solution, asked = run(problem, fine, (2, 4))
    assert {load.slots for load in asked} == {2}
    assert placed(solution) == [(0, 1, 2, 3)]


def test_no_slots_that_start_count_as_starving() -> None:
    # rank 32 leaves room for 2 slots only where rank 8 has room for 8
    problem = small_problem([(32, 2.0), (8, 1.0)], profiles=[server(max_slots=8)])
    solution, asked = run(problem, fine, (8, 16))
    assert solution.status == "unknown"
    assert "memory: server does not start with 8 slots of rank 32" in solution.reason
    assert all(load.slots == 1 for load in asked)  # only the proof attempt, one adapter alone


def test_types_are_used_in_the_fleets_order_up_to_their_counts() -> None:
    solution, _ = run(small_problem(falling(6), counts=(1, 2)), at_most(2), (2, 4))
    assert [load.gpu_type for load in solution.loads] == [0, 1, 1]


def test_a_type_whose_empty_gpu_refuses_a_block_is_passed_over_for_that_block_only() -> None:
    # type 0 carries adapters of rank 8 only
    problem = small_problem([(32, 2.0), (32, 1.0), (8, 2.0), (8, 1.0)], counts=(3, 3))

    def answer(load: GPULoad) -> tuple[float, float]:
        light = load.gpu_type == 1 or set(load.adapters) <= {2, 3}
        return (1.0 if light and len(load.adapters) <= 2 else 0.5), 1.0

    solution, _ = run(problem, answer, (2, 4))
    assert [(load.gpu_type, load.adapters) for load in solution.loads] == [(1, (0, 1)), (0, (2, 3))]


def test_a_first_block_that_starves_together_is_unknown_and_says_why() -> None:
    problem = small_problem(falling(20), counts=(16,))
    solution, asked = run(problem, at_most(4), (8, 16))
    assert solution.status == "unknown"
    assert solution.loads == ()
    assert solution.reason == (
        "greedy: 20 of 20 adapters (first: a0, a19, a1, ...) were left: an empty GPU does not take the next block of 8 "
        "(served fraction 0.5 is below 0.9 with 8 slots on type0); "
        "greedy cannot split a block or take other slots, best_fit can"
    )
    assert sum(len(load.adapters) == 8 for load in asked) <= 2  # not once for each of the 16 GPUs


def test_a_fleet_that_is_used_up_is_unknown_and_says_so() -> None:
    solution, _ = run(small_problem(falling(6), counts=(2,)), at_most(2), (2, 4))
    assert solution.status == "unknown"
    assert solution.reason == "greedy: 2 of 6 adapters (first: a2, a3) were left when all 2 GPUs of the fleet were used"
    assert placed(solution) == [(0, 5), (1, 4)]


def test_an_adapter_that_breaks_every_type_alone_is_infeasible() -> None:
    problem = small_problem(falling(4), counts=(2, 2))
    solution, _ = run(problem, lambda load: (0.5 if 0 in load.adapters else 1.0, 1.0), (2, 4))
    assert solution.status == "infeasible"
    assert solution.reason == (
        "no GPU type carries adapter a0 (rank 8, 4 req/s) even alone (served fraction 0.5 is below 0.9 with 1 slot on "
        "type0; served fraction 0.5 is below 0.9 with 1 slot on type1)"
    )


def test_a_search_that_is_stopped_leaves_the_committed_blocks() -> None:
    problem = small_problem(falling(6))

    def stop_at_four(load: GPULoad) -> tuple[float, float]:
        if len(load.adapters) > 2:
            raise SearchStoppedError("enough")
        return 1.0, 1.0

    search = Search(problem, GPUCount(GPUCountParams()), ScriptedOracle(problem, stop_at_four), seed=0)
    with pytest.raises(SearchStoppedError):
        Greedy(GreedyParams((2, 4))).solve(search)
    assert search.incumbent == (GPULoad(0, (0, 5), 2),)


@pytest.mark.parametrize("test_points", [(), (0, 8), (8, 8), (16, 8)])
def test_test_points_must_ascend(test_points: tuple[int, ...]) -> None:
    with pytest.raises(BadInputError, match="ascend"):
        GreedyParams(test_points)


def test_test_points_stay_within_reason() -> None:
    with pytest.raises(BadInputError, match=r"test_points must be at most 1000000 \(got 100000000000000000000000\)"):
        GreedyParams((8, 10**23))
    assert GreedyParams((1_000_000,)).test_points == (1_000_000,)
