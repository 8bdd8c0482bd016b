"""``loraplan capacity``: tables, JSON, CSV, a page with plots; one line for whatever is wrong."""

from __future__ import annotations

import csv
import re
from pathlib import Path
from typing import Any

import pytest
import yaml
from support import plugins
from support.cli import invoke, json_in
from typer.testing import Result

from loraplan.cli import plots
from loraplan.profiles import load_profile

PROFILE = "h100-64gb/llama-3.1-8b"
LOAD = ("--rates", "2,0.5", "--ranks", "8,16", "--max-adapters", "80")
QUICK = (*LOAD, "--slots", "8,16", "--seeds", "1", "--horizon", "60")


def run(*arguments: object, profile: object = PROFILE) -> Result:
    command = ["capacity", "--oracle", "fluid", "--profile", str(profile), *map(str, arguments)]
    return invoke(*command, columns=250)


def json_of(*arguments: object, **more: object) -> Any:
    result = run(*arguments, "--json", **more)
    return json_in(result)


def test_a_line_for_each_number_of_slots_and_the_twin_s_verdict() -> None:
    result = run(*LOAD, "--seeds", 2, "--horizon", 60)
    assert result.exit_code == 0
    assert result.stderr == ""
    assert re.search(r"^slots +KV tokens left +most adapters", result.stdout)
    assert len(re.findall(r"(?<!twin's) best(, twin's best)?$", result.stdout, flags=re.MULTILINE)) == 1
    assert re.search(r"fluid says \d+ adapters on \d+ slots; the twin carries \d+.* there", result.stdout)
    assert re.search(
        r"\d+ adapters on \d+ slots in the twin: (not )?starved.*, served \d+.\d % \(95 % interval", result.stdout
    )
    assert "simulations of 60 s on seeds 1000000, 1000001; starved is below 0.9\n" in result.stdout


def test_json_has_what_the_tables_say_and_the_same_again() -> None:
    found, again = json_of(*QUICK), json_of(*QUICK)
    assert found == again
    assert found["oracle"] == "fluid"
    made = found["capacity"]
    assert [line["slots"] for line in made["by_slots"]] == [8, 16]
    assert made["best"] in made["by_slots"]
    assert made["best"]["adapters"] == max(line["adapters"] for line in made["by_slots"])
    assert len(made["curve"]["adapters"]) == len(made["curve"]["predicted"]["itl_ms"])
    assert len(found["check"]["best"]["carries"]) == 1
    assert found["check"]["best"]["load"]["adapters"] == made["best"]["adapters"]
    assert set(found["check"]["best"]["load"]["seen"]["served_fraction"]) == {"mean", "low", "high"}


