"""The one way in for everything that has a name: solvers, objectives, oracles and profiles."""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from dataclasses import asdict, dataclass, is_dataclass
from importlib.metadata import entry_points
from typing import Any, Generic, TypeVar, cast

from pydantic import TypeAdapter, ValidationError

from loraplan.errors import BadInputError, did_you_mean

T = TypeVar("T")


@dataclass(frozen=True)
class Entry:
    """A registered name: where its object lives (``module:attribute``), and what it is, in a line."""

    name: str
    target: str
    summary: str
    origin: str = "loraplan"


class Registry(Generic[T]):
    """Names and the objects they stand for, imported only when asked for.

    Third parties add theirs by an entry point in ``group``: the entry point's name is the registered name, its value
    ``module:attribute``.
    """

    def __init__(self, kind: str, group: str) -> None:
        """Make an empty registry of ``kind`` (the word used in messages), extended by the entry points of ``group``."""
        self.kind = kind
        self.group = group
        self._entries: dict[str, Entry] = {}
        self._loaded: dict[str, T] = {}
        self._scanned = False

    def register(self, name: str, target: str, summary: str = "", origin: str = "loraplan") -> None:
        """Register ``target`` (``module:attribute``) as ``name``.

        Raises:
            ValueError: the name is taken.
        """
        if name in self._entries:
            other = self._entries[name]
            raise ValueError(f"{self.kind} {name!r} is registered twice: {other.target} and {target}")
        self._entries[name] = Entry(name, target, summary, origin)

    def names(self) -> tuple[str, ...]:
        """All names, sorted, those of third parties among them."""
        self._scan()
        return tuple(sorted(self._entries))

    def entry(self, name: str) -> Entry:
        """What is registered under ``name``.

        Raises:
            BadInputError: nothing is; the message suggests the nearest name.
        """
        self._scan()
        if name not in self._entries:
            raise BadInputError(f"unknown {self.kind} {name!r}{did_you_mean(name, self._entries)}")
        return self._entries[name]

    def get(self, name: str) -> T:
        """Import and return the object registered as ``name``.

        Raises:
            BadInputError: the name is unknown, or its module cannot be imported.
        """
        entry = self.entry(name)
        if name not in self._loaded:
            module, _, attribute = entry.target.partition(":")
            try:
                self._loaded[name] = cast("T", getattr(importlib.import_module(module), attribute))
            except (ImportError, AttributeError) as error:
                raise BadInputError(
                    f"{self.kind} {name!r} of {entry.origin} cannot be loaded from {entry.target}: {error}"
                ) from error
        return self._loaded[name]

    def _scan(self) -> None:
        if self._scanned:
            return
        self._scanned = True
        for point in entry_points(group=self.group):
            origin = point.dist.name if point.dist else "a plugin"
            try:
                self.register(point.name, point.value, summary=f"from {origin}", origin=origin)
            except ValueError as error:
                raise BadInputError(f"plugin {origin}: {error}; uninstall one of them") from None


Spec = str | Mapping[str, Any]
"""A registered name, or a mapping of ``name`` and the settings of what it names."""


def in_full(spec: Any) -> Any:
    """A `Spec` as a mapping of ``name`` and ``params``; what is none is returned as it is.

    Raises:
        ValueError: settings stand both beside the name and in ``params``.
    """
    if isinstance(spec, str):
        return {"name": spec}
    if not isinstance(spec, Mapping):
        return spec
    beside = {key: value for key, value in spec.items() if key not in ("name", "params")}
    if beside and spec.get("params"):
        raise ValueError("settings stand beside the name or in params, not both")
    named = {key: value for key, value in spec.items() if key in ("name", "params")}
    return named | {"params": beside} if beside else named


@dataclass(frozen=True)
class Chosen:
    """A plugin that a name stood for: its class and its settings."""

    name: str
    kind: Any
    params: Any

    @property
    def settings(self) -> dict[str, Any]:
        """The settings as plain data."""
        return asdict(self.params)


def choose(registry: Registry[Any], spec: Spec) -> Chosen:
    """Look ``spec`` up and check its settings.

    Raises:
        BadInputError: the name or a setting is unknown, or a setting has the wrong type.
    """
    try:
        full = in_full(spec)
        name, params = full["name"], full.get("params") or {}
        if not (isinstance(name, str) and isinstance(params, Mapping) and set(full) <= {"name", "params"}):
            raise TypeError
    except (TypeError, KeyError, ValueError):
        raise BadInputError(f"{registry.kind}: expected a name, or a mapping with a name (got {spec!r:.80})") from None
    kind = registry.get(name)
    return Chosen(name, kind, make_params(kind.Params, params, f"{registry.kind} {name!r}"))


def make_params(params_type: type[T], given: Mapping[str, Any], owner: str) -> T:
    """Build a plugin's frozen params dataclass from the settings a user gave.

    Args:
        params_type: the dataclass; its fields are the settings the plugin knows.
        given: setting names and values.
        owner: whose settings they are, for messages (``solver 'greedy'``).

    Raises:
        BadInputError: a setting is unknown or has the wrong type or value.
    """
    if not is_dataclass(params_type):
        raise TypeError(f"{owner}: its Params must be a dataclass")
    known = params_type.__dataclass_fields__
    for name in given:
        if name not in known:
            known_text = did_you_mean(name, known) if known else "; it has no settings"
            raise BadInputError(f"{owner} has no setting {name!r}{known_text}")
    try:
        return TypeAdapter(params_type).validate_python(dict(given))
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"])
        raise BadInputError(f"{owner}, setting {where}: {first['msg']} (got {first['input']!r})") from None
