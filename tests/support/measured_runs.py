"""Measured runs that were never measured: the twin's own, with another seed, in the columns of real ones."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from loraplan.profiles import Profile
from loraplan.workload import Lengths
from twin.measured import NUMBERS, MeasuredRun, lengths_of, replay
from twin.metrics import client_side, measure
from twin.step_fit import time_per_token_ms

MEAN_IN, MEAN_OUT = 120.0, 80.0


def unmeasured(
    adapters: int,
    slots: int,
    max_rank: int,
    rates: Sequence[float],
    model: str = "toy",
    seconds: float = 600.0,
    group: str = "up",
) -> MeasuredRun:
    """A run of which nothing was seen yet."""
    name = f"{adapters}_{slots}_{max_rank}_{'-'.join(map(str, rates))}"
    return MeasuredRun(
        key=("made", model, group, name),
        model=model,
        group=f"made/{group}",
        ok=True,
        out_of_memory=False,
        slots=slots,
        max_rank=max_rank,
        rates=tuple(rates),
        ranks=(max_rank,),
        adapters=adapters,
        seconds=seconds,
        seen=dict.fromkeys(NUMBERS, 0.0),
    )


def made_lengths() -> Lengths:
    """The lengths that made runs are asked with: those that a replay takes of runs of these means."""
    means = {
        "pool_mean_input": MEAN_IN,
        "pool_mean_output": MEAN_OUT,
        "completed": 1.0,
        "total_output_tokens": MEAN_OUT,
    }
    run = unmeasured(1, 1, 8, (1.0,))
    return lengths_of([replace(run, seen=run.seen | means)])


def measured_by_twin(runs: Iterable[MeasuredRun], profile: Profile, seed: int = 7) -> list[dict[str, Any]]:
    """Rows of a CSV of measured runs, as a server of ``profile`` would have given them."""
    lengths = made_lengths()
    rows = []
    for run in runs:
        seen = replay(run, profile, lengths, seed).run()
        figures, client = measure(seen, run.adapters), client_side(seen, profile.frontend)
        done = np.isfinite(seen.finish_s)
        dataset, model, group, run_id = run.key
        rows.append(
            {
                "dataset": dataset,
                "model": model,
                "group": group,
                "run_id": run_id,
                "status": "ok",
                "rates": " ".join(map(str, run.rates)),
                "ranks": " ".join(map(str, run.ranks)),
                "served_adapters": run.adapters,
                "adapter_slots": run.slots,
                "max_lora_rank": run.max_rank,
                "total_time_s": run.seconds,
                "completed": figures.completed,
                "total_input_tokens": seen.requests.tokens_in[done].sum(),
                "total_output_tokens": seen.requests.tokens_out[done].sum(),
                "pool_mean_input": lengths.mean_in,
                "pool_mean_output": lengths.mean_out,
                "total_throughput": figures.throughput_tok_s,
                "ideal_throughput": figures.offered_tok_s,
                "starved": int(figures.served_fraction < 0.9),
                "mean_ttft_ms": 1e3 * client.ttft_s,
                "mean_tpot_ms": time_per_token_ms(seen),
                "mean_itl_ms": client.itl_ms,
                "tw_mean_num_running": figures.running,
                "max_num_waiting": figures.max_waiting,
                "client_overloaded": 0,
            }
        )
    return rows


def write_runs(path: Path, rows: Sequence[dict[str, Any]]) -> Path:
    """Write the rows as a CSV file."""
    pd.DataFrame(rows).to_csv(path, index=False)
    return path
