"""What can go wrong, each with the exit code the command line gives it."""

from __future__ import annotations

from collections.abc import Iterable
from difflib import get_close_matches


class LoraplanError(Exception):
    """Base of every error that loraplan raises on purpose; its text is one clear line."""

    exit_code = 2


class BadInputError(LoraplanError):
    """A file, field, name or setting is wrong; the text says which, and what was expected."""


class NothingFitsError(LoraplanError):
    """A GPU carries not even one adapter; the text names the limit."""

    exit_code = 1


class NoPlanError(LoraplanError):
    """There is no plan that keeps the limits, or none was found; the text says which limit."""

    exit_code = 1


class PluginError(LoraplanError):
    """A plugin broke its contract; the text says which, and how."""

    exit_code = 1


class ServerError(LoraplanError):
    """A real server does not start, dies, refuses, hangs, or answers what makes no sense; the text says which."""

    exit_code = 3


MOST_KNOWN = 12
"""Known names that an error lists; of more it says how many."""


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """Return ``; did you mean 'x'? known: ...`` for an unknown ``name``."""
    known = sorted(known)
    close = get_close_matches(name, known, n=1, cutoff=0.5)
    hint = f"; did you mean {close[0]!r}?" if close else ";"
    more = len(known) - MOST_KNOWN
    tail = f" and {more:,} more" if more > 0 else ""
    return f"{hint} known: {', '.join(known[:MOST_KNOWN])}{tail}"
