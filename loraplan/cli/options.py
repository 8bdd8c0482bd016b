"""Arguments and options that several commands share, and what they all do with them."""

from __future__ import annotations

import json
from contextlib import AbstractContextManager
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any

import typer

from loraplan.api import solve_config
from loraplan.cli import terminal
from loraplan.config import Config, load_config
from loraplan.plan import Plan


class Verify(StrEnum):
    """What verifies a plan while it is made."""

    none = "none"
    twin = "twin"


ConfigArgument = Annotated[
    Path, typer.Argument(metavar="CONFIG.yaml", help="What to plan: see `loraplan schema config`.")
]
PlanArgument = Annotated[Path, typer.Argument(metavar="PLAN.json", help="A plan that `loraplan solve -o` wrote.")]
JSONOption = Annotated[bool, typer.Option("--json", help="Print JSON instead of tables.")]
SetOption = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="KEY=VALUE", help="Change a setting of the config: `--set workload.rate_scale=2`."),
]
SolverOption = Annotated[
    str | None,
    typer.Option("--solver", metavar="NAME", help="Instead of the config's; `loraplan list solvers` names them."),
]
ObjectiveOption = Annotated[
    str | None,
    typer.Option("--objective", metavar="NAME", help="Instead of the config's; `loraplan list objectives` names them."),
]
OracleOption = Annotated[
    str | None,
    typer.Option("--oracle", metavar="NAME", help="Instead of the config's; `loraplan list oracles` names them."),
]
SeedOption = Annotated[int | None, typer.Option("--seed", min=0, help="Instead of the config's.")]
TimeLimitOption = Annotated[
    float | None, typer.Option("--time-limit", min=0, metavar="S", help="Stop after S seconds with the best so far.")
]
VerifyOption = Annotated[
    Verify | None,
    typer.Option("--verify", help="Replay every GPU in the twin, cut off what starves, and search on until none does."),
]
StartOption = Annotated[
    Path | None,
    typer.Option("--start", metavar="PLAN.json", help="Begin with this plan, if the solver improves plans."),
]
SeedsOption = Annotated[int, typer.Option("--seeds", min=1, help="How many fresh seeds to replay.")]


def read(
    path: Path,
    solver: str | None,
    objective: str | None,
    oracle: str | None,
    time_limit: float | None,
    seed: int | None,
    changes: list[str] | None,
    verify: Verify | None = None,
) -> Config:
    """The config, with what the options change in it."""
    named = {"solver": solver, "objective": objective, "oracle": oracle, "time_limit_s": time_limit, "seed": seed}
    named["verify"] = None if verify is None else verify.value
    given = [f"{key}={json.dumps(value)}" for key, value in named.items() if value is not None]
    return load_config(path, [*given, *(changes or [])])


def solve(config: Config, start: Plan | None = None) -> Plan:
    """Solve, with a progress bar."""
    progress: AbstractContextManager[Any] = terminal.progress(f"{config.solver.name}: placing adapters")
    with progress as advance:
        return solve_config(
            config, on_progress=lambda placed, total, gpus: advance(placed, total, f"{gpus} GPUs"), start=start
        )
