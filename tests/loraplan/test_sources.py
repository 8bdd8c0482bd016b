"""Sources: what is read is what the file says, what is wrong is named, and laws keep their promises."""

from __future__ import annotations

import datetime
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st
from support.data import data_file

from loraplan.errors import BadInputError
from loraplan.sources import (
    deal,
    dirichlet_popularity,
    from_trace,
    generate_adapters,
    numbered_names,
    read_ranks,
    read_rates,
    read_table,
    read_trace,
    skewed_lengths,
    uniform_popularity,
    zipf_popularity,
)
from loraplan.workload import Lengths

HEADER = "arrived_at,num_prefill_tokens,num_decode_tokens\n"
NAMED = "arrived_at,num_prefill_tokens,num_decode_tokens,adapter\n"
AZURE = "TIMESTAMP,ContextTokens,GeneratedTokens\n"
TABLE = "name,rank,rate,tokens_in,tokens_out\n"


def write(folder: Path, text: str, name: str = "trace.csv") -> Path:
    path = folder / name
    path.write_text(text)
    return path


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("", "the file is empty"),
        (HEADER, "it has no requests"),
        (HEADER + "0,1,1\n1,2\n", "row 2, num_decode_tokens: the value is missing"),
        (HEADER + "0,1,1\n\n1,,1\n", "row 2, num_prefill_tokens: the value is missing"),
        (HEADER + "0,1,1\nx,2,3\n", "row 2, arrived_at: expected a number (got x)"),
        (HEADER + "0,1,1\nNaN,2,3\n", "row 2, arrived_at: expected a number (got NaN)"),
        (HEADER + "inf,1,1\n", "row 1, arrived_at: expected a number (got inf)"),
        (HEADER + "3,1,1\n-1,1,1\n", "row 2, arrived_at: must not be negative (got -1)"),
        (HEADER + "0,0,1\n", "row 1, num_prefill_tokens: must be at least 1 (got 0)"),
        (HEADER + "0,1.5,1\n", "row 1, num_prefill_tokens: expected a whole number (got 1.5)"),
        (HEADER + "0,1,-1\n", "row 1, num_decode_tokens: must be at least 0 (got -1)"),
        (NAMED + "0,1,1,a\n1,1,1,\n", "row 2, adapter: the name is missing"),
        (AZURE + "2023-11-16 18:15:46,1,1\nsoon,1,1\n", "row 2, TIMESTAMP: expected a date and time (got soon)"),
        (HEADER.replace("arrived_at", "arrived"), "no column 'arrived_at'; did you mean 'arrived'? known: arrived, "),
        (HEADER + "0,1,1,4\n1,2,3,4\n", "rows have more cells than there are columns"),
        (HEADER + "0,1,1\n1,2,3,4\n", "cannot be read: "),
        (HEADER + "0,1,1\n1700000000000,1,1\n", "row 2, arrived_at: must be at most 1e+12 s (got 1700000000000)"),
        (HEADER + "True,1,1\n", "row 1, arrived_at: expected a number (got True)"),
        (HEADER + "0,1,False\n", "row 1, num_decode_tokens: expected a number (got False)"),
        (HEADER + "0,1,1\n1,10000000000000000000,1\n", "row 2, num_prefill_tokens: must be at most 1000000000 tokens"),
        (HEADER + "0,1,1e300\n", "row 1, num_decode_tokens: must be at most 1000000000 tokens (got 1e+300)"),
        (HEADER + "0,1,1\n1" + "0" * 400 + ",1,1\n", "row 2, arrived_at: expected a number (got 1000"),
        (HEADER + "0,1,1\n1" + "0" * 9000 + ",1,1\n", "row 2, arrived_at: expected a number (got "),
        (AZURE + "1700000000,1,1\n", "row 1, TIMESTAMP: expected a date and time (got 1700000000)"),
        ("\ufeff" + HEADER.strip() + ",arrived_at,,\n0,1,1,2,,\n", "column 'arrived_at' is there twice"),
    ],
)
def test_a_wrong_trace_is_named_with_file_row_and_column(tmp_path: Path, text: str, complaint: str) -> None:
    path = write(tmp_path, text)
    with pytest.raises(BadInputError) as error:
        read_trace(path)
    assert str(error.value).startswith(f"trace {path}: {complaint}")
    assert "\n" not in str(error.value)


