"""The twin against the naive reference scheduler, on small servers pressed into every corner, and both by hand."""

from __future__ import annotations

from functools import cache
from typing import Any

import numpy as np
import pytest
from support.reference_scheduler import ReferenceRun, reference_simulate
from support.scenarios import MAX_RANK, REGIMES, RULES, Scenario, make_profile, make_requests, random_scenario

from loraplan.profiles import load_profile
from loraplan.workload import Adapter, Floats, Lengths, RateWorkload
from twin import state
from twin.server import order_of_use, simulate

COUNTS = ("steps", "loads_from_cpu", "loads_from_disk", "preemptions", "rejected", "max_kv_tokens", "max_waiting")
INTEGRALS = ("running_s", "waiting_s", "kv_token_s", "busy_s")
SEEDS = 10


def assert_same(twin: Any, reference: ReferenceRun) -> None:
    for name in ("first_token_s", "finish_s"):
        np.testing.assert_allclose(getattr(twin, name), getattr(reference, name), rtol=1e-9, atol=0, err_msg=name)
    np.testing.assert_array_equal(twin.preempted, reference.preempted)
    for name in COUNTS:
        assert getattr(twin, name) == getattr(reference, name), name
    for name in INTEGRALS:
        assert getattr(twin, name) == pytest.approx(getattr(reference, name), rel=1e-9, abs=1e-12), name
    assert dict(twin.blocked_s) == pytest.approx(reference.blocked_s, rel=1e-9, abs=1e-12)
    assert twin.itl_counts.sum() == len(reference.gaps_s)
    assert np.abs(twin.itl_counts - itl_histogram(reference.gaps_s)).sum() <= 2  # one gap on the edge of a bin


def itl_histogram(gaps_s: list[float]) -> Floats:
    log_ms = np.log(np.array(gaps_s) * 1000)
    bins = np.clip((log_ms - state.ITL_BIN_START) / state.ITL_BIN_WIDTH, 0, state.ITL_BINS - 1)
    return np.bincount(bins.astype(np.int64), minlength=state.ITL_BINS).astype(np.float64)


@cache
def reference_run(regime: str, rules: str, seed: int) -> ReferenceRun:
    run: ReferenceRun = random_scenario(regime, rules, seed).run_by(reference_simulate)
    return run


@pytest.mark.parametrize("seed", range(SEEDS))
@pytest.mark.parametrize("rules", RULES)
@pytest.mark.parametrize("regime", REGIMES)
def test_twin_equals_the_reference(regime: str, rules: str, seed: int) -> None:
    assert_same(random_scenario(regime, rules, seed).run_by(simulate), reference_run(regime, rules, seed))


@pytest.mark.slow
@pytest.mark.parametrize("rules", RULES)
@pytest.mark.parametrize("regime", REGIMES)
def test_twin_equals_the_reference_on_many_more(regime: str, rules: str) -> None:
    for seed in range(1000, 1060):
        scenario = random_scenario(regime, rules, seed)
        try:
            assert_same(scenario.run_by(simulate), scenario.run_by(reference_simulate))
        except AssertionError as error:
            error.add_note(f"random_scenario({regime!r}, {rules!r}, {seed})")
            raise


@pytest.mark.parametrize("rules", RULES)
@pytest.mark.parametrize(("slots", "cpu_slots"), [(6, 12), (40, None)], ids=["few slots", "all adapters resident"])
def test_twin_equals_the_reference_on_a_shipped_profile(rules: str, slots: int, cpu_slots: int | None) -> None:
    profile = load_profile("h100-64gb/llama-3.1-8b").model_copy(update={"rules": rules})
    lengths = Lengths(np.array([20, 250, 900, 3000]), np.array([300, 230, 40, 5]))
    adapters = tuple(Adapter(f"a{i}", 8 * (1 + i % 2), 2.0 / (1 + i), lengths) for i in range(40))
    requests = RateWorkload(adapters, horizon_s=60.0).requests(seed=1)
    ranks = np.array([adapter.rank for adapter in adapters])
    scenario = Scenario(profile, slots, MAX_RANK, ranks, requests, 60.0, cpu_slots)
    assert_same(scenario.run_by(simulate), scenario.run_by(reference_simulate))


# Equality proves little where nothing happens: each regime must have met its limit.


