"""Registries: names are unique, mistakes get a suggestion, plugins come in by entry point."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import pytest

from loraplan import registry
from loraplan.errors import BadInputError
from loraplan.registry import Chosen, Registry, make_params


@dataclass(frozen=True)
class Params:
    """Settings of a plugin."""

    patience: int = 3
    gap: float = 0.1


@dataclass(frozen=True)
class NoParams:
    """No settings."""


class Distribution:
    name = "their-package"


@dataclass(frozen=True)
class Point:
    name: str
    value: str
    dist: Any = None


@pytest.fixture
def points(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[Point]]:
    """The entry points that registries of this test's group find."""
    found: list[Point] = []

    def entry_points(group: str) -> list[Point]:
        assert group == "tests.solvers"
        return found

    monkeypatch.setattr(registry, "entry_points", entry_points)
    yield found


@pytest.fixture
def solvers(points: list[Point]) -> Registry[Any]:
    made: Registry[Any] = Registry("solver", "tests.solvers")
    made.register("pi", "math:pi", "a number")
    return made


def test_an_object_is_imported_when_asked_for(solvers: Registry[Any]) -> None:
    import math

    solvers.register("late", "no.such.module:thing")  # not imported, so no error
    assert solvers.names() == ("late", "pi")
    assert solvers.get("pi") is math.pi
    assert solvers.get("pi") is solvers.get("pi")
    assert solvers.entry("pi").summary == "a number"


def test_a_name_is_taken_once(solvers: Registry[Any]) -> None:
    with pytest.raises(ValueError, match="solver 'pi' is registered twice: math:pi and math:tau"):
        solvers.register("pi", "math:tau")


def test_an_unknown_name_gets_a_suggestion(solvers: Registry[Any]) -> None:
    solvers.register("greedy", "math:e")
    with pytest.raises(BadInputError, match=r"^unknown solver 'gredy'; did you mean 'greedy'\? known: greedy, pi$"):
        solvers.get("gredy")
    with pytest.raises(BadInputError, match=r"^unknown solver 'zzz'; known: greedy, pi$"):
        solvers.entry("zzz")


@pytest.mark.parametrize("target", ["no.such.module:thing", "math:no_such_thing"])
def test_a_plugin_that_cannot_be_loaded_is_named(solvers: Registry[Any], target: str) -> None:
    solvers.register("broken", target, origin="their-package")
    with pytest.raises(BadInputError, match=f"solver 'broken' of their-package cannot be loaded from {target}: "):
        solvers.get("broken")


def test_entry_points_of_third_parties_are_found(points: list[Point], solvers: Registry[Any]) -> None:
    points += [Point("tau", "math:tau", Distribution()), Point("e", "math:e")]
    assert solvers.names() == ("e", "pi", "tau")
    assert solvers.get("tau") == pytest.approx(6.283185)
    assert solvers.entry("tau").origin == "their-package"
    assert solvers.entry("e").origin == "a plugin"


def test_an_entry_point_cannot_take_a_name_that_is_taken(points: list[Point], solvers: Registry[Any]) -> None:
    points.append(Point("pi", "theirs:pi"))
    with pytest.raises(BadInputError, match="registered twice: math:pi and theirs:pi"):
        solvers.names()


def test_params_are_made_checked_and_dumped() -> None:
    params = make_params(Params, {"patience": 5}, "solver 'x'")
    assert params == Params(5, 0.1)
    assert Chosen("x", Params, params).settings == {"patience": 5, "gap": 0.1}


@pytest.mark.parametrize(
    ("params", "given", "complaint"),
    [
        (Params, {"patence": 5}, "solver 'x' has no setting 'patence'; did you mean 'patience'? known: gap, patience"),
        (NoParams, {"a": 5}, "solver 'x' has no setting 'a'; it has no settings"),
        (Params, {"patience": "many"}, "solver 'x', setting patience: Input should be a valid integer"),
    ],
)
def test_wrong_params_are_named(params: type, given: dict[str, Any], complaint: str) -> None:
    with pytest.raises(BadInputError) as error:
        make_params(params, given, "solver 'x'")
    assert str(error.value).startswith(complaint)


def test_params_must_be_a_dataclass() -> None:
    with pytest.raises(TypeError, match="its Params must be a dataclass"):
        make_params(int, {}, "solver 'x'")
