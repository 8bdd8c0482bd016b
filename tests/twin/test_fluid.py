"""The fluid oracle against a plain search for the steady state, against its own promises, and against the twin."""

from __future__ import annotations

import math
from dataclasses import dataclass, fields

import numpy as np
import pytest
from scipy.optimize import brentq
from scipy.stats import norm
from support.scenarios import MAX_RANK, make_profile

from loraplan.errors import BadInputError
from loraplan.oracle import Predictions
from loraplan.problem import GPULoad, Problem, ProblemBuilder
from loraplan.profiles import Profile, load_profile
from loraplan.workload import Floats, Lengths
from twin.fluid import FluidOracle, FluidParams
from twin.oracle import TwinOracle, TwinParams

GRID = 20_000
LIMIT = 0.9


def predict(problem: Problem, *loads: GPULoad) -> Predictions:
    return FluidOracle(problem, FluidParams()).predict(loads)


def assert_same(one: Predictions, other: Predictions) -> None:
    for field in fields(Predictions):
        np.testing.assert_array_equal(getattr(one, field.name), getattr(other, field.name), err_msg=field.name)


# ---- random loads ----


def random_server(rng: np.random.Generator) -> Profile:
    """Every term of the step law present; the limits are tight on some servers and out of reach on others."""
    budget = int(10 ** rng.uniform(1, 3.6))
    return make_profile(
        step_ms={
            "base": rng.uniform(1, 20),
            "per_request": rng.uniform(0, 0.5),
            "per_kv_token": rng.uniform(0, 1e-4),
            "per_adapter": rng.uniform(0, 2),
            "per_small_adapter": rng.uniform(0, 2),
            "per_small_adapter_rank": rng.uniform(0, 0.05),
            "per_registered": rng.uniform(0, 0.1),
            "per_prefill_token": rng.uniform(0, 0.05),
            "per_adapter_request": rng.uniform(0, 0.005) * (rng.random() < 0.5),
            "per_slot_shrink": rng.uniform(0, 0.2),
            "per_slot_expand": rng.uniform(0, 0.1),
            "eager": rng.uniform(0, 5),
        },
        load_ms={"to_gpu": rng.uniform(0, 20), "smaller_rank": rng.uniform(0, 5)},
        kv_tokens=float(rng.choice([4e3, 2e4, 1e6])),
        per_slot=rng.uniform(0, 20),
        max_model_len=512,
        max_num_seqs=min(budget, int(rng.choice([8, 64, 512]))),
        max_num_batched_tokens=budget,
    )


def random_load(seed: int) -> tuple[Problem, GPULoad]:
    """Mixed ranks and lengths, some adapters that nobody asks for, fewer slots than adapters as often as not."""
    rng = np.random.default_rng(seed)
    n = int(rng.integers(1, 13))
    rates = 10 ** rng.uniform(-2, 1) * rng.lognormal(sigma=1.0, size=n) * (rng.random(n) > 0.1)
    builder = ProblemBuilder()
    for i, rate in enumerate(rates):
        lengths = Lengths(rng.integers(1, 300, size=5), rng.integers(1, 200, size=5))
        builder.adapter(f"a{i}", int(rng.choice([4, 8, MAX_RANK])), float(rate), lengths=lengths)
    problem = builder.gpus(random_server(rng), 1).build()
    return problem, GPULoad(0, tuple(range(n)), int(rng.integers(1, n + 3)))


# ---- the steady state, searched for without any cleverness ----


