"""``loraplan capacity``: the most adapters that one GPU carries, and the slots that reach it."""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any, TypeVar, cast

import typer
from rich.markup import escape

from loraplan import sources
from loraplan.arrivals import Poisson
from loraplan.capacity import Capacity, SlotsCapacity
from loraplan.capacity import capacity as capacity_of
from loraplan.capacity_check import Replayed, TwinCheck, TwinLine
from loraplan.capacity_check import check as check_in_twin
from loraplan.cli import plots, terminal
from loraplan.config import Config, build_constraints, build_fleet, parse_config
from loraplan.errors import BadInputError
from loraplan.files import require_writable, write_text
from loraplan.oracle import DEFAULT_ORACLE, ORACLES
from loraplan.problem import Problem
from loraplan.profiles import load_profile
from loraplan.registry import choose
from loraplan.workload import RateWorkload

N = TypeVar("N", int, float)

SETTABLE = ("oracle.", "workload.arrivals", "workload.lengths")
"""Settings of a config that the other options do not make."""


class LengthsName(StrEnum):
    """Laws of request lengths."""

    lognormal = "lognormal"
    constant = "constant"


@dataclass(frozen=True, eq=False)
class Result:
    """What the command finds, as its JSON has it."""

    oracle: str
    capacity: Capacity
    check: TwinCheck | None


ProfileOption = Annotated[
    str, typer.Option("--profile", metavar="NAME|FILE.yaml", help="The server; `loraplan list profiles` names some.")
]
RatesOption = Annotated[
    str, typer.Option("--rates", metavar="R,R", help="Requests/s, dealt round-robin over the adapters.")
]
RanksOption = Annotated[
    str, typer.Option("--ranks", metavar="N,N", help="LoRA ranks, dealt as evenly, but independently of the rates.")
]
SetOption = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="KEY=VALUE", help="As in a config: `oracle.key`, `workload.arrivals`, `.lengths`."),
]


def capacity(
    profile: ProfileOption,
    rates: RatesOption,
    ranks: RanksOption,
    tokens_in: Annotated[float, typer.Option("--tokens-in", min=1, help="Mean prompt tokens per request.")] = 223,
    tokens_out: Annotated[float, typer.Option("--tokens-out", min=1, help="Mean produced tokens per request.")] = 197,
    lengths: Annotated[
        LengthsName, typer.Option("--lengths", help="Law of both; lognormal as in ShareGPT.")
    ] = LengthsName.lognormal,
    served_fraction: Annotated[
        float, typer.Option("--served-fraction", metavar="F", help="A GPU that serves a smaller part is starved.")
    ] = 0.9,
    slots: Annotated[
        str | None, typer.Option("--slots", metavar="N,N", help="Only these --max-loras; a ladder if not given.")
    ] = None,
    max_adapters: Annotated[
        int, typer.Option("--max-adapters", min=1, max=100_000, help="Look no further than this.")
    ] = 2048,
    oracle: Annotated[
        str, typer.Option("--oracle", metavar="NAME", help="What predicts; `loraplan list oracles` names them.")
    ] = DEFAULT_ORACLE,
    changes: SetOption = None,
    seed: Annotated[int, typer.Option("--seed", min=0, help="Decides which adapter gets which rank.")] = 0,
    no_check: Annotated[bool, typer.Option("--no-check", help="Ask the oracle only, not the twin.")] = False,
    seeds: Annotated[int, typer.Option("--seeds", min=1, help="How many fresh seeds the twin replays.")] = 3,
    horizon: Annotated[float, typer.Option("--horizon", metavar="S", help="Seconds that the twin replays.")] = 3600.0,
    plot: Annotated[Path | None, typer.Option("--plot", metavar="OUT.html", help="Draw it: a page of its own.")] = None,
    output: Annotated[
        Path | None, typer.Option("-o", "--output", metavar="OUT.csv", help="Save the line per number of slots.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON instead of tables.")] = False,
) -> None:
    """The most adapters that one GPU carries without starving, and with how many slots (--max-loras).

    An oracle says it for every number of slots that is worth a try; the twin replays each of these loads on fresh seeds
    and finds its own capacity with the best slots. Exit code 1 means that not even one adapter is carried; the message
    names the limit. docs/capacity.md explains the figures.
    """
    for path in (plot, output):
        if path is not None:
            require_writable(path)
    config = _config(
        (profile, _rates(rates), _numbers("--ranks", ranks, int, 1)),
        {"input_tokens": tokens_in, "output_tokens": tokens_out, "count": max_adapters, "seed": seed},
        {"lengths": {"law": lengths.value}, "horizon_s": horizon},
        {"constraints": {"served_fraction": served_fraction}, "oracle": oracle},
        changes or [],
    )
    chosen = None if slots is None else _numbers("--slots", slots, int, 1)
    found = _find(config, chosen, None if no_check else seeds)
    if as_json:
        terminal.print_json(found)
    else:
        _print(found)
    if output is not None:
        write_text(output, _csv(found))
        terminal.note(f"a line per number of slots written to {output}")
    if plot is not None:
        write_text(plot, plots.capacity(found.capacity, found.check, found.oracle))
        terminal.note(f"plot written to {plot}; open it in a browser")


