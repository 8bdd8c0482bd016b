"""`loraplan fidelity`: how close the twin comes to measured runs."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated

import typer
from rich.markup import escape

from loraplan.cli import terminal
from loraplan.errors import BadInputError, did_you_mean
from loraplan.files import require_writable, write_text
from loraplan.profiles import Profile, load_profile
from twin.agreement import Errors
from twin.calibrate import gather
from twin.fidelity import (
    FIGURES,
    Fidelity,
    ModelFidelity,
    Scores,
    Speed,
    compare,
    lengths_by_model,
    of_dataset,
    per_run_csv,
    read_reference,
    score,
)
from twin.measured import SHIPPED, MeasuredRun, read_runs

GROUPS = ("all", "not_starved", "starved")


def fidelity(
    runs: Annotated[
        Path, typer.Option("--runs", metavar="RUNS.csv", help="Measured runs; docs/calibrate.md names the columns.")
    ],
    reference: Annotated[
        Path | None, typer.Option("--reference", metavar="TWIN.csv", help="Another twin's results for these runs.")
    ] = None,
    profiles: Annotated[
        list[str] | None,
        typer.Option("--profile", metavar="MODEL=PROFILE", help="Profile (name or file) of a model of the runs."),
    ] = None,
    dataset: Annotated[
        str | None, typer.Option("--dataset", metavar="NAME", help="Only the runs of this dataset.")
    ] = None,
    seeds: Annotated[int, typer.Option("--seeds", min=1, help="Replays per run; their means are compared.")] = 1,
    held_out: Annotated[
        bool,
        typer.Option(
            "--held-out",
            help="Replay each group of runs with a profile calibrated, as `calibrate` does, on all others.",
        ),
    ] = False,
    apart: Annotated[
        Path | None,
        typer.Option(
            "--apart", metavar="NAMES.txt", help="Runs to report with and without: dataset/model/group/run_id."
        ),
    ] = None,
    output: Annotated[
        Path | None, typer.Option("-o", "--output", metavar="FILE.csv", help="Save a line per run.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON instead of tables.")] = False,
) -> None:
    """Replay measured runs in the twin: errors of its figures, starvation labels, memory failures, speed.

    Every run of status ok is replayed on Poisson arrivals of its rates, with the profile of its model.

    Example: loraplan fidelity --runs runs.csv --reference other_twin.csv --seeds 4 --held-out
    """
    if output is not None:
        require_writable(output)
    found, table = study(runs, reference, profiles or [], dataset, seeds, held_out, apart)
    if output is not None:
        write_text(output, table)
    if as_json:
        terminal.print_json(found)
    else:
        print_tables(found)
    if output is not None:
        terminal.note(f"a line per run written to {output}")


def study(
    runs: Path,
    reference: Path | None,
    profiles: Sequence[str],
    dataset: str | None,
    seeds: int,
    held_out: bool = False,
    apart: Path | None = None,
) -> tuple[Fidelity, str]:
    """Read, replay and compare; also a CSV table with a line per run.

    Raises:
        BadInputError: a file, a profile or the dataset is missing or wrong.
    """
    every = read_runs(runs)
    chosen = every if dataset is None else of_dataset(every, dataset)
    others = None if reference is None else read_reference(reference)
    by_model = profiles_of([run.model for run in chosen], [run.model for run in every], profiles)
    # Lengths come from all runs, so that a run's figures do not depend on which others are looked at.
    lengths = lengths_by_model([run for run in every if run.model in by_model])
    set_apart = _names(apart, every) if apart is not None else ()
    without = _held_out(runs, by_model, chosen) if held_out else None
    with terminal.progress("replaying in the twin") as advance:
        compared = compare(chosen, by_model, lengths, others, seeds, on_progress=advance, held_out=without)
    return score(compared, set_apart), per_run_csv(compared)


def _names(path: Path, runs: Sequence[MeasuredRun]) -> list[str]:
    """The runs that a file names, a line each; lines that are empty or begin with # do not count."""
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise BadInputError(f"--apart {path}: {getattr(error, 'strerror', None) or error}") from None
    named = [line.strip() for line in lines if line.strip() and not line.startswith("#")]
    known = {run.name for run in runs}
    for name in named:
        if name not in known:
            raise BadInputError(f"--apart {path}: no run {name!r}{did_you_mean(name, known)}")
    return named


