"""`loraplan check`."""

from __future__ import annotations

import typer
from rich.markup import escape

from loraplan.check import check as check_plan
from loraplan.cli import terminal
from loraplan.cli.options import JSONOption, PlanArgument
from loraplan.cli.terminal import new_table
from loraplan.plan import read_plan


def check(plan: PlanArgument, as_json: JSONOption = False) -> None:
    """Check a plan from scratch: placement, limits, cost, and whether its certificate proves its lower bound.

    No solver has a part in it. Exit code 1 means that something is not as the plan says.
    """
    found = check_plan(read_plan(plan))
    if as_json:
        terminal.print_json(found)
    else:
        table = new_table("", "", "found", numbers=False)
        for one in found:
            table.add_row(one.what, "[green]ok[/]" if one.fine else "[red]wrong[/]", escape(one.found))
        terminal.out(table)
    if not all(one.fine for one in found):
        raise typer.Exit(1)
