"""Where does the twin err? Pictures of the runs that ``loraplan fidelity -o PER_RUN.csv`` compared.

Run: ``python -m benchmarks.twin_residuals PER_RUN.csv -o docs/img``; matplotlib comes with the ``dev`` extra.
"""

from __future__ import annotations

import argparse
import io
import math
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import LogLocator, NullFormatter, NullLocator

from loraplan.errors import BadInputError, LoraplanError
from loraplan.files import require_writable, write_text
from twin.agreement import CLEAR, STARVED_BELOW, errors
from twin.measured import IDENTITY, numbers, read_csv

FIGURES = {"throughput": "throughput (tokens/s)", "itl": "ITL (ms)", "ttft": "TTFT (ms)", "running": "running requests"}
PAIRS = [f"{side}_{figure}" for figure in FIGURES for side in ("measured", "simulated")]
NUMBERS = (
    "slots",
    "adapters",
    "ideal_throughput",
    *PAIRS,
    "measured_starved",
    "simulated_starved",
    "client_overloaded",
)
REGIMES = ("enough slots,\nnot starved", "slots short,\nnot starved", "enough slots,\nstarved", "slots short,\nstarved")

LOOKS = (("#0072b2", "o"), ("#d55e00", "^"), ("#009e73", "s"), ("#cc79a7", "D"))
"""Colour and marker of a model, in order of appearance; colour-blind eyes tell them apart (Okabe and Ito)."""
THIN: dict[str, Any] = {"color": "#666666", "linewidth": 0.8}
RING: dict[str, Any] = {"facecolors": "none", "edgecolors": "black", "linewidths": 0.7, "rasterized": True}
STYLE: dict[Any, Any] = {"svg.hashsalt": "loraplan", "svg.fonttype": "none", "font.sans-serif": ["DejaVu Sans"]}
STYLE |= {"font.size": 9, "axes.titlesize": 8.5, "axes.axisbelow": True, "axes.grid": True, "grid.color": "#e5e5e5"}

NEAR = (0.75, 1.02)
"""Shares of the ideal throughput that the picture of the labels shows."""
LISTED = 9
"""Runs of wrong labels that are named at most."""
TICKS = (-100, -50, -20, -10, -5, 0, 5, 10, 20, 50, 100, 200, 500, 1000)
WORST = 10
WAITS_MS = 1000.0
"""A run that serves its load although its requests wait that long is close to its limit."""


def read_per_run(path: Path) -> pd.DataFrame:
    """The runs that were replayed, with their shares of the ideal, regimes, and relative errors in percent.

    Raises:
        BadInputError: the file cannot be read, lacks a column, has no run that was replayed, or a cell is no number.
    """
    table = read_csv(path, (*IDENTITY, *NUMBERS))
    for column in NUMBERS:
        table[column] = numbers(path, table, column)
    table = table[table["simulated_throughput"].notna()].reset_index(drop=True)
    if table.empty:
        raise BadInputError(f"{path}: no run that was replayed")
    table.loc[table["client_overloaded"] != 0, "measured_ttft"] = np.nan  # the client itself kept requests waiting
    for figure in FIGURES:
        seen = table[f"measured_{figure}"]
        table[figure] = 100.0 * (table[f"simulated_{figure}"] / seen.where(seen > 0) - 1.0)
    for side in ("measured", "simulated"):
        table[f"{side}_share"] = table[f"{side}_throughput"] / table["ideal_throughput"]
    table["regime"] = 2 * (table["measured_starved"] == 1) + (table["slots"] < table["adapters"])
    return table


def by_model(table: pd.DataFrame) -> list[tuple[str, str, str, pd.DataFrame]]:
    """Name, colour, marker and runs of each model."""
    return [
        (str(name), *LOOKS[i % len(LOOKS)], table[table["model"] == name])
        for i, name in enumerate(table["model"].drop_duplicates())
    ]


def new_figure(title: str, table: pd.DataFrame, height: float, *keys: Line2D) -> Figure:
    """A figure 8 inches wide, with a legend of the models and ``keys`` below."""
    figure = Figure(figsize=(8, height), dpi=108, facecolor="white", layout="constrained")
    figure.suptitle(title, fontsize=11, fontweight="bold")
    models = [Line2D([], [], color=c, marker=m, linestyle="", label=name) for name, c, m, _ in by_model(table)]
    figure.legend(handles=[*models, *keys], loc="outside lower center", ncols=4, frameon=False)
    return figure


def ring(label: str) -> Line2D:
    """The legend's key of runs with a ring around."""
    return Line2D([], [], color="black", marker="o", markersize=8, fillstyle="none", linestyle="", label=label)


def dots(axes: Axes, x: Any, y: Any, colour: str, marker: str, size: float = 9.0) -> None:
    """Points as pixels: as shapes, hundreds of them would make the file large."""
    axes.scatter(x, y, size, colour, marker=marker, alpha=0.55, linewidths=0, rasterized=True)