def test_an_unreadable_trace_is_named(tmp_path: Path) -> None:
    with pytest.raises(BadInputError, match=r"absent\.csv: No such file"):
        read_trace(tmp_path / "absent.csv")
    with pytest.raises(BadInputError, match=r"bad\.parquet: cannot be read"):
        read_trace(write(tmp_path, "nonsense", "bad.parquet"))
    (tmp_path / "bad.csv").write_bytes(b"\xff\xfe\xfd")
    with pytest.raises(BadInputError, match=r"bad\.csv: cannot be read"):
        read_trace(tmp_path / "bad.csv")


def test_a_trace_is_sorted_stably_and_names_come_in_order_of_arrival(tmp_path: Path) -> None:
    trace = read_trace(write(tmp_path, NAMED + "2,30,3,NA\n1,10,1,07\n2,40,0,b\n1,20,2,NA\n"))
    assert trace.names == ("07", "NA", "b")
    np.testing.assert_array_equal(trace.requests.arrival_s, [1, 1, 2, 2])
    np.testing.assert_array_equal(trace.requests.tokens_in, [10, 20, 30, 40])
    np.testing.assert_array_equal(trace.requests.tokens_out, [1, 2, 3, 1])  # 0 counts as 1
    np.testing.assert_array_equal(trace.requests.adapter, [0, 1, 1, 2])
    start, end = trace.span_s
    assert start == 1
    assert end == pytest.approx(2) and end > 2


def test_the_public_azure_columns_are_understood(tmp_path: Path) -> None:
    text = AZURE + "2023-11-16 18:15:50.9951690,396,109\n2023-11-16 18:15:46.6805900,374,44\n"
    trace = read_trace(write(tmp_path, text))
    np.testing.assert_allclose(trace.requests.arrival_s, [0.0, 4.314579], atol=1e-6)
    np.testing.assert_array_equal(trace.requests.tokens_in, [374, 396])
    assert trace.names is None
    assert (trace.requests.adapter == -1).all()
    zoned = read_trace(write(tmp_path, AZURE + "2024-05-10 00:00:00+00:00,1,1\n2024-05-10 00:00:00.25+00:00,2,2\n"))
    np.testing.assert_allclose(zoned.requests.arrival_s, [0.0, 0.25])


def test_parquet_and_csv_agree(tmp_path: Path) -> None:
    frame = pd.DataFrame(
        {
            "adapter": ["x", "y", "x"],
            "arrived_at": [0.5, 1.25, 3.0],
            "num_prefill_tokens": [3, 4, 5],
            "num_decode_tokens": [6, 7, 8],
            "other": [1, 2, 3],
        }
    )
    frame.to_csv(tmp_path / "t.csv", index=False)
    frame.to_parquet(tmp_path / "t.parquet")
    first, second = read_trace(tmp_path / "t.csv"), read_trace(tmp_path / "t.parquet")
    assert first.names == second.names == ("x", "y")
    for name in ("arrival_s", "adapter", "tokens_in", "tokens_out"):
        np.testing.assert_array_equal(getattr(first.requests, name), getattr(second.requests, name))


def parquet_trace(folder: Path, **columns: object) -> Path:
    path = folder / "typed.parquet"
    data = {"arrived_at": [0.0, 1.0], "num_prefill_tokens": [1, 2], "num_decode_tokens": [3, 4]}
    pd.DataFrame(data | columns).to_parquet(path)
    return path


@pytest.mark.parametrize("zone", [None, "UTC", "Europe/Berlin"])
def test_dates_and_times_of_a_parquet_file_become_seconds_since_the_first(tmp_path: Path, zone: str | None) -> None:
    moments = pd.to_datetime(pd.Series(["2024-05-10 00:00:02.5", "2024-05-10 00:00:00.0"])).dt.tz_localize(zone)
    for unit in ("ns", "us", "ms"):
        trace = read_trace(parquet_trace(tmp_path, arrived_at=moments.dt.as_unit(unit)))
        np.testing.assert_allclose(trace.requests.arrival_s, [0.0, 2.5])
        np.testing.assert_array_equal(trace.requests.tokens_in, [2, 1])


