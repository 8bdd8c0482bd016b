"""Plan files: what is written is what is read, by us and by the published schema; anything else is refused."""

from __future__ import annotations

import json
from functools import cache
from pathlib import Path
from typing import Any

import jsonschema
import pytest
from support.oracles import small_problem

import loraplan
from loraplan.errors import BadInputError
from loraplan.plan import Plan, finite, read_plan

SCHEMA = jsonschema.Draft202012Validator(Plan.model_json_schema())


@cache
def two_gpus() -> Plan:
    """A plan with two GPUs and adapters of two ranks."""
    return loraplan.solve(
        small_problem([(8, 25.0), (16, 15.0), (8, 25.0), (8, 0.0)]), solver="best_fit", oracle="fluid"
    )


def as_data(plan: Plan | None = None) -> dict[str, Any]:
    return dict(json.loads((plan or two_gpus()).to_json()))


def write(folder: Path, data: Any) -> Path:
    path = folder / "plan.json"
    path.write_text(data if isinstance(data, str) else json.dumps(data))
    return path


def test_a_plan_survives_saving_and_reading(tmp_path: Path) -> None:
    path = tmp_path / "plan.json"
    two_gpus().save(path)
    assert read_plan(path) == two_gpus()
    assert read_plan(str(path)).to_json() == path.read_text()
    assert len(two_gpus().gpus) == 2


def test_a_plan_has_the_published_shape() -> None:
    data = as_data()
    SCHEMA.validate(data)
    assert data["schema_version"] == 1
    assert data["status"] == "feasible"
    assert set(data["objective"]) >= {"name", "value", "unit", "lower_bound", "gap"}
    assert set(data["gpus"][0]) >= {"id", "profile", "slots", "max_rank", "adapters", "predicted"}
    assert set(data["gpus"][0]["adapters"][0]) >= {"name", "rank", "rate", "share"}
    assert set(data["gpus"][0]["predicted"]) >= {
        "served_fraction",
        "throughput_tok_s",
        "itl_ms",
        "ttft_s",
        "kv_utilisation",
    }
    assert set(data["solver"]) >= {"name", "params", "seed", "runtime_s"}
    assert {"oracle", "provenance"} <= set(data)


def test_a_figure_that_is_not_finite_is_null_in_the_file() -> None:
    """JSON has no infinity: the wait at a GPU that is overloaded on purpose."""
    problem = loraplan.ProblemBuilder().adapter("hot", 8, 100.0, 200, 200).gpus("h100-64gb/llama-3.1-8b", 1)
    plan = loraplan.solve(problem.constraints(0.01).build(), oracle="fluid")
    data = as_data(plan)
    assert plan.complete
    assert data["gpus"][0]["predicted"]["ttft_s"] is None
    SCHEMA.validate(data)
    assert finite(float("nan")) is None
    assert finite(2.5) == 2.5


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("", "not valid JSON .*; is the file complete?"),
        ('{"schema_version": 1, "status": "fea', "not valid JSON .*; is the file complete?"),
        ("[" * 100_000, "not valid JSON"),
        ("[]", "expected a plan with a schema_version; was it written by `loraplan solve`?"),
        ("null", "expected a plan with a schema_version"),
        ('{"workload": {}, "fleet": []}', "expected a plan with a schema_version"),
        ('{"schema_version": 2}', "schema_version 2 is not known; expected 1"),
        ('{"schema_version": "1"}', "schema_version '1' is not known; expected 1"),
        ('{"schema_version": null}', "schema_version None is not known; expected 1"),
        ('{"schema_version": 1}', "status: Field required"),
        ('{"schema_version": 1, "workload": {}, "fleet": []}', "status: Field required"),
    ],
)
def test_what_is_not_a_plan_is_refused(tmp_path: Path, text: str, complaint: str) -> None:
    path = write(tmp_path, text)
    with pytest.raises(BadInputError, match=complaint) as error:
        read_plan(path)
    assert str(error.value).startswith(f"plan {path}: ")
    assert "\n" not in str(error.value)


