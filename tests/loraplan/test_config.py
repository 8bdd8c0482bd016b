"""Configurations: every mistake is one line that names the place, and what is read is what is built."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import jsonschema
import numpy as np
import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st
from support.data import data_file

from loraplan.arrivals import Arrivals, Diurnal, Hourly, Poisson, Unpredictable
from loraplan.config import Case, Config, build, build_constraints, build_fleet, load_config, parse_config
from loraplan.errors import BadInputError
from loraplan.profiles import H100_LLAMA
from loraplan.workload import RateWorkload, TraceWorkload

FLEET = [{"profile": "h100-64gb/llama-3.1-8b", "count": 12}]
GENERATE = {"count": 6, "ranks": [8, 16, 32], "rates": [2.0, 1.0], "input_tokens": 222.7, "output_tokens": 196.5}
TRACE = {
    "trace": "requests.csv",
    "adapters": {"count": 4, "ranks": [8, 16], "popularity": {"law": "dirichlet", "alpha": 0.5}, "seed": 1},
    "rate_scale": 4.0,
    "plan_window": [0, 1800],
    "replay_window": [1800, 3500],
}
UNNAMED_ROWS = "arrived_at,num_prefill_tokens,num_decode_tokens\n" + "".join(f"{i},10,5\n" for i in range(100))
NAMED_ROWS = "arrived_at,num_prefill_tokens,num_decode_tokens,adapter\n" + "".join(
    f"{i},10,5,{'yx'[i % 2]}\n" for i in range(100)
)
TABLE_ROWS = "name,rank,rate,tokens_in,tokens_out\nx,8,1.0,200,100\ny,16,3.0,20,10\n"
SCHEMA = jsonschema.Draft202012Validator(Config.model_json_schema())


def settings(workload: dict[str, Any] | None = None, **others: Any) -> dict[str, Any]:
    return {"workload": {"generate": GENERATE} if workload is None else workload, "fleet": FLEET, **others}


def write(folder: Path, data: Any) -> Path:
    path = folder / "plan.yaml"
    path.write_text(data if isinstance(data, str) else yaml.safe_dump(data))
    return path


def complaint(data: Any, overrides: tuple[str, ...] = ()) -> str:
    with pytest.raises(BadInputError) as error:
        parse_config(data, overrides)
    text = str(error.value)
    assert "\n" not in text
    return text.removeprefix("config: ")


# ---- what is wrong is named ----


@pytest.mark.parametrize(
    ("place", "name", "nearest"),
    [
        ((), "workloads", "workload"),
        (("workload",), "adaptors", "adapters"),
        (("workload", "adapters"), "rank", "ranks"),
        (("workload", "adapters", "popularity"), "alfa", "alpha"),
        (("fleet", 0), "profil", "profile"),
        (("constraints",), "served_fractions", "served_fraction"),
    ],
)
def test_a_misspelt_key_is_named_with_its_nearest(place: tuple[str | int, ...], name: str, nearest: str) -> None:
    data: Any = copy.deepcopy(settings(TRACE, constraints={}))
    node = data
    for part in place:
        node = node[part]
    node[name] = 1
    where = ".".join(map(str, (*place, name)))
    assert complaint(data).startswith(f"{where}: unknown key; did you mean {nearest!r}? known: ")


@pytest.mark.parametrize(
    ("change", "text"),
    [
        ({"adapters": {"count": -3, "ranks": [8]}}, "adapters.count: Input should be greater than 0 (got -3)"),
        ({"adapters": {"count": 3, "ranks": []}}, "adapters.ranks: Tuple should have at least 1 item"),
        ({"adapters": {"count": 3, "ranks": [8, "x"]}}, "adapters.ranks.1: Input should be a valid integer"),
        ({"adapters": {"count": 3}}, "adapters.ranks: Field required"),
        ({"adapters": 3}, "adapters: expected a mapping of settings (got 3)"),
        ({"adapters": {"ranks": [8], "popularity": "zipf"}}, "adapters.popularity: expected a mapping of settings"),
        ({"adapters": {"ranks": [8], "popularity": {}}}, "adapters.popularity.law: Field required"),
        (
            {"adapters": {"ranks": [8], "popularity": {"law": "dirichle"}}},
            "adapters.popularity.law: unknown law 'dirichle'; did you mean 'dirichlet'? known: dirichlet, uniform,",
        ),
        (
            {"adapters": {"ranks": [8], "popularity": {"law": "dirichlet", "alpha": 0}}},
            "adapters.popularity.alpha: Input should be greater than 0 (got 0)",
        ),
        (
            {"adapters": {"ranks": [8], "popularity": {"law": "zipf", "alpha": 1}}},
            "adapters.popularity.alpha: unknown key; ",
        ),
        ({"plan_window": [3]}, "plan_window.1: Field required"),
        ({"plan_window": [-1, 3]}, "plan_window.0: Input should be greater than or equal to 0 (got -1)"),
        ({"rate_scale": float("nan")}, "rate_scale: Input should be"),
        ({"headroom": 0}, "headroom: Input should be greater than 0 (got 0)"),
    ],
)
def test_a_wrong_value_is_named_in_the_right_branch(change: dict[str, Any], text: str) -> None:
    assert complaint(settings(TRACE | change)).startswith(f"workload.{text}")


@pytest.mark.parametrize(
    ("arrivals", "text"),
    [
        ({"law": "unpredictible"}, "law: unknown law 'unpredictible'; did you mean 'unpredictable'? known: diurnal, "),
        ({"law": "unpredictable", "every": 60}, "every: unknown key; did you mean 'every_s'? known: every_s, law,"),
        ({"law": "unpredictable", "every_s": 0.5}, "every_s: Input should be greater than or equal to 1 (got 0.5)"),
        ({"law": "unpredictable", "step": 0.5}, "step: Input should be greater than or equal to 1 (got 0.5)"),
        (
            {"law": "unpredictable", "swing": float("inf")},
            "swing: Input should be less than or equal to 1000 (got inf)",
        ),
        ({"law": "unpredictable", "sigma": 9}, "sigma: Input should be less than or equal to 2.5 (got 9)"),
        ({"law": "diurnal", "amplitude": 2}, "amplitude: Input should be less than or equal to 1 (got 2)"),
        ({"law": "diurnal", "peak_hours": []}, "peak_hours: Tuple should have at least 1 item"),
        ({"law": "diurnal", "peak_hours": 14}, "peak_hours: Input should be a valid tuple (got 14)"),
        ({"law": "diurnal", "peak_hours": [9, "x"]}, "peak_hours.1: Input should be a valid number"),
        ({"law": "diurnal", "period_hours": 0}, "period_hours: Input should be greater than 0 (got 0)"),
        ({"law": "hourly"}, "weights: Field required"),
        ({"law": "hourly", "weights": [1, -1]}, "weights.1: Input should be greater than or equal to 0 (got -1)"),
        ({"law": "hourly", "weights": [0, 0]}, "weights: expected a weight above 0"),
    ],
)
def test_a_wrong_law_of_arrivals_is_named(arrivals: dict[str, Any], text: str) -> None:
    assert complaint(settings({"generate": GENERATE, "arrivals": arrivals})).startswith(f"workload.arrivals.{text}")


@pytest.mark.parametrize(
    ("workload", "text"),
    [
        ({}, "expected a trace, a table of adapters, or generate"),
        ({"trace": "t.csv"}, "trace needs adapters: a table, or ranks"),
        ({"trace": "t.csv", "generate": GENERATE}, "generate makes the adapters; it makes no sense with trace"),
        ({"adapters": "t.csv", "generate": GENERATE}, "generate makes the adapters; it makes no sense with adapters"),
        ({"adapters": {"count": 3, "ranks": [8]}}, "adapters without a trace must be a table"),
        (TRACE | {"horizon_s": 60}, "horizon_s makes no sense with trace, only with adapter table or generate"),
        (TRACE | {"arrivals": {"law": "poisson"}}, "arrivals makes no sense with trace"),
        (TRACE | {"lengths": {"law": "constant"}}, "lengths makes no sense with trace"),
        (TRACE | {"plan_window": [5, 5]}, "plan_window must end after it starts (got [5, 5])"),
        (
            {"adapters": "t.csv", "plan_window": [0, 1]},
            "plan_window makes no sense with adapter table, only",
        ),
        ({"generate": GENERATE, "replay_window": [0, 1]}, "replay_window makes no sense with generate"),
        ({"generate": GENERATE, "rate_scale": 2}, "rate_scale makes no sense with generate, which has its own"),
    ],
)
def test_settings_that_make_no_sense_together_are_named(workload: dict[str, Any], text: str) -> None:
    assert complaint(settings(workload)).startswith(f"workload: {text}")


@pytest.mark.parametrize(
    ("change", "text"),
    [
        ({"total_rate": 3}, "expected exactly one of rates and total_rate"),
        ({"rates": None}, "expected exactly one of rates and total_rate"),
        ({"popularity": {"law": "uniform"}}, "popularity shares total_rate; it makes no sense with rates"),
    ],
)
def test_generate_takes_one_law_of_rates(change: dict[str, Any], text: str) -> None:
    assert complaint(settings({"generate": GENERATE | change})) == f"workload.generate: {text}"


@pytest.mark.parametrize(
    ("change", "text"),
    [
        ({"count": 10**10}, "count: Input should be less than or equal to 1000000 (got 10000000000)"),
        ({"ranks": [10**30]}, "ranks.0: Input should be less than or equal to 1000000 (got 1000"),
        ({"rates": [1e300]}, "rates.0: Input should be less than or equal to 1000000000 (got 1e+300)"),
        ({"rate_scale": 1e300}, "rate_scale: Input should be less than or equal to 1000000000 (got 1e+300)"),
        ({"input_tokens": 1e300}, "input_tokens: Input should be less than or equal to 1000000000 (got 1e+300)"),
        ({"output_tokens": 1e10}, "output_tokens: Input should be less than or equal to 1000000000 (got 1"),
    ],
)
def test_absurd_sizes_are_named(change: dict[str, Any], text: str) -> None:
    assert complaint(settings({"generate": GENERATE | change})).startswith(f"workload.generate.{text}")


@pytest.mark.parametrize(
    ("workload", "text"),
    [
        (TRACE | {"adapters": {"count": 10**10, "ranks": [8]}}, "adapters.count: Input should be less than or equal"),
        (
            {"generate": GENERATE, "lengths": {"law": "lognormal", "input_cv": 1e200}},
            "lengths.input_cv: Input should be less than or equal to 20 (got 1e+200)",
        ),
        (
            TRACE | {"adapters": {"count": 1, "ranks": [8], "popularity": {"law": "dirichlet", "alpha": 1e308}}},
            "adapters.popularity.alpha: Input should be less than or equal to 1000000 (got 1e+308)",
        ),
    ],
)
def test_absurd_laws_are_named(workload: dict[str, Any], text: str) -> None:
    assert complaint(settings(workload)).startswith(f"workload.{text}")


@pytest.mark.parametrize(
    ("workload", "text"),
    [
        ({"generate": GENERATE | {"rates": [1e6]}}, r"2\.16e\+10 requests are expected in 3600 s.* lower the rates or"),
        (
            {"generate": GENERATE | {"rates": [1e3]}, "arrivals": {"law": "unpredictable"}},
            r"1\.62e\+08 requests are expected in 3600 s at peak rates \(7\.5 times the mean ones\), more than 1e\+08",
        ),
        (
            {"generate": GENERATE | {"rates": [1e-9]}, "arrivals": {"law": "unpredictable"}, "horizon_s": 1e15},
            r"6 adapters that change every 300 s for 1e\+15 s are 2e\+13 intervals, more than 2e\+07",
        ),
        ({"generate": GENERATE, "horizon_s": 1e12}, r"9e\+12 requests are expected in 1e\+12 s, more than 1e\+08"),
        (
            {"trace": "unnamed.csv", "adapters": {"count": 4, "ranks": [8]}, "rate_scale": 1e7},
            r"100 requests, 1e\+07 times as dense, are 1e\+09, more than 1e\+08; lower rate_scale",
        ),
    ],
)
def test_a_stream_too_long_to_draw_is_refused(tmp_path: Path, workload: dict[str, Any], text: str) -> None:
    with pytest.raises(BadInputError, match=text):
        case(tmp_path, workload)


@pytest.mark.parametrize(
    ("change", "text"),
    [
        ({"solver": 3}, "solver: expected a mapping of settings (got 3)"),
        ({"solver": {"patience": 3}}, "solver.name: Field required"),
        ({"solver": ""}, "solver: String should have at least 1 character (got '')"),
        ({"solver": {"name": "x", "a": 1, "params": {"b": 2}}}, "solver: settings stand beside the name or in params"),
        ({"schema_version": 2}, "schema_version: Input should be 1 (got 2)"),
        ({"time_limit_s": -1}, "time_limit_s: Input should be greater than or equal to 0 (got -1)"),
        ({"fleet": []}, "fleet: Tuple should have at least 1 item"),
        ({"seed": -1}, "seed: Input should be greater than or equal to 0 (got -1)"),
        ({"constraints": {"served_fraction": 1.1}}, "constraints.served_fraction: Input should be less than or equal"),
    ],
)
def test_wrong_settings_outside_the_workload_are_named(change: dict[str, Any], text: str) -> None:
    assert complaint(settings() | change).startswith(text)


def test_the_file_is_named_and_must_be_a_yaml_mapping(tmp_path: Path) -> None:
    path = write(tmp_path, settings(seed="x"))
    with pytest.raises(BadInputError) as error:
        load_config(path)
    assert str(error.value).startswith(f"config {path}: seed: Input should be a valid integer")
    for text, wrong in (
        ("- 1", "expected a mapping of settings, got list"),
        ("a: [", "not valid YAML: "),
        ("", "the file is empty"),
        ("# nothing yet\n", "the file is empty"),
        ("seed: 1\nsolver: greedy\nsolver: greedy\n", "key 'solver' is given twice, on line 2 and on line 3"),
    ):
        with pytest.raises(BadInputError) as error:
            load_config(write(tmp_path, text))
        assert str(error.value).startswith(f"config {path}: {wrong}")
    with pytest.raises(BadInputError, match="No such file"):
        load_config(tmp_path / "absent.yaml")


# ---- overrides ----


def test_overrides_reach_every_depth_and_later_ones_win() -> None:
    config = parse_config(
        settings(TRACE, solver="greedy"),
        [
            "seed=5",
            "fleet.0.count=3",
            "workload.plan_window=[0, 9]",
            "workload.adapters.popularity.alpha=1e-1",
            "solver.patience=2",
            "constraints.served_fraction=0.5",
            "seed=6",
        ],
    )
    assert config.seed == 6
    assert config.fleet[0].count == 3
    assert config.workload.plan_window == (0, 9)
    assert config.workload.model_dump()["adapters"]["popularity"]["alpha"] == 0.1
    assert config.solver.model_dump() == {"name": "greedy", "params": {"patience": 2}}
    assert config.constraints.served_fraction == 0.5


def test_overrides_leave_the_given_data_alone() -> None:
    data = settings(TRACE)
    before = copy.deepcopy(data)
    parse_config(data, ["workload.rate_scale=9", "fleet.0.count=1"])
    assert data == before


@pytest.mark.parametrize(
    ("override", "text"),
    [
        ("workload.adaptors.count=3", "workload.adaptors: unknown key; did you mean 'adapters'?"),
        ("fleet.0.count=-1", "fleet.0.count: Input should be greater than 0 (got -1)"),
        ("workload.adapters={count: 0, ranks: [8]}", "workload.adapters.count: Input should be greater than 0"),
        ("fleet.1.count=1", "fleet is a list; expected an index 0 to 0"),
        ("fleet.first.count=1", "fleet is a list; expected an index 0 to 0"),
        ("seed.x=1", "seed is 0, which has no settings"),
        ("seed", "expected key=value"),
        ("a..b=1", "expected key=value"),
        ("seed=[", "not valid YAML"),
    ],
)
def test_a_wrong_override_is_named(override: str, text: str) -> None:
    assert complaint(settings(TRACE, seed=0), ("solver=x", override)).startswith(f"--set {override}: {text}")


def test_an_override_is_not_blamed_for_what_the_file_says() -> None:
    assert complaint(settings(TRACE, seed=-1), ("fleet.0.count=3",)).startswith("seed: ")


# ---- pure data ----

POPULARITIES = st.one_of(
    st.builds(lambda alpha: {"law": "dirichlet", "alpha": alpha}, st.floats(0.1, 5)),
    st.builds(lambda exponent: {"law": "zipf", "exponent": exponent}, st.floats(0, 3)),
    st.just({"law": "uniform"}),
)
ARRIVALS = st.sampled_from(
    [
        {"law": "poisson"},
        {"law": "gamma", "cv": 2},
        {"law": "unpredictable", "every_s": 60},
        {"law": "diurnal", "peak_hours": [9, 20.5]},
        {"law": "hourly", "weights": [1, 0, 2.5]},
    ]
)
RANKS = st.lists(st.sampled_from([8, 16, 32]), min_size=1, max_size=4)
PLUGINS = st.one_of(
    st.sampled_from(["a", "b"]),
    st.just({"name": "a", "gap": 0.1}),
    st.just({"name": "a", "params": {"gap": [1, 2], "deep": {"x": None}}}),
)
WORKLOADS = st.one_of(
    st.builds(
        lambda ranks, popularity: TRACE | {"adapters": {"count": 3, "ranks": ranks, "popularity": popularity}},
        RANKS,
        POPULARITIES,
    ),
    st.builds(
        lambda ranks, popularity, arrivals: {
            "generate": {
                "count": 2,
                "ranks": ranks,
                "total_rate": 3.0,
                "popularity": popularity,
                "input_tokens": 9,
                "output_tokens": 9,
            },
            "arrivals": arrivals,
            "headroom": 1.5,
            "lengths": {"law": "lognormal", "input_cv": 0.5},
        },
        RANKS,
        POPULARITIES,
        ARRIVALS,
    ),
    st.just({"adapters": "table.csv", "horizon_s": 60, "lengths": {"law": "constant"}}),
)


@given(WORKLOADS, PLUGINS, PLUGINS)
def test_a_dump_reads_back_equal_and_fits_the_published_schema(workload: Any, objective: Any, solver: Any) -> None:
    data = settings(workload, objective=objective, solver=solver)
    config = parse_config(data)
    dump = config.model_dump(mode="json")
    assert parse_config(dump) == config
    SCHEMA.validate(data)
    SCHEMA.validate(dump)


def test_the_schema_describes_every_setting_and_refuses_unknown_ones() -> None:
    for part in (SCHEMA.schema, *SCHEMA.schema["$defs"].values()):
        for name, field in part.get("properties", {}).items():
            assert name == "law" or field.get("description"), name
    with pytest.raises(jsonschema.ValidationError):
        SCHEMA.validate(settings() | {"sede": 1})


def test_relative_paths_count_from_the_file(tmp_path: Path) -> None:
    fleet = [{"profile": "own.yaml", "count": 1}, {"profile": "h100-64gb/llama-3.1-8b", "count": 1}]
    config = load_config(write(tmp_path, settings({"trace": "t.csv", "adapters": "sub/a.csv"}) | {"fleet": fleet}))
    assert config.workload.trace == tmp_path / "t.csv"
    assert config.workload.adapters == tmp_path / "sub" / "a.csv"
    assert [item.profile for item in config.fleet] == [str(tmp_path / "own.yaml"), "h100-64gb/llama-3.1-8b"]
    assert parse_config(settings({"adapters": "a.csv"})).workload.adapters == Path("a.csv")


# ---- what is built ----


def case(folder: Path, workload: dict[str, Any], **others: Any) -> Case:
    (folder / "unnamed.csv").write_text(UNNAMED_ROWS)
    (folder / "named.csv").write_text(NAMED_ROWS)
    (folder / "table.csv").write_text(TABLE_ROWS)
    built = build(load_config(write(folder, settings(workload, **others))))
    assert built.replay.adapters is built.problem.adapters
    return built


def test_fleet_and_constraints_are_built(tmp_path: Path) -> None:
    (tmp_path / "own.yaml").write_text(H100_LLAMA.read_text().replace("name: h100", "name: my-h100"))
    fleet = [*FLEET, {"profile": "own.yaml", "count": 2}]
    config = load_config(write(tmp_path, settings() | {"fleet": fleet, "constraints": {"served_fraction": 0.8}}))
    built = build_fleet(config)
    assert [(t.profile.name, t.count) for t in built.types] == [
        ("h100-64gb/llama-3.1-8b", 12),
        ("my-h100-64gb/llama-3.1-8b", 2),
    ]
    assert build_constraints(config).served_fraction == 0.8
    with pytest.raises(BadInputError, match="unknown profile 'h100-64gb/llama'; did you mean"):
        build_fleet(parse_config(settings() | {"fleet": [{"profile": "h100-64gb/llama", "count": 1}]}))


def test_generated_rates_are_dealt_and_scaled(tmp_path: Path) -> None:
    built = case(tmp_path, {"generate": GENERATE | {"rate_scale": 0.5}, "arrivals": {"law": "gamma", "cv": 3}})
    np.testing.assert_array_equal(built.problem.rates, [1.0, 0.5] * 3)
    assert sorted(built.problem.ranks) == [8, 8, 16, 16, 32, 32]
    assert built.problem.mean_in[0] == pytest.approx(222.7, rel=0.01)
    assert isinstance(built.replay, RateWorkload)
    assert (built.replay.horizon_s, built.replay.arrivals.cv) == (3600.0, 3.0)


@pytest.mark.parametrize(
    ("spec", "law", "horizon_s"),
    [
        ({"law": "poisson"}, Poisson(), 3600),
        ({"law": "unpredictable"}, Unpredictable(300, 1.5, 7.5, 1.0), 3600),
        ({"law": "unpredictable", "every_s": 60, "sigma": 2}, Unpredictable(60, 1.5, 7.5, 2.0), 3600),
        ({"law": "diurnal", "peak_hours": [9, 20]}, Diurnal(0.8, (9, 20), 24), 86_400),
        ({"law": "diurnal", "amplitude": 0.5, "period_hours": 2}, Diurnal(0.5, (14,), 2), 7200),
        ({"law": "hourly", "weights": [1, 2, 3]}, Hourly((1, 2, 3)), 10_800),
    ],
)
def test_arrivals_are_built_and_replayed_for_a_whole_cycle(
    tmp_path: Path, spec: dict[str, Any], law: Arrivals, horizon_s: float
) -> None:
    for given_s, seconds in (None, horizon_s), (60, 60):
        replay = case(tmp_path, {"generate": GENERATE, "arrivals": spec, "horizon_s": given_s}).replay
        assert isinstance(replay, RateWorkload)
        assert (replay.arrivals, replay.horizon_s) == (law, seconds)


@pytest.mark.parametrize("source", ["generate", "trace"])
def test_headroom_is_planned_for_and_not_replayed(tmp_path: Path, source: str) -> None:
    trace = {"trace": "unnamed.csv", "adapters": {"count": 4, "ranks": [8, 16]}}
    workload: dict[str, Any] = trace if source == "trace" else {"generate": GENERATE}
    plain = case(tmp_path, workload)
    built = build(load_config(write(tmp_path, settings(workload | {"headroom": 1.5}))))
    np.testing.assert_allclose(built.problem.rates, 1.5 * plain.problem.rates)
    assert [(a.name, a.rank) for a in built.problem.adapters] == [(a.name, a.rank) for a in plain.problem.adapters]
    np.testing.assert_array_equal(built.replay.requests(3).arrival_s, plain.replay.requests(3).arrival_s)


@pytest.mark.parametrize("popularity", [None, {"law": "zipf", "exponent": 1.0}, {"law": "dirichlet"}])
def test_a_total_rate_is_shared(tmp_path: Path, popularity: dict[str, Any] | None) -> None:
    law = {"count": 50, "ranks": [8], "total_rate": 300, "popularity": popularity, "rate_scale": 2}
    lengths = {"lengths": {"law": "constant"}, "horizon_s": 10}
    built = case(tmp_path, {"generate": law | {"input_tokens": 7, "output_tokens": 3}} | lengths)
    assert built.problem.rates.sum() == pytest.approx(600)
    assert (np.ptp(built.problem.rates) < 1e-9) == (popularity is None)
    assert built.problem.adapters[0].lengths.tokens_in.tolist() == [7]
    assert built.replay.horizon_s == 10


def test_a_table_on_its_own_is_scaled(tmp_path: Path) -> None:
    built = case(tmp_path, {"adapters": "table.csv", "rate_scale": 2})
    assert [(a.name, a.rank, a.rate) for a in built.problem.adapters] == [("x", 8, 2.0), ("y", 16, 6.0)]
    assert built.problem.mean_out == pytest.approx([100, 10], rel=0.01)


def test_a_named_trace_deals_ranks_in_order_of_arrival(tmp_path: Path) -> None:
    built = case(tmp_path, {"trace": "named.csv", "adapters": {"ranks": [8, 16]}, "plan_window": [0, 50]})
    assert [(a.name, a.rank, a.rate) for a in built.problem.adapters] == [("y", 8, 0.5), ("x", 16, 0.5)]
    assert isinstance(built.replay, TraceWorkload)
    assert built.replay.window_s == (0, 50)


def test_a_named_trace_takes_ranks_from_a_table(tmp_path: Path) -> None:
    built = case(tmp_path, {"trace": "named.csv", "adapters": "table.csv", "plan_window": [0, 100]})
    assert [(a.name, a.rank, a.rate) for a in built.problem.adapters] == [("x", 8, 0.5), ("y", 16, 0.5)]
    stream = built.replay.requests(0)
    np.testing.assert_array_equal(stream.adapter, [1, 0] * 50)


def test_an_unnamed_trace_is_shared_by_a_tables_rates(tmp_path: Path) -> None:
    workload = {"trace": "unnamed.csv", "adapters": "table.csv", "rate_scale": 100, "plan_window": [10, 90]}
    built = case(tmp_path, workload)
    assert built.problem.rates.sum() == pytest.approx(100, rel=0.1)
    assert built.problem.rates[1] / built.problem.rates.sum() == pytest.approx(0.75, abs=0.03)
    (tmp_path / "zero.csv").write_text("name,rank,rate\nx,8,0\n")
    with pytest.raises(BadInputError, match=r"zero\.csv: rates that are all 0"):
        build(load_config(write(tmp_path, settings(workload | {"adapters": "zero.csv"}))))


@pytest.mark.parametrize(
    ("workload", "text"),
    [
        ({"trace": "unnamed.csv", "adapters": {"ranks": [8]}}, r"adapters\.count is missing: .* names no adapters"),
        ({"trace": "named.csv", "adapters": {"ranks": [8], "count": 2}}, r"adapters\.count makes no sense"),
        (
            {"trace": "named.csv", "adapters": {"ranks": [8], "popularity": {"law": "uniform"}}},
            r"adapters\.popularity makes no sense: trace .*named\.csv names its adapters",
        ),
    ],
)
def test_adapters_that_do_not_fit_the_trace_are_named(tmp_path: Path, workload: dict[str, Any], text: str) -> None:
    with pytest.raises(BadInputError, match=text):
        case(tmp_path, workload)


def test_the_azure_trace_is_planned_on_one_part_and_replayed_on_another(tmp_path: Path) -> None:
    trace = str(data_file("traces/azure_llm_2023_conv.csv").resolve())
    built = case(tmp_path, TRACE | {"trace": trace, "adapters": {"count": 256, "ranks": [8, 16, 32]}})
    assert len(built.problem.adapters) == 256
    assert built.replay.horizon_s == 1700
    assert built.problem.rates.sum() == pytest.approx(4 * 19_366 / 3_502, rel=0.1)
    assert len(built.replay.requests(0)) / 1700 == pytest.approx(4 * 19_366 / 3_502, rel=0.1)


def test_the_same_configuration_builds_the_same_case(tmp_path: Path) -> None:
    workload = {"trace": "unnamed.csv", "adapters": {"count": 5, "ranks": [8], "seed": 3}, "rate_scale": 2.5}
    first, second = case(tmp_path, workload), case(tmp_path, workload)
    np.testing.assert_array_equal(first.problem.rates, second.problem.rates)
    np.testing.assert_array_equal(first.replay.requests(1).adapter, second.replay.requests(1).adapter)