@dataclass(frozen=True)
class SteadyState:
    """What the module's docstring describes, for one load."""

    problem: Problem
    load: GPULoad

    def least_seconds(self, exposure: Floats) -> Floats:
        """How long a large step takes at each exposure, tiles of tokens not rounded up, adapters at the lower price."""
        profile, law, load = self.problem.profile(self.load), self.problem.profile(self.load).step_ms, self.load
        running, kv, prefill, active = self.contents(exposure)
        tokens, shrink, large, small = running + prefill, self.shrink_ms / 8, *self.adapter_ms
        ms = law.base + law.per_request * running + law.per_kv_token * kv + law.per_prefill_token * prefill
        ms = ms + min(large, small) * active + law.per_adapter_request * active * running
        ms = ms + shrink * (tokens / 32 + 1 / 2) + law.per_slot_expand * load.slots * (tokens / 64 + 1 / 2)
        ms = ms + law.eager * np.minimum(1, tokens / 1024)
        padded = any(self.problem.adapters[i].rank < self.rank for i in load.adapters)
        return (ms + (profile.load_ms.to_gpu + profile.load_ms.smaller_rank * padded) * self.loads(exposure)) / 1e3

    def step_seconds(self, exposure: Floats) -> Floats:
        """How long steps take at each exposure, some of them small."""
        running, _, _, active = self.contents(exposure)
        total_rate = self.problem.rates[list(self.load.adapters)].sum()
        small = np.exp(-total_rate * exposure) * norm.sf(running, loc=120.5, scale=np.sqrt(running))
        large_ms, small_ms = self.adapter_ms
        ms = (small * small_ms + (1 - small) * large_ms - min(large_ms, small_ms)) * active
        ms += small * self.shrink_ms * (1 - 1 / 8) * (running / 32 + 1 / 2)
        return self.least_seconds(exposure) + ms / 1e3

    @property
    def rank(self) -> int:
        """The server's ``max_lora_rank``."""
        return self.problem.profile(self.load).server_rank(
            max(self.problem.adapters[i].rank for i in self.load.adapters)
        )

    @property
    def adapter_ms(self) -> tuple[float, float]:
        """What an adapter costs in a large and in a small step."""
        law, names = self.problem.profile(self.load).step_ms, len(self.load.adapters)
        small = law.per_small_adapter + law.per_small_adapter_rank * self.rank
        return law.per_adapter + law.per_registered * names, small + law.per_registered * names

    @property
    def shrink_ms(self) -> float:
        """What 32 tokens cost in the shrink kernel of a small step."""
        law = self.problem.profile(self.load).step_ms
        return law.per_slot_shrink * self.load.slots * math.ceil(self.rank / 16)

    def loads(self, exposure: Floats) -> Floats:
        """Adapters loaded in a step: a cache's misses, but no more than slots that the shortest answers leave."""
        asked = [self.problem.adapters[i] for i in self.load.adapters if self.problem.adapters[i].rate > 0]
        if len(asked) <= self.load.slots:
            return np.zeros_like(exposure)

        def remembered(memory: float) -> float:
            return sum(1 - math.exp(-a.rate * a.lengths.mean_out * memory) for a in asked) - self.load.slots

        memory = float(brentq(remembered, 0, 1e9, xtol=1e-15, rtol=1e-14))
        misses = sum(a.rate * math.exp(-a.rate * a.lengths.mean_out * memory) for a in asked)
        return np.minimum(misses * exposure, self.load.slots / min(a.lengths.mean_out for a in asked))

    def contents(self, exposure: Floats) -> tuple[Floats, Floats, Floats, Floats]:
        """Running requests, their KV tokens, prefill tokens and adapters that run, per step."""
        running, kv, prefill, active = (np.zeros_like(exposure) for _ in range(4))
        for adapter in (self.problem.adapters[i] for i in self.load.adapters):
            lengths = adapter.lengths
            running += adapter.rate * lengths.mean_out * exposure
            kv += adapter.rate * lengths.mean_out * lengths.mean_kv * exposure
            prefill += adapter.rate * lengths.mean_in * exposure
            active += 1 - np.exp(-adapter.rate * lengths.mean_out * exposure)
        return running, kv, prefill, np.minimum(active, self.load.slots)

    def keeps_limits(self, exposure: float) -> bool:
        """Whether such steps are within memory, sequences and token budget, and waits for slots are short enough."""
        profile = self.problem.profile(self.load)
        room = profile.kv_blocks(self.load.slots, self.rank) * profile.kv.block_tokens
        running, kv, prefill, _ = (float(value) for value in self.contents(np.array(exposure)))
        return (
            kv <= room
            and running <= profile.limits.max_num_seqs
            and running + prefill <= profile.limits.max_num_batched_tokens
            and self.slot_wait_s(exposure, running) <= FluidParams().slot_wait_s
        )

    def slot_wait_s(self, exposure: float, running: float) -> float:
        """How long a request waits for a slot: turns of n requests last 1 + ln(n) answers and come round."""
        asked = [self.problem.adapters[i] for i in self.load.adapters if self.problem.adapters[i].rate > 0]
        slots, per_slot = self.load.slots, running / self.load.slots
        distinct = sum(1 - math.exp(-a.rate * a.lengths.mean_out * exposure) for a in asked)
        if distinct <= slots or len(asked) <= slots or per_slot <= 1:
            return 0.0
        n = float(brentq(lambda n: n / (1 + math.log(n)) - per_slot, 1, 1e9))
        turn_s = exposure * max(a.lengths.mean_out for a in asked) * (1 + math.log(n))
        without = 1 - slots / len(asked)  # a share of the time as well as of the adapters
        return without * without * turn_s * len(asked) / slots / 2

    def grid(self) -> Floats:
        """Exposures up to the largest that keeps the limits."""
        low, high = 0.0, 1.0
        while self.keeps_limits(high):
            high *= 2
        for _ in range(100):
            middle = (low + high) / 2
            low, high = (middle, high) if self.keeps_limits(middle) else (low, middle)
        # Geometric below, even above: a lightly loaded server's limits are far beyond where it works.
        return np.unique(np.concatenate([np.geomspace(low * 1e-6, low, GRID), np.linspace(0, low, GRID)[1:]]))

    def solve(self) -> tuple[float, float | None]:
        """The largest share of the traffic that is carried and, if that is all of it, the exposure."""
        exposures = self.grid()
        share = exposures / self.least_seconds(exposures)
        if share.max() < 1:
            return float(share.max()), None
        carried = exposures >= self.step_seconds(exposures)
        if not carried.any():  # the limits are met before steps are as short as that
            return 1.0, float(exposures[-1])
        first = int(np.argmax(carried))
        low, high = exposures[max(0, first - 1)], exposures[first]
        for _ in range(100):
            middle = (low + high) / 2
            longer = float(self.step_seconds(np.array(middle))) > middle
            low, high = (middle, high) if longer else (low, middle)
        return 1.0, float(high)


