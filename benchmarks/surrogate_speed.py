"""How fast is the surrogate? Microseconds of CPU time per GPU load, and a random forest beside it.

Run: ``OMP_NUM_THREADS=1 python -m benchmarks.surrogate_speed [MODEL_DIR]``; the random forest needs scikit-learn.
"""

from __future__ import annotations

import platform
import sys
from pathlib import Path

import numpy as np

from loraplan.errors import LoraplanError
from loraplan.profiles import load_profile
from surrogate import comparison, speed
from surrogate.model import SHIPPED, Model

TARGETS_US = {"batch": 2.0, "single": 60.0}
TRAINING_ROWS = 10_000


def main(arguments: list[str]) -> int:
    """Print a table; return the exit code."""
    try:
        model = Model.load(Path(arguments[0]) if arguments else SHIPPED)
    except LoraplanError as error:
        print(f"error: {error}", file=sys.stderr)
        return error.exit_code
    profile = load_profile("h100-64gb/llama-3.1-8b")
    print(
        f"us of CPU time per GPU load, batches of {speed.BATCH:,}; {platform.machine()}, "
        f"Python {platform.python_version()}; torch {'is' if 'torch' in sys.modules else 'is not'} imported"
    )
    print(f"{'model':34} {'batch':>10} {'single':>10}")
    for adapters in (10, 100):
        took = speed.surrogate_speed(model, profile, adapters)
        print(f"{f'surrogate, loads of {adapters} adapters':34} {took['batch']:10.2f} {took['single']:10.2f}")
    print(f"{'surrogate, embeddings summed up':34} {took['batch_sums']:10.2f} {'':>10}")
    print(f"{'to prepare a server, once':34} {'':>10} {took['server']:10.2f}")
    print(f"{'(to be met by the surrogate)':34} {TARGETS_US['batch']:10.2f} {TARGETS_US['single']:10.2f}")
    if comparison.installed():
        rows = _made_up()
        forest = comparison.train(rows, ["random_forest"])["random_forest"]
        took = speed.rows_speed(forest.predict, rows.features)
        print(f"{'random forest, features known':34} {took['batch']:10.2f} {took['single']:10.2f}")
    return 0


def _made_up() -> comparison.Rows:
    """Loads of which only the number matters."""
    rng = np.random.default_rng(0)
    features = rng.random((TRAINING_ROWS, len(comparison.FEATURES)))
    load = features.sum(1)
    outputs = np.column_stack((1000 * load, 20 + 10 * load**2, np.clip(4.5 / load, 0, 1)))
    return comparison.Rows(np.full(TRAINING_ROWS, "server"), features, outputs)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
