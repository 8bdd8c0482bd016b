"""Validation: who gets which request, what counts as starved, and how sure the verdict is."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from scipy import stats
from support.oracles import server

import loraplan
from loraplan.errors import BadInputError
from loraplan.plan import Plan, PlannedAdapter, PlannedGPU, Predicted
from loraplan.problem import ProblemBuilder
from loraplan.validation import FIRST_FRESH_SEED, recorded_workload, route
from loraplan.workload import Adapter, Lengths, RateWorkload, Requests
from twin.metrics import measure
from twin.server import simulate

LENGTHS = Lengths.constant(100, 50)
WORDS = Predicted(served_fraction=1, throughput_tok_s=1, itl_ms=1, ttft_s=1, kv_utilisation=0)


def make_workload(rates: dict[str, float], horizon_s: float = 100.0) -> RateWorkload:
    return RateWorkload(tuple(Adapter(name, 8, rate, LENGTHS) for name, rate in rates.items()), horizon_s)


def make_plan(*gpus: dict[str, float], slots: int = 4, served_fraction: float = 0.9, **changes: Any) -> Plan:
    """A plan whose GPUs carry these adapters, each with this share of its requests."""
    builder = ProblemBuilder().adapter("any", 8, 1.0, 100, 50).gpus(server("server"), 1)
    plan = loraplan.solve(builder.constraints(served_fraction).build(), solver="best_fit")
    planned = tuple(
        PlannedGPU(
            id=f"gpu-{row}",
            profile="server",
            slots=slots,
            max_rank=8,
            adapters=tuple(PlannedAdapter(name=name, rank=8, rate=1.0, share=share) for name, share in shares.items()),
            predicted=WORDS,
        )
        for row, shares in enumerate(gpus)
    )
    return Plan.model_validate(plan.model_copy(update={"gpus": planned, **changes}).model_dump())


# ---- routing ----


def test_every_request_goes_to_one_gpu_that_has_its_adapter() -> None:
    workload = make_workload({"c": 2.0, "a": 3.0, "b": 1.0, "silent": 0.0})
    plan = make_plan({"a": 0.25, "b": 1.0}, {"c": 1.0, "silent": 1.0, "a": 0.75})
    whole, streams = workload.requests(7), route(plan, workload, 7)
    names = [adapter.name for adapter in workload.adapters]

    def named(requests: Requests, adapters: Sequence[str]) -> list[tuple[float, str, int, int]]:
        owners = [adapters[i] for i in requests.adapter]
        rows = zip(requests.arrival_s, owners, requests.tokens_in, requests.tokens_out, strict=True)
        return [(float(t), name, int(tokens_in), int(tokens_out)) for t, name, tokens_in, tokens_out in rows]

    seen = []
    for gpu, stream in zip(plan.gpus, streams, strict=True):
        assert (np.diff(stream.arrival_s) >= 0).all()
        seen += named(stream, [adapter.name for adapter in gpu.adapters])
    assert len(seen) > 300
    assert sorted(seen) == sorted(named(whole, names))


def test_shares_split_an_adapter_s_requests_in_proportion() -> None:
    workload = make_workload({"a": 50.0, "b": 10.0}, horizon_s=400.0)
    plan = make_plan({"a": 0.5}, {"a": 0.3, "b": 1.0}, {"a": 0.2})
    streams = route(plan, workload, 1)
    counts = [int((stream.adapter == 0).sum()) for stream in streams]
    n = sum(counts)
    assert n > 15_000
    assert stats.chisquare(counts, np.array([0.5, 0.3, 0.2]) * n).pvalue > 0.001
    # In the mean over time as well: replicas take turns, they do not take shifts.
    halves = [int((stream.arrival_s[stream.adapter == 0] < 200).sum()) for stream in streams]
    assert stats.chisquare(halves, np.array(counts) * sum(halves) / n).pvalue > 0.001


def test_shares_that_add_up_to_one_but_for_rounding_are_taken() -> None:
    plan = make_plan({"a": 0.3333333}, {"a": 0.3333333}, {"a": 0.3333333})
    assert sum(len(stream) for stream in route(plan, make_workload({"a": 5.0}), 0)) > 100


def test_routing_depends_on_the_seed_alone() -> None:
    workload, plan = make_workload({"a": 20.0}), make_plan({"a": 0.5}, {"a": 0.5})
    first, again, other = (route(plan, workload, seed)[0].arrival_s for seed in (3, 3, 4))
    np.testing.assert_array_equal(first, again)
    assert not np.array_equal(first, other)


def test_a_gpu_without_traffic_gets_an_empty_stream() -> None:
    streams = route(make_plan({"a": 1.0}, {"b": 1.0}), make_workload({"a": 1.0}), 0)
    assert len(streams[0]) > 0
    assert len(streams[1]) == 0


def test_an_adapter_that_the_plan_does_not_place_is_named() -> None:
    complaint = "^the workload asks for adapter 'b', which the plan does not place$"
    with pytest.raises(BadInputError, match=complaint):
        route(make_plan({"a": 1.0}), make_workload({"a": 1.0, "b": 1.0}), 0)
    with pytest.raises(BadInputError, match=complaint):
        loraplan.validate(make_plan({"a": 1.0}), make_workload({"a": 1.0, "b": 1.0}))


# ---- verdicts ----


def test_a_verdict_is_what_the_twin_says_of_the_gpu_s_own_stream() -> None:
    workload, plan = make_workload({"a": 5.0, "b": 8.0, "c": 1.0}), make_plan({"a": 1.0}, {"b": 1.0, "c": 1.0}, slots=1)
    found = loraplan.validate(plan, workload, seeds=[5, 6, 7])
    assert found.seeds == (5, 6, 7)
    assert found.horizon_s == 100.0
    assert found.limit == 0.9
    for row, verdict in enumerate(found.gpus):
        n = len(plan.gpus[row].adapters)
        runs = [
            measure(simulate(server("server"), 1, 8, np.full(n, 8), route(plan, workload, seed)[row], 100.0), n)
            for seed in found.seeds
        ]
        assert verdict.id == f"gpu-{row}"
        assert verdict.starts
        assert verdict.itl_ms == pytest.approx(np.mean([run.itl_ms.mean for run in runs]))
        assert verdict.ttft_s == pytest.approx(np.mean([run.ttft_s.mean for run in runs]))
        assert verdict.ttft_p95_s == pytest.approx(np.mean([run.ttft_s.p95 for run in runs]))
        assert verdict.throughput_tok_s == pytest.approx(np.mean([run.throughput_tok_s for run in runs]))
        assert verdict.waiting == pytest.approx(np.mean([run.waiting for run in runs]))
        served = [run.served_fraction for run in runs]
        low, high = stats.t.interval(0.95, len(runs) - 1, loc=np.mean(served), scale=stats.sem(served))
        assert verdict.served_fraction.mean == pytest.approx(np.mean(served))
        assert verdict.served_fraction.low == pytest.approx(max(0.0, low))
        assert verdict.served_fraction.high == pytest.approx(min(1.0, high))
    assert found.gpus[1].loads > 0 == found.gpus[0].loads


@dataclass(frozen=True)
class HotOrCold:
    """A workload of one adapter that is light on some seeds and far too much on the others."""

    hot_seeds: tuple[int, ...]
    horizon_s: float = 30.0
    adapters: tuple[Adapter, ...] = (Adapter("a", 8, 1.0, LENGTHS),)

    def requests(self, seed: int) -> Requests:
        rate = 300.0 if seed in self.hot_seeds else 2.0
        return make_workload({"a": rate}, self.horizon_s).requests(seed)


@pytest.mark.parametrize(
    ("hot_seeds", "starved", "certain"),
    [((), False, True), ((0, 1, 2, 3), True, True), ((0,), True, False)],
    ids=["never starved", "always starved", "sometimes"],
)
def test_the_mean_decides_and_the_interval_says_how_surely(
    hot_seeds: tuple[int, ...], starved: bool, certain: bool
) -> None:
    found = loraplan.validate(make_plan({"a": 1.0}), HotOrCold(hot_seeds), seeds=range(4))
    (gpu,) = found.gpus
    assert (gpu.starved, gpu.certain) == (starved, certain)
    assert found.starved_gpus == int(starved)
    assert gpu.served_fraction.low <= gpu.served_fraction.mean <= gpu.served_fraction.high
    assert (gpu.served_fraction.low < 0.9 <= gpu.served_fraction.high) != certain


def test_the_limit_is_the_plan_s() -> None:
    hot, plan = HotOrCold((0, 1)), make_plan({"a": 1.0})
    served = loraplan.validate(plan, hot, seeds=[0, 1]).gpus[0].served_fraction.mean
    for limit in (served * 0.9, served * 1.1):
        found = loraplan.validate(make_plan({"a": 1.0}, served_fraction=limit), hot, seeds=[0, 1])
        assert found.gpus[0].starved == (served < limit)


def test_one_seed_gives_no_interval() -> None:
    (gpu,) = loraplan.validate(make_plan({"a": 1.0}), make_workload({"a": 2.0}), seeds=1).gpus
    assert gpu.served_fraction.low == gpu.served_fraction.mean == gpu.served_fraction.high


def test_a_gpu_that_does_not_start_is_starved() -> None:
    plan = make_plan({"a": 1.0}, slots=100_000)
    found = loraplan.validate(plan, make_workload({"a": 2.0}))
    (gpu,) = found.gpus
    assert (gpu.starts, gpu.starved, gpu.certain, gpu.binding) == (False, True, True, "memory")
    assert gpu.served_fraction.mean == 0
    assert math.isnan(gpu.itl_ms)
    assert found.starved_gpus == 1


def test_a_gpu_that_nobody_asks_is_not_starved() -> None:
    plan = make_plan({"a": 1.0}, {"b": 1.0})
    gpu = loraplan.validate(plan, make_workload({"a": 2.0, "b": 0.0})).gpus[1]
    assert gpu.starts
    assert not gpu.starved
    assert gpu.served_fraction.mean == 1
    assert math.isnan(gpu.itl_ms)


def test_seeds_are_fresh_and_counted() -> None:
    seen: list[tuple[int, int]] = []
    plan = make_plan({"a": 1.0})
    found = loraplan.validate(plan, make_workload({"a": 2.0}), 2, on_progress=lambda *at: seen.append(at))
    assert found.seeds == (FIRST_FRESH_SEED, FIRST_FRESH_SEED + 1)
    assert seen == [(1, 2), (2, 2)]


@pytest.mark.parametrize("seeds", [0, -1, []])
def test_no_seeds_are_refused(seeds: int | list[int]) -> None:
    with pytest.raises(BadInputError, match=r"^seeds: expected at least one$"):
        loraplan.validate(make_plan({"a": 1.0}), make_workload({"a": 2.0}), seeds)


def test_a_plan_that_is_not_complete_is_refused() -> None:
    plan = make_plan({"a": 1.0}, status="unknown", reason="the search was interrupted")
    with pytest.raises(BadInputError, match="its status is unknown \\(the search was interrupted\\)"):
        loraplan.validate(plan, make_workload({"a": 2.0}))


# ---- the recorded workload ----


TRACE_ROWS = "arrived_at,num_prefill_tokens,num_decode_tokens\n" + "".join(f"{i / 10},100,20\n" for i in range(300))


@pytest.fixture
def traced_config(tmp_path: Path) -> Path:
    (tmp_path / "trace.csv").write_text(TRACE_ROWS)
    profile = json.loads(server("their-server").model_dump_json())
    (tmp_path / "profile.yaml").write_text(yaml.safe_dump(profile))
    config = {
        "workload": {"trace": "trace.csv", "adapters": {"count": 6, "ranks": [8]}},
        "fleet": [{"profile": "profile.yaml", "count": 2}],
    }
    path = tmp_path / "config.yaml"
    path.write_text(yaml.safe_dump(config))
    return path


def test_the_workload_that_the_plan_was_made_for_is_replayed(traced_config: Path) -> None:
    config = loraplan.load_config(traced_config)
    plan = loraplan.solve_config(config)
    replayed, asked = recorded_workload(plan).requests(3), loraplan.build(config).replay.requests(3)
    np.testing.assert_array_equal(replayed.arrival_s, asked.arrival_s)
    np.testing.assert_array_equal(replayed.adapter, asked.adapter)
    assert loraplan.validate(plan, seeds=1).starved_gpus == 0


def test_a_plan_keeps_its_profiles_when_their_files_are_gone(traced_config: Path) -> None:
    plan = loraplan.solve_config(loraplan.load_config(traced_config))
    (traced_config.parent / "profile.yaml").unlink()
    assert loraplan.validate(plan, seeds=1).gpus[0].starts


def test_a_trace_that_is_not_what_it_was_is_refused(traced_config: Path) -> None:
    plan = loraplan.solve_config(loraplan.load_config(traced_config))
    trace = traced_config.parent / "trace.csv"
    trace.write_text(TRACE_ROWS + "31,100,20\n")
    with pytest.raises(BadInputError, match=f"^{trace} has changed since the plan was made; restore it or give"):
        loraplan.validate(plan)
    trace.unlink()
    with pytest.raises(BadInputError, match=f"^{trace}, from which the plan was made, is missing; restore it or give"):
        loraplan.validate(plan)


def test_a_plan_without_a_config_needs_a_workload() -> None:
    with pytest.raises(BadInputError, match="records no config"):
        loraplan.validate(make_plan({"a": 1.0}))


def test_a_recorded_config_that_is_wrong_is_named() -> None:
    plan = make_plan({"a": 1.0})
    provenance = plan.provenance.model_copy(update={"config": {"workload": {"generat": {}}, "fleet": []}})
    with pytest.raises(BadInputError, match=r"^the config that the plan records: workload.generat: unknown key"):
        loraplan.validate(plan.model_copy(update={"provenance": provenance}))
