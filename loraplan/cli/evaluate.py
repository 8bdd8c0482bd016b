"""`loraplan evaluate`: how close a surrogate comes to the twin and to measured runs."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated

import pyarrow as pa
import typer
from rich.markup import escape

from loraplan.cli import plots, terminal
from loraplan.errors import BadInputError
from loraplan.files import require_writable, write_text
from surrogate import comparison
from surrogate.dataset import read_dataset
from surrogate.evaluation import (
    SEED,
    Evaluation,
    Rivals,
    evaluate,
    refuse_trained,
    simulate_unseen,
    trained_design,
    unseen,
    unseen_design,
)
from surrogate.manifest import read_manifest
from surrogate.measured_runs import measured_table
from surrogate.model import SHIPPED as SHIPPED_MODEL
from surrogate.model import Model
from twin.fidelity import Scores, of_dataset
from twin.measured import SHIPPED, read_runs

WORKLOADS = 2000


def evaluate_model(
    model: Annotated[
        Path | None,
        typer.Argument(metavar="MODEL_DIR", help="Folder of a model; the one that comes with loraplan if not given."),
    ] = None,
    workloads: Annotated[
        int | None,
        typer.Option("--workloads", min=0, metavar="N", help=f"To simulate; {WORKLOADS:,} if not given, 0 for none."),
    ] = None,
    seed: Annotated[int, typer.Option("--seed", min=0, help="Of the unseen workloads.")] = SEED,
    profile: Annotated[
        str | None,
        typer.Option("--profile", metavar="NAME|FILE", help="Have all unseen workloads on this server."),
    ] = None,
    dataset: Annotated[
        Path | None,
        typer.Option("--dataset", metavar="DIR", help="Rows of this dataset instead of workloads to be simulated."),
    ] = None,
    runs: Annotated[
        Path | None,
        typer.Option("--runs", metavar="RUNS.csv", help="Measured runs (docs/calibrate.md)."),
    ] = None,
    runs_dataset: Annotated[
        str, typer.Option("--runs-dataset", metavar="NAME", help="Only the runs of this dataset.")
    ] = "mltest",
    train_data: Annotated[
        Path | None,
        typer.Option("--train-data", metavar="DIR", help="Dataset to train the published model types on."),
    ] = None,
    risk: Annotated[float, typer.Option("--risk", min=0, max=1, help="At which loads are accepted.")] = 0.01,
    workers: Annotated[
        int | None, typer.Option("--workers", min=1, metavar="N", help="Processes at a time; all cores if not given.")
    ] = None,
    plot: Annotated[
        Path | None, typer.Option("--plot", metavar="FILE.html", help="Save a page with calibration plots.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON instead of tables.")] = False,
) -> None:
    """Compare a surrogate with the twin on unseen workloads, with measured runs, and with the published model types.

    The published types (random forest, nearest neighbour, SVM) are trained on the same data where it is at hand: in the
    model's folder, or named by --train-data.
    """
    if dataset is not None and (workloads is not None or profile is not None):
        raise BadInputError("--dataset has its own workloads: it makes no sense with --workloads or --profile")
    count = WORKLOADS if workloads is None else workloads
    if plot is not None:
        if dataset is None and count == 0:
            raise BadInputError("--plot needs unseen workloads: it makes no sense with --workloads 0")
        require_writable(plot)
    folder = SHIPPED_MODEL if model is None else model
    judge = Model.load(folder)
    measured = None if runs is None else _measured(runs, runs_dataset)
    rivals, notes = _rivals(judge, folder, train_data)
    table = _simulated(judge, count, seed, profile, workers) if dataset is None else _stored(judge, dataset)
    loads = None if table is None else unseen(judge, table)
    found = evaluate(judge, loads, measured, rivals, risk, notes)
    if plot is not None and loads is not None:
        write_text(plot, plots.evaluation(found, loads, judge.calibration))
    if as_json:
        terminal.print_json(found)
    else:
        print_tables(found)
    if plot is not None:
        terminal.note(f"plots written to {plot}")


def _measured(path: Path, dataset: str) -> pa.Table:
    runs = of_dataset(read_runs(path), dataset)
    known = [run for run in runs if run.ok and run.model in SHIPPED]
    if not known:
        raise BadInputError(f"{path}: no run that is ok, of a model with a profile: {', '.join(SHIPPED)}")
    return measured_table(known)


def _rivals(model: Model, folder: Path, train_data: Path | None) -> tuple[Rivals, tuple[str, ...]]:
    """The comparison models, and what is to be said of their data."""
    if train_data is not None:
        comparison.require_sklearn()
        design = read_manifest(train_data).design
        rows = comparison.training_rows(read_dataset(train_data))
        same = design == trained_design(model.card)
        note = f"{train_data}: another design than that of the surrogate's training data"
        return Rivals(rows), () if same else (note,)
    stored = folder / comparison.FILE
    if not stored.exists():
        return Rivals(), (f"no comparison models: name the dataset that {folder} was trained on with --train-data",)
    if not comparison.installed():
        return Rivals(), (comparison.INSTALL,)
    return Rivals(comparison.read_training_rows(stored)), ()


def _simulated(model: Model, count: int, seed: int, profile: str | None, workers: int | None) -> pa.Table | None:
    if count == 0:
        return None
    design = unseen_design(model.card, count, seed, profile)
    with terminal.progress("simulating unseen workloads") as advance:
        return simulate_unseen(design, workers, advance)


def _stored(model: Model, folder: Path) -> pa.Table:
    refuse_trained(model.card, read_manifest(folder).design.seed)
    table = read_dataset(folder)
    if table.num_rows == 0:
        raise BadInputError(f"dataset {folder}: it has no rows")
    return table


# ---- tables ----


def print_tables(found: Evaluation) -> None:
    """Print what was found."""
    terminal.out(f"[bold]{escape(found.model)}[/]")
    if found.twin:
        terminal.out(f"\nbeside the twin, {found.loads['all']:,} unseen loads")
        _scores(found.twin, "loads")
        terminal.out("\nregions of these loads, surrogate")
        _scores({region: {"": scores} for region, scores in found.regions.items()}, "region")
        terminal.out("")
        _risk(found)
        _quantiles(found)
    if found.models:
        terminal.out("\nbeside measured runs")
        _scores(found.models, "runs of")
    terminal.out("")
    _speed(found.speed)
    for note in found.notes:
        terminal.out(escape(note))
    terminal.out(
        "Errors and biases in percent (docs/evaluate.md): MAPE mean |a-b|/b, SMAPE half mean |a-b|/(a+b), bias mean "
        "a/b-1, a said and b seen."
    )


def _scores(groups: Mapping[str, Mapping[str, Scores]], what: str) -> None:
    kinds = any(len(by_kind) > 1 for by_kind in groups.values())
    titles = [what, *(["model"] if kinds else []), "n", "throughput: MAPE", "SMAPE half", "bias", "ITL: MAPE"]
    titles += ["TTFT: MAPE", "KV: MAPE", "labels right", "macro F1", "missed", "false alarms"]
    table = terminal.new_table(*titles)
    for group, by_kind in groups.items():
        for kind, scores in by_kind.items():
            names = [escape(group), *([kind.replace("_", " ")] if kinds else [])]
            table.add_row(*names, *_cells(scores))
    terminal.out(table)


def _cells(scores: Scores) -> list[str]:
    figures, labels = scores.all, scores.starvation
    throughput = figures["throughput"]
    errors = [throughput.mape, throughput.smape_half, throughput.bias]
    errors += [figures[name].mape if name in figures else float("nan") for name in ("itl", "ttft", "kv")]
    cells = [terminal.number(value, 2) for value in (*errors, labels.agreement, labels.macro_f1)]
    return [f"{labels.n:,}", *cells, str(labels.missed), str(labels.false_alarm)]


def _risk(found: Evaluation) -> None:
    risk = next(iter(found.risk.values())).risk
    title = f"accepted at risk {risk:g}"
    table = terminal.new_table("loads", title, "of them starved, %", "of those carried accepted, %", "out of range, %")
    for group, says in found.risk.items():
        cells = [terminal.number(value, 2) for value in (says.starved_of_accepted, says.accepted_of_carried)]
        table.add_row(escape(group), f"{says.accepted:,}", *cells, terminal.number(found.outside[group], 1))
    terminal.out(table)


def _quantiles(found: Evaluation) -> None:
    table = terminal.new_table("5 to 95 % quantiles", "n", "below, %", "within, %", "above, %")
    for target, says in found.quantiles["all"].items():
        cells = (terminal.number(value, 1) for value in (says.below, says.within, says.above))
        table.add_row(target, f"{says.n:,}", *cells)
    terminal.out(table)


def _speed(speed: Mapping[str, float]) -> None:
    def of(name: str) -> str:
        return terminal.number(speed[name], 2)

    terminal.out(
        f"a GPU load takes the surrogate {of('surrogate_us_per_row_batch')} us of CPU time in batches "
        f"({of('surrogate_us_per_row_batch_sums')} where embeddings are summed up already), "
        f"{of('surrogate_us_per_row_single')} us by itself"
    )
    for kind in comparison.MODELS:
        if f"{kind}_us_per_row" in speed:
            name = kind.replace("_", " ")
            single = of(f"{kind}_us_per_row_single")
            terminal.out(f"{name}: {of(f'{kind}_us_per_row')} us in batches, {single} us by itself")