def test_a_file_that_cannot_be_read_is_named(tmp_path: Path) -> None:
    with pytest.raises(BadInputError, match=r"gone.json: No such file or directory"):
        read_plan(tmp_path / "gone.json")
    with pytest.raises(BadInputError, match=r"Is a directory"):
        read_plan(tmp_path)
    junk = tmp_path / "junk.json"
    junk.write_bytes(b"\x89PNG\xff\xfe")
    with pytest.raises(BadInputError, match=r"not valid JSON"):
        read_plan(junk)


def test_every_truncation_of_a_plan_is_refused(tmp_path: Path) -> None:
    text = two_gpus().to_json().rstrip()
    for length in range(0, len(text), 97):
        with pytest.raises(BadInputError):
            read_plan(write(tmp_path, text[:length]))


def changed(place: tuple[str | int, ...], to: Any) -> dict[str, Any]:
    data = as_data()
    node: Any = data
    for part in place[:-1]:
        node = node[part]
    node[place[-1]] = to
    return data


@pytest.mark.parametrize(
    ("place", "to", "complaint"),
    [
        (("status",), "good", "status: Input should be 'optimal'"),
        (("notes",), "x", "notes: Extra inputs are not permitted"),
        (("gpus", 0, "slots"), 0, "gpus.0.slots: Input should be greater than 0"),
        (("gpus", 0, "adapters"), [], "gpus.0.adapters: .*at least 1 item"),
        (("gpus", 0, "adapters", 0, "rank"), 0, "gpus.0.adapters.0.rank: "),
        (("gpus", 0, "adapters", 0, "rate"), float("nan"), "gpus.0.adapters.0.rate: "),
        (("gpus", 0, "adapters", 0, "rate"), -1, "gpus.0.adapters.0.rate: "),
        (("gpus", 0, "adapters", 0, "share"), 0.5, "shares add up to 0.5, expected 1"),
        (("gpus", 0, "adapters", 0, "rank"), 64, "has a rank above max_rank"),
        (("gpus", 1, "id"), "gpu-0", "GPU id 'gpu-0' is used twice"),
        (("gpus", 0, "profile"), "a100", "profile 'a100' is not in provenance.profiles"),
        (("unplaced",), ["a0"], "adapter 'a0' is both placed and unplaced"),
        (("provenance", "served_fraction"), 0, "provenance.served_fraction: "),
    ],
)
def test_a_plan_that_contradicts_itself_is_refused(
    tmp_path: Path, place: tuple[str | int, ...], to: Any, complaint: str
) -> None:
    with pytest.raises(BadInputError, match=complaint) as error:
        read_plan(write(tmp_path, changed(place, to)))
    assert "\n" not in str(error.value)


def test_an_adapter_listed_twice_on_a_gpu_is_refused(tmp_path: Path) -> None:
    data = as_data()
    first = data["gpus"][0]["adapters"][0]
    data["gpus"][0]["adapters"] = [first | {"share": 0.5}] * 2 + data["gpus"][0]["adapters"][1:]
    with pytest.raises(BadInputError, match="is listed twice"):
        read_plan(write(tmp_path, data))


def test_a_plan_may_lack_some_of_an_adapter_s_replicas(tmp_path: Path) -> None:
    problem = small_problem([(8, 3.0), (8, 4.0)], counts=(3,), replicas={"a0": 2, "a1": 2}, max_adapters=1)
    plan = loraplan.solve(problem, solver="best_fit", oracle="fluid")
    assert not plan.complete
    shares = [adapter.share for gpu in plan.gpus for adapter in gpu.adapters if adapter.name == plan.unplaced[0]]
    assert 0 < sum(shares) < 1
    plan.save(tmp_path / "plan.json")
    assert read_plan(tmp_path / "plan.json") == plan
