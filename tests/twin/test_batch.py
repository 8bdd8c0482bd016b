"""Many simulations at once: the same results as one by one, in order, in parallel, bounded, and ended at any time."""

from __future__ import annotations

import dataclasses
import itertools
import re
import signal
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from support.oracles import server

from loraplan.errors import BadInputError
from loraplan.workload import Adapter, Lengths, RateWorkload
from twin.batch import AHEAD, Simulation, spread
from twin.metrics import measure
from twin.server import simulate

PATIENCE_S = 20.0
PROFILE = server()
LENGTHS = Lengths.constant(100, 20)
WORKLOAD = RateWorkload(tuple(Adapter(f"a{i}", rank, 2.0, LENGTHS) for i, rank in enumerate([8, 16, 8])), 30.0)


def simulations(count: int, slots: int = 2) -> list[Simulation]:
    return [Simulation.of(WORKLOAD, PROFILE, slots, seed, name=f"seed {seed}") for seed in range(count)]


# ---- one simulation ----


def test_a_simulation_is_what_the_twin_does_with_the_requests_of_its_seed() -> None:
    run = Simulation.of(WORKLOAD, PROFILE, 2, seed=5).run()
    ranks = np.array([8, 16, 8])
    expected = simulate(PROFILE, 2, 16, ranks, WORKLOAD.requests(5), 30.0)
    np.testing.assert_array_equal(run.finish_s, expected.finish_s)
    assert Simulation.of(WORKLOAD, PROFILE, 2, seed=5).metrics().ttft_s == measure(expected, 3).ttft_s


def test_requests_may_be_given_and_settings_reach_the_server() -> None:
    law = Simulation.of(WORKLOAD, PROFILE, 2, seed=5)
    given = dataclasses.replace(law, workload=WORKLOAD.requests(5), seed=99)
    np.testing.assert_array_equal(given.run().finish_s, law.run().finish_s)
    assert dataclasses.replace(law, slots=1, cpu_slots=1).run().loads_from_disk > 0 == law.run().loads_from_disk
    assert dataclasses.replace(law, max_outstanding=1).run().lost > 0 == law.run().lost


# ---- results ----


def test_results_are_those_of_one_by_one_in_order() -> None:
    found = list(spread(Simulation.metrics, simulations(30), workers=3))
    for seed, metrics in enumerate(found):
        alone = simulations(seed + 1)[-1].metrics()
        assert (metrics.arrived, metrics.ttft_s, metrics.itl_ms) == (alone.arrived, alone.ttft_s, alone.itl_ms)


def test_order_does_not_depend_on_which_is_done_first() -> None:
    second_done = threading.Event()

    def slow_first(task: int) -> int:
        if task == 0:
            assert second_done.wait(PATIENCE_S)
        if task == 1:
            second_done.set()
        return task

    assert list(spread(slow_first, range(5), workers=2)) == [0, 1, 2, 3, 4]


def test_results_come_as_they_are_ready() -> None:
    may_end = threading.Event()

    def one(task: int) -> int:
        assert task == 0 or may_end.wait(PATIENCE_S)
        return task

    results = spread(one, range(3), workers=2)
    assert next(results) == 0  # though the others cannot be done yet
    may_end.set()
    assert list(results) == [1, 2]


def test_two_are_simulated_at_once() -> None:
    both_inside = threading.Barrier(2)

    def one(simulation: Simulation) -> int:
        both_inside.wait(PATIENCE_S)  # breaks if the second never comes
        return simulation.metrics().arrived

    assert len(list(spread(one, simulations(2), workers=2))) == 2


def test_no_tasks_give_no_results() -> None:
    assert list(spread(Simulation.metrics, [])) == []


def test_progress_counts_the_results() -> None:
    seen: list[tuple[int, int]] = []
    assert list(spread(str, range(3), lambda *at: seen.append(at))) == ["0", "1", "2"]
    assert seen == [(1, 3), (2, 3), (3, 3)]
    list(spread(str, iter("ab"), lambda *at: seen.append(at), total=2))
    assert seen[3:] == [(1, 2), (2, 2)]
    with pytest.raises(TypeError, match="total is needed"):
        next(spread(str, iter("ab"), lambda *at: None))


def test_tasks_are_taken_only_as_results_are_asked_for() -> None:
    taken = 0

    def endless() -> Iterator[int]:
        nonlocal taken
        while True:
            taken += 1
            yield taken

    results = spread(str, endless(), workers=2)
    assert taken == 0
    for wanted in range(1, 200):
        assert next(results) == str(wanted)
        assert taken <= wanted + 2 * AHEAD
    results.close()


# ---- ends ----


def test_an_error_names_its_task_and_ends_the_rest() -> None:
    done: list[str] = []
    tasks = simulations(50)
    tasks[3] = dataclasses.replace(tasks[3], slots=100_000)

    def one(simulation: Simulation) -> None:
        simulation.metrics()
        done.append(simulation.name)

    with pytest.raises(BadInputError, match=r"^seed 3: memory error: 100000 slots of rank 16 leave"):
        list(spread(one, tasks, workers=2))
    assert len(done) <= 4 + 2 * AHEAD
    assert threads() == 0


def test_an_error_of_another_kind_says_in_which_task() -> None:
    with pytest.raises(ZeroDivisionError) as error:
        list(spread(lambda task: 1 // task, [2, 1, 0]))
    assert error.value.__notes__ == ["in 0"]


def threads() -> int:
    return sum(thread.name.startswith("twin") for thread in threading.enumerate())


def test_leaving_the_loop_ends_it() -> None:
    done: list[int] = []

    def one(task: int) -> int:
        done.append(task)
        return task

    for result in spread(one, range(1000), workers=2):
        if result == 5:
            break
    assert len(done) <= 6 + 2 * AHEAD
    assert threads() == 0


def test_it_can_be_stopped() -> None:
    stop = threading.Event()
    seen = []
    for result in spread(int, range(1000), workers=2, stop=stop.is_set):
        seen.append(result)
        if result == 7:
            stop.set()
    assert seen == list(range(8))
    assert list(spread(int, range(1000), stop=stop.is_set)) == []
    assert threads() == 0


def test_ctrl_c_ends_it_at_once() -> None:
    main = threading.main_thread().ident
    assert main is not None

    def one(task: int) -> int:
        if task == 3:
            signal.pthread_kill(main, signal.SIGINT)
        time.sleep(0.01)
        return task

    with pytest.raises(KeyboardInterrupt):
        for _ in spread(one, itertools.count(), workers=2):
            pass
    assert threads() == 0


# ---- the page ----


def test_the_page_is_true(capsys: pytest.CaptureFixture[str]) -> None:
    page = Path(__file__).parents[2] / "docs" / "batch.md"
    (code,) = re.findall(r"```python\n(.*?)```", page.read_text(encoding="utf-8"), flags=re.DOTALL)
    exec(code, {})  # noqa: S102
    assert len(capsys.readouterr().out.splitlines()) == 4
