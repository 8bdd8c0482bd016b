"""Fidelity: the formulas by hand, the labels, and runs that the twin itself has made, which it must find again."""

from __future__ import annotations

import csv
import io
import math
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
from loraplan.profiles import Frontend, load_profile
from twin.agreement import errors, labels
from twin.fidelity import (
    FIGURES,
    REFERENCE_NUMBERS,
    Compared,
    Fidelity,
    compare,
    lengths_by_model,
    of_dataset,
    per_run_csv,
    read_reference,
    score,
)
from twin.measured import IDENTITY, MeasuredRun, read_runs

PROFILE = make_profile(
    step_ms={"per_request": 0.2, "per_adapter": 0.4, "per_small_adapter": 0.4, "per_slot_expand": 0.02},
    load_ms={"to_gpu": 5.0},
    kv_tokens=60_000,
    per_slot_rank=10.0,
)
TOO_MANY_SLOTS = 400  # x rank 16 x 10 tokens is more than the KV cache


def out_of_memory(row: dict[str, Any], run_id: str, slots: int) -> dict[str, Any]:
    """The row of a server that refused to start: nothing was measured."""
    told = {*IDENTITY, "rates", "ranks", "served_adapters", "max_lora_rank", "total_time_s"}
    kept = {column: value if column in told else None for column, value in row.items()}
    return kept | {"run_id": run_id, "status": "oom", "adapter_slots": slots}


@pytest.fixture(scope="module")
def rows() -> list[dict[str, Any]]:
    """Light, busy and starved runs of the twin itself."""
    runs = [
        unmeasured(adapters, slots, 16, rates)
        for adapters, slots in ((8, 8), (32, 8), (32, 32))
        for rates in ((0.2, 0.1), (0.8, 0.4), (3.2, 1.6))
    ]
    return measured_by_twin(runs, PROFILE)


@pytest.fixture(scope="module")
def runs(rows: list[dict[str, Any]], tmp_path_factory: pytest.TempPathFactory) -> list[MeasuredRun]:
    """Those, a server that refused to start as the profile says, one that did against it, and one that was killed."""
    extra = [
        out_of_memory(rows[0], "refused", TOO_MANY_SLOTS),
        out_of_memory(rows[0], "refused for another reason", 8),
        out_of_memory(rows[0], "killed", 8) | {"status": "killed"},
    ]
    return read_runs(write_runs(tmp_path_factory.mktemp("runs") / "runs.csv", [*rows, *extra]))


@pytest.fixture(scope="module")
def compared(runs: list[MeasuredRun]) -> list[Compared]:
    return compare(runs, {"toy": PROFILE}, seeds=2)


@pytest.fixture(scope="module")
def found(compared: list[Compared]) -> Fidelity:
    return score(compared)


def reference_row(run: MeasuredRun, factor: float = 1.1, wall_s: float = 2.0) -> dict[str, float]:
    """Results of another twin that is off by ``factor``."""
    values = (run.seen["total_throughput"], run.seen["mean_itl_ms"], run.seen["mean_ttft_ms"])
    return dict(
        zip(REFERENCE_NUMBERS, (*(factor * value for value in values), run.seen["starved"], wall_s), strict=True)
    )


def test_errors_by_hand() -> None:
    got = errors(np.array([110.0, 80.0, 5.0, np.nan, 1.0]), np.array([100.0, 100.0, np.nan, 5.0, 0.0]))
    assert got.n == 2
    assert got.mape == pytest.approx(15.0)
    assert got.bias == pytest.approx(-5.0)
    assert got.smape_half == pytest.approx(100 * (10 / 210 + 20 / 180) / 2)
    assert got.smape == pytest.approx(2 * got.smape_half)


def test_errors_of_nothing() -> None:
    got = errors(np.array([np.nan]), np.array([1.0]))
    assert got.n == 0
    assert all(math.isnan(value) for value in (got.mape, got.smape_half, got.smape, got.bias))


