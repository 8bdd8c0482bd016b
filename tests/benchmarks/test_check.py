"""Paired statistics and the regression gate, on tables worked out by hand; and the command that shows them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from support.bench_folder import results_folder
from support.cli import invoke, json_in

from benchmarks import results_page
from benchmarks.best_known import Best, BestKnown
from benchmarks.check import check, ok
from benchmarks.paired import geometric, pair_table, pairs
from benchmarks.results import make_table, summary
from loraplan.errors import BadInputError


def table(
    values: dict[str, list[float | None]], seconds: float = 1.0, loop: float = 0.003, **more: Any
) -> pd.DataFrame:
    """Solver -> cost on each instance (None: no plan)."""
    rows = [
        {
            "suite": "s", "instance": f"i{n}", "solver": solver, "objective": "gpu_count", "oracle": "fluid", "seed": 0,
            "status": "unknown" if value is None else "feasible", "reason": "", "value": value, "unit": "GPUs",
            "solver_s": seconds * (1 + n % 3), "loop_s": loop, "problem": f"p{n}", "starved": 0, **more,
        }
        for solver, costs in values.items()
        for n, value in enumerate(costs)
    ]  # fmt: skip
    return make_table(rows, BestKnown())


def test_a_row_is_set_against_the_best() -> None:
    made = table({"greedy": [6.0, 5.0, None], "exact": [4.0, 5.0, 3.0]})
    assert made["best_value"].tolist() == [4, 4, 5, 5, 3, 3]
    assert made["best_by"].tolist() == ["exact", "exact", "greedy", "greedy", "exact", "exact"]
    found = summary(made).set_index("solver")
    assert found.loc["greedy", ["cells", "plans", "value", "above_best"]].tolist() == [3, 2, 11, 2]
    assert found.loc["greedy", "vs_best"] == pytest.approx(np.sqrt(1.5))
    assert found.loc["greedy", "failed"] == "1 unknown"


def test_what_is_known_counts_if_it_is_of_the_same_problem() -> None:
    about: dict[str, Any] = {"suite": "s", "oracle": "fluid", "objective": "gpu_count", "by": "x", "proven": "x"}
    known = BestKnown(
        entries=(
            Best(instance="i0", problem="p0", value=2.0, bound=2.0, **about),
            Best(instance="i1", problem="other", value=1.0, bound=1.0, **about),
        )
    )
    rows = table({"greedy": [3.0, 3.0]}).drop(columns=["best_value"]).to_dict("records")
    made = make_table([{str(k): v for k, v in row.items()} for row in rows], known)
    assert made["best_value"].tolist() == [2, 3]
    assert made["best_bound"].tolist()[0] == 2
    assert np.isnan(made["best_bound"].tolist()[1])
    assert summary(made)["gap"].tolist() == [pytest.approx(1 / 3)]


def test_geometric_mean_and_interval() -> None:
    assert geometric(np.array([2.0])) == geometric(np.array([2.0]), seed=9)
    spread = geometric(np.array([0.5, 2.0] * 50))
    assert spread.mean == pytest.approx(1.0)
    assert 0.8 < spread.low < 1.0 < spread.high < 1.25


def test_pairs() -> None:
    made = table({"a": [6.0] * 8 + [None], "b": [4.0] * 7 + [6.0, 3.0], "c": [6.0] * 9})
    ab, ac, _bc = pairs(made)
    assert (ab.a, ab.b, ab.n, ab.wins, ab.ties, ab.losses, ab.verdict) == ("a", "b", 8, 0, 1, 7, "worse")
    assert ab.ratio.mean == pytest.approx(1.5 ** (7 / 8))
    assert ab.p < 0.05
    assert (ac.ratio.mean, ac.ties, ac.verdict) == (1.0, 8, "not told apart")
    assert np.isnan(ac.p)
    assert len(pair_table(made)) == 3


BEFORE = {"greedy": [6.0, 5.0, 8.0, 7.0], "best_fit": [4.0, 4.0, 6.0, None]}


@pytest.mark.parametrize(
    ("now", "seconds", "loop", "complaint"),
    [
        (BEFORE, 1.0, 0.003, ""),
        ({"greedy": [6.0, 5.0, 8.0, 6.0], "best_fit": [4.0, 4.0, 6.0, 5.0]}, 0.5, 0.003, ""),
        (BEFORE, 1.3, 0.003, ""),  # noise
        (BEFORE, 3.0, 0.009, ""),  # a slower machine
        (BEFORE, 3.0, 0.003, "it takes 3.00 times as long"),
        (
            BEFORE | {"greedy": [6.0, 6.0, 8.0, 7.0]},
            1.0,
            0.003,
            "plans cost 1.047 times what they did (worst: s/i1, 6 i",
        ),
        (BEFORE | {"greedy": [6.0, None, 8.0, 7.0]}, 1.0, 0.003, "1 cells lost their plan (s/i1: unknown)"),
    ],
)
def test_the_gate(now: dict[str, list[float | None]], seconds: float, loop: float, complaint: str) -> None:
    found = check(table(now, seconds, loop), table(BEFORE))
    assert ok(found) == (not complaint)
    assert complaint in "; ".join(text for one in found for text in one.complaints)


def test_nothing_in_common_is_no_success() -> None:
    with pytest.raises(BadInputError, match="none of these cells"):
        check(table({"greedy": [1.0]}), table({"best_fit": [1.0]}))


def test_the_command_shows_finished_results_and_checks_them(tmp_path: Path) -> None:
    made = results_folder(tmp_path / "results")
    again = tmp_path / "again"
    only = ("--oracle", "fluid", "--solvers", "best_fit", "--twin-seeds", "0", "--workers", "1")
    args = ["bench", "tiny/14-equal-r8", *only, "-o", again]
    done = invoke(*args)
    assert done.exit_code == 0, done.stderr
    assert "best_fit  1 of 1" in done.stdout
    assert "next: loraplan report" in done.stderr
    older = made.assign(value=made["value"] / 2)
    older.to_csv(tmp_path / "older.csv", index=False)
    done = invoke(*args, "--check", tmp_path / "older.csv")
    assert done.exit_code == 1
    assert "worse best_fit: plans cost 2.000 times what they did" in done.stdout
    made.to_csv(tmp_path / "older.csv", index=False)
    done = invoke(*args, "--check", tmp_path / "older.csv", "--json")
    data = json_in(done)
    assert data["check"][0]["quality"]["mean"] == 1.0
    assert data["results"][0]["best_by"] == "brute force"
    done = invoke("bench", "tiny", "--check", tmp_path / "none.csv")
    assert done.exit_code == 2
    assert "none.csv" in done.stderr


def test_the_results_page_is_replaced_between_its_marks(tmp_path: Path) -> None:
    results_folder(tmp_path / "results")
    page = tmp_path / "page.md"
    page.write_text(f"before\n{results_page.BEGIN}\nold\n{results_page.END}\nafter\n")
    for _ in range(2):
        results_page.main(tmp_path / "results", page)
        text = page.read_text()
        assert text.startswith(f"before\n{results_page.BEGIN}\n## Solvers\n")
        assert text.endswith(f"{results_page.END}\nafter\n")
        assert "old" not in text
        assert "| tiny | fluid | best_fit | 1 of 1 |" in text
    page.write_text("no marks")
    with pytest.raises(BadInputError, match="are missing"):
        results_page.main(tmp_path / "results", page)
