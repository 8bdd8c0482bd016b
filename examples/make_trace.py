"""Make the small example trace: half an hour of chat requests, made up (no real user's data), always the same."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd

SECONDS = 1800.0
PEAK_PER_S = 3.0


def make(seed: int = 7) -> pd.DataFrame:
    """Arrivals that swell and ebb, and skewed lengths whose prompt and answer go against each other a little."""
    rng = np.random.default_rng(seed)
    times = np.sort(rng.random(rng.poisson(PEAK_PER_S * SECONDS)) * SECONDS)
    intensity = 0.7 + 0.3 * np.sin(2 * np.pi * times / SECONDS * 3)
    times = times[rng.random(times.size) < intensity]
    prompt, answer = rng.multivariate_normal([0, 0], [[1, -0.2], [-0.2, 1]], times.size).T
    return pd.DataFrame(
        {
            "arrived_at": times.round(3),
            "num_prefill_tokens": np.clip(np.exp(5.6 + 0.9 * prompt), 4, 4096).astype(int),
            "num_decode_tokens": np.clip(np.exp(4.9 + 0.8 * answer), 2, 1024).astype(int),
        }
    )


if __name__ == "__main__":
    make().to_csv(Path(__file__).with_name("chat.csv"), index=False)
