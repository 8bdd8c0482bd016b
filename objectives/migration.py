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
        plan: file of the plan in force; a relative path counts from where the command is run. Or
        placement: the GPUs in force, each as a list of names of adapters; of the type that the new plan has there.
    """

    plan: str | None = None
    placement: tuple[tuple[str, ...], ...] = field(default=())

    def __post_init__(self) -> None:
        """Check that there is something in force."""
        if (self.plan is None) == (not self.placement):
            raise BadInputError("objective 'migration': expected plan, the file of the plan in force, or placement")


@dataclass(frozen=True)
class InForce:
    """A GPU in force: the name of its profile, if that is known, and its adapters."""

    profile: str | None
    adapters: tuple[str, ...]


class Migration(Objective):
    """Milliseconds of loading that the adapters cost which are not where they were.

    A GPU of the new plan stands for the one in force whose anchor it holds, the adapter there that is the dearest to
    load; of several, for the one from which it keeps the most. Without an anchor it is a new GPU, on which everything
    has to be loaded; one of another type stands for none. So no two GPUs stand for the same one, and a GPU's cost
    depends on its own adapters only. The sum is never less than what the moves cost; it is more where an anchor itself
    moved away from what stayed. That other slots or another max rank mean a restart, which loads everything, is not
    counted.
    """

    Params: ClassVar[type[Any]] = MigrationParams
    unit = "ms of loading"

    def __init__(self, params: MigrationParams) -> None:
        """Read the plan in force.

        Raises:
            BadInputError: it cannot be read.
        """
        inline = tuple(InForce(None, names) for names in params.placement)
        self._in_force = inline or _in_force(Path(str(params.plan)))

    def gpu_costs(self, problem: Problem, loads: Sequence[GPULoad], predicted: Predictions) -> Floats:
        """Loading time of each load's new adapters, shape (loads,)."""
        times = np.array([_load_ms(problem, t) for t in range(len(problem.fleet.types))])
        anchors: dict[int, tuple[str | None, frozenset[int]]] = {}
        for gpu in self._in_force:
            known = frozenset(problem.index[name] for name in gpu.adapters if name in problem.index)
            if known:
                anchors[max(sorted(known), key=lambda i: times[0, i])] = gpu.profile, known
        if not anchors:
            raise BadInputError("objective 'migration': none of the adapters in force is among those planned for")
        costs = []
        for load in loads:
            new, mine, profile = set(load.adapters), times[load.gpu_type], problem.profile(load).name
            kept = [old & new for anchor, (on, old) in anchors.items() if anchor in new and on in (None, profile)]
            costs.append(mine[list(new)].sum() - max((mine[list(gpu)].sum() for gpu in kept), default=0.0))
        return np.maximum(np.array(costs, dtype=np.float64), 0.0)


def _load_ms(problem: Problem, gpu_type: int) -> Floats:
    """Milliseconds to load each adapter from disk to a slot of this type, shape (adapters,)."""
    times = problem.fleet.types[gpu_type].profile.load_ms
    return np.asarray(times.disk + times.disk_per_rank * problem.ranks + times.to_gpu)


def _in_force(path: Path) -> tuple[InForce, ...]:
    """The GPUs of a plan file, of which nothing else is read."""
    try:
        plan = json.loads(path.read_text(encoding="utf-8"))
        return tuple(
            InForce(str(gpu["profile"]), tuple(str(adapter["name"]) for adapter in gpu["adapters"]))
            for gpu in plan["gpus"]
        )
    except OSError as error:
        raise BadInputError(f"objective 'migration': plan {path}: {error.strerror or error}") from None
    except (ValueError, TypeError, KeyError, RecursionError):
        raise BadInputError(f"objective 'migration': {path} is no plan that `loraplan solve -o` wrote") from None