@pytest.mark.parametrize("batch", range(8))
def test_the_steady_state_is_the_one_a_plain_search_finds(batch: int) -> None:
    starved = 0
    for seed in range(40 * batch, 40 * (batch + 1)):
        problem, load = random_load(seed)
        if not problem.starts(load) or not problem.rates.any():
            continue
        found = predict(problem, load)
        share, exposure = SteadyState(problem, load).solve()
        assert found.served_fraction[0] == pytest.approx(share, rel=2e-4), seed
        assert found.throughput_tok_s[0] == pytest.approx(share * problem.offered.sum(), rel=2e-4)
        starved += share < 1
        if exposure is not None and found.served_fraction[0] == 1:
            state = SteadyState(problem, load)
            assert found.itl_ms[0] == pytest.approx(1e3 * float(state.step_seconds(np.array(exposure))), rel=1e-5), seed
            kv = float(state.contents(np.array(exposure))[1])
            profile, rank = problem.profile(load), problem.max_rank(0, load.adapters)
            room = profile.kv_blocks(load.slots, rank) * profile.kv.block_tokens
            assert found.kv_utilisation[0] == pytest.approx(kv / room, rel=1e-4)
    assert 3 <= starved <= 37  # the sample has both kinds


@pytest.mark.parametrize("batch", range(8))
def test_taking_an_adapter_away_never_makes_a_load_worse(batch: int) -> None:
    """Solvers prove infeasibility with this."""
    for seed in range(1000 + 40 * batch, 1000 + 40 * (batch + 1)):
        problem, load = random_load(seed)
        smaller = [GPULoad(0, tuple(j for j in load.adapters if j != i), load.slots) for i in load.adapters]
        found = predict(problem, load, *(one for one in smaller if one.adapters))
        assert (found.served_fraction[1:] >= found.served_fraction[0] - 1e-6).all(), seed
        starved = found.starved(LIMIT)
        assert starved[0] or not starved[1:].any(), seed
        assert (found.starts[1:] | ~found.starts[0]).all()


@pytest.mark.parametrize("batch", range(4))
def test_more_traffic_is_never_served_better(batch: int) -> None:
    for seed in range(2000 + 20 * batch, 2000 + 20 * (batch + 1)):
        problem, load = random_load(seed)
        served = []
        for factor in (0.25, 0.5, 1.0, 2.0, 4.0):
            builder = ProblemBuilder().gpus(problem.profile(load), 1)
            for adapter in problem.adapters:
                builder.adapter(adapter.name, adapter.rank, factor * adapter.rate, lengths=adapter.lengths)
            served.append(float(predict(builder.build(), load).served_fraction[0]))
        assert (np.diff(served) <= 1e-6).all(), seed


