"""What the published baselines share: GPUs in the fleet's order, figures of the papers, and the number of GPUs to use.

They do not look for the fewest GPUs, and some use all that they are given. So those are given one, two, three, ... GPUs
until the oracle accepts every GPU of what they make; none of them heeds further constraints.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence

import numpy as np

from loraplan.errors import BadInputError
from loraplan.problem import GPULoad, Problem
from loraplan.replicas import Split, divide
from loraplan.workload import Floats
from solvers.base import Search, Solution, complaint
from solvers.construction import shortfalls

Parts = Sequence[dict[int, float]]
"""For each GPU: adapter -> the share of its requests that comes here."""

BASE_TOK_S = {"llama": 17_814.0, "qwen": 17_940.0}
"""Highest throughput of the bare base model on one H100 of 64 GB (arXiv 2602.24044), tokens/s."""
LORASERVE_TOK_S = {
    "llama": {8: 15_064.0, 16: 14_732.0, 32: 14_496.0},
    "qwen": {8: 15_633.0, 16: 15_537.0, 32: 15_536.0},
}
"""Operating points by rank, the same."""


def model_family(problem: Problem, solver: str) -> str:
    """Which of the published base models the fleet serves.

    Raises:
        BadInputError: neither.
    """
    base = problem.fleet.types[0].profile.base_model.lower()
    for family in BASE_TOK_S:
        if family in base:
            return family
    raise BadInputError(f"solver {solver!r}: nothing is published for {base}; give its throughput as tok_s")


def gpu_types(problem: Problem) -> list[int]:
    """The type of each GPU of the fleet, in its order."""
    types = [t for t, gpu_type in enumerate(problem.fleet.types) for _ in range(min(gpu_type.count, problem.gpus))]
    return types[: problem.gpus]


def sweep(search: Search, solver: str, place: Callable[[int], tuple[Parts, Sequence[int]] | None]) -> Solution:
    """The plan of the fewest GPUs that the oracle accepts.

    Args:
        search: what is solved.
        solver: its name, for the reason.
        place: from a number of GPUs to the adapters of each, with shares, and the slots of each; None if it has none.
    """
    why = ""
    for gpus in range(1, len(gpu_types(search.problem)) + 1):
        search.check()
        placed = place(gpus)
        if placed is None:
            continue
        solution, why = accepted(search, *placed)
        if solution is not None:
            search.publish(solution.loads if solution.replicas is None else ())
            return solution
    worst = f": with all {search.problem.gpus} GPUs, {why}" if why else ""
    return Solution("unknown", reason=f"{solver}: the oracle accepts none of its placements{worst}")


def accepted(search: Search, parts: Parts, slots: Sequence[int]) -> tuple[Solution | None, str]:
    """The solution of a placement, if it keeps all constraints; else what it breaks, in words."""
    times = Counter(i for mine in parts for i in mine)
    torn = next((i for unit in search.problem.units if len(unit) > 1 for i in unit if times[i] > 1), None)
    if torn is not None:
        return None, f"adapter {search.problem.adapters[torn].name}, which goes together with others, is divided"
    split, loads = _loads(search.problem, parts, slots)
    on = search.on(split.problem)
    solution = Solution("feasible", tuple(loads), replicas=None if split.problem is search.problem else split)
    flaw = complaint(split.problem, solution)
    if flaw:
        return None, flaw
    broken = [text for text in shortfalls(on, loads) if text]
    return (None, f"{len(broken)} do not keep the limits (first: {broken[0]})") if broken else (solution, "")


def _loads(problem: Problem, parts: Parts, slots: Sequence[int]) -> tuple[Split, list[GPULoad]]:
    """The loads of a placement, on the problem of its replicas."""
    homes: dict[int, list[tuple[int, float]]] = {}
    for gpu, mine in enumerate(parts):
        for i, share in mine.items():
            homes.setdefault(i, []).append((gpu, share))
    split = divide(problem, {i: [s for _, s in where] for i, where in homes.items() if len(where) > 1})
    first: dict[int, int] = {}
    for replica, i in enumerate(split.origin):
        first.setdefault(i, replica)
    members: list[list[int]] = [[] for _ in parts]
    for i, where in homes.items():
        for k, (gpu, _) in enumerate(where):
            members[gpu].append(first[i] + k)
    types = gpu_types(problem)
    loads = [GPULoad(types[gpu], tuple(sorted(mine)), max(1, slots[gpu])) for gpu, mine in enumerate(members) if mine]
    return split, loads


def demands(problem: Problem) -> Floats:
    """Tokens/s that each adapter asks for."""
    return problem.rates * (problem.mean_in + problem.mean_out)


def counts(parts: Parts) -> list[int]:
    """Adapters of each GPU."""
    return [len(mine) for mine in parts]


def argmin(values: Sequence[float]) -> int:
    """Where the least is, the first of several."""
    return int(np.argmin(values))
