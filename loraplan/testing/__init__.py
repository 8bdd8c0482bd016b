"""Checks for those who write plugins: that an objective, a solver or an oracle keeps its contract.

Each raises `ContractError`, an AssertionError, whose text says what is wrong; none needs a test framework:

>>> from loraplan.testing import check_objective
>>> check_objective("gpu_count")
"""

from loraplan.testing.contract import ContractError
from loraplan.testing.objectives import check_objective
from loraplan.testing.oracles import check_oracle
from loraplan.testing.problems import TokenBudgetOracle, TokenBudgetParams, server, small_problem
from loraplan.testing.solvers import check_solver

__all__ = [
    "check_objective",
    "check_solver",
    "check_oracle",
    "ContractError",
    "small_problem",
    "server",
    "TokenBudgetOracle",
    "TokenBudgetParams",
]