def total(regime: str, rules: str, field: str) -> float:
    return float(sum(getattr(reference_run(regime, rules, seed), field) for seed in range(SEEDS)))


@pytest.mark.parametrize("rules", RULES)
@pytest.mark.parametrize("regime", ["slots", "kv", "tokens", "seqs", "slots+kv", "kv+tokens"])
def test_scarce_resource_really_blocked_requests(regime: str, rules: str) -> None:
    for scarce in regime.split("+"):
        blocked = sum(reference_run(regime, rules, seed).blocked_s[scarce] for seed in range(SEEDS))
        assert blocked > (0.02 if "+" in regime else 0.3) * total(regime, rules, "busy_s")


@pytest.mark.parametrize("rules", RULES)
def test_rare_events_really_happened(rules: str) -> None:
    assert total("kv", rules, "preemptions") > 100
    assert total("slots+kv", rules, "preemptions") > 100
    assert total("kv+tokens", rules, "preemptions") > 40
    assert total("slots", rules, "loads_from_cpu") > 50
    assert total("loads", rules, "loads_from_cpu") > 20
    assert total("loads", rules, "loads_from_disk") > 25
    assert sum(total(regime, rules, "rejected") for regime in REGIMES) > 20
    assert any(int(reference_run("kv", rules, seed).preempted.max(initial=0)) > 1 for seed in range(SEEDS))


@pytest.mark.parametrize("rules", RULES)
def test_no_requests_take_no_steps(rules: str) -> None:
    scenario = random_scenario("mixed", rules, 0).with_requests(make_requests([], [], [], []))
    twin = scenario.run_by(simulate)
    assert_same(twin, scenario.run_by(reference_simulate))
    assert twin.steps == 0
    assert twin.busy_s == 0


# Worked by hand, for the twin and the reference alike: agreement of two programs is no proof that either is right.

simulators = pytest.mark.parametrize("simulator", [simulate, reference_simulate])
RANKS = np.full(8, 16, dtype=np.int64)


def by_hand(simulator: Any, profile: Any, requests: Any, *, slots: int = 8, horizon_s: float = 10.0, **kw: Any) -> Any:
    return Scenario(profile, slots, 16, kw.pop("ranks", RANKS), requests, horizon_s, kw.pop("cpu_slots", None)).run_by(
        simulator
    )


@simulators
def test_one_request_takes_one_step_per_token(simulator: Any) -> None:
    run = by_hand(simulator, make_profile(), make_requests([0.5], 0, 20, 3))
    np.testing.assert_allclose(run.first_token_s, [0.51])
    np.testing.assert_allclose(run.finish_s, [0.53])
    assert run.steps == 3
    # 20 prompt tokens in the cache after the first step, one more after each other.
    assert run.kv_token_s == pytest.approx(0.01 * (20 + 21 + 22))
    assert run.max_kv_tokens == 22


LAW = {
    "base": 1000.0,
    "per_request": 100.0,
    "per_kv_token": 10.0,
    "per_adapter": 4e7,
    "per_small_adapter": 1.0,
    "per_small_adapter_rank": 0.1,
    "per_registered": 0.01,
    "per_prefill_token": 0.001,
    "per_adapter_request": 0.0001,
    "per_slot_shrink": 2000.0,
    "per_slot_expand": 3e5,
    "eager": 6e9,
    "per_waiting": 3e6,
}
"""A step law of terms that can be told apart in their sum; the server by hand has 8 slots of rank 16, 8 adapters."""


@simulators
def test_step_law_adds_every_term_of_a_small_step(simulator: Any) -> None:
    profile = make_profile(step_ms=LAW, max_num_seqs=2)
    run = by_hand(simulator, profile, make_requests([0, 0, 0], [0, 1, 1], [2, 3, 4], [2, 1, 1]), horizon_s=1e9)
    each = 1000 + 2 * 100 + 2 * (1 + 0.1 * 16 + 0.01 * 8 + 0.0001 * 2) + 8 * (2000 + 3e5)
    first = each + 10 * 5 + 0.001 * 5 + 3e6 * 1
    second = each + 10 * 7 + 0.001 * 4
    end = (first + second) / 1000
    np.testing.assert_allclose(run.first_token_s, [first / 1000, first / 1000, end])
    np.testing.assert_allclose(run.finish_s, [end, first / 1000, end])


