"""Which rows are for what: a workload's rows are alike, so all of them go the same way."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from loraplan.workload import Ints

WORKLOADS_IN_ALL, FOR_TRAINING = 10, 8
"""Of every ten workloads eight are trained on; one says when to stop, and one where the thresholds are."""
_GOLDEN = np.uint64(0x9E3779B97F4A7C15)


def split(workload: Ints) -> tuple[NDArray[np.bool_], NDArray[np.bool_], NDArray[np.bool_]]:
    """Rows for training, validation and calibration, each of shape (n,), by the numbers of their workloads.

    By a hash of the number alone: a dataset that grows never moves a row from one of them to another.
    """
    mixed = (workload.astype(np.uint64) + np.uint64(1)) * _GOLDEN  # Knuth's multiplicative hash, modulo 2^64
    place = (mixed >> np.uint64(32)) % np.uint64(WORKLOADS_IN_ALL)
    return place < FOR_TRAINING, place == FOR_TRAINING, place > FOR_TRAINING
