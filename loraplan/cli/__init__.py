"""The command line: ``loraplan COMMAND --help`` tells what each command does."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from loraplan.cli.commands import app

__all__ = ["app", "main"]

INTERRUPTED = 130
"""The exit code of a command that Ctrl-C ended: 128 + SIGINT, as shells have it."""


def main() -> None:
    """Run the command line; Ctrl-C ends it with exit code 130 and without a traceback."""
    try:
        # Importing the commands takes a second or more, in which Ctrl-C must do no more than end the program.
        from loraplan.cli.commands import app

        app()
    except KeyboardInterrupt:
        sys.exit(INTERRUPTED)


def __getattr__(name: str) -> Any:
    """Import ``app`` on first use."""
    if name != "app":
        raise AttributeError(f"module 'loraplan.cli' has no attribute {name!r}")
    from loraplan.cli.commands import app

    return app