def test_labels_by_hand() -> None:
    true = np.array([True, True, True, False, False, False, False, False])
    said = np.array([True, True, False, True, True, False, False, False])
    served = np.array([0.5, 0.6, 0.89, 0.91, 0.99, 0.99, 1.0, 1.0])  # the third and fourth are too close to 0.9
    got = labels(said, true, served)
    assert (got.missed, got.false_alarm, got.n) == (1, 2, 8)
    assert got.agreement == pytest.approx(100 * 5 / 8)
    assert got.agreement_clear == pytest.approx(100 * 5 / 6)
    assert got.macro_f1 == pytest.approx(100 * (2 * 2 / 7 + 2 * 3 / 9) / 2)


@pytest.mark.parametrize("label", [True, False])
def test_labels_of_one_kind_only(label: bool) -> None:
    same = np.full(3, label)
    assert labels(same, same, np.ones(3)).macro_f1 == 100.0


def test_labels_of_nothing() -> None:
    got = labels(np.zeros(0, dtype=bool), np.zeros(0, dtype=bool), np.zeros(0))
    assert got.n == got.missed == got.false_alarm == 0
    assert math.isnan(got.agreement)
    assert math.isnan(got.agreement_clear)
    assert math.isnan(got.macro_f1)


def test_runs_of_the_twin_are_found_again(found: Fidelity) -> None:
    toy = found.models["toy"]
    assert toy.all["throughput"].n == 9
    for name, limit in {"throughput": 5, "itl": 8, "tpot": 8, "running": 12, "ttft": 35}.items():  # seed noise, 600 s
        assert toy.all[name].mape < limit, name
    assert toy.starvation.agreement == 100
    assert toy.starvation.n == 9
    assert toy.starved["throughput"].n > 0
    assert toy.not_starved["throughput"].n > 0
    assert toy.starved["throughput"].n + toy.not_starved["throughput"].n == 9
    assert toy.reference is None
    assert toy.same_rows is None


def test_a_slower_profile_is_told(runs: list[MeasuredRun]) -> None:
    slow = PROFILE.model_copy(update={"step_ms": PROFILE.step_ms.model_copy(update={"base": 20.0})})
    toy = score(compare(runs, {"toy": slow})).models["toy"]
    assert toy.not_starved["itl"].bias > 30
    assert toy.starved["throughput"].bias < -5


def test_memory_failures(found: Fidelity, compared: list[Compared]) -> None:
    assert found.models["toy"].oom.n == 11  # the run that was killed tells nothing
    assert found.models["toy"].oom.agreement == pytest.approx(100 * 10 / 11)
    assert [one.starts for one in compared[9:]] == [False, True]
    assert all(not one.simulated for one in compared[9:])


def test_a_server_that_cannot_start_is_not_replayed(runs: list[MeasuredRun]) -> None:
    impossible = [replace(runs[0], slots=TOO_MANY_SLOTS), runs[1]]
    toy = score(compare(impossible, {"toy": PROFILE})).models["toy"]
    assert toy.oom.agreement == 50
    assert toy.all["throughput"].n == 1


def test_ttft_without_overloaded_clients(compared: list[Compared]) -> None:
    first, *others = compared
    overloaded = replace(first, run=replace(first.run, seen=first.run.seen | {"client_overloaded": 1.0}))
    toy = score([overloaded, *others]).models["toy"]
    assert toy.all["ttft"].n == 8
    assert toy.all["itl"].n == 9


def test_seeds_are_averaged_and_each_run_has_its_own(runs: list[MeasuredRun], compared: list[Compared]) -> None:
    [once] = compare(runs[:1], {"toy": PROFILE})
    [again] = compare(runs[:1], {"toy": PROFILE})
    assert once.simulated == again.simulated
    assert once.simulated["throughput"] != compared[0].simulated["throughput"]
    twins = [runs[0], replace(runs[0], key=("another", *runs[0].key[1:]))]
    one, other = compare(twins, {"toy": PROFILE})
    assert one.simulated["throughput"] != other.simulated["throughput"]


