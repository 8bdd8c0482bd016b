"""What must hold of every run of the twin, whatever the server and the requests."""

from __future__ import annotations

from dataclasses import replace
from typing import Any
from unittest.mock import patch

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from support.scenarios import NEXT_TO_NOTHING, REGIMES, RULES, Scenario, make_requests, random_scenario

from loraplan.profiles import Profile
from loraplan.workload import Floats
from twin import recording, server
from twin.recording import Recording
from twin.server import Run, simulate
from twin.state import NONE, State

scenarios = st.builds(random_scenario, st.sampled_from(REGIMES), st.sampled_from(RULES), st.integers(0, 10**6))
quick = settings(max_examples=60, deadline=None, derandomize=True)


def run_of(scenario: Scenario) -> Run:
    run: Run = scenario.run_by(simulate)
    return run


def until(times: Floats, end_s: float) -> Floats:
    """The times up to ``end_s``; the later ones as not reached."""
    return np.where(times <= end_s, times, np.nan)


@quick
@given(scenarios)
def test_same_requests_give_the_same_bytes(scenario: Scenario) -> None:
    first, second = run_of(scenario), run_of(scenario)
    for name in ("first_token_s", "finish_s", "preempted", "itl_counts", "features"):
        assert getattr(first, name).tobytes() == getattr(second, name).tobytes()
    assert first.blocked_s == second.blocked_s
    assert first.kv_token_s == second.kv_token_s


@quick
@given(scenarios)
def test_requests_go_from_arrival_to_first_token_to_finish(scenario: Scenario) -> None:
    run = run_of(scenario)
    started, finished = np.isfinite(run.first_token_s), np.isfinite(run.finish_s)
    one_step_s = scenario.profile.step_ms.base / 1000
    assert not np.any(finished & ~started)
    late = run.first_token_s[started] - scenario.requests.arrival_s[started]
    assert np.all(late > one_step_s * (1 - 1e-9))
    assert np.all(run.finish_s[finished] >= run.first_token_s[finished])
    assert not np.any(run.finish_s[finished] > scenario.horizon_s)
    too_long = scenario.requests.tokens_in >= scenario.longest
    assert not np.any(started & too_long)
    assert run.rejected <= np.count_nonzero(too_long & (scenario.requests.arrival_s < scenario.horizon_s))


@quick
@given(scenarios)
def test_each_second_is_counted_once(scenario: Scenario) -> None:
    run = run_of(scenario)
    assert sum(run.blocked_s.values()) <= run.busy_s * (1 + 1e-9)
    assert run.busy_s <= scenario.horizon_s * (1 + 1e-9)
    assert run.running_s >= run.busy_s * (1 - 1e-9)  # a busy server runs at least one request
    assert run.preempted.sum() == run.preemptions
    held = scenario.profile.kv_blocks(scenario.slots, scenario.max_rank) * scenario.profile.kv.block_tokens
    assert run.max_kv_tokens <= held
    assert run.running_s <= scenario.profile.limits.max_num_seqs * run.busy_s * (1 + 1e-9)


@quick
@given(scenarios, st.floats(0.05, 0.95))
def test_past_does_not_depend_on_the_horizon_or_on_what_arrives_later(scenario: Scenario, part: float) -> None:
    end_s = part * scenario.horizon_s
    whole = run_of(scenario)
    shorter = run_of(replace(scenario, horizon_s=end_s))
    np.testing.assert_array_equal(shorter.first_token_s, until(whole.first_token_s, end_s))
    np.testing.assert_array_equal(shorter.finish_s, until(whole.finish_s, end_s))
    early = scenario.requests.arrival_s <= end_s
    alone = run_of(scenario.with_requests(scenario.requests.select(early)))
    np.testing.assert_array_equal(until(alone.first_token_s, end_s), until(whole.first_token_s[early], end_s))
    np.testing.assert_array_equal(until(alone.finish_s, end_s), until(whole.finish_s[early], end_s))


@quick
@given(scenarios)
def test_rejected_requests_leave_no_trace(scenario: Scenario) -> None:
    served = scenario.requests.tokens_in < scenario.longest
    run, without = run_of(scenario), run_of(scenario.with_requests(scenario.requests.select(served)))
    # The clock also stops at a rejected arrival when the server is idle, but no step is taken: times stay the same.
    np.testing.assert_array_equal(run.finish_s[served], without.finish_s)
    assert run.steps == without.steps
    assert run.waiting_s == without.waiting_s
    assert without.rejected == 0