def _numbers(option: str, text: str, kind: Callable[[str], N], least: int) -> list[N]:
    """The numbers in a list with commas, each ``least`` or more."""
    numbers = []
    for part in text.split(","):
        try:
            number = kind(part)
        except ValueError:
            number = kind("-1")
        if not least <= number < math.inf:
            what = "whole numbers" if kind is int else "numbers"
            raise BadInputError(
                f"{option}: expected {what} of at least {least}, commas between (got {part.strip()!r:.80})"
            )
        numbers.append(number)
    return numbers


def _rates(text: str) -> list[float]:
    rates = _numbers("--rates", text, float, 0)
    if not any(rates):
        raise BadInputError("--rates: expected one above 0; a GPU carries any number of adapters that nobody asks for")
    return rates


def _config(
    dealt: tuple[str, list[float], list[int]],
    generate: dict[str, Any],
    workload: dict[str, Any],
    rest: dict[str, Any],
    changes: Sequence[str],
) -> Config:
    """The options as a config, which checks them."""
    profile, rates, ranks = dealt
    for change in changes:
        if not change.strip().startswith(SETTABLE):
            raise BadInputError(f"--set {change}: here only settings of {', '.join(SETTABLE)} can be set")
    load_profile(profile).server_rank(max(ranks))
    generate = {"rates": rates, "ranks": ranks} | generate
    data = {"workload": workload | {"generate": generate}, "fleet": [{"profile": profile, "count": 1}]}
    return parse_config(data | rest, changes, source="capacity")


def _find(config: Config, slots: Sequence[int] | None, seeds: int | None) -> Result:
    """Ask the oracle, and then the twin on so many ``seeds``, or not at all."""
    problem, workload = _task(config)
    chosen = choose(ORACLES, {"name": config.oracle.name, **config.oracle.params})
    with terminal.progress(f"asking the {chosen.name} oracle"):
        found = capacity_of(problem, chosen.kind(problem, chosen.params), slots)
    if seeds is None:
        return Result(chosen.name, found, None)
    with terminal.progress("replaying in the twin") as advance:
        return Result(chosen.name, found, check_in_twin(problem, found, workload, seeds, advance))


def _task(config: Config) -> tuple[Problem, RateWorkload]:
    """The adapters there are for a GPU, and the law by which their requests come."""
    spec, generate = config.workload, config.workload.generate
    if generate is None or generate.rates is None or spec.lengths is None:
        raise TypeError("made by _config, which gives all of them")
    lengths = spec.lengths.make()(generate.input_tokens, generate.output_tokens)
    adapters = sources.nested_adapters(generate.rates, generate.ranks, lengths, generate.count, generate.seed)
    arrivals = Poisson() if spec.arrivals is None else spec.arrivals.make()
    problem = Problem(adapters, build_fleet(config), build_constraints(config))
    return problem, RateWorkload((), cast("float", spec.horizon_s), arrivals)


def _print(found: Result) -> None:
    best = found.capacity.best
    table = terminal.new_table(
        *("slots", "KV tokens left", "most adapters", "offered tok/s", "served tok/s"),
        *("ITL ms", "TTFT s", "KV", "twin served", "twin carries", "binding", ""),
    )
    for line in found.capacity.by_slots:
        twin = _twin_line(found, line)
        table.add_row(
            str(line.slots),
            f"{line.kv_tokens:,.0f}",
            f"{line.adapters:,}",
            terminal.number(line.offered_tok_s, 0),
            terminal.number(line.throughput_tok_s, 0),
            terminal.number(line.itl_ms, 1),
            terminal.number(line.ttft_s, 2),
            terminal.percent(line.kv_utilisation),
            _twin_served(twin),
            _carries(twin),
            _binding(line, twin),
            _marks(found, line),
        )
    terminal.out(table)
    says = f"{escape(found.oracle)} says [bold]{_load(best)}[/]"
    if best.adapters == found.capacity.most_asked:
        says += ", all there are: look further with a larger --max-adapters"
    if found.check is None:
        terminal.out(says)
        return
    checked = found.check
    terminal.out(f"{says}; the twin carries [bold]{_carries(checked.best)}[/] there")
    _print_verdict(checked.best.load)
    if checked.own_best != checked.best:
        own = checked.own_best
        terminal.out(f"the twin carries the most, [bold]{_carries(own)}[/], on [bold]{own.slots:,} slots[/]")
    if checked.own_load != checked.best.load:
        _print_verdict(checked.own_load)
    terminal.out(
        f"{checked.simulations} simulations of {checked.horizon_s:g} s on seeds {', '.join(map(str, checked.seeds))}; "
        f"starved is below {found.capacity.served_fraction:g}"
    )