def parity(table: pd.DataFrame) -> Figure:
    """Simulated against measured figures."""
    lines = Line2D([], [], color="black", linewidth=0.8, label="equal"), Line2D([], [], **THIN, ls="--", label="±10 %")
    picture = new_figure("Simulated against measured, a point per run", table, 7.6, *lines)
    for axes, (figure, label) in zip(picture.subplots(2, 2).flat, FIGURES.items(), strict=True):
        x, y, titles = f"measured_{figure}", f"simulated_{figure}", []
        for name, colour, marker, runs in by_model(table):
            off = errors(runs[y].to_numpy(), runs[x].to_numpy())
            titles.append(f"{name}: MAPE {off.mape:.1f} %, bias {off.bias:+.1f} %, n {off.n}")
            dots(axes, runs[x], runs[y], colour, marker)
        axes.set_title("\n".join(titles))
        both = table.loc[(table[x] > 0) & (table[y] > 0), [x, y]].to_numpy()
        low, high = (both.min() / 1.2, both.max() * 1.2) if both.size else (1.0, 10.0)
        for factor, how in ((1.0, {"color": "black"}), (0.9, {"ls": "--"}), (1.1, {"ls": "--"})):
            axes.plot((low, high), (factor * low, factor * high), **(THIN | how))
        axes.set(xlim=(low, high), ylim=(low, high), box_aspect=1, xlabel=f"measured {label}", ylabel="simulated")
        if high > 15 * low:
            axes.set(xscale="log", yscale="log")
            for axis in (axes.xaxis, axes.yaxis):
                axis.set_major_locator(LogLocator(subs=(1, 2, 5) if high < 60 * low else (1,)))
                axis.set_major_formatter("{x:,g}")
                axis.set_minor_formatter(NullFormatter())
    return picture


def label_borders(table: pd.DataFrame) -> Figure:
    """Shares of the ideal throughput near the limit of starvation; wrong labels are numbered, and named below."""
    known = table[table["simulated_starved"].notna() & table["measured_starved"].notna()]
    odd = known[known["simulated_starved"] != known["measured_starved"]].sort_values("measured_share")
    title = "Share of the ideal throughput near the limit of starvation"
    picture = new_figure(title, table, 6.4, ring("wrong label"))
    axes = picture.add_subplot(xlim=NEAR, ylim=NEAR, ylabel="simulated share")
    axes.axvspan(*CLEAR, color="#f0e442", alpha=0.25, linewidth=0)
    axes.axhline(STARVED_BELOW, **THIN)
    axes.axvline(STARVED_BELOW, **THIN)
    axes.plot(NEAR, NEAR, color="black", linewidth=0.8)
    for _, colour, marker, runs in by_model(table):
        dots(axes, runs["measured_share"], runs["simulated_share"], colour, marker, 18)
    axes.scatter(odd["measured_share"], odd["simulated_share"], 70, **RING)
    notes = [f"measured share (shaded: {CLEAR[0]} to {CLEAR[1]}, where noise decides the label)"]
    for i, (_, run) in enumerate(odd[:LISTED].iterrows()):
        at, offset = (run["measured_share"], run["simulated_share"]), ((-13, -13), (0, -18), (13, -13))[i % 3]
        axes.annotate(str(i + 1), at, offset, textcoords="offset points", ha="center", va="center", fontweight="bold")
        name = "/".join(str(run[column]) for column in IDENTITY[1:])
        notes.append(f"{i + 1}: {name}, measured {at[0]:.3f}, simulated {at[1]:.3f}")
    axes.set_xlabel("\n".join(notes))
    axes.set_title(f"{len(odd)} of {len(known)} labels are wrong")
    axes.text(0.76, 1.01, "missed", va="top")
    axes.text(1.01, 0.76, "false alarms", ha="right")
    return picture


def boxes(axes: Axes, table: pd.DataFrame, figure: str, column: str, groups: Sequence[int]) -> None:
    """Errors of each group of ``column``, a box and its runs per model; how many above."""
    models, gap = by_model(table), (math.nan, math.nan)
    wide = 0.8 / len(models)
    for i, (_, colour, marker, runs) in enumerate(models):
        box, middle = [gap], [gap]
        for place, group in enumerate(groups):
            off = runs.loc[runs[column] == group, figure].dropna().to_numpy()
            if off.size:
                x, half = place + (i - (len(models) - 1) / 2) * wide, 0.42 * wide
                dots(axes, x + wide * np.linspace(-0.3, 0.3, off.size), off, colour, marker, 6)
                low, first, median, third, high = np.quantile(off, (0.05, 0.25, 0.5, 0.75, 0.95))
                box += [(x, low), (x, first), (x - half, first), (x - half, third), (x, third), (x, high), gap]
                box += [(x, third), (x + half, third), (x + half, first), (x, first), gap]
                middle += [(x - half, median), (x + half, median), gap]
        axes.plot(*zip(*box, strict=True), color=colour, linewidth=1.1)
        axes.plot(*zip(*middle, strict=True), color="black", linewidth=1.4)
    for place, group in enumerate(groups):
        sizes = "+".join(str(runs.loc[runs[column] == group, figure].count()) for *_, runs in models)
        axes.text(place, 1.01, sizes, transform=axes.get_xaxis_transform(), ha="center", fontsize=7)
    axes.axhline(0.0, color="black", linewidth=0.8)
    axes.set_xlim(-0.5, len(groups) - 0.5)
    axes.grid(visible=False, axis="x")


