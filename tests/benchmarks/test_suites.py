"""Workload suites: what they hold, that they are what they say, and what is known of them."""

from __future__ import annotations

import itertools
import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from support.data import DATA, data_file

from benchmarks import best_known
from benchmarks.best_known import Best, BestKnown, read_best_known, updated
from benchmarks.brute_force import least_cost, least_partition
from benchmarks.cells import Limits, make_cells
from benchmarks.suites import FOLDER, SuiteFile, fingerprint, load_suite, select, suite_names
from loraplan.api import solve_config
from loraplan.config import PluginSpec, build, load_settings
from loraplan.errors import BadInputError
from surrogate.model import SHIPPED

NAMES = (
    "adversarial",
    "mixed-fleet",
    "paper-synthetic",
    "paper-trace",
    "popularity",
    "random-classes",
    "thirty-classes",
    "tiny",
)


@pytest.fixture(autouse=True)
def _traces(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LORAPLAN_DATA", str(DATA))


def test_the_suites_are_there() -> None:
    assert suite_names() == NAMES


@pytest.mark.parametrize("name", NAMES)
def test_every_instance_is_a_config(name: str) -> None:
    if name == "paper-trace":
        data_file("traces/azure_llm_2023_conv.csv")
    instances = load_suite(name).instances
    assert len({one.name for one in instances}) == len(instances) >= 8
    for one in instances:
        assert one.id == f"{name}/{one.name}"
        if not one.name.startswith(("x10", "x25", "x50")) and "00000" not in one.name and "20000" not in one.name:
            assert len(build(one.config).problem.adapters) >= 9


def test_paper_synthetic_is_the_thirty_of_the_paper() -> None:
    instances = load_suite("paper-synthetic").instances
    assert len(instances) == 30
    names = {one.name for one in instances}
    assert {name.split("-")[0] for name in names} == {"128", "512", "1024", "1280"}
    assert not any(name.startswith(("128-low", "1280-high")) for name in names)
    problem = build(next(one.config for one in instances if one.name == "512-mixed-r8+16+32")).problem
    assert sorted(set(problem.ranks.tolist())) == [8, 16, 32]
    assert sorted(set(problem.rates.tolist()))[-1] == 2.4
    assert len(set(problem.rates.tolist())) == 10
    assert np.isclose(problem.mean_in.mean(), 250, atol=0.5)
    assert np.isclose(problem.mean_out.mean(), 231, atol=0.5)


@pytest.mark.parametrize("name", ["128-mixed-r8", "512-low-r8"])
def test_scaled_rates_need_four_gpus(name: str) -> None:
    config = select([f"paper-synthetic/{name}"])[0].instances[0].config
    plan = solve_config(config.model_copy(update={"solver": PluginSpec(name="best_fit")}))
    assert 4 <= len(plan.gpus) <= 8


def test_drift_is_between_planning_and_serving() -> None:
    case = build(select(["adversarial/drift-1.5"])[0].instances[0].config)
    planned = sum(adapter.rate for adapter in case.problem.adapters)
    assert math.isclose(sum(adapter.rate for adapter in case.replay.adapters), 1.5 * planned, rel_tol=1e-6)


def test_one_adapter_has_rank_32() -> None:
    ranks = build(select(["adversarial/one-rank-32"])[0].instances[0].config).problem.ranks.tolist()
    assert (ranks.count(32), ranks.count(8)) == (1, 319)


def test_instances_are_chosen_by_name() -> None:
    tiny, paper = select(["tiny", "paper-synthetic/128-*", "paper-synthetic/128-high-r8"])
    assert len(tiny.instances) == 18
    assert [one.name for one in paper.instances if "high" in one.name] == [
        "128-high-r8", "128-high-r32", "128-high-r8+16+32",
    ]  # fmt: skip
    assert len(paper.instances) == 6


@pytest.mark.parametrize(
    ("pattern", "complaint"),
    [
        ("tini", "unknown suite 'tini'; did you mean 'tiny'"),
        ("tiny/12-*", r"suite tiny has no instance '12-\*'"),
        ("mine.yaml", "config mine.yaml: No such file"),
    ],
)
def test_what_is_not_there_is_told(pattern: str, complaint: str) -> None:
    with pytest.raises(BadInputError, match=complaint):
        select([pattern])


def test_a_missing_trace_is_told_in_a_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LORAPLAN_DATA", str(tmp_path))
    with pytest.raises(
        BadInputError, match=r"needs the trace azure_llm_2023_conv.csv, which is not in .*LORAPLAN_DATA"
    ):
        load_suite("paper-trace")


def test_a_suite_of_ones_own(tmp_path: Path) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text(
        "summary: mine\n"
        "base:\n"
        "  workload: {generate: {count: 9, ranks: [8], rates: [1], input_tokens: 9, output_tokens: 9}}\n"
        "  fleet: [{profile: h100-64gb/llama-3.1-8b, count: 9}]\n"
        "cases: {one: {}, two: {workload.generate.rates: {2: 1, 1: 8}}}\n"
    )
    (suite,) = select([str(path)])
    one, two = (build(instance.config).problem.rates.sum() for instance in suite.instances)
    assert (suite.name, one, two) == ("mine", 9.0, 10.0)
    path.write_text("summary: mine\nbase: {}\n")
    with pytest.raises(BadInputError, match="expected axes or cases"):
        load_suite(str(path))


def test_every_file_has_a_summary_and_reasons() -> None:
    for name in NAMES:
        file = load_settings(SuiteFile, FOLDER / f"{name}.yaml")
        assert file.summary
        assert all(skip.why for skip in file.skip)


# ---- brute force and what is known ----


def test_least_partition_equals_all_partitions() -> None:
    rng = np.random.default_rng(0)
    for _ in range(20):
        cheapest = np.where(rng.random(32) < 0.3, np.inf, rng.random(32))
        assert least_partition(cheapest) == pytest.approx(_by_hand(cheapest.tolist(), 31))


def _by_hand(cheapest: list[float], whole: int) -> float:
    if whole == 0:
        return 0.0
    parts = (part for part in range(1, whole + 1) if part & whole == part and part & (whole & -whole))
    return min(cheapest[part] + _by_hand(cheapest, whole ^ part) for part in parts)


def test_tiny_optima_are_on_file_and_right() -> None:
    known = read_best_known().by_key()
    for one in load_suite("tiny").instances:
        best = known["tiny", one.name, "fluid", "gpu_count"]
        assert best.problem == fingerprint(one.config), "the suite changed: run python -m benchmarks.best_known"
        assert (best.proven, best.closed) == ("brute force", True)
    first = load_suite("tiny").instances[0]
    assert least_cost(first.config, "gpu_count") == known["tiny", first.name, "fluid", "gpu_count"].value


def test_what_is_too_large_is_refused() -> None:
    config = select(["paper-synthetic/128-high-r8"])[0].instances[0].config
    with pytest.raises(BadInputError, match="128 adapters are more than 16"):
        least_cost(config, "gpu_count")


def best(**changes: object) -> Best:
    about = {"suite": "s", "instance": "i", "oracle": "fluid", "objective": "gpu_count", "problem": "p", "date": "d"}
    return Best.model_validate(about | changes)


def test_the_file_changes_on_proof_or_improvement_only(tmp_path: Path) -> None:
    steps = [
        (best(value=9.0, by="greedy"), 1, (9.0, "greedy", None)),
        (best(value=9.0, by="other"), 0, (9.0, "greedy", None)),
        (best(value=12.0, by="random", bound=5.0, proven="milp"), 1, (9.0, "greedy", 5.0)),
        (best(value=7.0, by="best_fit", bound=4.0, proven="cp_sat"), 1, (7.0, "best_fit", 5.0)),
        (best(value=7.0, by="cg", bound=7.0, proven="cg"), 1, (7.0, "best_fit", 7.0)),
        (best(value=7.0, bound=7.0, by="again", proven="again"), 0, (7.0, "best_fit", 7.0)),
    ]
    known = BestKnown()
    for found, changes, expected in steps:
        known, changed = updated(known, [found])
        (entry,) = known.entries
        assert (changed, (entry.value, entry.by, entry.bound)) == (changes, expected)
    assert entry.closed
    known.save(tmp_path / "known.json")
    assert read_best_known(tmp_path / "known.json") == known
    fresh, _ = updated(known, [best(problem="q", value=20.0, by="greedy")])
    assert fresh.entries[0].value == 20.0


def test_what_one_model_says_is_not_known_of_another(tmp_path: Path) -> None:
    suite = select(["tiny/9-equal-r8"])[0]
    first = suite.instances[0]

    def problem(oracle: str, **params: str) -> str:
        config = first.config.model_copy(update={"oracle": PluginSpec(name=oracle, params=params)})
        own = replace(suite, instances=(replace(first, config=config),))
        (cell,) = make_cells([own], ["greedy"], [], [oracle], 1, Limits())
        return cell.problem

    assert problem("fluid") == fingerprint(first.config)
    (tmp_path / "card.json").write_text("another")
    assert len({problem("fluid"), problem("surrogate"), problem("surrogate", model=str(tmp_path))}) == 3
    assert problem("surrogate") == problem("surrogate", model=str(SHIPPED))


@pytest.mark.parametrize("found", [{"bound": 8.0, "proven": "liar"}, {"value": 3.0, "by": "liar"}])
def test_a_contradiction_changes_nothing(found: dict[str, object]) -> None:
    known = BestKnown(entries=(best(value=7.0, by="greedy", bound=5.0, proven="milp"),))
    with pytest.raises(BadInputError, match=r"liar or .* is wrong"):
        updated(known, [best(**found)])


def test_a_wrong_file_is_told(tmp_path: Path) -> None:
    path = tmp_path / "known.json"
    path.write_text('{"schema_version": 2}')
    with pytest.raises(BadInputError, match="best-known file"):
        read_best_known(path)
    assert read_best_known(tmp_path / "none.json") == BestKnown()
    assert all(math.isfinite(e.bound or 0) for e in itertools.chain(best_known.read_best_known().entries))
