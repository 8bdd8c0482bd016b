"""What an objective is."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any, ClassVar

from loraplan.oracle import Predictions
from loraplan.problem import GPULoad, Problem
from loraplan.workload import Floats


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