@pytest.mark.parametrize(
    ("columns", "complaint"),
    [
        (
            {"arrived_at": pd.to_timedelta([1, 2], unit="s")},
            "row 1, arrived_at: expected a number (got 0 days 00:00:01)",
        ),
        ({"arrived_at": [True, False]}, "row 1, arrived_at: expected a number (got True)"),
        ({"arrived_at": pd.to_datetime(["2024-05-10", None])}, "row 2, arrived_at: expected a date and time"),
        ({"arrived_at": [datetime.time(1), datetime.time(2)]}, "row 1, arrived_at: expected a number (got 01:00:00)"),
        ({"TIMESTAMP": [1.5, 2.5], "arrived_at": [0.0, np.inf]}, "row 2, arrived_at: expected a number (got inf)"),
        (
            {"num_prefill_tokens": pd.to_datetime(["2024-05-10", "2024-05-11"])},
            "row 1, num_prefill_tokens: expected a number (got 2024-05-10 00:00:00)",
        ),
        ({"num_decode_tokens": [1, 2**63]}, "row 2, num_decode_tokens: must be at most 1000000000 tokens"),
    ],
)
def test_parquet_types_that_are_no_numbers_are_refused(
    tmp_path: Path, columns: dict[str, object], complaint: str
) -> None:
    path = parquet_trace(tmp_path, **columns)
    with pytest.raises(BadInputError) as error:
        read_trace(path)
    assert str(error.value).startswith(f"trace {path}: {complaint}")


def test_the_real_azure_trace_reads_as_documented() -> None:
    trace = read_trace(data_file("traces/azure_llm_2023_conv.csv"))
    assert len(trace.requests) == 19_366
    assert trace.span_s == pytest.approx((0, 3502), abs=1)
    assert trace.requests.tokens_in.mean() == pytest.approx(1155, abs=1)
    assert trace.requests.tokens_out.mean() == pytest.approx(211, abs=1)


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("", "the file is empty"),
        (TABLE, "it has no rows"),
        (TABLE + "a,8,1,2,3\nb,8,1,2,3\na,8,1,2,3\n", "row 3, name: 'a' is listed twice"),
        (TABLE + "a,8,1,2\n", "row 1, tokens_out: Field required"),
        (TABLE + "a,8,1,2,3\n,8,1,2,3\n", "row 2, name: Field required"),
        (TABLE + "a,8,1,2,3,4\n", "row 1 has more cells than there are columns"),
        (TABLE + "a,x,1,2,3\n", "row 1, rank: Input should be a valid integer"),
        (TABLE + "a,0,1,2,3\n", "row 1, rank: Input should be greater than 0 (got '0')"),
        (TABLE + "a,8,-1,2,3\n", "row 1, rate: Input should be greater than or equal to 0 (got '-1')"),
        (TABLE + "a,8,nan,2,3\n", "row 1, rate: Input should be a finite number"),
        (TABLE + "a,8,1,0.5,3\n", "row 1, tokens_in: Input should be greater than or equal to 1 (got '0.5')"),
        (TABLE + "a,8,1,1e300,3\n", "row 1, tokens_in: Input should be less than or equal to 1000000000 (got '1e300')"),
        (TABLE + "a,8,1e300,2,3\n", "row 1, rate: Input should be less than or equal to 1000000000 (got '1e300')"),
        (
            TABLE + "a,1" + "0" * 30 + ",1,2,3\n",
            "row 1, rank: Input should be less than or equal to 1000000 (got '1000",
        ),
        (TABLE.strip() + ",rate\na,8,1,2,3,2\n", "column 'rate' is there twice"),
        (TABLE.replace("rank", "ranks"), "no column 'rank'; did you mean 'ranks'? known: name, ranks, "),
    ],
)
def test_a_wrong_table_is_named_with_file_row_and_field(tmp_path: Path, text: str, complaint: str) -> None:
    path = write(tmp_path, text, "table.csv")
    with pytest.raises(BadInputError) as error:
        read_table(path)
    assert str(error.value).startswith(f"table {path}: {complaint}")


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("", "it has no rows"),
        ("a: 1", "expected a list of adapters, got dict"),
        ("[", "not valid YAML: "),
        ("- {name: a, rank: 8, seen: 2023-02-30}", "not valid YAML: day "),
        ("[" * 5000, "not valid YAML: maximum recursion depth exceeded"),
        ("- {name: a, rank: 8, name: b}", "key 'name' is given twice, on line 1 and on line 1"),
        ("- 3", "row 1: expected a mapping (got 3)"),
        ("- {name: a, rank: 8}", "row 1, rate: Field required"),
    ],
)
def test_a_wrong_yaml_table_is_named(tmp_path: Path, text: str, complaint: str) -> None:
    with pytest.raises(BadInputError) as error:
        read_table(write(tmp_path, text, "table.yaml"))
    assert str(error.value).startswith(f"table {tmp_path / 'table.yaml'}: {complaint}")


