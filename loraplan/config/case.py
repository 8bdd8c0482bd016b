"""From a configuration to the planning task it describes."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import cast

import numpy as np

from loraplan import sources
from loraplan.arrivals import Poisson
from loraplan.config.laws import PopularitySpec
from loraplan.config.schema import Config, GenerateSpec, TraceAdaptersSpec, WorkloadSpec
from loraplan.constraints import Constraints
from loraplan.errors import BadInputError
from loraplan.problem import Fleet, GPUType, Problem
from loraplan.profiles import load_profile
from loraplan.sources import Trace
from loraplan.workload import Adapter, Floats, RateWorkload, TraceWorkload, Workload


@dataclass(frozen=True, eq=False)
class Case:
    """A planning task: what is planned, and what validation replays.

    The adapters are the same, but for the headroom on the rates that are planned for.
    """

    problem: Problem
    replay: Workload


def build(config: Config) -> Case:
    """Read the files that a configuration names, and make what it describes.

    Raises:
        BadInputError: a file is missing or wrong, or does not fit the configuration.
    """
    replay = build_workload(config)
    adapters = _scaled(replay.adapters, config.workload.headroom)
    return Case(Problem(adapters, build_fleet(config), build_constraints(config)), replay)


def build_fleet(config: Config) -> Fleet:
    """The GPUs on offer."""
    return Fleet(tuple(GPUType(load_profile(item.profile), item.count, item.price_per_hour) for item in config.fleet))


def build_constraints(config: Config) -> Constraints:
    """What every GPU of a plan must keep."""
    return Constraints(**dict(config.constraints))


def build_workload(config: Config) -> Workload:
    """What validation replays."""
    spec = config.workload
    if spec.trace is not None:
        return _from_trace(spec, sources.read_trace(spec.trace), config.seed)
    lengths = sources.skewed_lengths if spec.lengths is None else spec.lengths.make()
    if spec.generate is not None:
        adapters = _generate(spec.generate, lengths)
    else:
        table = cast("Path", spec.adapters)  # all that a WorkloadSpec leaves here
        adapters = _scaled(sources.read_table(table, lengths), spec.rate_scale)
    arrivals = Poisson() if spec.arrivals is None else spec.arrivals.make()
    return RateWorkload(adapters, spec.horizon_s or arrivals.cycle_s or 3600.0, arrivals)


def planned_workload(config: Config) -> Workload:
    """The workload that is planned for: of a trace its plan window, else what validation replays."""
    spec = config.workload
    if spec.trace is not None:
        spec = spec.model_copy(update={"replay_window": spec.plan_window})
    return build_workload(config.model_copy(update={"workload": spec}))


def _scaled(adapters: tuple[Adapter, ...], factor: float) -> tuple[Adapter, ...]:
    if factor == 1.0:
        return adapters
    return tuple(replace(adapter, rate=adapter.rate * factor) for adapter in adapters)


def _generate(spec: GenerateSpec, law: sources.LengthsLaw) -> tuple[Adapter, ...]:
    if spec.rates is not None:
        rates = np.array(sources.deal(spec.rates, spec.count))
    else:
        rates = cast("float", spec.total_rate) * _shares(spec.popularity, spec.count, spec.seed)
    lengths = law(spec.input_tokens, spec.output_tokens)
    return sources.generate_adapters(rates * spec.rate_scale, spec.ranks, lengths, spec.seed)


def _shares(popularity: PopularitySpec | None, count: int, seed: int) -> Floats:
    return sources.uniform_popularity(count) if popularity is None else popularity.weights(count, seed)


def _from_trace(spec: WorkloadSpec, trace: Trace, seed: int) -> TraceWorkload:
    if isinstance(spec.adapters, TraceAdaptersSpec):
        ranks, popularity = _dealt(spec.adapters, trace)
        seed = spec.adapters.seed
    else:
        ranks, popularity = _listed(cast("Path", spec.adapters), trace)
    return sources.from_trace(
        trace,
        ranks,
        plan_window=spec.plan_window,
        replay_window=spec.replay_window,
        scale=spec.rate_scale,
        popularity=popularity,
        seed=seed,
    )


def _dealt(spec: TraceAdaptersSpec, trace: Trace) -> tuple[dict[str, int], Floats | None]:
    """Ranks by adapter name, dealt, and the popularity of a trace that names no adapters."""
    if trace.names is not None:
        for name in ("count", "popularity"):
            if getattr(spec, name) is not None:
                raise BadInputError(f"workload.adapters.{name} makes no sense: trace {trace.path} names its adapters")
        return dict(zip(trace.names, sources.deal(spec.ranks, len(trace.names)), strict=True)), None
    if spec.count is None:
        raise BadInputError(f"workload.adapters.count is missing: trace {trace.path} names no adapters")
    ranks = dict(zip(sources.numbered_names(spec.count), sources.deal(spec.ranks, spec.count), strict=True))
    return ranks, _shares(spec.popularity, spec.count, spec.seed)


def _listed(table: Path, trace: Trace) -> tuple[dict[str, int], Floats | None]:
    """Ranks by adapter name from a table, and its rates as the popularity of a trace that names no adapters."""
    ranks = sources.read_ranks(table)
    if trace.names is not None:
        return ranks, None
    rates = np.array(list(sources.read_rates(table).values()))
    if rates.sum() == 0:
        raise BadInputError(f"table {table}: rates that are all 0 cannot say how the requests of a trace are shared")
    return ranks, rates / rates.sum()