def _print_verdict(load: Replayed) -> None:
    """What the twin says of a load, in the mean over the seeds."""
    seen = load.seen
    served = seen.served_fraction
    interval = f"{terminal.percent(served.low)} to {terminal.percent(served.high)}"
    word = "[red]starved[/]" if seen.starved else "[green]not starved[/]"
    terminal.out(
        f"{_load(load)} in the twin: {word if seen.certain else f'{word} (uncertain)'}, "
        f"served {terminal.percent(served.mean)} (95 % interval {interval}), "
        f"{seen.throughput_tok_s:,.0f} tokens/s, ITL {terminal.number(seen.itl_ms, 1)} ms, "
        f"TTFT p95 {terminal.number(seen.ttft_p95_s, 2)} s"
    )


def _twin_line(found: Result, line: SlotsCapacity) -> TwinLine | None:
    """What the twin says of a line, if it was asked."""
    lines = found.check.by_slots if found.check else ()
    return next((twin for twin in lines if twin.slots == line.slots), None)


def _twin_served(twin: TwinLine | None) -> str:
    if twin is None:
        return "-"
    text = terminal.percent(twin.load.seen.served_fraction.mean)
    return f"[red]{text}[/]" if twin.load.seen.starved else text


def _carries(twin: TwinLine | None) -> str:
    """The seeds' capacities, from the smallest to the largest."""
    if twin is None:
        return "-"
    fewest, most = min(twin.carries), max(twin.carries)
    return f"{fewest:,}" if fewest == most else f"{fewest:,} to {most:,}"


def _binding(line: SlotsCapacity, twin: TwinLine | None) -> str:
    """What keeps the next adapter out, or what requests wait for in the twin."""
    if line.limited_by == "memory":
        return "memory"
    return "-" if twin is None else twin.load.seen.binding


def _marks(found: Result, line: SlotsCapacity) -> str:
    marks = ["best"] if line is found.capacity.best else []
    if found.check is not None and found.check.own_best.slots == line.slots:
        marks.append("twin's best")
    return f"[bold]{', '.join(marks)}[/]" if marks else ""


def _load(load: SlotsCapacity | Replayed) -> str:
    adapters = f"{load.adapters:,} adapter{'s' * (load.adapters != 1)}"
    return f"{adapters} on {load.slots:,} slot{'s' * (load.slots != 1)}"


COLUMNS: tuple[str, ...] = tuple(SlotsCapacity.__dataclass_fields__)
"""Columns of the CSV file that the oracle fills."""
TWIN_COLUMNS = (
    *("twin_served_fraction", "twin_low", "twin_high", "twin_itl_ms", "twin_ttft_p95_s", "twin_binding"),
    *("twin_fewest_adapters", "twin_most_adapters"),
)
"""Columns that the twin fills, empty without its check."""


def _csv(found: Result) -> str:
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow([*COLUMNS, "best", *TWIN_COLUMNS])
    for line in found.capacity.by_slots:
        row = [*(getattr(line, name) for name in COLUMNS), int(line is found.capacity.best)]
        twin = _twin_line(found, line)
        writer.writerow([_cell(value) for value in (*row, *(_twin_cells(twin) if twin else [""] * len(TWIN_COLUMNS)))])
    return text.getvalue()


def _twin_cells(twin: TwinLine) -> tuple[Any, ...]:
    seen, served = twin.load.seen, twin.load.seen.served_fraction
    figures = served.mean, served.low, served.high, seen.itl_ms, seen.ttft_p95_s, seen.binding
    return (*figures, min(twin.carries), max(twin.carries))


def _cell(value: Any) -> Any:
    if not isinstance(value, float):
        return value
    return "" if math.isnan(value) else f"{value:.10g}"
