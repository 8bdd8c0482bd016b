"""How the command line starts and ends: help with examples; every foreseen error is one line and an exit code."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import typer
from typer.core import TyperGroup

from loraplan.cli import INTERRUPTED, terminal
from loraplan.errors import LoraplanError

_UsageError: type[Exception] = typer.BadParameter.__mro__[1]  # click's, which newer typers carry inside


class ErrorsInOneLine(TyperGroup):
    """Turns errors made on purpose, and those in a command's arguments, into a line on stderr and their exit code."""

    def invoke(self, ctx: Any) -> Any:
        """Run the chosen command; SIGTERM ends it as Ctrl-C does."""
        if threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGTERM, signal.default_int_handler)
        try:
            return super().invoke(ctx)
        except LoraplanError as error:
            terminal.error(str(error))
            raise typer.Exit(error.exit_code) from None
        except KeyboardInterrupt:  # typers differ in what they make of it
            raise typer.Exit(INTERRUPTED) from None
        except _UsageError as error:
            usage: Any = error
            path = (usage.ctx or ctx).command_path
            terminal.error(f"{' '.join(usage.format_message().split())} See `{path} --help`.")
            raise typer.Exit(usage.exit_code) from None


def examples(*commands: str) -> str:
    """What stands below a command's help: commands to copy."""
    return "\n\n".join(["Examples:", *(f"- `loraplan {command}`" for command in commands)])


@contextmanager
def interrupts() -> Iterator[threading.Event]:
    """Note whether Ctrl-C is pressed in the block: a search that it ends with a complete plan does not say so."""
    pressed = threading.Event()
    before = signal.getsignal(signal.SIGINT)
    if threading.current_thread() is not threading.main_thread() or not callable(before):
        yield pressed  # no signals are handled here, or SIGINT is ignored
        return

    def note(number: int, frame: Any) -> None:
        pressed.set()
        before(number, frame)

    signal.signal(signal.SIGINT, note)
    try:
        yield pressed
    finally:
        signal.signal(signal.SIGINT, before)