# ---- edges ----


def one_server(rates: list[float], profile: Profile | None = None) -> Problem:
    builder = ProblemBuilder().gpus(profile or load_profile("h100-64gb/llama-3.1-8b"), 1)
    for i, rate in enumerate(rates):
        builder.adapter(f"a{i}", 8, rate, tokens_in=200, tokens_out=150)
    return builder.build()


def test_no_loads_get_no_answers() -> None:
    assert len(predict(one_server([1.0]))) == 0


def test_a_batch_is_answered_as_one_by_one() -> None:
    problem = one_server([0.5, 1.0, 0.0, 40.0])
    loads = [
        GPULoad(0, (0, 1), 1),
        GPULoad(0, (0, 1, 2, 3), 2),
        GPULoad(0, (2,), 1),
        GPULoad(0, (0,), 10**6),  # does not start
        GPULoad(0, (3,), 1),
        GPULoad(0, (0, 1), 1),
    ]
    together = predict(problem, *loads)
    one_by_one = [predict(problem, load) for load in loads]
    joined = Predictions(
        *(np.concatenate([getattr(one, field.name) for one in one_by_one]) for field in fields(Predictions))
    )
    assert_same(together, joined)


def test_a_load_that_does_not_start_serves_nothing() -> None:
    found = predict(one_server([1.0]), GPULoad(0, (0,), 100_000))
    assert not found.starts[0]
    assert found.served_fraction[0] == found.throughput_tok_s[0] == found.kv_utilisation[0] == 0
    assert np.isnan(found.itl_ms[0])
    assert np.isnan(found.ttft_s[0])
    assert found.starved(LIMIT)[0]


@pytest.mark.parametrize("slots", [1, 3])
def test_adapters_that_nobody_asks_for_are_served(slots: int) -> None:
    found = predict(one_server([0.0, 0.0, 0.0]), GPULoad(0, (0, 1, 2), slots))
    assert found.served_fraction[0] == 1
    assert found.throughput_tok_s[0] == found.kv_utilisation[0] == 0
    assert np.isnan(found.itl_ms[0])
    assert np.isnan(found.ttft_s[0])
    assert not found.starved(LIMIT)[0]


def test_adapters_that_nobody_asks_for_take_no_slots() -> None:
    problem = one_server([4.0, 4.0, 0.0, 0.0, 60.0, 60.0])
    for busy in ((0, 1), (4, 5)):  # with little traffic and with too much
        alone, in_company = GPULoad(0, busy, 2), GPULoad(0, tuple(sorted((*busy, 2, 3))), 2)
        found = predict(problem, alone, in_company)
        # Nor anything else, but for the worker's list of registered adapters, which they make longer.
        assert found.served_fraction[1] == pytest.approx(found.served_fraction[0], rel=1e-3)
        assert found.itl_ms[1] == pytest.approx(found.itl_ms[0], rel=1e-3)


def test_where_the_queue_grows_without_end_so_does_the_wait() -> None:
    found = predict(one_server([0.1, 1000.0]), GPULoad(0, (0,), 1), GPULoad(0, (1,), 1))
    assert math.isfinite(found.ttft_s[0])
    assert found.served_fraction[1] < 0.5
    assert found.ttft_s[1] == math.inf
    assert found.starved(LIMIT).tolist() == [False, True]


# ---- the twin, where nobody waits ----


@pytest.mark.parametrize(("adapters", "total_rate", "rank"), [(1, 1.0, 8), (16, 4.0, 8), (16, 8.0, 16), (64, 6.0, 8)])
def test_it_agrees_with_the_twin_on_servers_without_queues(adapters: int, total_rate: float, rank: int) -> None:
    builder = ProblemBuilder().gpus("h100-64gb/llama-3.1-8b", 1)
    for i in range(adapters):
        builder.adapter(f"a{i}", rank, total_rate / adapters, tokens_in=200, tokens_out=150)
    problem = builder.build()
    load = GPULoad(0, tuple(range(adapters)), adapters)
    fluid = predict(problem, load)
    twin = TwinOracle(problem, TwinParams(horizon_s=20_000.0 / total_rate)).predict([load])
    assert fluid.served_fraction[0] == 1
    assert twin.kv_utilisation[0] < 0.5
    assert fluid.throughput_tok_s[0] == pytest.approx(twin.throughput_tok_s[0], rel=0.03)
    assert fluid.itl_ms[0] == pytest.approx(twin.itl_ms[0], rel=0.10)
    assert fluid.kv_utilisation[0] == pytest.approx(twin.kv_utilisation[0], rel=0.15)