def test_without_the_check_nothing_is_simulated(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("twin.batch.simulate", pytest.fail)
    assert json_of(*QUICK, "--no-check")["check"] is None
    shown = run(*QUICK, "--no-check").stdout
    assert re.search(r"fluid says \d+ adapters on \d+ slots\n$", shown)


def test_lengths_and_the_limit_matter() -> None:
    offered = json_of(*QUICK, "--no-check")["capacity"]["best"]
    longer = json_of(*QUICK, "--no-check", "--tokens-out", "400")["capacity"]["best"]
    constant = json_of(*QUICK, "--no-check", "--lengths", "constant")["capacity"]["best"]
    assert longer["adapters"] < offered["adapters"]
    assert constant["itl_ms"] < offered["itl_ms"]  # skewed lengths hold more KV cache
    strict = json_of(*QUICK, "--no-check", "--served-fraction", "0.99")["capacity"]["best"]
    assert strict["adapters"] <= offered["adapters"]
    assert strict["served_fraction"] >= 0.99


def test_any_oracle_with_its_settings(monkeypatch: pytest.MonkeyPatch) -> None:
    found = json_of(*QUICK, "--no-check", "--oracle", "twin", "--set", "oracle.horizon_s=300")
    assert found["oracle"] == "twin"
    assert found["capacity"]["best"]["adapters"] > 1
    plugins.install(monkeypatch)
    theirs = json_of(*QUICK, "--no-check", "--oracle", "token_budget", "--set", "oracle.capacity_tok_s=[2000]")
    assert theirs["capacity"]["best"]["adapters"] == 3  # 2.5 requests/s of 420 tokens for every two adapters


def test_arrivals_of_the_check_can_be_set() -> None:
    plain = json_of(*QUICK)["check"]["best"]["load"]["seen"]
    bursty = json_of(*QUICK, "--set", "workload.arrivals={law: gamma, cv: 4}")["check"]["best"]["load"]["seen"]
    assert bursty["ttft_p95_s"] != plain["ttft_p95_s"]


def test_all_there_are_may_be_carried() -> None:
    shown = run("--rates", 0.1, "--ranks", 8, "--max-adapters", 5, "--seeds", 1, "--horizon", 900).stdout
    assert "fluid says 5 adapters on" in shown
    assert "look further with a larger --max-adapters" in shown
    assert "the twin carries 5 there" in shown


def test_the_csv_has_the_lines_of_the_table(tmp_path: Path) -> None:
    path = tmp_path / "capacity.csv"
    result = run(*QUICK, "-o", path)
    assert f"a line per number of slots written to {path}" in result.stderr
    rows = list(csv.DictReader(path.read_text().splitlines()))
    for row, line in zip(rows, json_of(*QUICK)["capacity"]["by_slots"], strict=True):
        assert int(row["adapters"]) == line["adapters"]
        assert float(row["itl_ms"]) == pytest.approx(line["itl_ms"])
        assert 0 < float(row["twin_served_fraction"]) <= 1
    assert [row["best"] for row in rows].count("1") == 1
    assert run(*QUICK, "--no-check", "-o", path).exit_code == 0
    assert {row["twin_served_fraction"] for row in csv.DictReader(path.read_text().splitlines())} == {""}


@pytest.mark.parametrize("check", [(), ("--no-check",)])
def test_the_page_is_self_contained_and_written_whole_or_not_at_all(
    tmp_path: Path, check: tuple[str, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    page = tmp_path / "capacity.html"
    result = run(*QUICK, *check, "--plot", page)
    assert f"plot written to {page}" in result.stderr
    text = page.read_text()
    assert "Plotly.newPlot" in text
    assert "llama-3.1-8b: " in text
    assert ("served, twin" in text) == (not check)
    assert re.search(r'<(script|link)[^>]+(src|href)="http', text) is None  # opens offline
    monkeypatch.setattr(plots, "capacity", lambda *_: "\udcff")  # no text that can be encoded: writing breaks off
    with pytest.raises(UnicodeEncodeError):
        run(*QUICK, *check, "--plot", page)
    assert page.read_text() == text
    assert list(tmp_path.iterdir()) == [page]


@pytest.mark.parametrize(
    ("options", "complaint"),
    [
        (
            ("--profile", "h100-64gb/llama-3.1-8"),
            "unknown profile 'h100-64gb/llama-3.1-8'; did you mean 'h100-64gb/llama",
        ),
        (("--profile", "no.yaml"), "profile no.yaml: No such file or directory"),
        (("--rates", "-1,2"), "--rates: expected numbers of at least 0, commas between (got '-1')"),
        (("--rates", "nan"), "--rates: expected numbers of at least 0, commas between (got 'nan')"),
        (("--rates", "1,,2"), "--rates: expected numbers of at least 0, commas between (got '')"),
        (("--rates", "0"), "--rates: expected one above 0"),
        (("--rates", "1e300"), "workload.generate.rates.0: Input should be less than or equal to 1000000000"),
        (("--ranks", "8,0"), "--ranks: expected whole numbers of at least 1, commas between (got '0')"),
        (("--ranks", "8.5"), "--ranks: expected whole numbers of at least 1, commas between (got '8.5')"),
        (("--ranks", "8,512"), "no --max-lora-rank of vLLM 0.8.5 carries an adapter of rank 512"),
        (("--slots", "16,x"), "--slots: expected whole numbers of at least 1, commas between (got 'x')"),
        (("--tokens-in", "0"), "Invalid value for '--tokens-in'"),
        (("--lengths", "normal"), "Invalid value for '--lengths'"),
        (("--served-fraction", "1.2"), "constraints.served_fraction: Input should be less than or equal to 1"),
        (("--max-adapters", "0"), "Invalid value for '--max-adapters'"),
        (("--horizon", "0"), "workload.horizon_s: Input should be greater than 0"),
        (("--oracle", "fluidd"), "unknown oracle 'fluidd'; did you mean 'fluid'?"),
        (("--set", "oracle.slot_wait=1"), "oracle 'fluid' has no setting 'slot_wait'; did you mean 'slot_wait_s'?"),
        (("--set", "seed=1"), "--set seed=1: here only settings of oracle., workload.arrivals, workload.lengths"),
        (("--plot", "no/such/folder.html"), "cannot write no/such/folder.html: there is no folder"),
        (("-o", "no/such/folder.csv"), "cannot write no/such/folder.csv: there is no folder"),
    ],
)
def test_what_is_wrong_is_said_in_one_line(options: tuple[str, ...], complaint: str) -> None:
    result = run(*QUICK, *options)
    assert result.exit_code == 2
    assert complaint in result.stderr
    assert result.stderr.count("\n") == 1
    assert result.stdout == ""


@pytest.mark.parametrize(
    ("options", "complaint"),
    [
        (("--slots", "5000"), "carries no adapter: memory, its server does not start with 5000 slots of rank 8"),
        (("--rates", "500"), "carries no adapter: starvation, its served fraction is 0."),
    ],
)
def test_where_nothing_fits_the_limit_is_named(options: tuple[str, ...], complaint: str, tmp_path: Path) -> None:
    result = run(*QUICK, "--ranks", "8", *options, "-o", tmp_path / "out.csv")
    assert result.exit_code == 1
    assert complaint in result.stderr
    assert result.stderr.count("\n") == 1
    assert list(tmp_path.iterdir()) == []


def test_a_profile_may_be_a_file(tmp_path: Path) -> None:
    small = load_profile(PROFILE).model_dump(mode="json") | {"name": "mine"}
    path = tmp_path / "mine.yaml"
    path.write_text(yaml.safe_dump(small))
    assert json_of(*QUICK, "--no-check", profile=path)["capacity"]["profile"] == "mine"
