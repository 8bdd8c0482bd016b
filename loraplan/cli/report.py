"""``loraplan report``: a page about the results of a benchmark, or about a plan."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from loraplan.cli import terminal
from loraplan.files import require_writable, write_text
from loraplan.plan import read_plan
from loraplan.report import bench_data, page, plan_data


def report(
    source: Annotated[
        Path, typer.Argument(metavar="DIR_OR_PLAN", help="A folder that `bench` wrote, or a plan of `solve`.")
    ],
    output: Annotated[Path, typer.Option("-o", "--output", metavar="PAGE.html", help="The page.")] = Path(
        "report.html"
    ),
    seeds: Annotated[
        int, typer.Option("--seeds", min=0, help="Fresh seeds on which a plan is replayed in the twin; 0 for none.")
    ] = 3,
    title: Annotated[str | None, typer.Option("--title", metavar="TEXT", help="Of the page.")] = None,
) -> None:
    """Write one page that any browser shows, without a network: of a benchmark, or of a plan.

    Of a benchmark: what each solver wastes and where, what is proven, quality against time, and how the plans do in the
    twin, with filters. Of a plan: what each GPU gets, what the oracle says of it and what the twin sees.
    """
    require_writable(output)
    if source.is_dir():
        data = bench_data(source)
    else:
        with terminal.progress("replaying in the twin") as advance:
            data, why = plan_data(read_plan(source), source, seeds, advance)
        if why:
            terminal.note(f"the twin is not in the page: {why}")
    if title is not None:
        data["title"] = title
    write_text(output, page(data))
    terminal.note(f"page written to {output} ({output.stat().st_size / 1e6:.1f} MB)")