def twice_as_slow(profile: Profile) -> Profile:
    def doubled(part: object) -> dict[str, float]:
        return {name: 2 * value for name, value in vars(part).items()}

    return Profile.model_validate(
        profile.model_dump() | {"step_ms": doubled(profile.step_ms), "load_ms": doubled(profile.load_ms)}
    )


@quick
@given(scenarios)
def test_unit_of_time_does_not_matter(scenario: Scenario) -> None:
    requests = scenario.requests
    slow = replace(
        scenario.with_requests(replace(requests, arrival_s=2 * requests.arrival_s)),
        profile=twice_as_slow(scenario.profile),
        horizon_s=2 * scenario.horizon_s,
    )
    run, slowed = run_of(scenario), run_of(slow)
    # Doubling is exact in binary: not a rounding may differ.
    np.testing.assert_array_equal(slowed.finish_s, 2 * run.finish_s)
    np.testing.assert_array_equal(slowed.first_token_s, 2 * run.first_token_s)
    assert slowed.kv_token_s == 2 * run.kv_token_s
    assert slowed.steps == run.steps


@quick
@given(scenarios, st.integers(0, 10**6))
def test_names_of_adapters_do_not_matter_when_all_have_a_slot(scenario: Scenario, seed: int) -> None:
    n = scenario.adapter_ranks.size
    new_name = np.random.default_rng(seed).permutation(n)
    ranks = np.empty_like(scenario.adapter_ranks)
    ranks[new_name] = scenario.adapter_ranks
    requests = scenario.requests
    roomy = replace(
        scenario,
        slots=n,
        cpu_slots=None,
        # The memory of the slots comes out of the KV cache: give back what the wider server takes.
        profile=scenario.profile.model_copy(
            update={"kv": scenario.profile.kv.model_copy(update={"per_slot": 0.0, "per_slot_rank": NEXT_TO_NOTHING})}
        ),
    )
    renamed = replace(
        roomy,
        adapter_ranks=ranks,
        requests=make_requests(requests.arrival_s, new_name[requests.adapter], requests.tokens_in, requests.tokens_out),
    )
    run, other = run_of(roomy), run_of(renamed)
    np.testing.assert_array_equal(run.finish_s, other.finish_s)
    assert run.loads_from_cpu == run.loads_from_disk == 0


@quick
@given(scenarios)
def test_one_adapter_is_served_first_come_first_served_until_somebody_is_preempted(scenario: Scenario) -> None:
    requests = scenario.requests
    run = run_of(scenario.with_requests(make_requests(requests.arrival_s, 0, requests.tokens_in, requests.tokens_out)))
    accepted = requests.tokens_in < scenario.longest
    first = np.where(np.isnan(run.first_token_s), np.inf, run.first_token_s)[accepted]
    if run.preemptions == 0:
        assert np.all(first[:-1] <= first[1:])
    assert run.blocked_s["slots"] == 0


def until_all_is_answered(scenario: Scenario) -> tuple[Run, State]:
    """The run with time enough for everyone, its steps, and the state that it ends in."""
    states: list[State] = []
    collect = server._collect

    def remembering(state: State, *rest: Any) -> Run:
        states.append(state)
        return collect(state, *rest)

    def simulator(*args: Any, **kwargs: Any) -> Run:
        return simulate(*args, **kwargs, recording=Recording(steps_s=(0.0, 1e6)))

    most = 10**6
    with (
        patch.object(server, "_collect", remembering),
        patch.object(server, "MOST_STEPS", most),
        patch.object(recording, "MOST_STEPS", most),
    ):
        run: Run = replace(scenario, horizon_s=1e6).run_by(simulator)
    return run, states[0]


