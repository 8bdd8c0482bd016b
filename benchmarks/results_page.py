"""The section of docs/results.md on solvers, from a folder of results.

Run: ``python -m benchmarks.results_page RESULTS_DIR``; it replaces what is between the two marks in docs/results.md.
"""

from __future__ import annotations

import sys
from pathlib import Path

import pandas as pd

from benchmarks.harness import read_manifest, table_of
from benchmarks.paired import pairs
from benchmarks.results import summary
from loraplan.errors import BadInputError
from loraplan.files import write_text

PAGE = Path(__file__).resolve().parents[1] / "docs" / "results.md"
BEGIN, END = "<!-- solvers: begin -->", "<!-- solvers: end -->"
CAVEATS = """\
Values and bounds are with respect to the oracle named, so "optimal" and "above the best" are, too. Starvation is judged
GPU by GPU in the twin, on seeds that no oracle has seen: a plan starves if any of its GPUs serves less than 0.9 of what
arrives. The published evaluation (arXiv 2602.24044, 4 GPUs) asks for a random forest where this asks the oracle, and
compares greedy with heuristics; no optimum was known there, so no published figure says what greedy wastes."""


def section(folder: Path) -> str:
    """The section, as Markdown."""
    manifest = read_manifest(folder)
    table = table_of(folder, manifest)
    limits = manifest.limits
    seeds = " ".join(sorted({seed for text in table["twin_seeds"] for seed in text.split()}))
    suites = " ".join(dict.fromkeys(table["suite"]))
    solvers, oracles = (",".join(dict.fromkeys(table[name])) for name in ("solver", "oracle"))
    lines = [
        "## Solvers",
        "",
        f"`loraplan bench {suites} --solvers {solvers} --oracle {oracles} --time-limit {limits['time_limit_s']:g}`, "
        f"then `python -m benchmarks.results_page`. {table['machine'].iloc[0]}; {max(table['date'])[:10]}; "
        f"seed 0 of every solver; twin seeds {seeds}.",
        "",
        CAVEATS,
        "",
        *_summary(table),
        "",
        *_pairs(table),
    ]
    return "\n".join(lines) + "\n"


def _summary(table: pd.DataFrame) -> list[str]:
    lines = [
        "| suite | oracle | solver | plans | proven optimal | value | above the best known | x best | gap to the bound "
        "| plans that starve | median s | longest s |",
        "|---|---|---|---|---|---|---|---|---|---|---|---|",
    ]
    for row in summary(table).to_dict("records"):
        gap = "-" if pd.isna(row["gap"]) else f"{100 * row['gap']:.1f} %"
        ratio = "-" if pd.isna(row["vs_best"]) else f"{row['vs_best']:.3f}"
        times = [f"{row[name]:.2f}" if pd.notna(row[name]) else "-" for name in ("solver_s", "solver_s_max")]
        cells = [
            row["suite"],
            row["oracle"],
            row["solver"],
            f"{row['plans']} of {row['cells']}",
            row["optimal"],
            f"{row['value']:,.6g}",
            f"{row['above_best']:,.6g}",
            ratio,
            gap,
            f"{row['starved']} of {row['plans']}",
            *times,
        ]
        lines.append(f"| {' | '.join(map(str, cells))} |")
    return lines


def _pairs(table: pd.DataFrame) -> list[str]:
    lines = [
        "Pairs, on the instances that both solved: cost of the first / cost of the second, geometric mean with a "
        "bootstrap interval of 95 %.",
        "",
        "| pair | oracle | instances | ratio | interval | better / equal / worse | p (Wilcoxon) |",
        "|---|---|---|---|---|---|---|",
    ]
    for pair in pairs(table):
        p = "-" if pd.isna(pair.p) else f"{pair.p:.1g}"
        lines.append(
            f"| {pair.a} / {pair.b} | {pair.oracle} | {pair.n} | {pair.ratio.mean:.3f} | {pair.ratio.low:.3f} to "
            f"{pair.ratio.high:.3f} | {pair.wins} / {pair.ties} / {pair.losses} | {p} |"
        )
    return lines


def main(folder: Path, page: Path = PAGE) -> None:
    """Put the section into the page, in the place of the one that is there.

    Raises:
        BadInputError: the folder holds no results.
    """
    text = page.read_text(encoding="utf-8")
    if BEGIN not in text or END not in text:
        raise BadInputError(f"{page}: the marks {BEGIN} and {END} are missing")
    before, _, rest = text.partition(BEGIN)
    after = rest.partition(END)[2]
    write_text(page, f"{before}{BEGIN}\n{section(folder)}{END}{after}")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
