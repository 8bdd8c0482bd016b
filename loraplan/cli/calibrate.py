"""``loraplan calibrate``: a profile from measurements."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Annotated

import typer
import yaml

from loraplan.cli import terminal
from loraplan.errors import BadInputError
from loraplan.files import require_writable, write_text
from loraplan.profiles import load_profile
from twin.calibrate import Calibration
from twin.calibrate import calibrate as calibrate_from


def calibrate(
    from_runs: Annotated[
        Path,
        typer.Option(
            "--from-runs",
            metavar="DIR|CSV",
            help="Measured runs (CSV), or a folder with them and with micro-benchmarks; columns: docs/calibrate.md.",
        ),
    ],
    output: Annotated[Path, typer.Option("-o", "--output", metavar="PROFILE.yaml", help="Where to write the profile.")],
    like: Annotated[
        str,
        typer.Option("--like", metavar="PROFILE", help="Gives names, limits, rules and whatever was not measured."),
    ] = "h100-64gb/llama-3.1-8b",
    model: Annotated[
        str | None, typer.Option("--model", help="Whose rows to use, if there are several models.")
    ] = None,
    name: Annotated[str | None, typer.Option("--name", help="The new profile's name; as --like if not given.")] = None,
    seed: Annotated[int, typer.Option("--seed", min=0, help="Of the simulated arrivals.")] = 0,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON instead of tables.")] = False,
) -> None:
    """Fit a profile to measurements of one server.

    KV law and load times come from micro-benchmarks where there are any; the step law from hours of real load, each
    simulated in the twin until its steps contain what the measured ones did. Runs that do not fit are listed and count
    little.
    """
    require_writable(output)
    start = load_profile(like)
    if name is not None:
        if not name:
            raise BadInputError("--name must not be empty")
        start = start.model_copy(update={"name": name})
    with terminal.progress("simulating the measured runs") as advance:
        found = calibrate_from(from_runs, model, start, seed, advance)
    text = yaml.safe_dump(found.profile.model_dump(mode="json"), sort_keys=False, width=110)
    write_text(output, text)
    if as_json:
        terminal.print_json(found)
    else:
        _print(found)
    terminal.note(f"profile written to {output}; name this file in a fleet")


def _print(found: Calibration) -> None:
    table = terminal.new_table("constant", "value", "standard error", "from")
    for constant in found.constants:
        table.add_row(
            constant.name,
            f"{constant.value:.4g}",
            f"{constant.error:.2g}" if math.isfinite(constant.error) else "-",
            constant.source,
        )
    terminal.out(table)
    table = terminal.new_table("regime", "runs", "MAPE %", "bias %")
    for regime in found.regimes:
        table.add_row(regime.name, str(regime.runs), f"{regime.mape:.2f}", f"{regime.bias:+.2f}")
    terminal.out(table)
    for line in found.unidentified:
        terminal.out(f"not identified: {line}")
    for run, residual in found.outliers:
        terminal.out(f"outlier: {run} ({residual:+.1f} %)")
