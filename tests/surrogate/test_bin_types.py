"""The surrogate's bin types: a load is accepted if and only if it satisfies one of its server's."""

from __future__ import annotations

import numpy as np
import pytest
from support.models import untrained_model
from support.oracles import small_problem

from loraplan.bin_types import BinType, BinTypes
from loraplan.problem import GPULoad, Problem
from surrogate.oracle import FEW_SLOTS, SurrogateOracle, SurrogateParams


def random_problem(rng: np.random.Generator) -> Problem:
    n = int(rng.integers(10, 60))
    rates = np.exp(rng.uniform(-5, 0)) * rng.lognormal(size=n) * (rng.random(n) > 0.1)
    return small_problem([(int(r), float(x)) for r, x in zip(rng.choice([4, 8, 16, 32], n), rates, strict=True)])


def loads_around_the_limit(problem: Problem, oracle: SurrogateOracle, rng: np.random.Generator) -> list[GPULoad]:
    found = []
    for _ in range(3):
        order = rng.permutation(len(problem.adapters))
        slots = int(rng.integers(1, order.size + 1))
        low, high = 1, order.size
        while high - low > 1:
            middle = (low + high) // 2
            load = GPULoad(0, tuple(sorted(order[:middle].tolist())), slots)
            low, high = (low, middle) if oracle.predict([load]).starved(0.9)[0] else (middle, high)
        found += [GPULoad(0, tuple(sorted(order[:size].tolist())), slots) for size in (low, high)]
    return found


def least_use(union: BinTypes, load: GPULoad, counts: np.ndarray, rank: int) -> float:
    """The largest row of the load, in the bin type of its server where that is least."""

    def use(one: BinType) -> float:
        return float((one.rows @ counts).max()) if not (one.rows[:, counts > 0] > 1.0).any() else np.inf

    most = FEW_SLOTS if len(load.adapters) <= load.slots < FEW_SLOTS else load.slots

    def mine(one: BinType) -> bool:
        return one.max_rank == rank and one.slots[0] <= most and load.slots <= one.slots[1]

    best, stack = np.inf, [one for one in union.roots() if mine(one)]
    while stack:
        one = stack.pop()
        parts = union.split(one, counts)
        if len(parts) == 1 and parts[0] is one:
            best = min(best, use(one))
        else:
            assert all(use(part) >= use(one) - 1e-9 for part in parts)
            stack += [part for part in parts if mine(part) and use(part) < best]
    return best


@pytest.mark.parametrize("seed", range(2))
def test_accepted_loads_are_those_that_satisfy_a_bin_type(seed: int) -> None:
    rng = np.random.default_rng(seed)
    problem = random_problem(rng)
    oracle = SurrogateOracle(problem, SurrogateParams(risk=0.02))
    union = oracle.bin_types()
    for load in loads_around_the_limit(problem, oracle, rng):
        counts = np.bincount(load.adapters, minlength=len(problem.adapters)).astype(np.float64)
        use = least_use(union, load, counts, problem.max_rank(0, load.adapters))
        accepted = not oracle.predict([load]).starved(0.9)[0]
        if accepted:
            assert use <= 1.0
        else:
            assert use > 1.0 - 1e-4


def test_without_calibration_only_adapters_that_nobody_asks_for_are_taken() -> None:
    problem = small_problem([(8, 0.0), (8, 0.0), (8, 1.0)])
    oracle = SurrogateOracle(problem, SurrogateParams(), untrained_model())
    for one in oracle.bin_types().roots():
        assert (one.rows[:, :2] == 0).all()
        assert (one.rows[:, 2] > 1).all()


def test_few_slots_are_judged_by_more_of_them() -> None:
    """Loads of fewer adapters than there are slots to judge them by: accepted ones satisfy a bin type all the same."""
    adapters = [(16, 13.5), (16, 6.6), (16, 16.2), (32, 3.7), (32, 15.3)]
    problem = small_problem(adapters)
    oracle = SurrogateOracle(problem, SurrogateParams())
    union = oracle.bin_types()
    for mask in range(1, 2 ** len(adapters)):
        members = tuple(i for i in range(len(adapters)) if mask >> i & 1)
        load = GPULoad(0, members, len(members))
        counts = np.array([float(i in members) for i in range(len(adapters))])
        if not oracle.predict([load]).starved(0.9)[0]:
            assert least_use(union, load, counts, problem.max_rank(0, members)) <= 1.0
