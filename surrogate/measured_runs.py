"""Measured runs of a real server as rows of a dataset: what the surrogate is asked, and what was measured."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import pyarrow as pa

from loraplan.profiles import Profile, load_profile
from loraplan.workload import Lengths
from surrogate.features import length_means
from surrogate.shards import table_of
from twin.fidelity import lengths_by_model, measured
from twin.measured import SHIPPED, MeasuredRun


def measured_table(runs: Sequence[MeasuredRun], models: Mapping[str, str] = SHIPPED) -> pa.Table:
    """The runs that were ok, of models that have a profile, with the load that `twin.measured.replay` gives the twin.

    Figures are the client's: throughput, ITL, TTFT. There is no KV use, nor what only a simulation can tell.

    Args:
        runs: measured runs; the lengths of the requests are those of all runs of a model.
        models: model -> its profile (name or file).

    Returns:
        Columns of ``surrogate.design.SCHEMA``; ``kind`` is the model, ``workload`` numbers the rows.

    Raises:
        BadInputError: a model has no run to take the lengths from, or its profile cannot be read.
    """
    used = [run for run in runs if run.ok and run.model in models]
    lengths = lengths_by_model(used)
    profiles = {model: load_profile(models[model]) for model in lengths}
    return table_of(
        [
            _row(run, profiles[run.model], lengths[run.model])
            | {"workload": place, "row": 0, "kind": run.model, "base": models[run.model]}
            for place, run in enumerate(used)
        ]
    )


def _row(run: MeasuredRun, profile: Profile, lengths: Lengths) -> dict[str, Any]:
    rates, ideal = run.adapter_rates, run.seen["ideal_throughput"]
    throughput = run.seen["total_throughput"]
    return {
        "profile": profile.model_dump_json(),
        "slots": run.slots,
        "max_rank": run.max_rank,
        "cv": 1.0,
        "horizon_s": run.seconds,
        "seed": 0,
        "rates": rates.tolist(),
        "ranks": run.adapter_ranks.tolist(),
        "law": [0] * run.adapters,
        **{f"law_{name}": [mean] for name, mean in length_means(lengths).items()},
        "offered_tok_s": float(rates.sum()) * (lengths.mean_in + lengths.mean_out),
        "arrived_tok_s": ideal,
        "served_fraction": throughput / ideal if ideal > 0 else math.nan,
        "throughput_tok_s": throughput,
        "itl_ms": measured(run, "itl"),
        "ttft_s": 1e-3 * measured(run, "ttft"),
        "ttft_p95_s": math.nan,
        "kv_utilisation": math.nan,
        "running": run.seen["tw_mean_num_running"],
        "waiting": math.nan,
        "preemptions": 0,
        "loads": 0,
        "binding": "",
    }