def residuals(table: pd.DataFrame) -> Figure:
    """Relative errors by regime and by slots."""
    picture = new_figure("Relative errors: quartiles, whiskers to 5 and 95 %, number of runs above", table, 8.2)
    slots = sorted(table["slots"].astype(int).unique())
    panels = picture.subplots(3, 2, sharex="col", sharey="row", width_ratios=(1, 1.25))
    for row, figure in zip(panels, ("throughput", "itl", "ttft"), strict=True):
        boxes(row[0], table, figure, "regime", range(len(REGIMES)))
        boxes(row[1], table, figure, "slots", slots)
        top = max(12.0, 1.15 * float(table[figure].abs().fillna(0.0).max()))
        row[0].set_yscale("symlog", linthresh=10, linscale=1.2)
        row[0].set(ylim=(-top, top), ylabel=f"{FIGURES[figure].split(' (')[0]}: error (%)")
        ticks = [tick for tick in TICKS if abs(tick) <= top]
        row[0].set_yticks(ticks, [f"{tick:+d}" if tick else "0" for tick in ticks])
        row[0].yaxis.set_minor_locator(NullLocator())
    panels[2][0].set_xticks(range(len(REGIMES)), REGIMES, fontsize=7.5)
    panels[2][1].set_xticks(range(len(slots)), [str(slot) for slot in slots])
    panels[2][1].set_xlabel("slots")
    return picture


def tail(table: pd.DataFrame) -> Figure:
    """How much of the mean error the worst runs hold."""
    waiting = ring(f"not starved, TTFT above {WAITS_MS / 1e3:g} s")
    picture = new_figure("Absolute relative errors, worst run first", table, 7.0, waiting)
    for (above, below), figure in zip(picture.subplots(2, 2, sharex="col").T, ("ttft", "itl"), strict=True):
        of_all, of_worst = [FIGURES[figure].split(" (")[0]], []
        for name, colour, marker, runs in by_model(table[table[figure].notna()]):
            runs = runs.sort_values(figure, key=np.abs, ascending=False)
            off, rank = np.abs(runs[figure].to_numpy()), np.arange(1, len(runs) + 1)
            share = 100.0 * off.cumsum() / max(off.sum(), 1e-9)
            near = ((runs["measured_starved"] != 1) & (runs["measured_ttft"] > WAITS_MS)).to_numpy()
            dots(above, rank, off, colour, marker, 12)
            above.scatter(rank[near], off[near], 26, **RING)
            below.plot(rank, share, color=colour, linewidth=1.6)
            of_all.append(f"{name}: mean {off.mean():.1f} %, median {np.median(off):.1f} %")
            of_worst.append(f"{name}: worst {WORST} of {off.size} hold {share[:WORST][-1]:.0f} %")
        above.set(yscale="log", ylabel="error (%)", title="\n".join(of_all))
        above.set_ylim(bottom=0.1)
        above.yaxis.set_major_formatter("{x:g}")
        below.axvline(WORST, **THIN, linestyle="--")
        below.set(ylim=(0, 102), xlabel="runs", ylabel="share of the mean error (%)", title="\n".join(of_worst))
    return picture


PICTURES = {"parity": parity, "labels": label_borders, "residuals": residuals, "tail": tail}


def main(arguments: Sequence[str]) -> int:
    """Read the table and write the pictures; return the exit code."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.twin_residuals", description="Pictures of the errors.")
    parser.add_argument("table", metavar="PER_RUN.csv", type=Path)
    parser.add_argument("-o", "--output", metavar="FOLDER", type=Path, required=True)
    given = parser.parse_args(arguments)
    paths = {name: given.output / f"twin_{name}.svg" for name in PICTURES}
    try:
        for path in paths.values():
            require_writable(path)
        table = read_per_run(given.table)
        for name, path in paths.items():
            text = io.StringIO()
            with mpl.rc_context(STYLE):
                PICTURES[name](table).savefig(text, format="svg", metadata={"Date": None, "Creator": None})
            write_text(path, "\n".join(line.rstrip() for line in text.getvalue().splitlines()) + "\n")
            print(f"{path} written")
    except LoraplanError as error:
        print(f"error: {error}", file=sys.stderr)
        return error.exit_code
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