@simulators
@pytest.mark.parametrize(
    ("tokens", "ms"),
    [
        (120, 1 + 0.1 * 16 + 8 * (4 * 2000 + 2 * 3e5)),
        (121, 4e7 + 8 * (4 / 8 * 2000 + 2 * 3e5)),
        (512, 4e7 + 8 * (16 / 8 * 2000 + 8 * 3e5)),
        (513, 4e7 + 8 * (17 / 8 * 2000 + 9 * 3e5) + 6e9),
    ],
)
def test_step_law_of_more_tokens(simulator: Any, tokens: int, ms: float) -> None:
    run = by_hand(simulator, make_profile(step_ms=LAW), make_requests([0], 0, tokens, 1), horizon_s=1e9)
    rest = 1000 + 100 + 0.01 * 8 + 0.0001 + (10 + 0.001) * tokens
    np.testing.assert_allclose(run.finish_s, [(ms + rest) / 1000])


@simulators
def test_last_chunk_of_a_prompt_is_prefill_even_if_it_is_one_token(simulator: Any) -> None:
    profile = make_profile(step_ms={"per_prefill_token": 1.0}, max_num_batched_tokens=4, max_num_seqs=4)
    run = by_hand(simulator, profile, make_requests([0], 0, 5, 2))
    np.testing.assert_allclose(run.first_token_s, [(10 + 4 + 10 + 1) / 1000])
    np.testing.assert_allclose(run.finish_s, [(10 + 4 + 10 + 1 + 10) / 1000])


@simulators
def test_later_request_of_a_running_adapter_overtakes_one_that_waits_for_a_slot(simulator: Any) -> None:
    run = by_hand(simulator, make_profile(), make_requests([0, 0, 0], [0, 1, 0], 4, [2, 1, 3]), slots=1)
    np.testing.assert_allclose(run.first_token_s, [0.01, 0.04, 0.01])
    np.testing.assert_allclose(run.finish_s, [0.02, 0.04, 0.03])
    assert run.blocked_s["slots"] == pytest.approx(0.03)
    assert run.waiting_s == pytest.approx(0.03)


@simulators
def test_younger_request_is_preempted_and_computed_again(simulator: Any) -> None:
    # Four blocks of four tokens. Both prompts fill two; the first token that each decodes needs a third.
    profile = make_profile(
        step_ms={"per_prefill_token": 1.0}, kv_tokens=20, block_tokens=4, max_model_len=16, max_num_batched_tokens=64,
        max_num_seqs=8,
    )  # fmt: skip
    run = by_hand(simulator, profile, make_requests([0, 0], 0, 8, 3))
    # Step 1: both prompts (10 + 16 ms). Steps 2 and 3: the elder alone; the younger waits, first preempted, then for
    # three blocks (8 + 1 tokens). Step 4: the younger computes 9 tokens and produces its second. Step 5: its third.
    np.testing.assert_allclose(run.first_token_s, [0.026, 0.026])
    np.testing.assert_allclose(run.finish_s, [0.046, 0.026 + 0.020 + 0.019 + 0.010])
    np.testing.assert_array_equal(run.preempted, [0, 1])
    assert run.blocked_s["kv"] == pytest.approx(0.02)


@simulators
@pytest.mark.parametrize("rules", RULES)
def test_newer_rules_admit_only_what_fits_whole(simulator: Any, rules: str) -> None:
    # Budget 8, 4 blocks of 4. The second prompt (12 tokens, 3 blocks) fits in part beside the first (2 blocks).
    profile = make_profile(
        rules=rules, step_ms={"per_request": 1.0}, kv_tokens=20, block_tokens=4, max_model_len=16,
        max_num_batched_tokens=8, max_num_seqs=8,
    )  # fmt: skip
    run = by_hand(simulator, profile, make_requests([0, 0], 0, [7, 12], [2, 1]))
    if rules == "vllm-0.8.5":
        # Step 1: 7 + 1 tokens. Step 2: 1 + 7, which fills the four blocks. Step 3: the last 4.
        np.testing.assert_allclose(run.finish_s, [0.012 + 0.012, 0.012 + 0.012 + 0.011])
    elif rules == "vllm-0.32-async":
        # Step 3 is scheduled before step 2 has ended the first, and takes it in vain.
        np.testing.assert_allclose(run.finish_s, [0.022, 0.055])
        assert run.blocked_s["kv"] == pytest.approx(0.033)
    else:
        # Steps 1 and 2: the first alone. Steps 3 and 4: 8 + 4 tokens of the second.
        np.testing.assert_allclose(run.finish_s, [0.022, 0.044])
        assert run.blocked_s["kv"] == pytest.approx(0.022)