def _held_out(
    source: Path, profiles: Mapping[str, Profile], runs: Sequence[MeasuredRun]
) -> dict[tuple[str, str], Profile]:
    """For every group of ``runs`` the profile calibrated on the runs of its model in all other groups."""
    found = {}
    for model, like in profiles.items():
        groups = sorted({run.group for run in runs if run.model == model and run.ok})
        if not groups:  # no run to replay
            continue
        with terminal.progress(f"calibrating {model}") as advance:
            evidence = gather(source, model, like, on_progress=advance)
        for group in groups:
            found[model, group], _, _ = evidence.fit(but=group)
    return found


def profiles_of(models: Sequence[str], known: Sequence[str], given: Sequence[str]) -> dict[str, Profile]:
    """The profiles of ``models``: those given as MODEL=PROFILE, else those shipped for them, if any.

    Raises:
        BadInputError: ``given`` is not of that form, names a model not among ``known`` or no profile.
    """
    names = dict(SHIPPED)
    for pair in given:
        model, equals, profile = pair.partition("=")
        if not (model and equals and profile):
            raise BadInputError(f"--profile {pair}: expected MODEL=PROFILE")
        if model not in known:
            raise BadInputError(f"--profile {pair}: no run of model {model!r}{did_you_mean(model, set(known))}")
        names[model] = profile
    return {model: load_profile(names[model]) for model in dict.fromkeys(models) if model in names}


def print_tables(found: Fidelity) -> None:
    """Print what was found, model by model."""
    for model, says in found.models.items():
        _model(model, says)
    if found.without_apart is not None:
        terminal.out(f"Without the {len(found.apart)} runs set apart:\n")
        for model, says in found.without_apart.items():
            _model(model, says)
    _speed(found.speed)
    terminal.out(
        "Errors and biases in percent, a simulated and b measured: MAPE mean |a-b|/b, SMAPE half mean |a-b|/(a+b), "
        "SMAPE twice that, bias mean a/b-1. ITL and TTFT are the client's, through the profile's frontend if it has "
        "one; TPOT is the engine's; TTFT is without runs whose client was overloaded."
    )


def _model(model: str, says: ModelFidelity) -> None:
    terminal.out(f"[bold]{escape(model)}[/]")
    _errors(says)
    _labels(says)
    terminal.out(
        f"memory failures: {_percent(says.oom.agreement)} of {says.oom.n} runs, ok or out of memory, as measured\n"
    )


def _errors(says: ModelFidelity) -> None:
    titles = ["figure", "runs", "n", "MAPE", "SMAPE half", "SMAPE", "bias"]
    if says.reference:
        titles += ["same rows: n", "MAPE", "bias", "reference: MAPE", "SMAPE half", "SMAPE", "bias"]
    table = terminal.new_table(*titles)
    for group in GROUPS:
        for name in FIGURES:
            own: Errors = getattr(says, group)[name]
            cells = [name, group.replace("_", " "), str(own.n), *_all_errors(own)]
            if says.reference and says.same_rows:
                same, other = getattr(says.same_rows, group)[name], getattr(says.reference, group)[name]
                cells += [str(same.n), _percent(same.mape), _percent(same.bias), *_all_errors(other)]
            table.add_row(*cells)
    terminal.out(table)


def _all_errors(found: Errors) -> list[str]:
    return [_percent(value) for value in (found.mape, found.smape_half, found.smape, found.bias)]


def _labels(says: ModelFidelity) -> None:
    table = terminal.new_table(
        "starvation labels", "n", "agreement", "clear runs", "macro F1", "missed", "false alarms"
    )
    rows: list[tuple[str, Scores | None]] = [
        ("twin", says),
        ("twin, same rows", says.same_rows),
        ("reference", says.reference),
    ]
    for title, scores in rows:
        if scores is not None:
            found = scores.starvation
            shares = [_percent(value) for value in (found.agreement, found.agreement_clear, found.macro_f1)]
            table.add_row(title, str(found.n), *shares, str(found.missed), str(found.false_alarm))
    terminal.out(table)


def _speed(found: Speed) -> None:
    ratio = found.ratio_to_reference
    faster = "" if math.isnan(ratio) else f"; {ratio:,.0f} times as fast as the reference on the same runs"
    mean = terminal.number(found.seconds_per_simulated_hour_mean, 3)
    median = terminal.number(found.seconds_per_simulated_hour_median, 3)
    terminal.out(
        f"a simulated hour takes {mean} s in the mean, {median} s in the median: CPU time of one core, with the "
        f"drawing of its arrivals{faster}"
    )


def _percent(value: float) -> str:
    return terminal.number(value, 1)
