"""Sources: where a workload comes from - a recorded trace, a table of adapters, or laws."""

from loraplan.sources.laws import (
    MOST_CV,
    LengthsLaw,
    deal,
    dirichlet_popularity,
    generate_adapters,
    nested_adapters,
    normal_points,
    numbered_names,
    skewed_lengths,
    uniform_popularity,
    zipf_popularity,
)
from loraplan.sources.tables import read_ranks, read_rates, read_table
from loraplan.sources.traces import Trace, from_trace, read_trace

__all__ = [
    "Trace",
    "read_trace",
    "from_trace",
    "read_table",
    "read_ranks",
    "read_rates",
    "LengthsLaw",
    "MOST_CV",
    "generate_adapters",
    "nested_adapters",
    "normal_points",
    "skewed_lengths",
    "dirichlet_popularity",
    "zipf_popularity",
    "uniform_popularity",
    "deal",
    "numbered_names",
]