def test_an_absent_table_is_named(tmp_path: Path) -> None:
    with pytest.raises(BadInputError, match=r"absent\.csv: No such file"):
        read_table(tmp_path / "absent.csv")


def test_csv_and_yaml_tables_agree_and_equal_lengths_are_shared(tmp_path: Path) -> None:
    header = "name, rank, rate, input_tokens, output_tokens, owner\n"
    rows = "a, 8, 1e-2, 200, 100, me\n7, 16, 0, 20, 10, you\nc, 8, 1.5, 200, 100, me\n"
    yaml_rows = (
        "- {name: a, rank: 8, rate: 1e-2, tokens_in: 200, tokens_out: 100}\n"
        "- {name: 7, rank: 16, rate: 0, tokens_in: 20, tokens_out: 10}\n"
        "- {name: c, rank: 8, rate: 1.5, tokens_in: 200, tokens_out: 100}\n"
    )
    for path in (write(tmp_path, header + rows, "t.csv"), write(tmp_path, yaml_rows, "t.yml")):
        adapters = read_table(path, Lengths.constant)
        assert [(a.name, a.rank, a.rate) for a in adapters] == [("a", 8, 0.01), ("7", 16, 0.0), ("c", 8, 1.5)]
        assert adapters[0].lengths is adapters[2].lengths is not adapters[1].lengths
        assert (adapters[1].lengths.mean_in, adapters[1].lengths.mean_out) == (20, 10)
        assert read_ranks(path) == {"a": 8, "7": 16, "c": 8}
        assert read_rates(path) == {"a": 0.01, "7": 0.0, "c": 1.5}


def test_ranks_are_read_from_a_table_without_rates(tmp_path: Path) -> None:
    path = write(tmp_path, "rank,name\n8,a\n", "t.csv")
    assert read_ranks(path) == {"a": 8}
    with pytest.raises(BadInputError, match="no column 'rate'"):
        read_rates(path)


@given(st.floats(1, 3000), st.floats(1, 3000))
def test_generated_lengths_have_their_means(tokens_in: float, tokens_out: float) -> None:
    lengths = skewed_lengths(tokens_in, tokens_out)
    assert lengths.mean_in == pytest.approx(tokens_in, rel=0.01)
    assert lengths.mean_out == pytest.approx(tokens_out, rel=0.01)


def test_default_lengths_are_those_of_the_published_runs() -> None:
    lengths = skewed_lengths(222.7, 196.5)
    assert lengths.tokens_in.std() == pytest.approx(249, rel=0.05)
    assert lengths.tokens_out.std() == pytest.approx(210, rel=0.05)
    assert np.corrcoef(lengths.tokens_in, lengths.tokens_out)[0, 1] == pytest.approx(-0.3, abs=0.03)
    assert lengths.mean_kv == pytest.approx(360, rel=0.05)
    independent = skewed_lengths(222.7, 196.5, correlation=0.0)
    assert independent.mean_kv == pytest.approx(433, rel=0.05)


def test_lengths_without_spread_are_constant() -> None:
    lengths = skewed_lengths(222.7, 196.5, input_cv=0.0, output_cv=0.0)
    assert set(lengths.tokens_in) == {223}


@pytest.mark.parametrize("correlation", [-0.9, 1.0])
def test_impossible_correlations_are_refused(correlation: float) -> None:
    with pytest.raises(BadInputError, match=r"correlate by -0\.45 to 1\.00 \(got"):
        skewed_lengths(200, 200, correlation=correlation)


@pytest.mark.parametrize("cv", [-0.1, 21.0, 1e200, float("nan")])
def test_impossible_spreads_are_refused(cv: float) -> None:
    with pytest.raises(BadInputError, match="lengths: input_cv must be between 0 and 20"):
        skewed_lengths(200, 200, input_cv=cv)
    with pytest.raises(BadInputError, match="lengths: output_cv must be between 0 and 20"):
        skewed_lengths(200, 200, output_cv=cv)


