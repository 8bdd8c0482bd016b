"""The fluid oracle's bin types: every accepted load satisfies the one that its steady state lies in, however fine."""

from __future__ import annotations

import math

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from loraplan.bin_types import BinType, covers
from loraplan.problem import GPULoad, Problem, ProblemBuilder
from loraplan.workload import Lengths
from twin import fluid
from twin.bin_types import FluidBinTypes
from twin.fluid import FluidOracle, FluidParams


def random_problem(rng: np.random.Generator) -> Problem:
    """Up to 150 adapters, from far too few requests to far too many."""
    builder = ProblemBuilder()
    constant = [Lengths.constant(250, 231)]
    drawn = [Lengths(rng.integers(1, 2000, 5), rng.integers(1, 800, 5)) for _ in range(3)]
    laws = drawn if rng.random() < 0.5 else constant
    scale = math.exp(rng.uniform(-7, 1))
    for i in range(int(rng.integers(1, 150))):
        rate = scale * float(rng.lognormal()) * (rng.random() > 0.1)
        builder.adapter(f"a{i}", int(rng.choice([4, 8, 16, 32])), rate, lengths=laws[int(rng.integers(len(laws)))])
    builder.gpus("h100-64gb/qwen-2.5-7b" if rng.random() < 0.3 else "h100-64gb/llama-3.1-8b", 5)
    return builder.constraints(float(rng.choice([0.5, 0.9, 1.0]))).build()


def loads_at_the_limit(problem: Problem, oracle: FluidOracle, rng: np.random.Generator) -> list[GPULoad]:
    """Accepted loads: random ones, and those to which a random order of adapters grows."""
    n, found = len(problem.adapters), []
    for _ in range(4):
        order = rng.permutation(n)[: int(rng.integers(1, n + 1))]
        slots = int(rng.integers(1, order.size + 1)) if rng.random() < 0.8 else order.size + 2
        low, high = 0, order.size + 1
        while high - low > 1:
            middle = (low + high) // 2
            load = GPULoad(0, tuple(sorted(order[:middle].tolist())), slots)
            starved = oracle.predict([load]).starved(problem.constraints.served_fraction)[0]
            low, high = (low, middle) if starved else (middle, high)
        sizes = {low, int(rng.integers(1, low + 1))} if low else set()
        found += [GPULoad(0, tuple(sorted(order[:size].tolist())), slots) for size in sizes]
    return found


def smallest_exposure(oracle: FluidOracle, load: GPULoad, limit: float) -> tuple[float, float]:
    """The first exposure whose steps carry the limit (s), and the one at which all slots are busy."""
    members = np.array(load.adapters, dtype=np.int64)
    server = np.array([oracle._server(load)], dtype=fluid.SERVER)[0]
    requests, kv, prefill, _, asked, shortest, _ = fluid._sum_up(oracle._adapters, members)
    if not asked:
        return math.nan, math.inf
    full, misses = fluid._slots_full(oracle._adapters, members, server, asked)
    sums = requests, kv, prefill, misses, server["slots"] / shortest

    def spare(u: float) -> float:
        return float(u - limit * fluid._step_seconds(oracle._adapters, members, server, sums, u)[0])

    low = 1e-3 * limit * server["base"]
    grid = np.geomspace(low * (1 - 1e-9), 1e3 * low, 20_000)
    first = next(place for place, u in enumerate(grid) if spare(u) >= 0)
    low, high = grid[first - 1] if first else grid[0], grid[first]
    for _ in range(60):
        middle = math.sqrt(low * high)
        low, high = (low, middle) if spare(middle) >= 0 else (middle, high)
    return high, full


def holds(union: FluidBinTypes, one: BinType, load: GPULoad, at: tuple[float, float]) -> bool:
    """Whether the load's steady state lies in the intervals of the bin type."""
    box, items, x = one.box, union._items, list(load.adapters)
    u, full = at
    if one.max_rank != union._problem.max_rank(0, load.adapters):
        return False
    asked = int((union._problem.rates[x] > 0).sum())
    if asked == 0:
        return (
            box.family == "resident" and box.slots[0] == 0 and box.exposure[1] > 1.01 * union.roots()[0].box.exposure[0]
        )
    family = "resident" if asked <= load.slots else "filling" if u <= full else "full"
    counted = asked if family == "resident" else load.slots
    inside = box.family == family and box.slots[0] <= counted <= box.slots[1]
    near = 1e-9
    ranges = [(box.exposure, u), (box.tokens, items.tokens[x].sum()), (box.asked, asked)]
    if family != "full":
        ranges.append((box.busy, items.busy(box.exposure[0])[x].sum()))
    if family != "resident":
        costs = union._costs(0, box.max_rank, load.slots, box.mixed)
        misses = (union._problem.rates[x] * np.exp(-union._items.running[x] * full)).sum()
        shortest = min(union._problem.mean_out[i] for i in x if union._problem.rates[i] > 0)
        all_load = misses * u >= load.slots / shortest
        mixed = bool((union._problem.ranks[x] < box.max_rank).any())
        inside = inside and box.all_load == all_load and box.mixed == mixed and costs.load > 0
        if not all_load:
            ranges.append((box.turn, full))
    return inside and all(low * (1 - near) - near <= value <= high * (1 + near) + near for (low, high), value in ranges)


@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 2**32 - 1))
def test_accepted_loads_satisfy_the_bin_types_that_their_steady_state_lies_in(seed: int) -> None:
    rng = np.random.default_rng(seed)
    problem = random_problem(rng)
    oracle = FluidOracle(problem, FluidParams(slot_wait_s=float(rng.choice([0.0, 5.0, 30.0]))))
    union = oracle.bin_types()
    assert isinstance(union, FluidBinTypes)
    for load in loads_at_the_limit(problem, oracle, rng):
        itl_ms = oracle.predict([load]).itl_ms[0]
        counts = np.bincount(load.adapters, minlength=len(problem.adapters)).astype(np.float64)
        at = smallest_exposure(oracle, load, union._share[0])
        live = [one for one in union.roots() if holds(union, one, load, at)]
        for _ in range(40):
            assert live
            assert all(covers([one], counts, 0) for one in live)
            assert not min(one.floor_ms for one in live) > itl_ms
            live = [part for one in live[:4] for part in union.split(one, counts) if holds(union, part, load, at)]
