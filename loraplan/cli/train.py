"""``loraplan train``: a surrogate from a dataset."""

from __future__ import annotations

import math
from importlib.util import find_spec
from pathlib import Path
from typing import Annotated

import typer

from loraplan.cli import INTERRUPTED, terminal
from loraplan.config.load import parse_settings
from loraplan.errors import BadInputError
from surrogate.model import Card
from surrogate.settings import TrainSettings

NEEDED = ("torch", "pytorch_lightning", "tensorboard")


def train(
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="A dataset that `loraplan dataset` wrote.")],
    output: Annotated[Path, typer.Option("-o", "--output", metavar="MODEL_DIR", help="Folder of the model.")],
    changes: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="KEY=VALUE", help="Change a setting: `--set epochs=60`; docs/train.md has them."),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print the model's card instead of a table.")] = False,
) -> None:
    """Train the surrogate on a dataset: weights, thresholds for any risk, and a card with its errors.

    Whatever ends the command (Ctrl-C, kill -9, no power), the same command goes on from the last epoch. Logs for
    TensorBoard and as CSV are in MODEL_DIR/logs.
    """
    settings = parse_settings(TrainSettings, {}, changes or (), None, "train")
    missing = [name for name in NEEDED if find_spec(name) is None]
    if missing:
        raise BadInputError(f"training needs {', '.join(missing)}: pip install 'loraplan[train]'")
    from surrogate import training  # torch takes seconds to import

    try:
        with terminal.progress("training") as advance:

            def tell(done: int, total: int, epochs: int, loss: float) -> None:
                known = f", validation loss {loss:.4f}" if math.isfinite(loss) else ""
                advance(done, total, f"epoch {min(epochs + 1, settings.epochs)} of {settings.epochs}{known}")

            trained = training.train(folder, output, settings, tell)
    except KeyboardInterrupt:
        terminal.error(f"interrupted; the last epoch is kept in {output}, and the same command goes on from there")
        raise typer.Exit(INTERRUPTED) from None
    if as_json:
        terminal.print_json(trained.card)
        return
    terminal.out(_table(trained.card))
    if trained.new:
        terminal.note(f"model written to {output}")
    else:
        terminal.note(f"complete already: {output} holds this model")


def _table(card: Card) -> terminal.Table:
    """The errors on workloads that were not trained on."""
    table = terminal.new_table("on workloads not trained on", "%")
    for name, value in card.errors.items():
        table.add_row(name.replace("_", " "), terminal.number(value, 2))
    return table
