"""What it takes to get from the plan in force to another."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from loraplan.errors import BadInputError
from loraplan.oracle import Predictions
from loraplan.problem import GPULoad, Problem
from loraplan.workload import Floats
from objectives.base import Objective


@dataclass(frozen=True)
class MigrationParams:
    """Settings of the migration objective.

    Attributes:
        plan: file of the plan in force. Or
        placement: the GPUs in force, each as a list of names of adapters.
    """

    plan: str | None = None
    placement: tuple[tuple[str, ...], ...] = field(default=())

    def __post_init__(self) -> None:
        """Check that there is something in force."""
        if (self.plan is None) == (not self.placement):
            raise BadInputError("objective 'migration': expected plan, the file of the plan in force, or placement")


class Migration(Objective):
    """Milliseconds of loading that the adapters cost which are not where they were.

    A GPU of the new plan stands for the one in force whose anchor it holds, the adapter there that is the dearest to
    load; of several, for the one from which it keeps the most. Without an anchor it is a new GPU, on which everything
    has to be loaded. So no two GPUs stand for the same one, and a GPU's cost depends on its own adapters only. The sum
    is never less than what the moves cost; it is more where an anchor itself moved away from what stayed.
    """

    Params: ClassVar[type[Any]] = MigrationParams
    unit = "ms of loading"

    def __init__(self, params: MigrationParams) -> None:
        """Read the plan in force.

        Raises:
            BadInputError: it cannot be read.
        """
        self._placement = params.placement or _placement(Path(str(params.plan)))

    def gpu_costs(self, problem: Problem, loads: Sequence[GPULoad], predicted: Predictions) -> Floats:
        """Loading time of each load's new adapters, shape (loads,)."""
        times = np.array([_load_ms(problem, t) for t in range(len(problem.fleet.types))])
        old = [frozenset(problem.index[name] for name in names if name in problem.index) for names in self._placement]
        anchors = {max(sorted(gpu), key=lambda i: times[0, i]): gpu for gpu in old if gpu}
        costs = []
        for load in loads:
            new, mine = set(load.adapters), times[load.gpu_type]
            kept = [gpu & new for anchor, gpu in anchors.items() if anchor in new]
            costs.append(mine[list(new)].sum() - max((mine[list(gpu)].sum() for gpu in kept), default=0.0))
        return np.maximum(np.array(costs, dtype=np.float64), 0.0)


def _load_ms(problem: Problem, gpu_type: int) -> Floats:
    """Milliseconds to load each adapter from disk to a slot of this type, shape (adapters,)."""
    times = problem.fleet.types[gpu_type].profile.load_ms
    return np.asarray(times.disk + times.disk_per_rank * problem.ranks + times.to_gpu)


def _placement(path: Path) -> tuple[tuple[str, ...], ...]:
    """The adapters of each GPU of a plan file, of which nothing else is read."""
    try:
        plan = json.loads(path.read_text(encoding="utf-8"))
        return tuple(tuple(str(adapter["name"]) for adapter in gpu["adapters"]) for gpu in plan["gpus"])
    except OSError as error:
        raise BadInputError(f"objective 'migration': plan {path}: {error.strerror or error}") from None
    except (ValueError, TypeError, KeyError, RecursionError):
        raise BadInputError(f"objective 'migration': {path} is no plan that `loraplan solve -o` wrote") from None