def test_reference_on_its_rows(compared: list[Compared]) -> None:
    with_reference = [
        replace(one, reference=reference_row(one.run) if i in (0, 1, 8) else {}) for i, one in enumerate(compared)
    ]
    found = score(with_reference)
    toy = found.models["toy"]
    assert toy.reference is not None
    assert toy.same_rows is not None
    for name in ("throughput", "itl", "ttft"):
        assert toy.reference.all[name].n == 3
        assert toy.reference.all[name].mape == pytest.approx(10)
        assert toy.reference.all[name].bias == pytest.approx(10)
    assert toy.reference.all["tpot"].n == toy.reference.all["running"].n == 0
    assert toy.reference.starvation.agreement == 100
    assert toy.same_rows.all["throughput"].n == toy.same_rows.starvation.n == 3
    assert toy.all["throughput"].n == 9
    expected = 6.0 / sum(one.replay_s for one in (compared[0], compared[1], compared[8]))
    assert found.speed.ratio_to_reference == pytest.approx(expected)


def test_speed(compared: list[Compared]) -> None:
    timed = [replace(one, replay_s=seconds) for one, seconds in zip(compared[:3], (0.1, 0.2, 0.6), strict=True)]
    speed = score(timed).speed
    assert speed.seconds_per_simulated_hour_mean == pytest.approx(6 * 0.3)  # these runs are of 600 s
    assert speed.seconds_per_simulated_hour_median == pytest.approx(6 * 0.2)
    assert math.isnan(speed.ratio_to_reference)


def test_a_line_per_run(compared: list[Compared]) -> None:
    lines = list(csv.DictReader(io.StringIO(per_run_csv(compared))))
    assert [tuple(line[column] for column in IDENTITY) for line in lines] == [one.run.key for one in compared]
    first, refused = lines[0], lines[9]
    for name, column in FIGURES.items():
        assert float(first[f"measured_{name}"]) == pytest.approx(compared[0].run.seen[column])
        assert float(first[f"simulated_{name}"]) == pytest.approx(compared[0].simulated[name])
    assert first["starts"] == "1"
    assert refused["status"] == "oom"
    assert refused["starts"] == "0"
    assert refused["measured_throughput"] == refused["simulated_throughput"] == refused["simulated_starved"] == ""


def test_progress_counts_every_replay(runs: list[MeasuredRun]) -> None:
    seen: list[tuple[int, int]] = []
    compare(runs[:2], {"toy": PROFILE}, seeds=2, on_progress=lambda done, total: seen.append((done, total)))
    assert seen == [(1, 4), (2, 4), (3, 4), (4, 4)]


def test_groups_held_out_have_profiles_of_their_own(runs: list[MeasuredRun]) -> None:
    slow = PROFILE.model_copy(update={"step_ms": PROFILE.step_ms.model_copy(update={"base": 20.0})})
    other = replace(runs[1], group="made/other")
    profiles = {("toy", "made/other"): slow, ("another", "made/up"): slow}
    first, held_out = compare([runs[0], other], {"toy": PROFILE}, lengths_by_model(runs), held_out=profiles)
    [plain] = compare(runs[:1], {"toy": PROFILE}, lengths_by_model(runs))
    [of_slow] = compare([other], {"toy": slow}, lengths_by_model(runs))
    assert first.simulated == plain.simulated
    assert held_out.simulated == of_slow.simulated


def test_runs_set_apart_count_in_one_of_two_scores(compared: list[Compared]) -> None:
    apart = [compared[0].run.name, compared[9].run.name]
    found = score(compared, apart)
    assert found.apart == tuple(apart)
    assert found.models == score(compared).models
    assert found.without_apart is not None
    assert found.without_apart == score([one for one in compared if one.run.name not in apart]).models
    assert found.without_apart["toy"].all["throughput"].n == 8
    assert found.without_apart["toy"].oom.n == 9
    none = score(compared, ["made/toy/up/of another data set"])
    assert (none.apart, none.without_apart) == ((), None)


