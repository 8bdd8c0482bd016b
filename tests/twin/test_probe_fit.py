"""Probes that the twin itself makes up give its constants back; what no probe could have seen does no harm."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
from support.scenarios import make_profile

from loraplan.errors import BadInputError
from loraplan.live.probes import open_requests
from loraplan.profiles import Limits, Profile
from loraplan.workload import Requests
from twin.probe_fit import Kind, Probe, fit_probes
from twin.step_fit import inter_token_ms

LAW = {
    "base": 12.0,
    "per_request": 0.4,
    "per_prefill_token": 0.2,
    "per_small_adapter": 1.5,
    "per_adapter": 1.5,
}
ON_THE_WAY_MS = 9.0
CAPACITIES = pd.DataFrame({"adapter_slots": [4, 8], "max_lora_rank": [8, 8], "kv_tokens": [10000 - 320, 10000 - 640]})
NO_LOADS = pd.DataFrame(columns=["kind", "phase", "adapter_rank", "max_lora_rank", "ms"])


def truth() -> Profile:
    profile = make_profile(rules="vllm-0.32", step_ms=LAW, max_num_seqs=64, max_num_batched_tokens=512)
    return profile.model_copy(
        update={"limits": Limits(max_model_len=2048, max_num_seqs=64, max_num_batched_tokens=512)}
    )


def closed(kind: Kind, batch: int, adapters: int, tokens_in: int, tokens_out: int) -> Probe:
    n = np.arange(batch)
    requests = Requests(np.zeros(batch), n % adapters, tokens_in + 0 * n, tokens_out + 0 * n)
    return made(Probe(f"{kind} {batch} {adapters} {tokens_in}", kind, 8, 8, adapters, requests, 1.0))


def made(probe: Probe) -> Probe:
    """The probe, measured in the twin."""
    run = probe.simulation(truth()).run()
    ms = 1e3 * float(run.first_token_s[0]) + ON_THE_WAY_MS if probe.kind == "prefill" else inter_token_ms(run)
    return replace(probe, ms=ms)


def probes() -> list[Probe]:
    decodes = [closed("decode", b, a, 8, 40) for b in (1, 2, 4, 8, 16, 32, 64) for a in (1, 4, 8) if a <= b]
    prompts = [closed("prefill", 1, 1, tokens, 1) for tokens in (8, 32, 64, 128, 256, 512, 1024)]
    opened = [made(Probe(f"open {r}", "open", 8, 8, 8, open_requests(8, r, 30.0, 1), 1.0)) for r in (5.0, 15.0)]
    return [*decodes, *prompts, *opened]


def start() -> Profile:
    return make_profile(rules="vllm-0.32", max_num_seqs=64, max_num_batched_tokens=512)


def test_the_constants_come_back_with_small_errors() -> None:
    fit = fit_probes(probes(), CAPACITIES, NO_LOADS, start(), "the twin")
    law = fit.calibration.profile.step_ms
    for name, value in LAW.items():
        assert getattr(law, name) == pytest.approx(value, rel=0.03), name
    assert law.per_kv_token < 1e-4
    assert fit.on_the_way_ms == pytest.approx(ON_THE_WAY_MS, abs=0.3)
    errors = {one.name: one.error for one in fit.calibration.constants}
    assert 0 < errors["step_ms.base"] < 0.2
    assert fit.calibration.profile.kv.tokens == pytest.approx(10000, abs=1)
    assert fit.calibration.profile.kv.per_slot_rank == pytest.approx(10)
    assert {regime.name for regime in fit.calibration.regimes} == {"decode", "prefill", "open"}
    assert all(regime.mape < 3 for regime in fit.calibration.regimes)


def test_times_that_cannot_be_are_left_out() -> None:
    given = probes()
    broken = [replace(given[0], name=f"broken {n}", ms=ms) for n, ms in enumerate((0.0, 0.008, float("nan")))]
    whole = fit_probes(given, CAPACITIES, NO_LOADS, start(), "the twin")
    assert fit_probes([*given, *broken], CAPACITIES, NO_LOADS, start(), "the twin").calibration.profile.step_ms == (
        whole.calibration.profile.step_ms
    )


def test_without_prompts_their_cost_is_kept_and_with_one_number_of_slots_they_cost_nothing() -> None:
    like = make_profile(rules="vllm-0.32", step_ms={"per_prefill_token": 0.07}, max_num_seqs=64)
    decodes = [probe for probe in probes() if probe.kind == "decode"]
    profile = fit_probes(decodes, CAPACITIES[:1], NO_LOADS, like, "the twin").calibration.profile
    assert profile.step_ms.per_prefill_token == 0.07
    assert profile.kv_blocks(4, 8) == (10000 - 320) // 16 - 1
    assert profile.kv_blocks(40, 8) == profile.kv_blocks(4, 8)


def test_loads_of_a_kind_that_was_not_measured_are_kept() -> None:
    like = make_profile(rules="vllm-0.32", load_ms={"to_gpu": 3.0, "disk": 40.0})
    common = {"phase": "benchmark", "adapter_rank": 8, "max_lora_rank": 8}
    table = pd.DataFrame([{"kind": "cpu_to_gpu", "ms": ms, **common} for ms in (5.0, 6.0, 7.0)])
    found = fit_probes(probes(), CAPACITIES, table, like, "the twin").calibration
    assert found.profile.load_ms.to_gpu == pytest.approx(6.0)
    assert found.profile.load_ms.disk == pytest.approx(40.0)
    assert {one.name: one.source for one in found.constants}["load_ms.disk"] == "not measured: kept"


def test_too_little_is_refused() -> None:
    with pytest.raises(BadInputError, match="at least 6 probes"):
        fit_probes(probes()[:5], CAPACITIES, NO_LOADS, start(), "the twin")
