"""Surrogates that nobody has trained: they say what the fluid model does, and cost nothing."""

from __future__ import annotations

import hashlib
from typing import Any

import numpy as np
import pyarrow as pa

from loraplan.profiles import load_profile
from loraplan.workload import Lengths
from surrogate.calibration import NAMES, Calibration
from surrogate.features import length_means
from surrogate.model import INPUTS, SHAPES, Card, Model
from surrogate.shards import table_of

LENGTHS = Lengths.constant(200, 200)


def untrained_model(data: dict[str, Any] | None = None, score: Any = (), served: Any = ()) -> Model:
    """A model whose networks say 0, with these calibration loads, and ``data`` in its card."""
    tensors = {name: np.zeros(shape) for name, shape in SHAPES.items() if not name.startswith("calibration.")}
    for name in ("context_scale", "inputs_scale"):
        tensors[name] = np.ones(SHAPES[name])
    tensors["margin.rank_slope"] = np.full(SHAPES["margin.rank_slope"], -5.0)
    loads = {"score": np.array(score, dtype=np.float64), "served": np.array(served, dtype=np.float64)}
    calibration = Calibration(*(loads.get(name, np.zeros(0)) for name in NAMES))
    card = Card(
        name="untrained",
        loraplan="0.0.0",
        created="2026-01-01T00:00:00Z",
        weights_sha256="",
        data=data or {},
        settings={},
        errors={},
        low=(-1e9,) * INPUTS,
        high=(1e9,) * INPUTS,
    )
    model = Model(tensors, calibration, card)
    digest = hashlib.sha256(model.to_bytes()).hexdigest()
    return Model(tensors, calibration, card.model_copy(update={"weights_sha256": digest}))


def load_rows(n: int, seed: int = 0) -> pa.Table:
    """Rows of a dataset that no twin has seen: loads from light to far too many, with figures made up to fit.

    Workload i has one row; every other one is on a varied profile, the others on that of Llama.
    """
    rng = np.random.default_rng(seed)
    shipped = load_profile("h100-64gb/llama-3.1-8b")
    varied = shipped.model_copy(update={"name": "random-0-0"})
    rows = []
    for i in range(n):
        count = int(rng.integers(4, 40))
        rates = rng.uniform(0.02, 0.08, count) * np.exp(rng.uniform(0, 4))
        offered = float(rates.sum()) * 400.0
        served = min(1.0, 6000.0 / offered)
        rows.append(
            {
                "workload": i,
                "row": 0,
                "kind": "boundary",
                "base": "h100-64gb/llama-3.1-8b",
                "profile": (varied if i % 2 else shipped).model_dump_json(),
                "slots": int(rng.integers(2, 40)),
                "max_rank": 16,
                "cv": 1.0,
                "horizon_s": 600.0,
                "seed": i,
                "rates": rates.tolist(),
                "ranks": [16] * count,
                "law": [0] * count,
                **{f"law_{name}": [mean] for name, mean in length_means(LENGTHS).items()},
                "offered_tok_s": offered,
                "arrived_tok_s": offered,
                "served_fraction": served,
                "throughput_tok_s": served * offered,
                "itl_ms": 15.0 + offered / 200.0,
                "ttft_s": 0.1 / served,
                "ttft_p95_s": 0.2,
                "kv_utilisation": min(1.0, offered / 9000.0),
                "running": 1.0,
                "waiting": 0.0,
                "preemptions": 0,
                "loads": 0,
                "binding": "none",
            }
        )
    return table_of(rows)