@simulators
def test_adapters_not_in_a_slot_are_loaded_before_the_step(simulator: Any) -> None:
    # At the start the slots hold adapters 2 and 3, CPU memory also 1; adapter 0 is on disk.
    profile = make_profile(load_ms={"to_gpu": 100.0, "smaller_rank": 10.0, "disk": 1000.0, "disk_per_rank": 1.0})
    requests = make_requests([0, 2, 4, 6, 8], [3, 1, 0, 3, 2], 4, 1)
    run = by_hand(simulator, profile, requests, slots=2, ranks=np.array([8, 16, 16, 16]), cpu_slots=3, horizon_s=20.0)
    # 3: resident. 1: from CPU, evicts 2. 0: from disk, evicts 3 from its slot and 2 from CPU. 3: from CPU, evicts 1.
    # 2: from disk.
    delay = np.array([0, 100, 110 + 1008, 100, 100 + 1016]) / 1000 + 0.01
    np.testing.assert_allclose(run.finish_s, np.array([0, 2, 4, 6, 8]) + delay)
    assert run.loads_from_cpu == 2
    assert run.loads_from_disk == 2


@simulators
def test_adapter_that_runs_loses_its_slot_to_one_whose_turn_comes_before(simulator: Any) -> None:
    # At the start the six slots hold all but adapter 0, whose turn comes first. All six run, and the fourth ends with
    # the first step. Adapter 0 takes the slot of the first that ran, that one the slot of the second, the second that
    # of the third, the third that of the fourth.
    missing, *running = np.argsort(order_of_use(7))
    assert missing == 0
    requests = make_requests([0] * 6 + [0.005], [*running, missing], 4, [3, 3, 3, 1, 3, 3, 1])
    profile = make_profile(load_ms={"to_gpu": 100.0})
    run = by_hand(simulator, profile, requests, slots=6, ranks=np.full(7, 16), horizon_s=20.0)
    assert run.loads_from_cpu == 4
    np.testing.assert_allclose(run.first_token_s, [0.01] * 6 + [0.42])


@simulators
def test_prompt_of_the_model_length_is_rejected_and_output_is_cut_to_it(simulator: Any) -> None:
    profile = make_profile(max_model_len=10)
    run = by_hand(simulator, profile, make_requests([0, 0, 0], 0, [10, 9, 8], [1, 5, 5]))
    assert run.rejected == 1
    np.testing.assert_allclose(run.finish_s, [np.nan, 0.01, 0.02])


@simulators
def test_what_needs_more_blocks_than_there_are_is_too_long(simulator: Any) -> None:
    # 20 tokens are 5 blocks of 4, of which 4 serve requests: 16 tokens, though max_model_len says 20.
    profile = make_profile(kv_tokens=20, block_tokens=4, max_model_len=20)
    run = by_hand(simulator, profile, make_requests([0, 1], 0, [16, 14], [1, 5]))
    assert run.rejected == 1
    np.testing.assert_allclose(run.finish_s, [np.nan, 1.02])
    assert run.preemptions == 0


@simulators
def test_events_after_the_horizon_are_not_recorded(simulator: Any) -> None:
    run = by_hand(simulator, make_profile(), make_requests([0, 0.5], 0, 4, [3, 1]), horizon_s=0.015)
    np.testing.assert_allclose(run.first_token_s, [0.01, np.nan])
    np.testing.assert_allclose(run.finish_s, [np.nan, np.nan])
    assert run.steps == 2
    assert run.busy_s == pytest.approx(0.015)
    assert run.running_s == pytest.approx(0.015)