def test_the_largest_and_the_smallest_spreads_make_lengths() -> None:
    assert skewed_lengths(200, 200, input_cv=20.0, correlation=0.0).mean_in == pytest.approx(200, rel=0.01)
    for correlation in (0.0, -0.3):
        assert set(skewed_lengths(200, 200, input_cv=1e-200, correlation=correlation).tokens_in) == {200}


@pytest.mark.parametrize("mean", [1e10, 1e300])
def test_lengths_beyond_all_servers_are_refused(mean: float) -> None:
    with pytest.raises(BadInputError, match=r"mean of tokens_in must be at most 1000000000 tokens \(got"):
        skewed_lengths(mean, 2)
    with pytest.raises(BadInputError, match="tokens_out must be at most 1000000000"):
        skewed_lengths(2, 0.9e9)  # the long ones of them


def test_lengths_below_one_token_are_refused() -> None:
    with pytest.raises(BadInputError, match=r"mean of tokens_out must be at least 1 \(got 0\.5\)"):
        skewed_lengths(2, 0.5)


@given(st.integers(1, 500), st.floats(0.1, 3), st.integers(0, 5))
def test_popularity_is_a_distribution_that_its_seed_decides(count: int, parameter: float, seed: int) -> None:
    for law in (dirichlet_popularity, zipf_popularity):
        shares = law(count, parameter, seed)
        assert shares.shape == (count,)
        assert shares.sum() == pytest.approx(1)
        assert (shares >= 0).all()
        np.testing.assert_array_equal(shares, law(count, parameter, seed))
    np.testing.assert_allclose(uniform_popularity(count), 1 / count)


def test_zipf_shares_fall_by_place_and_places_are_dealt_at_random() -> None:
    shares = zipf_popularity(100, 1.5, seed=1)
    ordered = np.sort(shares)[::-1]
    np.testing.assert_allclose(ordered / ordered[0], np.arange(1.0, 101) ** -1.5)
    assert not np.array_equal(shares, ordered)
    assert not np.array_equal(shares, zipf_popularity(100, 1.5, seed=2))


def test_dirichlet_spread_follows_alpha() -> None:
    # Var of a share is (1/n)(1 - 1/n) / (n alpha + 1).
    count, alpha = 2000, 0.5
    shares = dirichlet_popularity(count, alpha, seed=0)
    assert shares.std() * count == pytest.approx((1 / alpha) ** 0.5, rel=0.1)


def test_names_sort_as_they_count() -> None:
    assert numbered_names(2) == ["a0000", "a0001"]
    names = numbered_names(10_001)
    assert names[-1] == "a10000"
    assert names == sorted(names)


def test_ranks_and_rates_dealt_over_lists_of_equal_length_do_not_go_together() -> None:
    rates = np.array(deal([2.4, 0.6, 0.15], 300))
    adapters = generate_adapters(rates, [8, 16, 32], Lengths.constant(1, 1), seed=0)
    assert [adapter.rate for adapter in adapters] == list(rates)
    ranks = np.array([adapter.rank for adapter in adapters])
    assert sorted(ranks) == [8] * 100 + [16] * 100 + [32] * 100
    assert abs(np.corrcoef(ranks, rates)[0, 1]) < 0.2
    again = generate_adapters(rates, [8, 16, 32], Lengths.constant(1, 1), seed=0)
    assert [adapter.rank for adapter in again] == list(ranks)


def test_a_planner_counts_what_it_saw_and_gives_everyone_one_request(tmp_path: Path) -> None:
    rows = "0,10,1,b\n5,20,2,b\n9,30,3,a\n10,40,4,c\n15,50,5,a\n"
    trace = read_trace(write(tmp_path, NAMED + rows))
    replay = from_trace(trace, {"a": 8, "b": 16, "c": 32, "d": 8}, plan_window=(0, 10), replay_window=(10, 20))
    assert [(a.name, a.rank, a.rate) for a in replay.adapters] == [
        ("a", 8, 0.1),
        ("b", 16, 0.2),
        ("c", 32, 0.1),
        ("d", 8, 0.1),
    ]
    own, everyone = replay.adapters[1].lengths, replay.adapters[2].lengths
    np.testing.assert_array_equal(own.tokens_in, [10, 20])
    np.testing.assert_array_equal(everyone.tokens_in, [10, 20, 30])
    assert replay.adapters[3].lengths is everyone
    stream = replay.requests(seed=3)
    np.testing.assert_array_equal(stream.arrival_s, [0, 5])
    np.testing.assert_array_equal(stream.adapter, [2, 0])


