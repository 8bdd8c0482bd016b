"""The command line: ``loraplan COMMAND --help`` tells what each command does."""

from __future__ import annotations

import contextlib
import os
import signal
import sys
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from loraplan.cli.commands import app

__all__ = ["app", "main"]

INTERRUPTED = 130
"""The exit code of a command that Ctrl-C ended: 128 + SIGINT, as shells have it."""


def main() -> None:
    """Run the command line; Ctrl-C ends it with exit code 130 and without a traceback."""
    try:
        with _ended_at_once():
            from loraplan.cli.commands import app

        app()
    except KeyboardInterrupt:
        sys.exit(INTERRUPTED)


@contextlib.contextmanager
def _ended_at_once() -> Iterator[None]:
    """Let Ctrl-C end the program while the commands are imported, which takes a second or more.

    A ``KeyboardInterrupt`` would not do: Python makes another error of one raised where a class gets its attributes.
    """
    if signal.getsignal(signal.SIGINT) is not signal.default_int_handler:
        yield  # of a program that ignores Ctrl-C, or has a handler of its own
        return
    signal.signal(signal.SIGINT, lambda *_: os._exit(INTERRUPTED))
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, signal.default_int_handler)


def __getattr__(name: str) -> Any:
    """Import ``app`` on first use."""
    if name != "app":
        raise AttributeError(f"module 'loraplan.cli' has no attribute {name!r}")
    from loraplan.cli.commands import app

    return app
