"""Objectives made of others: a weighted sum, and one after another."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np

from loraplan.errors import BadInputError
from loraplan.oracle import Predictions
from loraplan.problem import GPULoad, Problem
from loraplan.registry import choose
from loraplan.workload import Floats
from objectives.base import CostFloor, Objective

Spec = str | dict[str, Any]


@dataclass(frozen=True)
class Term:
    """An objective, and what one unit of it counts."""

    objective: Spec
    weight: float

    def __post_init__(self) -> None:
        """Check the weight."""
        if not 0 < self.weight < np.inf:
            raise BadInputError(f"objective 'weighted': weight must be above 0 (got {self.weight})")


@dataclass(frozen=True)
class WeightedParams:
    """Settings of the weighted objective.

    Attributes:
        terms: objectives and their weights.
    """

    terms: tuple[Term, ...] = (Term("gpu_count", 1.0), Term("latency", 0.01))

    def __post_init__(self) -> None:
        """Check that there is something to add up."""
        if not self.terms:
            raise BadInputError("objective 'weighted': terms must name an objective at least")


class Weighted(Objective):
    """The sum of objectives, each times its weight."""

    Params: ClassVar[type[Any]] = WeightedParams

    def __init__(self, params: WeightedParams) -> None:
        """Make the objectives."""
        self._weights = [term.weight for term in params.terms]
        self._objectives = [make(term.objective) for term in params.terms]
        terms = zip(self._weights, self._objectives, strict=True)
        self.unit = f"({' + '.join(f'{weight:g} x {objective.unit}' for weight, objective in terms)})"
        self.needs_headroom = any(objective.needs_headroom for objective in self._objectives)

    def gpu_costs(self, problem: Problem, loads: Sequence[GPULoad], predicted: Predictions) -> Floats:
        """Weighted sum of each load's costs, shape (loads,)."""
        total = np.zeros(len(loads))
        for weight, objective in zip(self._weights, self._objectives, strict=True):
            total += weight * objective.gpu_costs(problem, loads, predicted)
        return total

    def floor(self, problem: Problem) -> CostFloor:
        """The weighted sum of those that have one: the others cost at least nothing."""
        floors = [objective.floor(problem) for objective in self._objectives]
        of_type, per_ms = np.zeros(len(problem.fleet.types)), np.zeros(len(problem.adapters))
        for weight, one in zip(self._weights, floors, strict=True):
            if one is not None:
                of_type, per_ms = of_type + weight * one.of_type, per_ms + weight * one.per_ms
        return CostFloor(of_type, per_ms, exact=all(one is not None and one.exact for one in floors))


USUAL_RANGE, MOST_RANGE = 1_000.0, 1e9
"""What a GPU costs at most, unless something else is said, and what may be said."""


@dataclass(frozen=True)
class LexicographicParams:
    """Settings of the lexicographic objective.

    Attributes:
        objectives: the first counts most; each of the others only decides among plans that are equal so far.
        ranges: for each but the first, a value that no GPU's cost exceeds; all GPUs of the fleet together count less
            than one unit of the objective before. 1,000 each if not given.
    """

    objectives: tuple[Spec, ...] = ("gpu_count", "latency")
    ranges: tuple[float, ...] = ()

    def __post_init__(self) -> None:
        """Check the numbers of objectives and ranges."""
        if len(self.objectives) < 2:
            raise BadInputError("objective 'lexicographic': objectives must name two at least")
        if self.ranges and len(self.ranges) != len(self.objectives) - 1:
            raise BadInputError("objective 'lexicographic': ranges must be one for each objective but the first")
        if any(not 0 < one <= MOST_RANGE for one in self.ranges):
            raise BadInputError(
                f"objective 'lexicographic': ranges must be above 0, at most 1e9 (got {list(self.ranges)})"
            )


class Lexicographic(Objective):
    """One objective after another: a unit of each outweighs all of the next.

    With ``gpu_count`` and ``latency``, and up to nine GPUs on offer, 4.0053 is four GPUs and 53 ms: the second is
    divided by 10,000, the power of ten above what nine GPUs at its range, 1,000, come to. A GPU beyond a range counts
    as one at it. Where an objective's values differ by less than 1 (a price), give it a larger range for the next one.
    """

    Params: ClassVar[type[Any]] = LexicographicParams

    def __init__(self, params: LexicographicParams) -> None:
        """Make the objectives."""
        self._objectives = [make(spec) for spec in params.objectives]
        self._ranges = params.ranges or (USUAL_RANGE,) * (len(self._objectives) - 1)
        self.unit = ", then ".join(objective.unit for objective in self._objectives)
        self.needs_headroom = any(objective.needs_headroom for objective in self._objectives)

    def gpu_costs(self, problem: Problem, loads: Sequence[GPULoad], predicted: Predictions) -> Floats:
        """Sum of each load's costs, scaled, shape (loads,)."""
        total, scale = self._objectives[0].gpu_costs(problem, loads, predicted), 1.0
        for objective, most in zip(self._objectives[1:], self._ranges, strict=True):
            scale /= 10.0 ** (math.floor(math.log10(most * problem.fleet.count) + 1e-9) + 1)
            total = total + scale * np.minimum(objective.gpu_costs(problem, loads, predicted), most)
        return np.asarray(total)

    def floor(self, problem: Problem) -> CostFloor | None:
        """That of the first."""
        first = self._objectives[0].floor(problem)
        return None if first is None else CostFloor(first.of_type, first.per_ms)


def make(spec: Spec) -> Objective:
    """The objective that a name, or a mapping of name and settings, stands for.

    Raises:
        BadInputError: the name or a setting is unknown or wrong.
    """
    from objectives import OBJECTIVES  # not above: the registry names this file

    chosen = choose(OBJECTIVES, spec)
    made: Objective = chosen.kind(chosen.params)
    return made
