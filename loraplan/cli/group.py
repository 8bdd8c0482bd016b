"""How the command line ends: every foreseen error is one line and an exit code."""

from __future__ import annotations

from typing import Any

import typer
from typer.core import TyperGroup

from loraplan.cli import show
from loraplan.errors import LoraplanError


class ErrorsInOneLine(TyperGroup):
    """Turns the errors that loraplan raises on purpose into a line on stderr and their exit code."""

    def invoke(self, ctx: Any) -> Any:
        """Run the chosen command."""
        try:
            return super().invoke(ctx)
        except LoraplanError as error:
            show.error(str(error))
            raise typer.Exit(error.exit_code) from None