def assert_nothing_is_lost(scenario: Scenario) -> None:
    """Blocks and places are conserved; nobody is forgotten; Little's law holds."""
    run, state = until_all_is_answered(scenario)
    totals = state.totals[0]
    assert totals["free"] == scenario.profile.kv_blocks(scenario.slots, scenario.max_rank)
    for name in ("kv", "running", "waiting", "held_back", "in_vain", "decoding", "active"):
        assert totals[name] == 0, name
    assert not state.residue.any()
    assert (state.bucket == NONE).all()
    assert (state.adapters["runs"] == 0).all()
    served = scenario.requests.tokens_in < scenario.longest
    np.testing.assert_array_equal(np.isfinite(run.finish_s), served)
    np.testing.assert_array_equal(np.isfinite(run.first_token_s), served)
    assert run.steps_log is not None
    assert (run.steps_log["kv_tokens"] <= run.kv_capacity_tokens).all()
    # Requests in the system, over time, are the sum of their stays. The engine sees an arrival when the next step is
    # scheduled, and counts who takes part in vain for one step more.
    stays = float((run.finish_s - scenario.requests.arrival_s)[served].sum())
    step_s = 1e-3 * float(run.steps_log["ms"].max()) if run.steps else 0.0
    counted = run.running_s + run.waiting_s
    unseen, in_vain = {"vllm-0.32-async": (2, 1), "vllm-0.32-async-ignore-eos": (2, 0)}.get(
        scenario.profile.rules, (1, 0)
    )
    rounding = 1e-9 * (1 + stays)
    assert stays - unseen * served.sum() * step_s - rounding <= counted
    assert counted <= stays + in_vain * served.sum() * step_s + rounding


@pytest.mark.parametrize("rules", RULES)
@pytest.mark.parametrize("regime", REGIMES)
def test_nothing_is_lost(regime: str, rules: str) -> None:
    for seed in range(5):
        assert_nothing_is_lost(random_scenario(regime, rules, seed))


@pytest.mark.slow
@pytest.mark.parametrize("rules", RULES)
@pytest.mark.parametrize("regime", REGIMES)
def test_nothing_is_lost_in_many_more(regime: str, rules: str) -> None:
    for seed in range(1000, 1060):
        try:
            assert_nothing_is_lost(random_scenario(regime, rules, seed))
        except AssertionError as error:
            error.add_note(f"random_scenario({regime!r}, {rules!r}, {seed})")
            raise


# ---- a client that sends no more than so many at a time ----


def capped(scenario: Scenario, most: int) -> Run:
    """The run with time enough for all that the client sends, its steps recorded."""

    def simulator(*args: Any, **kwargs: Any) -> Run:
        return simulate(*args, **kwargs, max_outstanding=most, recording=Recording(steps_s=(0.0, 1e6)))

    with patch.object(server, "MOST_STEPS", 10**6), patch.object(recording, "MOST_STEPS", 10**6):
        run: Run = replace(scenario, horizon_s=1e6).run_by(simulator)
    return run


@pytest.mark.parametrize("rules", RULES)
@pytest.mark.parametrize("most", [1, 3, 20])
def test_a_client_with_its_hands_full_sends_nothing(most: int, rules: str) -> None:
    lost = 0
    for regime in REGIMES:
        scenario = random_scenario(regime, rules, 3)
        served = scenario.requests.tokens_in < scenario.longest
        scenario = scenario.with_requests(scenario.requests.select(served))
        run = capped(scenario, most)
        assert run.steps_log is not None
        unanswered = (run.steps_log["running"] + run.steps_log["waiting"]).to_numpy()
        assert unanswered.max(initial=0) <= most
        sent = np.isfinite(run.finish_s)
        assert run.lost == np.count_nonzero(~sent)
        lost += run.lost
        # Nobody is lost but those who find so many: that the engine has when it looks at who has arrived.
        if "async" not in rules:
            looks = np.searchsorted(run.steps_log["start_s"].to_numpy(), scenario.requests.arrival_s[~sent])
            assert (unanswered[looks] == most).all()
        # The others are served as if the lost had never been.
        alone = capped(scenario.with_requests(scenario.requests.select(sent)), len(sent) + 1)
        assert alone.lost == 0
        for name in ("first_token_s", "finish_s", "preempted"):
            np.testing.assert_array_equal(getattr(run, name)[sent], getattr(alone, name), err_msg=name)
        np.testing.assert_allclose(run.features, alone.features, rtol=1e-9)
    assert lost > 0


def test_a_limit_that_is_never_reached_changes_nothing() -> None:
    scenario = random_scenario("mixed", "vllm-0.8.5", 3)
    run, free = capped(scenario, len(scenario.requests) + 5), capped(scenario, len(scenario.requests))
    assert run.finish_s.tobytes() == free.finish_s.tobytes()
    assert run.lost == free.lost == 0
