"""What the checks share: how they complain, and how they take a plugin."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import is_dataclass
from typing import Any

from loraplan.registry import Chosen, Registry, choose, make_params

Settings = Mapping[str, Any]


class ContractError(AssertionError):
    """A plugin does not do what its base class promises; the text says what."""


def require(fine: object, complaint: str) -> None:
    """Raise a ContractError unless ``fine``."""
    if not fine:
        raise ContractError(complaint)


def chosen(registry: Registry[Any], plugin: str | type[Any], settings: Settings | None) -> Chosen:
    """A plugin given by its registered name or by its class, with its settings.

    Raises:
        BadInputError: the name or a setting is unknown or wrong.
        ContractError: the class has no Params that is a frozen dataclass.
    """
    if isinstance(plugin, str):
        found = choose(registry, {"name": plugin, "params": dict(settings or {})})
    else:
        _check_params(f"{registry.kind} {plugin.__name__}", plugin)
        made = make_params(plugin.Params, settings or {}, f"{registry.kind} {plugin.__name__!r}")
        return Chosen(plugin.__name__, plugin, made)
    _check_params(f"{registry.kind} {found.name}", found.kind)
    return found


def _check_params(owner: str, kind: type[Any]) -> None:
    params = getattr(kind, "Params", None)
    require(params is not None and is_dataclass(params), f"{owner}: Params must be a dataclass")
    frozen = getattr(params, "__dataclass_params__").frozen  # noqa: B009 # no type knows of it
    require(frozen, f"{owner}: Params must be frozen: @dataclass(frozen=True)")
