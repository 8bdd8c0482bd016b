"""Evaluation: scores, regions, risks and quantiles by hand, unseen workloads, measured runs, and all of it together."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import yaml
from support.data import data_file
from support.measured_runs import measured_by_twin, unmeasured, write_runs
from support.models import load_rows, untrained_model

from loraplan.errors import BadInputError
from loraplan.profiles import load_profile
from surrogate import evaluation, scores, speed
from surrogate.calibration import Calibration
from surrogate.comparison import MODELS, training_rows
from surrogate.design import Design
from surrogate.evaluation import Rivals, Unseen, evaluate, simulate_unseen, unseen, unseen_design
from surrogate.examples import TARGETS, examples_of
from surrogate.measured_runs import measured_table
from surrogate.model import Judged
from surrogate.scores import RANDOM, Acceptance, Bin, Coverage, Said, Seen
from surrogate.shards import table_of
from twin.measured import MeasuredRun, read_runs

LLAMA, MODEL = "h100-64gb/llama-3.1-8b", "llama-3.1-8b-instruct"


@pytest.fixture(autouse=True)
def clocks_that_cost_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in (("BATCH", 20), ("REPEATS", 1), ("SINGLES", 2), ("SINGLES_OF_OTHERS", 1)):
        monkeypatch.setattr(speed, name, value)


@pytest.fixture(scope="module")
def table() -> pa.Table:
    return load_rows(60)


@pytest.fixture(scope="module")
def loads(table: pa.Table) -> Unseen:
    return unseen(untrained_model(), table)


# ---- by hand ----


def seen_by_hand() -> Seen:
    """Four loads: two starve, one of them without an answer."""
    return Seen(
        group=np.array([LLAMA, LLAMA, RANDOM, RANDOM]),
        slots=np.array([4, 4, 4, 4]),
        adapters=np.array([4, 16, 17, 1]),
        served=np.array([1.0, 0.95, 0.6, 0.0]),
        figures={
            "throughput": np.array([100.0, 200.0, 400.0, 0.0]),
            "itl": np.array([10.0, 20.0, 40.0, math.nan]),
            "ttft": np.array([0.1, 0.2, 0.4, math.nan]),
            "kv": np.array([0.1, 0.2, 1.0, 1.0]),
        },
    )


def judged_by_hand(score: Any = (-2.0, 1.0, 3.0, 5.0)) -> Judged:
    """Quantiles: half, as much as, and twice what was seen."""
    seen = seen_by_hand()
    true = np.column_stack([seen.served, *(seen.figures[name] for name in ("itl", "ttft", "kv"))])
    figures = true[:, None, :] * np.array([0.5, 1.0, 2.0])[:, None]
    return Judged(np.array(score), np.array(score) / 20, figures)


def test_scores_are_those_of_the_twins_fidelity() -> None:
    said = Said({"throughput": np.array([110.0, 180.0, 400.0, 5.0])}, np.array([False, True, True, False]))
    found = scores.scores(said, seen_by_hand())
    assert found.all["throughput"].mape == pytest.approx(20 / 3)
    assert found.all["throughput"].n == 3  # where nothing was served there is nothing to be off from
    assert found.not_starved["throughput"].mape == pytest.approx(10)
    assert found.starved["throughput"].bias == 0
    assert set(found.all) == {"throughput"}
    labels = found.starvation
    assert (labels.agreement, labels.missed, labels.false_alarm, labels.n) == (50, 1, 1, 4)


def test_the_surrogate_says_medians_and_labels() -> None:
    said = scores.said_by(judged_by_hand(), np.array([100.0, 100.0, 10.0, 10.0]))
    np.testing.assert_allclose(said.figures["throughput"], [100, 95, 6, 0])
    np.testing.assert_array_equal(said.figures["itl"][:3], [10, 20, 40])
    assert said.starved.tolist() == [False, True, True, True]


def test_groups_and_regions() -> None:
    seen = seen_by_hand()
    groups = {name: mask.tolist() for name, mask in scores.by_group(seen).items()}
    assert list(groups) == [LLAMA, RANDOM, "all"]
    assert groups[RANDOM] == [False, False, True, True]
    regions = {name: mask.tolist() for name, mask in scores.by_region(seen, np.array([0.1, 1.0, 2.0, 2.0]))}
    assert regions == {
        "served below 0.5": [False, False, False, True],
        "served 0.5 to 0.8": [False, False, True, False],
        "served 0.92 to 0.98": [False, True, False, False],
        "served 0.98 and more": [True, False, False, False],
        "share below 0.5": [True, False, False, False],
        "share 0.95 to 1.05": [False, True, False, False],
        "share 1.25 and more": [False, False, True, True],
        "adapters <= slots": [True, False, False, True],
        "adapters <= 4 x slots": [False, True, False, False],
        "more adapters": [False, False, True, False],
    }


def test_acceptance() -> None:
    score = np.arange(-50.0, 50.0)
    calibration = Calibration(score, np.where(score < 0, 1.0, 0.5), np.zeros(0), np.zeros(0))
    starved = np.array([False, True, False, True])
    found = scores.acceptance(calibration, np.array([-20.0, -10.0, 60.0, 60.0]), starved, 0.1)
    threshold = found.threshold
    assert -1 <= threshold < 6
    assert found == Acceptance(0.1, threshold, 2, 50.0, 2, 50.0)
    none = scores.acceptance(calibration, score, score > 0, 0.0)
    assert (none.accepted, none.accepted_of_carried) == (0, 0)
    assert math.isnan(none.threshold)
    assert math.isnan(none.starved_of_accepted)


def test_coverage_counts_where_something_was_seen() -> None:
    judged, seen = judged_by_hand(), seen_by_hand()
    judged.figures[0, :, TARGETS.index("itl_ms")] = [1, 2, 3]  # too little
    judged.figures[1, :, TARGETS.index("itl_ms")] = [30, 40, 50]  # too much
    found = scores.coverage(judged, seen, np.ones(4, dtype=bool))
    third = pytest.approx(100 / 3)
    assert found["itl_ms"] == Coverage(below=third, within=third, above=third, n=3)
    assert found["served_fraction"] == Coverage(0, 100, 0, 4)


def test_reliability_is_by_probability() -> None:
    score = np.array([-100.0, -90.0, 0.0, 0.0, 100.0])
    found = scores.reliability(score, np.array([False, True, True, False, True]), bins=4)
    assert [(one.seen, one.n) for one in found] == [(50, 2), (50, 2), (100, 1)]
    assert [one.said for one in found] == pytest.approx([0, 50, 100])
    assert isinstance(found[0], Bin)


# ---- unseen workloads ----


def test_unseen_workloads_are_drawn_as_those_of_the_training_with_another_seed() -> None:
    trained = Design(seed=3, most_adapters=40, bursty=0.0, loads=6)
    card = untrained_model({"design": trained.model_dump(mode="json")}).card
    found = unseen_design(card, 7, seed=4)
    assert found == trained.model_copy(update={"seed": 4, "workloads": 7, "loads": 1})
    assert unseen_design(untrained_model().card, 7) == Design(seed=evaluation.SEED, workloads=7, loads=1)
    with pytest.raises(BadInputError, match="was trained on workloads of seed 3: they are not unseen"):
        unseen_design(card, 7, seed=3)


def test_unseen_workloads_on_a_server_of_ones_own(tmp_path: Path) -> None:
    own = load_profile(LLAMA).model_copy(update={"name": "mine"})
    path = tmp_path / "mine.yaml"
    path.write_text(yaml.safe_dump(own.model_dump(mode="json")))
    design = unseen_design(untrained_model().card, 6, profile=str(path))
    design = design.model_copy(update={"most_adapters": 12, "horizon_s": 20.0, "published": 0.0})
    told: list[tuple[int, int]] = []
    table = simulate_unseen(design, workers=1, on_progress=lambda *done: told.append(done))
    assert told == [(4, 6), (6, 6)]
    assert table["workload"].to_pylist() == list(range(6))
    assert set(table["profile"].to_pylist()) == {own.model_dump_json()}
    assert set(scores.groups_of(table)) == {str(path)}
    with pytest.raises(BadInputError, match=r"no\.yaml"):
        unseen_design(untrained_model().card, 6, profile="no.yaml")


def test_a_profile_that_is_not_here_counts_as_another(table: pa.Table) -> None:
    rows = table.slice(0, 2).to_pylist()
    rows[0]["base"] = "gone.yaml"
    assert set(scores.groups_of(table_of(rows))) == {RANDOM}


# ---- measured runs ----


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> list[MeasuredRun]:
    """Runs that the twin made, from light to starved."""
    made = [unmeasured(16, 8, 16, rates, MODEL, seconds=120.0) for rates in ((0.2, 0.1), (0.8, 0.4), (40.0,))]
    rows = measured_by_twin(made, load_profile(LLAMA))
    return read_runs(write_runs(tmp_path_factory.mktemp("runs") / "runs.csv", rows))


def test_measured_runs_as_rows(runs: list[MeasuredRun]) -> None:
    found = measured_table(runs).to_pylist()
    row, run = found[1], runs[1]
    assert row["rates"] == pytest.approx([rate * run.sent for rate in (0.8, 0.4) * 8])
    assert row["ranks"] == [16] * 16
    assert (row["slots"], row["max_rank"], row["base"], row["kind"]) == (8, 16, LLAMA, MODEL)
    assert row["served_fraction"] == run.seen["total_throughput"] / run.seen["ideal_throughput"]
    assert row["itl_ms"] == run.seen["mean_itl_ms"]
    assert row["ttft_s"] == pytest.approx(run.seen["mean_ttft_ms"] / 1e3)
    assert row["offered_tok_s"] == pytest.approx(row["arrived_tok_s"], rel=0.1)
    assert math.isnan(row["kv_utilisation"])
    assert scores.seen_in(measured_table(runs)).starved.tolist() == [run.starved for run in runs]
    assert measured_table(runs, {}).num_rows == 0


def test_measured_hours_give_the_published_features() -> None:
    runs = read_runs(data_file("measured/h100_vllm085_runs.csv"))
    table = measured_table([run for run in runs if run.group.startswith("mltest/")])
    examples = examples_of(table)
    assert table.num_rows == 468
    assert np.isfinite(examples.inputs).all()
    np.testing.assert_array_equal(
        scores.seen_in(table).starved,
        [run.starved for run in runs if run.ok and run.group.startswith("mltest/")],
    )


# ---- all of it ----


def test_the_surrogate_alone(loads: Unseen) -> None:
    found = evaluate(untrained_model(), loads, notes=("a note",))
    assert list(found.twin) == list(found.risk) == list(found.quantiles) == [LLAMA, RANDOM, "all"]
    assert found.loads == {LLAMA: 30, RANDOM: 30, "all": 60}
    assert all(list(by_model) == ["surrogate"] for by_model in found.twin.values())
    assert found.twin["all"]["surrogate"].starvation.n == 60
    assert set(found.twin["all"]["surrogate"].all) == {"throughput", "itl", "ttft", "kv"}
    assert sum(one.n for one in found.calibration) == 60
    assert found.risk["all"].accepted == 0  # nothing is calibrated
    assert found.outside["all"] == 0
    assert found.models == {}
    assert found.notes == ("a note",)
    assert set(found.speed) == {
        *(f"surrogate_us_per_row_{name}" for name in ("batch", "batch_sums", "single")),
        "surrogate_us_per_server",
    }
    assert all(value >= 0 for value in found.speed.values())


def test_side_by_side(table: pa.Table, loads: Unseen, runs: list[MeasuredRun]) -> None:
    pytest.importorskip("sklearn")
    rivals = Rivals(training_rows(table))
    found = evaluate(untrained_model(), loads, measured_table(runs), rivals)
    assert list(found.twin[LLAMA]) == list(found.models[MODEL]) == ["surrogate", *MODELS]
    assert list(found.twin[RANDOM]) == list(found.twin["all"]) == ["surrogate"]
    assert {one.starvation.n for one in found.twin[LLAMA].values()} == {30}
    assert set(found.models[MODEL]["surrogate"].all) == {"throughput", "itl", "ttft"}
    assert set(found.models[MODEL]["svm"].all) == {"throughput", "itl"}
    assert found.models[MODEL]["random_forest"].starvation.n == 3
    assert found.twin[LLAMA]["nearest_neighbour"].all["throughput"].mape < 20  # most of these it was trained on
    assert {"random_forest_us_per_row", "svm_us_per_row_single"} <= set(found.speed)
    assert found.notes[0].startswith(f"{LLAMA}: scikit-learn's default settings, ")


def test_nothing_to_compare_with() -> None:
    found = evaluate(untrained_model())
    assert (found.twin, found.models, found.regions, found.calibration) == ({}, {}, {}, ())
