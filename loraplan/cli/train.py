"""``loraplan train``: a surrogate from a dataset."""

from __future__ import annotations

import math
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import Annotated

import typer

from loraplan.cli import INTERRUPTED, terminal
from loraplan.config.load import parse_settings
from loraplan.errors import BadInputError
from loraplan.rounds import Round, train_in_rounds
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
    rounds: Annotated[
        int,
        typer.Option("--rounds", min=0, help="How often best-fit packs loads by the model, which is then trained on."),
    ] = 0,
    problems: Annotated[int, typer.Option("--problems", min=1, help="Problems that best-fit solves in a round.")] = 100,
    as_json: Annotated[bool, typer.Option("--json", help="Print the model's card instead of a table.")] = False,
) -> None:
    """Train the surrogate on a dataset: weights, thresholds for any risk, and a card with its errors.

    Solvers find what a model wrongly accepts. With --rounds, loads that best-fit packs by the model come back from the
    twin as rows of the dataset (parts round-1, ...), to train and to calibrate on.

    Whatever ends the command (Ctrl-C, kill -9, no power), the same command goes on from the last epoch. Logs for
    TensorBoard and as CSV are in MODEL_DIR/logs.
    """
    settings = parse_settings(TrainSettings, {}, changes or (), None, "train")
    missing = [name for name in NEEDED if find_spec(name) is None]
    if missing:
        raise BadInputError(f"training needs {', '.join(missing)}: pip install 'loraplan[train]'")
    try:
        card, seen, new = _train(folder, output, settings, rounds, problems)
    except KeyboardInterrupt:
        terminal.error(f"interrupted; the last epoch is kept in {output}, and the same command goes on from there")
        raise typer.Exit(INTERRUPTED) from None
    if as_json:
        terminal.print_json(card)
        return
    terminal.out(_table(card))
    for one in seen:
        starved = terminal.percent(one.starved / max(one.loads, 1))
        terminal.out(f"{one.name}: of {one.loads} loads that best-fit packed by {one.model}, {starved} starve")
    terminal.note(f"model written to {output}" if new else f"complete already: {output} holds this model")


def _train(
    folder: Path, output: Path, settings: TrainSettings, rounds: int, problems: int
) -> tuple[Card, list[Round], bool]:
    """Train once or in rounds: card, what the rounds showed, and whether there was anything to do."""

    def telling(advance: terminal.Advance) -> Callable[[int, int, int, float], None]:
        def tell(done: int, total: int, epochs: int, loss: float) -> None:
            known = f", validation loss {loss:.4f}" if math.isfinite(loss) else ""
            advance(done, total, f"epoch {epochs + 1}{known}")

        return tell

    if rounds:
        return *train_in_rounds(folder, output, settings, rounds, problems, terminal.progress, telling), True
    from surrogate.training import train as train_once  # torch takes seconds to import

    with terminal.progress("training") as advance:
        trained = train_once(folder, output, settings, telling(advance))
    return trained.card, [], trained.new


def _table(card: Card) -> terminal.Table:
    """The errors on workloads that were not trained on."""
    table = terminal.new_table("on workloads not trained on", "%")
    for name, value in card.errors.items():
        table.add_row(name.replace("_", " "), terminal.number(value, 2))
    return table