@simulators
def test_prompt_beyond_the_token_budget_is_computed_in_chunks_beside_the_others(simulator: Any) -> None:
    # Step 1: 3 + 1 tokens of the prompts. Step 2: one decode and the 3 left of the second. Step 3: the third enters.
    profile = make_profile(max_num_batched_tokens=4, max_num_seqs=4)
    run = by_hand(simulator, profile, make_requests([0, 0, 0], 0, [3, 4, 1], [3, 1, 1]))
    np.testing.assert_allclose(run.first_token_s, [0.01, 0.02, 0.03])
    np.testing.assert_allclose(run.finish_s, [0.03, 0.02, 0.03])
    assert run.blocked_s["tokens"] == pytest.approx(0.02)


# Async scheduling: a step is scheduled when the one before it starts.

stops, foreseen = "vllm-0.32-async", "vllm-0.32-async-ignore-eos"


@simulators
@pytest.mark.parametrize(("rules", "steps"), [("vllm-0.32", 3), (stops, 4), (foreseen, 3)])
def test_only_an_end_that_was_not_foreseen_costs_a_step(simulator: Any, rules: str, steps: int) -> None:
    run = by_hand(simulator, make_profile(rules=rules), make_requests([0.5], 0, 20, 3))
    np.testing.assert_allclose(run.first_token_s, [0.51])
    np.testing.assert_allclose(run.finish_s, [0.53])
    assert run.steps == steps
    assert run.running_s == run.busy_s == pytest.approx(0.01 * steps)
    assert run.max_kv_tokens == 19 + steps


@simulators
@pytest.mark.parametrize("rules", [stops, foreseen])
def test_the_end_at_the_longest_length_is_always_foreseen(simulator: Any, rules: str) -> None:
    run = by_hand(simulator, make_profile(rules=rules, max_model_len=10), make_requests([0], 0, 8, 5))
    np.testing.assert_allclose(run.finish_s, [0.02])
    assert run.steps == 2


@simulators
@pytest.mark.parametrize(("rules", "first"), [("vllm-0.32", 0.02), (stops, 0.03), (foreseen, 0.03)])
def test_who_arrives_in_a_step_misses_the_next_one_too(simulator: Any, rules: str, first: float) -> None:
    run = by_hand(simulator, make_profile(rules=rules), make_requests([0, 0.005], 0, 4, [9, 1]))
    assert run.first_token_s[1] == pytest.approx(first)
    assert run.waiting_s == 0  # nobody has seen it wait


@simulators
@pytest.mark.parametrize(("rules", "first"), [("vllm-0.32", 0.03), (stops, 0.04), (foreseen, 0.03)])
@pytest.mark.parametrize("scarce", ["slots", "seqs", "kv"])
def test_what_a_request_held_is_free_a_step_later_if_its_end_was_not_foreseen(
    simulator: Any, rules: str, first: float, scarce: str
) -> None:
    profile = make_profile(
        rules=rules,
        max_num_seqs=1 if scarce == "seqs" else 8,
        **({"kv_tokens": 20, "block_tokens": 4, "max_model_len": 16} if scarce == "kv" else {}),
    )
    requests = make_requests([0, 0], [0, 1], 9, [2, 1])
    run = by_hand(simulator, profile, requests, slots=1 if scarce == "slots" else 8)
    np.testing.assert_allclose(run.first_token_s, [0.01, first])
    assert run.finish_s[0] == pytest.approx(0.02)
    assert run.blocked_s[scarce] == pytest.approx(first - 0.01)


@simulators
@pytest.mark.parametrize(
    ("rules", "tokens_in", "times"),
    [
        # Four blocks of four tokens. The elder needs one more, and so does the younger for the token that it says in
        # vain: there is one left for prompts of 4 and 8 tokens, none for 8 and 8.
        ("vllm-0.32", [4, 8], 0),
        ("vllm-0.32", [8, 8], 0),
        (stops, [4, 8], 1),
        (stops, [8, 8], 1),
        (foreseen, [4, 8], 0),
        (foreseen, [8, 8], 1),
    ],
)
def test_who_is_preempted_with_the_last_token_on_its_way_ends_with_it(
    simulator: Any, rules: str, tokens_in: list[int], times: int
) -> None:
    profile = make_profile(rules=rules, kv_tokens=20, block_tokens=4, max_model_len=16)
    run = by_hand(simulator, profile, make_requests([0, 0], 0, tokens_in, [3, 1]))
    np.testing.assert_array_equal(run.preempted, [0, times])
    np.testing.assert_allclose(run.finish_s, [0.03, 0.01])
    assert run.waiting_s == 0