def test_without_windows_the_whole_trace_is_planned_and_replayed(tmp_path: Path) -> None:
    trace = read_trace(write(tmp_path, HEADER + "2,10,1\n5,20,2\n12,30,3\n"))
    replay = from_trace(trace, {"x": 8}, popularity=uniform_popularity(1))
    assert replay.adapters[0].rate == pytest.approx(0.3)
    np.testing.assert_allclose(replay.requests(0).arrival_s, [0, 3, 10])


def test_planned_rates_of_an_unnamed_trace_follow_popularity_and_scale() -> None:
    trace = read_trace(data_file("traces/azure_llm_2023_conv.csv"))
    shares = dirichlet_popularity(64, 0.5, seed=0)
    ranks = dict.fromkeys(numbered_names(64), 8)
    replay = from_trace(trace, ranks, plan_window=(0, 1800), scale=4.0, popularity=shares, seed=0)
    rates = np.array([adapter.rate for adapter in replay.adapters])
    recorded = (trace.requests.arrival_s < 1800).sum() / 1800
    assert rates.sum() == pytest.approx(4 * recorded, rel=0.01)
    expected = 4 * recorded * shares
    assert (np.abs(rates - expected) <= 5 * np.sqrt(expected / 1800) + 2 / 1800).all()
    assert len({id(adapter.lengths) for adapter in replay.adapters}) == 1
    assert replay.adapters[0].lengths.tokens_in.size == (trace.requests.arrival_s < 1800).sum()


@pytest.mark.parametrize(
    ("windows", "complaint"),
    [
        ({"plan_window": (20, 30)}, "no request arrives in plan_window [20, 30]; they arrive from 0 to 9 s"),
        ({"replay_window": (9.5, 30)}, "no request arrives in replay_window [9.5, 30]"),
    ],
)
def test_an_empty_window_is_named(tmp_path: Path, windows: dict[str, tuple[float, float]], complaint: str) -> None:
    trace = read_trace(write(tmp_path, NAMED + "0,10,1,b\n9,30,3,a\n"))
    with pytest.raises(BadInputError) as error:
        from_trace(trace, {"a": 8, "b": 8}, **windows)  # type: ignore[arg-type]
    assert complaint in str(error.value)


@pytest.mark.parametrize("rows", ["5,10,1\n", "5,10,1\n5,20,1\n"])
def test_a_trace_of_one_moment_needs_a_plan_window(tmp_path: Path, rows: str) -> None:
    trace = read_trace(write(tmp_path, HEADER + rows))
    with pytest.raises(BadInputError, match=r"trace\.csv: it spans 0 s, which gives no rates; give plan_window$"):
        from_trace(trace, {"x": 8}, replay_window=(0, 10), popularity=uniform_popularity(1))
    planned = from_trace(trace, {"x": 8}, plan_window=(0, 10), popularity=uniform_popularity(1))
    assert planned.adapters[0].rate == len(trace.requests) / 10


def test_a_window_that_ends_long_after_the_trace_is_refused(tmp_path: Path) -> None:
    trace = read_trace(write(tmp_path, NAMED + "0,10,1,a\n900,30,3,a\n"))
    for name in ("plan_window", "replay_window"):
        with pytest.raises(BadInputError) as error:
            from_trace(trace, {"a": 8}, **{name: (800, 3600)})  # type: ignore[arg-type]
        assert str(error.value).endswith(
            f"{name} [800, 3600] ends 2700 s past the trace, whose requests arrive from 0 to 900 s"
        )
    for end in (960, 1000):  # by 60 s, or by 10 % of the window
        assert from_trace(trace, {"a": 8}, plan_window=(0, end)).horizon_s == end
    with pytest.raises(BadInputError, match=r"replay_window \[0, 1e\+300\] ends 1e\+300 s past the trace"):
        from_trace(trace, {"a": 8}, replay_window=(0, 1e300))


def test_an_adapter_that_the_table_lacks_is_named(tmp_path: Path) -> None:
    trace = read_trace(write(tmp_path, NAMED + "0,10,1,b\n9,30,3,a\n"))
    with pytest.raises(BadInputError, match="adapter 'b' is not in the table of adapters"):
        from_trace(trace, {"a": 8})
