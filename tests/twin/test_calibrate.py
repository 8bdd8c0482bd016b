"""Calibration: constants that made the measurements come back from them; what is wrong in the data is said."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from support.data import data_file
from support.measured_runs import measured_by_twin, unmeasured, write_runs
from support.scenarios import make_profile

from loraplan.errors import BadInputError
from loraplan.profiles import Frontend, LoadTimes, Profile, load_profile
from twin.calibrate import KV_FILE, LOADS_FILE, STEPS_FILE, Calibration, Evidence, calibrate, gather
from twin.frontend_fit import fit_frontend, standard_errors
from twin.measured import delivered, lengths_of, read_runs

LAW = {
    "base": 9.0,
    "per_request": 0.15,
    "per_kv_token": 0.0,
    "per_prefill_token": 0.0,
    "per_adapter": 0.5,
    "per_small_adapter": 0.3,
    "per_slot_shrink": 0.05,
    "per_waiting": 0.0,
}
LOADS = {"to_gpu": 20.0, "smaller_rank": 0.0, "disk": 0.0, "disk_per_rank": 0.0}


def server(**changes: Any) -> Profile:
    return make_profile(
        step_ms=LAW | changes, load_ms=LOADS, kv_tokens=60_000, max_model_len=2048, max_num_seqs=512, per_slot_rank=1.0
    )


@pytest.fixture(scope="module")
def rows() -> list[dict[str, Any]]:
    """Light, busy and starved runs; with slots for all and for some; at two ranks."""
    runs = [
        unmeasured(adapters, slots, rank, rates, seconds=1800.0)
        for rank in (8, 32)
        for adapters, slots in ((4, 4), (16, 16), (16, 8), (24, 24), (32, 32), (48, 48), (48, 24))
        for rates in ((0.1, 0.05), (0.4, 0.2), (0.8, 0.4), (2.4, 1.2))
    ]
    return measured_by_twin(runs, server())


@pytest.fixture(scope="module")
def found(rows: list[dict[str, Any]], tmp_path_factory: pytest.TempPathFactory) -> Calibration:
    path = write_runs(tmp_path_factory.mktemp("runs") / "runs.csv", rows)
    guess = server(base=15.0, per_request=0.05, per_adapter=0.1, per_small_adapter=0.1, per_slot_shrink=0.01)
    guess = guess.model_copy(update={"load_ms": guess.load_ms.model_copy(update={"to_gpu": 10.0})})
    return calibrate(path, None, guess)


def test_the_law_that_made_the_runs_comes_back(found: Calibration) -> None:
    law = found.profile.step_ms
    for name in ("base", "per_request", "per_adapter", "per_small_adapter", "per_slot_shrink"):
        assert getattr(law, name) == pytest.approx(LAW[name], rel=0.05), name
    assert found.profile.load_ms.to_gpu == pytest.approx(20.0, rel=0.05)
    assert max(abs(regime.bias) for regime in found.regimes) < 1.0
    assert max(regime.mape for regime in found.regimes) < 1.0


def test_every_constant_has_its_error_and_source(found: Calibration) -> None:
    by_name = {constant.name: constant for constant in found.constants}
    assert by_name["step_ms.base"].error < 0.1 * by_name["step_ms.base"].value
    assert by_name["step_ms.base"].source == "runs.csv"
    assert by_name["kv.tokens"].source == "not measured: kept"
    assert {regime.name for regime in found.regimes} == {"queue-free", "slot-limited", "starved"}


def test_the_profile_says_where_it_comes_from(found: Calibration) -> None:
    assert found.profile.sources[0] == "calibrated from 56 measured runs of toy"


def test_a_run_that_does_not_fit_is_flagged_and_counts_little(rows: list[dict[str, Any]], tmp_path: Path) -> None:
    odd = [dict(row) for row in rows]
    odd[1]["mean_tpot_ms"] *= 1.5
    found = calibrate(write_runs(tmp_path / "runs.csv", odd), "toy", server())
    worst, residual = found.outliers[0]
    assert worst.endswith(odd[1]["run_id"])
    assert residual < -20
    assert found.profile.step_ms.base == pytest.approx(LAW["base"], rel=0.1)


# ---- without the runs of a group ----


@pytest.fixture(scope="module")
def groups(rows: list[dict[str, Any]], tmp_path_factory: pytest.TempPathFactory) -> Evidence:
    """Half of the runs in a group of their own, whose tokens took half as long again as the law says."""
    odd = [
        row | {"run_id": f"odd_{i}", "group": "odd", "mean_tpot_ms": 1.5 * row["mean_tpot_ms"]}
        for i, row in enumerate(rows[1::2])
    ]
    path = write_runs(tmp_path_factory.mktemp("runs") / "runs.csv", [*rows[::2], *odd])
    return gather(path, "toy", server())


def test_a_fit_without_a_group_knows_nothing_of_it(groups: Evidence) -> None:
    assert sorted({one.run.group for one in groups.observed}) == ["made/odd", "made/up"]
    without_odd, without_up, of_all = (groups.fit(but)[0] for but in ("made/odd", "made/up", None))
    assert without_odd.step_ms.base == pytest.approx(LAW["base"], rel=0.1)
    assert without_up.step_ms.base == pytest.approx(1.5 * LAW["base"], rel=0.1)
    assert of_all.step_ms not in (without_odd.step_ms, without_up.step_ms)
    assert [fit.sources[0].split()[2] for fit in (without_odd, without_up, of_all)] == ["28", "28", "56"]


def test_all_runs_but_those_of_the_only_group_are_none(rows: list[dict[str, Any]], tmp_path: Path) -> None:
    # So few runs do not tell the law: what they say of the base may be nothing.
    evidence = gather(write_runs(tmp_path / "runs.csv", rows[:3]), "toy", server())
    assert evidence.fit()[0].step_ms.base > 0
    with pytest.raises(BadInputError, match="all are of group 'made/up': none is left to fit to"):
        evidence.fit("made/up")


# ---- the frontend ----

COSTS = {"per_series": 0.02, "per_name": 0.0006, "tokenizer": 300.0, "ttft": 10.0, "ttft_per_request": 0.04}
FRONTEND = Frontend(scrape_s=5.0, **COSTS)
BEFORE = FRONTEND.model_copy(update=dict.fromkeys(COSTS, 0.0))


def behind(frontend: Frontend) -> Profile:
    return server().model_copy(update={"frontend": frontend})


@pytest.fixture(scope="module")
def seen_through_a_frontend(tmp_path_factory: pytest.TempPathFactory) -> Evidence:
    """Runs without queues in two groups; in the second first tokens took 100 ms longer."""
    runs = [
        unmeasured(adapters, adapters, 8, rates, seconds=3600.0, group=group)
        for group in ("up", "late")
        for adapters in (8, 24, 48)
        for rates in ((0.1, 0.05), (0.2, 0.1), (0.4, 0.2))
    ]
    rows = measured_by_twin(runs, behind(FRONTEND))
    for row in rows[9:]:
        row["mean_ttft_ms"] += 100.0
    return gather(write_runs(tmp_path_factory.mktemp("runs") / "runs.csv", rows), "toy", behind(BEFORE))


def test_the_frontend_that_the_runs_were_seen_through_comes_back(seen_through_a_frontend: Evidence) -> None:
    profile, _, fit = seen_through_a_frontend.fit("made/late")
    assert fit is not None
    found = fit.frontend
    assert profile.frontend == found
    # The two costs of a pause are hardly told apart; what a label of a few names costs is.
    assert found.per_series + 8 * found.per_name == pytest.approx(FRONTEND.per_series + 8 * FRONTEND.per_name, rel=0.25)
    assert found.tokenizer == pytest.approx(FRONTEND.tokenizer, rel=0.25)
    assert found.ttft == pytest.approx(FRONTEND.ttft, abs=3.0)
    assert found.scrape_s == FRONTEND.scrape_s
    assert fit.ratio_error < 0.01
    assert fit.ttft_error < 0.03


def test_constants_of_the_frontend_have_standard_errors(seen_through_a_frontend: Evidence) -> None:
    views = seen_through_a_frontend.views
    assert views is not None
    errors = standard_errors(views, FRONTEND.scrape_s)
    assert set(errors) == set(COSTS)
    assert 1.0 < errors["ttft"] < 50.0  # half of the runs say 10 ms, half say 110
    assert errors == standard_errors(views, FRONTEND.scrape_s)


def test_what_hardly_happened_is_not_fitted(seen_through_a_frontend: Evidence) -> None:
    """Here and there a request waited for a step: that tells nothing of what waiting costs."""
    _, steps, _ = seen_through_a_frontend.fit()
    assert steps.values["per_waiting"] == 0


def test_a_frontend_is_fitted_without_the_group_too(seen_through_a_frontend: Evidence) -> None:
    late = seen_through_a_frontend.fit("made/up")[2]
    assert late is not None
    assert late.frontend.ttft > FRONTEND.ttft + 80


def test_few_runs_leave_the_frontend_as_it_is(seen_through_a_frontend: Evidence) -> None:
    views = seen_through_a_frontend.views
    assert views is not None
    kept = replace(seen_through_a_frontend, views=replace(views, runs=views.runs[:3]))
    assert fit_frontend(replace(views, runs=views.runs[:3]), 5.0) is None
    assert kept.fit()[0].frontend == BEFORE


def test_every_constant_of_the_frontend_has_its_source(seen_through_a_frontend: Evidence, tmp_path: Path) -> None:
    runs = [unmeasured(4, 4, 8, (rate,), seconds=60.0) for rate in (0.5, 1.0, 1.5, 2.0)]
    path = write_runs(tmp_path / "runs.csv", measured_by_twin(runs, behind(FRONTEND)))
    by_name = {constant.name: constant for constant in calibrate(path, None, behind(BEFORE)).constants}
    assert by_name["frontend.ttft"].source == "runs.csv"
    assert by_name["frontend.scrape_s"].source == "not measured: kept"
    assert by_name["frontend.scrape_s"].value == 5.0


# ---- what else was measured ----


def test_micro_benchmarks_give_what_they_isolate(rows: list[dict[str, Any]], tmp_path: Path) -> None:
    write_runs(tmp_path / "runs.csv", rows[:10])
    (tmp_path / "calibration").mkdir()
    slots, rank = np.meshgrid([8, 32, 64], [8, 16, 32])
    pd.DataFrame(
        {
            "model": "toy",
            "status": "ok",
            "adapter_slots": slots.ravel(),
            "max_lora_rank": rank.ravel(),
            "kv_tokens": 50_000 - slots.ravel() * (20 + 3 * rank.ravel()),
        }
    ).to_csv(tmp_path / "calibration" / KV_FILE, index=False)
    loads = [
        {"model": "toy", "kind": kind, "phase": "benchmark", "adapter_rank": rank, "max_lora_rank": top, "ms": ms}
        for rank, top in ((8, 8), (8, 16), (16, 16))
        for kind, ms in (("cpu_to_gpu", 5.0 + 2.0 * (rank < top)), ("disk_to_cpu", 30.0 + 2.0 * rank))
    ]
    pd.DataFrame(loads).to_csv(tmp_path / "calibration" / LOADS_FILE, index=False)
    batch, out = (array.ravel() for array in np.meshgrid([50, 100, 200, 400], [100, 400]))
    decode = pd.DataFrame(
        {
            "kind": "decode",
            "max_batch": batch,
            "completed": 1000,
            "total_input_tokens": 10_000,
            "output_len": out,
            "max_kv_usage": 0.5,
            "n_steps": 100,
            "step_ms_median": 10 + 0.02 * batch + 1e-4 * batch * (10 + out / 2),
        }
    )
    prefill = pd.DataFrame(
        {
            "kind": "prefill",
            "max_batch": 1,
            "total_input_tokens": 200_000,
            "max_kv_usage": 0.1,
            "n_steps": 100,
            "step_ms_median": 10 + 0.03 * 2000,
        },
        index=[0],
    )
    pd.concat([decode, prefill]).assign(model="toy").to_csv(tmp_path / "calibration" / STEPS_FILE, index=False)

    found = calibrate(tmp_path, None, server()).profile
    assert found.kv.tokens == pytest.approx(50_000)
    assert found.kv.per_slot == pytest.approx(20, rel=1e-3)
    assert found.kv.per_slot_rank == pytest.approx(3, rel=1e-3)
    assert found.step_ms.per_kv_token == pytest.approx(1e-4, rel=1e-3)
    assert found.step_ms.per_prefill_token == pytest.approx(0.03, rel=1e-2)
    # Loads in service may cost more than one by one on an idle server: one factor for all those into a slot.
    assert found.load_ms.smaller_rank / found.load_ms.to_gpu == pytest.approx(2 / 5, rel=1e-3)
    assert found.load_ms.disk == pytest.approx(30)
    assert found.load_ms.disk_per_rank == pytest.approx(2)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda table: table.drop(columns="rates"), "column 'rates' is missing"),
        (lambda table: table.assign(mean_tpot_ms="fast"), "row 1, mean_tpot_ms: expected a number (got 'fast')"),
        (lambda table: table.iloc[:0], "it has no rows"),
        (lambda table: table.assign(model=[f"m{i}" for i in range(len(table))]), "--model: the runs are of several"),
        (lambda table: table.assign(starved=1), "expected at least one that is ok and not starved"),
    ],
)
def test_broken_runs_are_refused(rows: list[dict[str, Any]], tmp_path: Path, change: Any, message: str) -> None:
    path = tmp_path / "runs.csv"
    change(pd.DataFrame(rows)).to_csv(path, index=False)
    with pytest.raises(BadInputError) as refused:
        calibrate(path, None, server())
    assert message in str(refused.value)


def test_a_server_whose_loads_take_no_time_is_calibrated(rows: list[dict[str, Any]], tmp_path: Path) -> None:
    free = server().model_copy(update={"load_ms": LoadTimes(to_gpu=0.0, disk=0.0)})
    enough = [row for row in rows if row["adapter_slots"] == row["served_adapters"]]
    law = calibrate(write_runs(tmp_path / "runs.csv", enough), None, free).profile
    assert law.step_ms.base == pytest.approx(LAW["base"], rel=0.05)
    assert law.load_ms.to_gpu == 0


def test_missing_files_and_models_are_named(rows: list[dict[str, Any]], tmp_path: Path) -> None:
    with pytest.raises(BadInputError, match="no such file or folder"):
        calibrate(tmp_path / "nowhere", None, server())
    with pytest.raises(BadInputError, match="no CSV in this folder has the columns of measured runs"):
        calibrate(tmp_path, None, server())
    with pytest.raises(BadInputError, match="--model: no run is of 'tos'; did you mean 'toy'"):
        calibrate(write_runs(tmp_path / "runs.csv", rows), "tos", server())


def test_the_real_runs_are_read_as_they_are_described() -> None:
    runs = read_runs(data_file("measured/h100_vllm085_runs.csv"))
    assert len(runs) == 877
    assert sum(run.ok for run in runs) == 762
    llama = [run for run in runs if run.model == "llama-3.1-8b-instruct"]
    tokens_in, tokens_out = delivered(llama)
    assert tokens_in == pytest.approx(222.7, abs=0.5)
    assert tokens_out == pytest.approx(196.5 * 0.991, abs=1.0)  # cut by end-of-sequence tokens
    assert lengths_of(llama).mean_kv == pytest.approx(360, abs=5)


def test_the_shipped_profiles_explain_every_memory_error_of_the_real_runs() -> None:
    runs = read_runs(data_file("measured/h100_vllm085_runs.csv"))
    for model in ("llama-3.1-8b", "qwen-2.5-7b"):
        profile = load_profile(f"h100-64gb/{model}")
        of_model = [run for run in runs if run.model.startswith(model) and (run.ok or run.out_of_memory)]
        assert len(of_model) > 400
        assert all(profile.starts(run.slots, run.max_rank) == run.ok for run in of_model)


@pytest.mark.parametrize(
    ("column", "value", "message"),
    [
        ("adapter_slots", None, "row 2, adapter_slots: expected a number above 0 (got nan)"),
        ("adapter_slots", float("inf"), "row 2, adapter_slots: expected a number above 0 (got inf)"),
        ("served_adapters", 0, "row 2, served_adapters: expected a number above 0 (got 0"),
        ("total_time_s", -1, "row 2, total_time_s: expected a number above 0 (got -1"),
        ("rates", "fast", "row 2, rates: expected numbers above 0 with blanks between (got 'fast')"),
        ("ranks", "", "row 2, ranks: expected numbers above 0 with blanks between"),
        ("starved", None, "row 2, starved: expected a number in a run that is ok (got nan)"),
    ],
)
def test_a_broken_cell_is_named(
    rows: list[dict[str, Any]], tmp_path: Path, column: str, value: Any, message: str
) -> None:
    broken = [dict(row) for row in rows[:3]]
    broken[1][column] = value
    with pytest.raises(BadInputError) as refused:
        read_runs(write_runs(tmp_path / "runs.csv", broken))
    assert message in str(refused.value)
