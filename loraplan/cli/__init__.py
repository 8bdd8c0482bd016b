"""The command line: ``loraplan COMMAND --help`` tells what each command does."""

from loraplan.cli.app import app, main

__all__ = ["app", "main"]
