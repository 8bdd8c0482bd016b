"""Reading a configuration file: YAML, overrides of single settings, one clear line for whatever is wrong."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails

from loraplan.config.schema import Config
from loraplan.errors import BadInputError, did_you_mean
from loraplan.files import parse_yaml, read_yaml

Settings = TypeVar("Settings", bound=BaseModel)
_Place = tuple[str | int, ...]

# Settings that may hold a name in the place of a mapping with that name.
_PLUGINS = ("objective", "solver", "oracle")


def load_config(path: Path, overrides: Sequence[str] = ()) -> Config:
    """Read and check a configuration file.

    Args:
        path: a YAML file; relative paths in it (and in overrides) count from its folder, and come back absolute.
        overrides: ``key=value`` each; dotted keys, list items by index, the value parsed as YAML
            (``fleet.0.count=4``, ``workload.plan_window=[0, 900]``). Later ones win.

    Raises:
        BadInputError: one line that names the file, the setting, what is wrong with it and what was given.
    """
    data = read_yaml(path, f"config {path}")
    return parse_config(data, overrides, folder=path.resolve().parent, source=f"config {path}")


def parse_config(
    data: Any, overrides: Sequence[str] = (), folder: Path | None = None, source: str = "config"
) -> Config:
    """Check a configuration given as plain data (mappings, lists, numbers, text); see ``load_config``.

    Args:
        data: the mapping of settings.
        overrides: as in ``load_config``.
        folder: where relative paths count from; None leaves them as they are.
        source: how messages name the configuration.

    Raises:
        BadInputError: as in ``load_config``.
    """
    if data is None:  # what YAML makes of nothing
        raise BadInputError(f"{source}: the file is empty")
    return parse_settings(Config, data, overrides, folder, source)


def load_settings(model: type[Settings], path: Path, overrides: Sequence[str] = ()) -> Settings:
    """Read and check a file with the settings of ``model``; an empty one leaves them all as they are.

    Args:
        model: what the settings describe.
        path: a YAML file.
        overrides: as in ``load_config``.

    Raises:
        BadInputError: as in ``load_config``.
    """
    data = read_yaml(path, f"config {path}")
    return parse_settings(model, {} if data is None else data, overrides, path.resolve().parent, f"config {path}")


def parse_settings(
    model: type[Settings], data: Any, overrides: Sequence[str], folder: Path | None, source: str
) -> Settings:
    """Check plain data against ``model``; the other arguments are those of ``parse_config``.

    Raises:
        BadInputError: as in ``load_config``.
    """
    if not isinstance(data, Mapping):
        raise BadInputError(f"{source}: expected a mapping of settings, got {type(data).__name__}")
    changes = [_Override.parse(text, source) for text in overrides]
    for change in changes:
        data = change.apply({key: _in_full(key, value) for key, value in data.items()}, source)
    try:
        return model.model_validate(data, context={"folder": folder} if folder else None)
    except ValidationError as error:
        first = error.errors()[0]
        place, complaint = _explain(first, data)
        blamed = [change.text for change in changes if change.caused(place, first["type"] == "unknown_key")]
        culprit = f"--set {blamed[-1]}: " if blamed else ""
        setting = ".".join(str(part) for part in place)
        raise BadInputError(f"{source}: {culprit}{setting + ': ' if setting else ''}{complaint}") from None


def _in_full(key: Any, value: Any) -> Any:
    """A plugin's name as a mapping, so that an override can set one of its settings."""
    return {"name": value} if key in _PLUGINS and isinstance(value, str) else value


@dataclass(frozen=True)
class _Override:
    """One ``--set``: its text, the place it sets, and the value."""

    text: str
    place: _Place
    value: Any

    @classmethod
    def parse(cls, text: str, source: str) -> _Override:
        key, equals, value = text.partition("=")
        parts = key.strip().split(".")
        if not equals or not all(parts):
            raise BadInputError(f"{source}: --set {text}: expected key=value, with dots between nested keys")
        parsed = parse_yaml(value, f"{source}: --set {text}")
        return cls(text, tuple(int(part) if part.isdecimal() else part for part in parts), parsed)

    def apply(self, data: Any, source: str) -> Any:
        """A copy of ``data`` with the value at its place; mappings on the way there are made if need be."""

        def changed(node: Any, depth: int) -> Any:
            if depth == len(self.place):
                return self.value
            part = self.place[depth]
            if isinstance(node, list | tuple):
                if not (isinstance(part, int) and part < len(node)):
                    where = ".".join(str(above) for above in self.place[:depth])
                    raise BadInputError(
                        f"{source}: --set {self.text}: {where} is a list; expected an index 0 to {len(node) - 1}"
                    )
                return [changed(item, depth + 1) if i == part else item for i, item in enumerate(node)]
            if node is None or isinstance(node, Mapping):
                return {**(node or {}), part: changed((node or {}).get(part), depth + 1)}
            where = ".".join(str(above) for above in self.place[:depth])
            raise BadInputError(f"{source}: --set {self.text}: {where} is {node!r:.80}, which has no settings")

        return changed(data, 0)

    def caused(self, place: _Place, unknown: bool) -> bool:
        """Whether a complaint about ``place`` is about what this set: the value, or an unknown key on the way to it."""
        return place[: len(self.place)] == self.place or (unknown and self.place[: len(place)] == place)


def _explain(error: ErrorDetails, data: Any) -> tuple[_Place, str]:
    """The setting that a pydantic error is about, and the complaint in words."""
    place = _without_tags(error, data)
    context = error.get("ctx", {})
    match error["type"]:
        case "unknown_key":
            return (*place, context["key"]), error["msg"]
        case "union_tag_invalid":
            known = [law.strip("' ") for law in context["expected_tags"].split(",")]
            return (*place, "law"), f"unknown law {context['tag']!r}{did_you_mean(context['tag'], known)}"
        case "union_tag_not_found":
            return (*place, "law"), "Field required"
        case "model_type" | "model_attributes_type":
            return place, f"expected a mapping of settings (got {error['input']!r:.80})"
        case "value_error":
            return place, str(context["error"])
        case "missing" | "settings_twice":
            return place, error["msg"]
        case _:
            return place, f"{error['msg']} (got {error['input']!r:.80})"


def _without_tags(error: ErrorDetails, data: Any) -> _Place:
    """An error's place without what pydantic puts in for the chosen branch of a union: parts not in ``data``."""
    place: list[str | int] = []
    node = data
    for i, part in enumerate(error["loc"]):
        try:
            node = node[part]
        except (KeyError, IndexError, TypeError):
            if error["type"] != "missing" or i < len(error["loc"]) - 1:
                continue
        place.append(part)
    return tuple(place)
