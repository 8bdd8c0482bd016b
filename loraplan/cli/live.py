"""Options of the commands that ask real servers, and what they have in common."""

from __future__ import annotations

import re
import shlex
import signal
from pathlib import Path
from typing import Annotated

import typer

from loraplan.errors import BadInputError
from loraplan.live.launch import CPU_ARGUMENTS, CPU_ENVIRONMENT, Launcher
from loraplan.profiles import Limits

LaunchOption = Annotated[
    str | None, typer.Option("--launch", metavar="MODEL", help="Start servers of this model, and stop them at the end.")
]
LorasOption = Annotated[
    Path | None,
    typer.Option("--loras", metavar="DIR", help="With --launch: the adapters, a folder each, as PEFT saves them."),
]
VLLMOption = Annotated[str, typer.Option("--vllm", metavar="COMMAND", help="With --launch: the vllm command.")]
ArgumentsOption = Annotated[
    str, typer.Option("--vllm-args", metavar="ARGS", help="With --launch: further arguments, as a shell has them.")
]
EnvironmentOption = Annotated[
    list[str] | None, typer.Option("--env", metavar="NAME=VALUE", help="With --launch: a variable of the servers.")
]
CPUOption = Annotated[
    bool, typer.Option("--cpu", help="vLLM runs on CPU cores; with --launch, with the settings that few of them take.")
]
BudgetOption = Annotated[
    str, typer.Option("--budget", metavar="TIME", help="Longest that a server is probed: 10m, 90s, 1h.")
]

_UNITS = {"": 1.0, "s": 1.0, "m": 60.0, "h": 3600.0}


def seconds(text: str, option: str) -> float:
    """A time such as ``90``, ``90s``, ``10m`` or ``1h``.

    Raises:
        BadInputError: it is none.
    """
    match = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([smh]?)", text.strip())
    if match is None or float(match[1]) == 0:
        raise BadInputError(f"{option}: expected a time such as 90s or 10m (got {text!r})")
    return float(match[1]) * _UNITS[match[2]]


def launcher(command: str, folder: Path, arguments: str, environment: list[str] | None, cpu: bool) -> Launcher:
    """How servers are started.

    Raises:
        BadInputError: a variable is not given as NAME=VALUE.
    """
    variables = dict(CPU_ENVIRONMENT) if cpu else {}
    for pair in environment or ():
        name, equals, value = pair.partition("=")
        if not (name and equals):
            raise BadInputError(f"--env: expected NAME=VALUE (got {pair!r})")
        variables[name] = value
    more = (*(CPU_ARGUMENTS if cpu else ()), *shlex.split(arguments))
    return Launcher(command, folder, variables, more)


def limited(limits: Limits, seqs: int | None, tokens: int | None, length: int | None) -> Limits:
    """The limits, with those that are given."""
    given = {"max_num_seqs": seqs, "max_num_batched_tokens": tokens, "max_model_len": length}
    return limits.model_copy(update={name: value for name, value in given.items() if value is not None})


def end_by_sighup() -> None:
    """A terminal that is closed ends the command as Ctrl-C does, and so the servers that it has started."""
    signal.signal(signal.SIGHUP, signal.default_int_handler)