@pytest.mark.parametrize(
    ("adapters", "slots", "total_rate"), [(64, 16, 2.0), (64, 16, 3.0), (64, 32, 4.0), (64, 48, 6.0)]
)
def test_it_agrees_with_the_twin_while_slots_are_to_spare(adapters: int, slots: int, total_rate: float) -> None:
    """Loads are a cache's misses then."""
    problem = one_server([total_rate / adapters] * adapters)
    load = GPULoad(0, tuple(range(adapters)), slots)
    fluid = predict(problem, load)
    twin = TwinOracle(problem, TwinParams(horizon_s=20_000)).predict([load])
    assert fluid.served_fraction[0] == 1
    assert fluid.throughput_tok_s[0] == pytest.approx(twin.throughput_tok_s[0], rel=0.03)
    assert fluid.itl_ms[0] == pytest.approx(twin.itl_ms[0], rel=0.10)


@pytest.mark.parametrize(("adapters", "slots", "total_rate", "wait_s"), [(64, 16, 10.0, 30), (256, 32, 10.0, 100)])
def test_adapters_that_wait_for_slots_are_served(adapters: int, slots: int, total_rate: float, wait_s: float) -> None:
    """Requests that wait come along once their adapter has a slot: few slots carry all who can wait."""
    problem = one_server([total_rate / adapters] * adapters)
    load = GPULoad(0, tuple(range(adapters)), slots)
    impatient, patient = (FluidOracle(problem, FluidParams(wait)).predict([load]) for wait in (0, wait_s))
    assert impatient.served_fraction[0] < LIMIT
    assert patient.served_fraction[0] == 1
    twin = TwinOracle(problem, TwinParams(horizon_s=20_000)).predict([load])
    assert twin.served_fraction[0] > 0.97
    assert twin.ttft_s[0] < wait_s


@pytest.mark.parametrize("seconds", [-1.0, math.inf, math.nan])
def test_a_wait_is_a_number_of_seconds(seconds: float) -> None:
    with pytest.raises(BadInputError, match="slot_wait_s must be at least 0"):
        FluidParams(seconds)


def test_steps_that_become_large_take_less_time() -> None:
    """As in the engine, from 120 tokens to 121."""
    law = {"per_adapter": 0.1, "per_small_adapter": 1.0}
    profile = make_profile(step_ms=law, max_num_seqs=2048, max_num_batched_tokens=8192)
    rates = [[1.0] * 32, [8.0] * 32]
    few, many = (predict(one_server(each, profile), GPULoad(0, tuple(range(32)), 32)) for each in rates)
    assert few.served_fraction[0] == many.served_fraction[0] == 1
    assert few.itl_ms[0] > 1.5 * many.itl_ms[0]


def test_requests_too_long_for_the_server_are_not_served() -> None:
    lengths = Lengths(np.array([100, 1500, 2500]), np.array([100, 1000, 100]))
    profile = make_profile(kv_tokens=1e6, max_model_len=2000, max_num_batched_tokens=8192)
    builder = ProblemBuilder().gpus(profile, 1).adapter("a", 8, 0.05, lengths=lengths)
    problem = builder.adapter("b", 8, 0.05, tokens_in=100, tokens_out=100).build()
    mixed, long, short = GPULoad(0, (0, 1), 2), GPULoad(0, (0,), 1), GPULoad(0, (1,), 1)
    found = predict(problem, mixed, long, short)
    # 2500 tokens of prompt are refused; 1500 + 1000 end at 2000.
    assert found.served_fraction[1] == pytest.approx((200 + 2000) / (200 + 2000 + 2600))
    assert found.served_fraction[2] == 1.0
    # The worst adapter decides: a mean over adapters would not be hereditary.
    assert found.served_fraction[0] == found.served_fraction[1]
    twin = TwinOracle(problem, TwinParams(horizon_s=200_000)).predict([long])
    assert twin.served_fraction[0] == pytest.approx(found.served_fraction[1], rel=0.02)
