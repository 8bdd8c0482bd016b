"""How the command line ends: every foreseen error is one line and an exit code."""

from __future__ import annotations

from typing import Any

import typer
from typer.core import TyperGroup

from loraplan.cli import terminal
from loraplan.errors import LoraplanError

_UsageError: type[Exception] = typer.BadParameter.__mro__[1]  # click's, which newer typers carry inside


class ErrorsInOneLine(TyperGroup):
    """Turns errors made on purpose, and those in a command's arguments, into a line on stderr and their exit code."""

    def invoke(self, ctx: Any) -> Any:
        """Run the chosen command."""
        try:
            return super().invoke(ctx)
        except LoraplanError as error:
            terminal.error(str(error))
            raise typer.Exit(error.exit_code) from None
        except _UsageError as error:
            usage: Any = error
            path = (usage.ctx or ctx).command_path
            terminal.error(f"{' '.join(usage.format_message().split())} See `{path} --help`.")
            raise typer.Exit(usage.exit_code) from None
