"""Rows of a dataset that cost nothing: of the right columns, and different for every workload."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from surrogate import dataset
from surrogate.design import SCHEMA, Design


def made_up_rows(design: Design, workload: int) -> list[dict[str, Any]]:
    """None to three rows, of anything that fits the schema."""
    draws = np.random.default_rng([design.seed, workload])
    count = int(draws.integers(0, 4))
    return [
        {field.name: _value(field.type, draws) for field in SCHEMA} | {"workload": workload, "row": row}
        for row in range(count)
    ]


def slow_rows(design: Design, workload: int) -> list[dict[str, Any]]:
    time.sleep(0.01)
    return made_up_rows(design, workload)


def generate_slowly(design: Design, folder: Path) -> None:
    """Generate a dataset at a pace that leaves time to kill the process."""
    dataset.rows_of = slow_rows
    dataset.generate(design, folder, workers=1)


MARK = "LORAPLAN_TEST_MARK"
"""Environment variable: the file that is there once a worker has been killed."""


def number_or_die(task: tuple[Path, int]) -> int:
    """The task's number; whoever gets number 2 first is killed."""
    mark, number = task
    if number == 2 and not mark.exists():
        mark.touch()
        die(number)
    return number


def simulate_or_die(task: dataset.Task) -> Any:
    """Simulate; whoever gets workload 24 first is killed."""
    number_or_die((Path(os.environ[MARK]), 2 if 24 in task.workloads else 0))
    return _simulate(task)


_simulate = dataset.simulate  # which tests replace


def die(number: int) -> int:
    os.kill(os.getpid(), signal.SIGKILL)
    return number


def _value(kind: Any, draws: np.random.Generator) -> Any:
    if pa.types.is_list(kind):
        return [_value(kind.value_type, draws) for _ in range(draws.integers(0, 4))]
    if pa.types.is_integer(kind):
        return int(draws.integers(100))
    if pa.types.is_floating(kind):
        return float(np.float16(draws.random()))
    if pa.types.is_boolean(kind):
        return bool(draws.random() < 0.5)
    return f"text {draws.integers(100)}"
