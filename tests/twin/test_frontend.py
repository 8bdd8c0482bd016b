"""The server before the engine: what arrives in a pause, what comes out in one, and how long pauses are."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from support import reference_scheduler
from support.scenarios import Scenario, make_profile, make_requests, random_scenario

from loraplan.profiles import Frontend
from twin import frontend
from twin.metrics import client_side, measure
from twin.server import Run, simulate
from twin.state import OUTPUT_SLICE

PROFILE = make_profile()  # every step takes 10 ms
SLOW = Frontend(scrape_s=1.0, per_series=100.0, per_name=0.0, ttft=7.0, ttft_per_request=2.0)
FREE = Frontend(scrape_s=0.05, per_series=0.0, per_name=0.0, ttft=0.0, ttft_per_request=0.0)

FIRST_S, PAUSE_S, PAUSE_ENDS_S = 0.5, 2.0, 2.3
"""A first request leaves three labels: nobody, one adapter waits, it runs. The first pause, a second after the start,
is as long as the labels at the start make it: it takes no time. The next, a second later, takes that of three."""


def served(arrivals: Any, tokens_out: Any, frontend: Frontend | None = SLOW, horizon_s: float = 4.0) -> Run:
    """Requests of one adapter, after the first one."""
    requests = make_requests([FIRST_S, *arrivals], 0, 4, [3, *tokens_out])
    return simulate(PROFILE, 2, 16, np.array([16, 16]), requests, horizon_s, frontend=frontend)


def simulated(scenario: Scenario, frontend: Frontend | None) -> Run:
    def simulator(*args: Any, **kwargs: Any) -> Run:
        return simulate(*args, **kwargs, frontend=frontend)

    run: Run = scenario.run_by(simulator)
    return run


@pytest.mark.parametrize(("arrival_s", "reaches_s"), [(1.996, 1.996), (2.05, PAUSE_ENDS_S), (2.301, 2.301)])
def test_what_arrives_in_a_pause_reaches_the_engine_at_its_end(arrival_s: float, reaches_s: float) -> None:
    run = served([arrival_s], [1])
    np.testing.assert_allclose(run.first_token_s, [0.51, reaches_s + 0.01])
    assert (run.label_count, run.label_names) == (3, 2)


def test_those_that_arrive_in_a_pause_arrive_together() -> None:
    np.testing.assert_allclose(served([2.05, 2.1, 2.25], [1, 1, 1]).first_token_s, [0.51, 2.31, 2.31, 2.31])


def test_a_first_token_in_a_pause_reaches_the_client_at_its_end() -> None:
    run = served([1.996], [1])
    assert run.first_token_delay_s == pytest.approx(PAUSE_ENDS_S - 2.006)
    assert served([1.98], [1]).first_token_delay_s == 0  # at 1.99
    # Two first tokens, on their way for 7 ms and 2 for each request that runs: 4 steps of 10 ms in 4 s.
    way_s = 0.007 + 0.002 * 0.04 / 4.0
    assert client_side(run, SLOW).ttft_s == pytest.approx((0.01 + PAUSE_ENDS_S - 1.996) / 2 + way_s)


def test_tokens_of_a_pause_come_in_one_chunk() -> None:
    run = served([1.996], [51])
    in_pause = 30  # at 2.006, 2.016, ..., 2.296
    assert run.merged_gaps == in_pause - 1
    gaps = 2 + 50 - (in_pause - 1)
    assert client_side(run, SLOW).itl_ms == pytest.approx(1e3 * (0.02 + 0.50) / gaps)


def test_tokens_from_before_and_after_a_pause_are_chunks_of_their_own() -> None:
    run = served([1.946], [51])  # tokens at 1.956, ..., 1.996, then 30 in the pause, then others
    assert run.merged_gaps == 29
    assert served([2.25], [51]).merged_gaps == 0


@pytest.mark.parametrize(("requests", "merged"), [(2, 58), (OUTPUT_SLICE, 29 * OUTPUT_SLICE), (OUTPUT_SLICE + 1, 0)])
def test_a_frontend_takes_a_breath_between_steps_of_many_outputs(requests: int, merged: int) -> None:
    assert served([1.996] * requests, [51] * requests).merged_gaps == merged


def test_a_frontend_that_pauses_for_names_counts_them() -> None:
    by_name = SLOW.model_copy(update={"per_series": 0.0, "per_name": 100.0})
    # Two labels name one adapter, the third none.
    np.testing.assert_allclose(served([2.05], [1], by_name).first_token_s, [0.51, 2.21])


BY_ADAPTER = Frontend(scrape_s=1e9, per_series=0.0, per_name=0.0, tokenizer=300.0, ttft=0.0, ttft_per_request=0.0)


def served_first(arrivals: Any, adapters: Any, tokens_out: Any = 1) -> Run:
    """Requests of 4 adapters behind a frontend that does not know them yet."""
    requests = make_requests(arrivals, adapters, 4, tokens_out)
    return simulate(PROFILE, 4, 16, np.full(4, 16), requests, 4.0, frontend=BY_ADAPTER)


def test_the_first_request_of_an_adapter_waits_for_its_tokenizer() -> None:
    np.testing.assert_allclose(served_first([0.5, 1.0, 1.5], [0, 0, 1]).first_token_s, [0.81, 1.01, 1.81])


def test_requests_behind_one_that_waits_for_its_tokenizer_wait_too() -> None:
    run = served_first([0.5, 0.6, 0.7, 0.8, 1.2], [0, 0, 1, 0, 0])
    # The tokenizers of two adapters are loaded one after the other, from 0.5 to 0.8 and to 1.1.
    np.testing.assert_allclose(run.first_token_s, [0.81, 0.81, 1.11, 1.11, 1.21])
    # Both first tokens of 0.81 come out while the second is loaded.
    assert run.first_token_delay_s == pytest.approx(2 * 0.29)
    assert client_side(run, BY_ADAPTER).ttft_s == pytest.approx((0.31 + 0.21 + 0.41 + 0.31 + 0.01 + 0.58) / 5)


def test_tokens_that_come_out_while_a_tokenizer_is_loaded_come_in_one_chunk() -> None:
    run = served_first([0.5, 1.006], [0, 1], [101, 1])
    assert run.merged_gaps == 29  # of the 30 tokens at 1.01, 1.02, ..., 1.30


@pytest.mark.parametrize("glance", [1, 3, 1000])
def test_requests_are_taken_one_by_one(glance: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(frontend, "GLANCE", glance)
    rng = np.random.default_rng(0)
    arrivals, adapters = np.sort(rng.uniform(0.0, 3.0, 40)), rng.integers(0, 9, 40)
    free, seen, stops, known = 0.0, set(), [], []
    for arrival, adapter in zip(arrivals, adapters, strict=True):
        begin = max(arrival, free)
        free = begin if adapter in seen else begin + 0.3
        if adapter not in seen:
            stops.append((begin, free))
        seen.add(adapter)
        known.append(free)
    requests = make_requests(arrivals, adapters, 4, 1)
    got_known, got_stops = frontend.tokenized(requests, 10, BY_ADAPTER)
    np.testing.assert_allclose(got_known, known)
    np.testing.assert_allclose(got_stops, stops)
    assert requests.arrival_s.tobytes() == arrivals.tobytes()


def test_metrics_are_read_when_tokenizers_leave_time_for_it() -> None:
    both = SLOW.model_copy(update={"tokenizer": 300.0})
    requests = make_requests([0.9, 2.1, 2.45], 0, 4, [1, 1, 1])
    run = simulate(PROFILE, 2, 16, np.array([16, 16]), requests, 4.0, frontend=both)
    # Due at 1.0, reading begins at 1.2 and takes 100 ms, for nobody; the next, due at 2.3, is for one that waits, too.
    np.testing.assert_allclose(run.first_token_s, [1.21, 2.11, 2.51])
    assert run.first_token_delay_s == pytest.approx(0.09)


class Watched(reference_scheduler._Scheduler):
    """The reference scheduler, and the labels that it had before its steps."""

    seen: set[tuple[frozenset[int], frozenset[int]]]

    def schedule(self) -> Any:
        self.seen.add((frozenset(one.adapter for one in self.running), frozenset(one.adapter for one in self.waiting)))
        return super().schedule()


@pytest.mark.parametrize("rules", ["vllm-0.8.5", "vllm-0.32"])
@pytest.mark.parametrize("regime", ["slots", "kv", "seqs", "mixed"])
def test_labels_are_the_pairs_of_sets_that_run_and_wait(
    regime: str, rules: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(reference_scheduler, "_Scheduler", Watched)
    most = 0
    for seed in range(5):
        scenario = random_scenario(regime, rules, seed)
        later = scenario.requests.arrival_s + 1e-3  # so that it begins with nobody there
        scenario = scenario.with_requests(replace(scenario.requests, arrival_s=later))
        Watched.seen = {(frozenset(), frozenset())}
        scenario.run_by(reference_scheduler.reference_simulate)
        run = simulated(scenario, FREE)
        assert run.label_count == len(Watched.seen)
        assert run.label_names == sum(len(running) + len(waiting) for running, waiting in Watched.seen)
        most = max(most, run.label_count)
    assert most > 15


@pytest.mark.parametrize("rules", ["vllm-0.8.5", "vllm-0.32", "vllm-0.32-async", "vllm-0.32-async-ignore-eos"])
def test_a_frontend_that_takes_no_time_changes_nothing(rules: str) -> None:
    for seed in range(5):
        scenario = random_scenario("mixed", rules, seed)
        without, free = simulated(scenario, None), simulated(scenario, FREE)
        for name in ("first_token_s", "finish_s", "preempted", "itl_counts"):
            assert getattr(without, name).tobytes() == getattr(free, name).tobytes(), name
        assert (without.steps, without.loads_from_cpu, without.preemptions) == (
            free.steps,
            free.loads_from_cpu,
            free.preemptions,
        )
        np.testing.assert_allclose(without.features, free.features, rtol=1e-9)
        assert without.waiting_s == pytest.approx(free.waiting_s)
        assert free.merged_gaps == free.first_token_delay_s == 0


def test_without_a_frontend_the_client_sees_what_the_engine_does() -> None:
    has_one = PROFILE.model_copy(update={"frontend": SLOW})
    requests = make_requests([0.5, 2.05], 0, 4, [3, 20])
    engine, ignored = (simulate(profile, 2, 16, np.array([16]), requests, 4.0) for profile in (PROFILE, has_one))
    assert engine.finish_s.tobytes() == ignored.finish_s.tobytes()
    assert engine.features.tobytes() == ignored.features.tobytes()
    assert engine.merged_gaps == engine.label_count == engine.label_names == engine.first_token_delay_s == 0
    client, figures = client_side(engine, None), measure(engine, 1)
    assert (client.itl_ms, client.ttft_s) == pytest.approx((figures.itl_ms.mean, figures.ttft_s.mean))


@pytest.mark.parametrize("frontend", [None, SLOW])
def test_a_client_that_got_nothing_has_no_figures(frontend: Frontend | None) -> None:
    client = client_side(served([], [], frontend, horizon_s=0.52), frontend)
    assert np.isnan([client.itl_ms, client.ttft_s]).all()