def test_figures_of_clients_behind_a_frontend(runs: list[MeasuredRun]) -> None:
    way = Frontend(scrape_s=5.0, per_series=0.0, per_name=0.0, ttft=50.0, ttft_per_request=0.0)
    [plain] = compare(runs[:1], {"toy": PROFILE})
    [behind] = compare(runs[:1], {"toy": PROFILE.model_copy(update={"frontend": way})})
    assert behind.simulated["ttft"] == pytest.approx(plain.simulated["ttft"] + 50.0)
    for name in ("throughput", "itl", "tpot"):
        assert behind.simulated[name] == pytest.approx(plain.simulated[name])


def test_nothing_to_replay(runs: list[MeasuredRun]) -> None:
    found = score(compare([run for run in runs if run.out_of_memory], {"toy": PROFILE}))
    assert found.models["toy"].oom.n == 2
    assert found.models["toy"].all["throughput"].n == 0
    assert math.isnan(found.speed.seconds_per_simulated_hour_mean)


def test_a_run_in_which_nothing_was_completed(runs: list[MeasuredRun]) -> None:
    short = replace(runs[0], key=(*runs[0].key[:3], "short"), seconds=0.01)
    _, one = compare([runs[0], short], {"toy": PROFILE})
    assert one.simulated["throughput"] == 0
    assert math.isnan(one.simulated["itl"])
    assert math.isnan(one.simulated["tpot"])


def test_a_model_without_profile(runs: list[MeasuredRun]) -> None:
    with pytest.raises(BadInputError, match="'toy' has no profile: give --profile toy=PROFILE"):
        compare(runs, {})


def test_no_run_to_take_lengths_from(runs: list[MeasuredRun]) -> None:
    with pytest.raises(BadInputError, match=r"model 'toy': .* not starved"):
        compare([run for run in runs if run.starved], {"toy": PROFILE})


def test_datasets(runs: list[MeasuredRun]) -> None:
    assert of_dataset(runs, "made") == runs
    with pytest.raises(BadInputError, match="no runs of dataset 'mad'; did you mean 'made'"):
        of_dataset(runs, "mad")


def reference_table(runs: list[MeasuredRun]) -> pd.DataFrame:
    return pd.DataFrame([dict(zip(IDENTITY, run.key, strict=True)) | reference_row(run) for run in runs])


def test_reading_a_reference(runs: list[MeasuredRun], tmp_path: Path) -> None:
    path = tmp_path / "twin.csv"
    reference_table(runs[:3]).to_csv(path, index=False)
    read = read_reference(path)
    assert set(read) == {run.key for run in runs[:3]}
    assert read[runs[1].key] == pytest.approx(reference_row(runs[1]))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda table: table.drop(columns="sim_itl_ms"), "column 'sim_itl_ms' is missing"),
        (lambda table: table.assign(sim_wall_s="long"), "row 1, sim_wall_s: expected a number (got 'long')"),
        (lambda table: pd.concat([table, table.iloc[:1]]), "is there twice"),
    ],
)
def test_wrong_references(runs: list[MeasuredRun], tmp_path: Path, change: Any, message: str) -> None:
    path = tmp_path / "twin.csv"
    change(reference_table(runs[:3])).to_csv(path, index=False)
    with pytest.raises(BadInputError) as caught:
        read_reference(path)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_real_runs() -> None:
    path = data_file("measured/h100_vllm085_runs.csv")
    reference = read_reference(data_file("measured/reference_twin_runs.csv"))
    every = [run for run in read_runs(path) if run.model == "llama-3.1-8b-instruct"]
    chosen = [run for run in every if run.ok][::17] + [run for run in every if run.out_of_memory][::17]
    found = score(compare(chosen, {"llama-3.1-8b-instruct": load_profile("h100-64gb/llama-3.1-8b")}, None, reference))
    says = found.models["llama-3.1-8b-instruct"]
    assert says.all["throughput"].n >= 20
    assert says.all["throughput"].mape < 6
    assert says.all["itl"].mape < 10
    assert says.starvation.agreement >= 90
    assert says.oom.agreement == 100
    assert says.reference is not None
    assert says.same_rows is not None
    assert says.same_rows.all["throughput"].n == says.reference.all["throughput"].n
    assert says.same_rows.all["itl"].mape < says.reference.all["itl"].mape
    assert found.speed.ratio_to_reference > 20
