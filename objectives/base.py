"""What an objective is."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

from loraplan.oracle import Predictions
from loraplan.problem import GPULoad, Problem
from loraplan.workload import Floats


@dataclass(frozen=True, eq=False)
class CostFloor:
    """A lower bound on the cost of a load that is simple enough for proofs.

    Attributes:
        of_type: shape (types,), what a load costs at least because of its GPU type.
        per_ms: shape (adapters,), what each adapter adds for each ms of the load's mean ITL.
        exact: whether a load costs exactly what its type does.
    """

    of_type: Floats
    per_ms: Floats
    exact: bool = False


class Objective(ABC):
    """A cost per GPU, summed over the GPUs in use, to be minimised.

    Life cycle: made once with its params; then ``gpu_costs`` is called with any number of GPU loads and what the oracle
    says of them. The cost of a load must not depend on the other loads.
    """

    Params: ClassVar[type[Any]]
    """Frozen dataclass of the objective's settings."""

    unit: str
    """What one unit of cost is, for tables; of the class, or set from the params."""

    needs_headroom: bool = False
    """Whether ``gpu_costs`` reads ``predicted.headroom``, which takes several predictions to find."""

    @abstractmethod
    def __init__(self, params: Any) -> None:
        """Take the settings; ``params`` is an instance of ``Params``."""

    @abstractmethod
    def gpu_costs(self, problem: Problem, loads: Sequence[GPULoad], predicted: Predictions) -> Floats:
        """Cost of each load, shape (loads,), at least 0.

        Raises:
            BadInputError: the problem lacks what the objective needs (a price, say).
        """

    def floor(self, problem: Problem) -> CostFloor | None:
        """A lower bound on the cost of loads; None where there is none but 0."""
        return None
