"""Checks a plan from scratch: is it one, what does it cost, is its lower bound proven? No solver has a part in it."""

from __future__ import annotations

import math
from collections import Counter, defaultdict, deque
from dataclasses import dataclass
from itertools import product

import numpy as np
from scipy.optimize import Bounds, LinearConstraint, milp

from loraplan.certificate import TOLERANCE, verify
from loraplan.config import build
from loraplan.errors import BadInputError
from loraplan.headroom import Headroom
from loraplan.oracle import ORACLES, Oracle
from loraplan.plan import AdapterWorth, Certificate, Plan
from loraplan.problem import GPULoad, Problem
from loraplan.recorded import Recorded, recorded
from loraplan.registry import Chosen, choose
from loraplan.workload import Floats
from objectives import OBJECTIVES, Objective

MOST_LISTED = 2_000_000
CLOSE = 1e-6
INFEASIBLE = 2
"""What scipy calls it."""


@dataclass(frozen=True)
class Finding:
    """One thing that was checked.

    Attributes:
        what: ``placement``, ``limits``, ``cost``, ``bound`` or ``status``.
        fine: whether it is as the plan says.
        found: what was found, in a line.
    """

    what: str
    fine: bool
    found: str


def check(plan: Plan) -> list[Finding]:
    """Check a plan that records its config.

    Raises:
        BadInputError: the plan records no config, or an input file is missing or has changed.
    """
    made = recorded(plan)
    oracle_of, objective_of = (
        choose(ORACLES, {"name": plan.oracle.name, **plan.oracle.params}),
        choose(OBJECTIVES, {"name": plan.objective.name, **plan.objective.params}),
    )
    oracle: Oracle = oracle_of.kind(made.problem, oracle_of.params)
    objective: Objective = objective_of.kind(objective_of.params)
    findings = [_placement(plan, made)]
    if not findings[0].fine:
        return findings
    findings.append(_limits(plan, made, oracle))
    costs = _costs(made, oracle_of, oracle, objective, made.loads)
    findings.append(_cost(plan, costs))
    findings.append(_bound(plan, made, oracle_of, oracle, objective))
    findings.append(_status(plan, findings))
    return findings


def _placement(plan: Plan, made: Recorded) -> Finding:
    """Every adapter is placed, once or with shares that add up, within the stock and where the constraints allow."""
    problem = build(made.config).problem
    wrong = []
    shares: dict[str, float] = defaultdict(float)
    for gpu in plan.gpus:
        for placed in gpu.adapters:
            shares[placed.name] += placed.share
            known = problem.adapters[problem.index[placed.name]]
            if (placed.rank, placed.rate) != (known.rank, known.rate) and not math.isclose(placed.rate, known.rate):
                wrong.append(f"{placed.name} is not of rank {known.rank} and {known.rate:g} req/s")
    missing = [adapter.name for adapter in problem.adapters if abs(shares[adapter.name] - 1.0) > CLOSE]
    if plan.complete and missing:
        wrong.append(f"{len(missing)} adapters are not placed as a whole (first: {missing[0]})")
    used = Counter(gpu.profile for gpu in plan.gpus)
    for gpu_type in problem.fleet.types:
        if used[gpu_type.profile.name] > gpu_type.count:
            wrong.append(f"{used[gpu_type.profile.name]} of {gpu_type.count} {gpu_type.profile.name}")
    if len(plan.gpus) > problem.gpus:
        wrong.append(f"{len(plan.gpus)} of {problem.gpus} GPUs")
    home = {adapter.name: gpu.id for gpu in plan.gpus for adapter in gpu.adapters}
    for group in problem.constraints.together:
        if len({home.get(name) for name in group}) > 1:
            wrong.append(f"{', '.join(group)} are not together")
    wrong += [
        f"{gpu.id} is not allowed"
        for gpu, load in zip(plan.gpus, made.loads, strict=True)
        if not made.problem.allows(load)
    ]
    found = "; ".join(wrong) or f"{len(problem.adapters)} adapters on {len(plan.gpus)} GPUs"
    return Finding("placement", not wrong, found)


def _limits(plan: Plan, made: Recorded, oracle: Oracle) -> Finding:
    """Every server starts with its slots and max rank, and the oracle says that it keeps the limits."""
    wrong = []
    for gpu, load in zip(plan.gpus, made.loads, strict=True):
        if gpu.max_rank < made.problem.max_rank(load.gpu_type, load.adapters):
            wrong.append(f"{gpu.id}: max_rank {gpu.max_rank} is too small for its adapters")
        if not plan.provenance.profiles[gpu.profile].starts(gpu.slots, gpu.max_rank):
            wrong.append(f"{gpu.id} does not start")
    kept = oracle.predict(made.loads).keeps(made.problem.constraints)
    wrong += [f"{gpu.id} breaks a limit" for gpu, fine in zip(plan.gpus, kept, strict=True) if not fine]
    return Finding("limits", not wrong, "; ".join(wrong) or f"kept by every GPU, by oracle {plan.oracle.name}")


def _costs(made: Recorded, chosen: Chosen, oracle: Oracle, objective: Objective, loads: tuple[GPULoad, ...]) -> Floats:
    predicted = oracle.predict(loads)
    if objective.needs_headroom:
        object.__setattr__(predicted, "headroom", Headroom(made.problem, chosen.kind, chosen.params).of(loads))
    return objective.gpu_costs(made.problem, loads, predicted)


def _cost(plan: Plan, costs: Floats) -> Finding:
    total, said = float(costs.sum()), plan.objective.value
    fine = said is None or math.isclose(total, said, rel_tol=CLOSE, abs_tol=1e-9)
    return Finding("cost", fine, f"{total:g} {plan.objective.unit}" + ("" if fine else f", the plan says {said:g}"))


def _bound(plan: Plan, made: Recorded, chosen: Chosen, oracle: Oracle, objective: Objective) -> Finding:
    said, certificate = plan.objective.lower_bound, plan.certificate
    if said is None:
        return Finding("bound", True, "none is claimed")
    if said <= 0:
        return Finding("bound", True, "0, which no cost is below")
    if certificate is None:
        return Finding("bound", False, f"{said:g} is claimed, but the plan has no certificate of it")
    if certificate.kind == "listing":
        proven, words = _listed(made, chosen, oracle, objective), "by listing all loads"
    else:
        floor = objective.floor(made.problem)
        if floor is None:
            return Finding("bound", False, "the objective has no floor that prices could prove anything of")
        verdict = verify(made.problem, oracle, floor, _prices(made.problem, certificate))
        if not verdict.proven:
            return Finding("bound", False, f"not proven: {verdict.reason}")
        proven, words = verdict.bound, f"by prices, over {verdict.bin_types} bin types"
        words += " and branches" if certificate.branches is not None else ""
    fine = said <= proven + 10 * TOLERANCE * max(1.0, abs(proven))
    return Finding("bound", fine, f"{proven:g} is proven {words}" + ("" if fine else f", {said:g} is claimed"))


def _prices(problem: Problem, certificate: Certificate) -> dict[str, object]:
    """The prices in the order of the problem's adapters and types."""
    given: dict[str, deque[AdapterWorth]] = defaultdict(deque)
    for one in certificate.adapters:
        given[one.name].append(one)
    ordered = []
    for adapter in problem.adapters:
        name = adapter.name if adapter.name in given else adapter.name.rpartition("#")[0]
        if not given[name]:
            raise BadInputError(f"certificate: it has no price of adapter {adapter.name}")
        ordered.append(given[name].popleft())
    items = [one.item for one in ordered]
    return {
        "worth": [one.worth for one in ordered],
        "items": None if None in items else items,
        "rents": [certificate.rents.get(gpu_type.profile.name, 0.0) for gpu_type in problem.fleet.types],
        "rent": certificate.rent,
        "bound": certificate.bound,
        "branches": None if certificate.branches is None else certificate.branches.model_dump(),
    }


def _listed(made: Recorded, chosen: Chosen, oracle: Oracle, objective: Objective) -> float:
    """The least cost of a choice among all loads: every subset of the units, every type, every number of slots."""
    problem = made.problem
    alike: dict[tuple[object, ...], list[tuple[int, ...]]] = defaultdict(list)
    apart = {i for group in problem.separate for i in group}
    for unit in problem.units:
        members = sorted((problem.ranks[i], problem.rates[i], id(problem.adapters[i].lengths)) for i in unit)
        own = unit if apart.intersection(unit) else ()
        alike[(*map(tuple, members), problem.types_of(unit), own)].append(unit)
    kinds, total = list(alike.values()), len(problem.adapters)
    types = range(len(problem.fleet.types))
    if math.prod(len(mine) + 1 for mine in kinds) * len(types) * total > MOST_LISTED:
        raise BadInputError("check: there are too many loads to list; the bound of this plan cannot be checked")
    columns, costs, of_type = [], [], []
    for counts in product(*(range(len(mine) + 1) for mine in kinds)):
        adapters = tuple(
            sorted(i for mine, take in zip(kinds, counts, strict=True) for unit in mine[:take] for i in unit)
        )
        loads = tuple(GPULoad(t, adapters, slots) for t in types for slots in range(1, total + 1)) if adapters else ()
        loads = tuple(load for load in loads if problem.allows(load))
        if not loads:
            continue
        kept = oracle.predict(loads).keeps(problem.constraints)
        paid = np.where(kept, _costs(made, chosen, oracle, objective, loads), np.inf)
        for t in types:
            best = min((float(p) for p, load in zip(paid, loads, strict=True) if load.gpu_type == t), default=math.inf)
            if math.isfinite(best):
                columns.append(counts)
                costs.append(best)
                of_type.append(t)
    if not columns:
        return math.inf
    cover = np.array(columns, dtype=np.float64).T
    stock = np.array([[float(t == kind) for t in of_type] for kind in types])
    wanted = np.array([len(mine) for mine in kinds], dtype=np.float64)
    solved = milp(
        np.array(costs),
        constraints=[
            LinearConstraint(cover, wanted, wanted),
            LinearConstraint(stock, -np.inf, np.array([gpu_type.count for gpu_type in problem.fleet.types])),
            LinearConstraint(np.ones((1, len(costs))), -np.inf, problem.gpus),
        ],
        bounds=Bounds(0, np.inf),
        integrality=np.ones(len(costs), dtype=np.int64),
        options={"mip_rel_gap": 0.0},
    )
    return math.inf if solved.mip_dual_bound is None or solved.status == INFEASIBLE else float(solved.mip_dual_bound)


def _status(plan: Plan, findings: list[Finding]) -> Finding:
    """Whether the status follows from the rest."""
    value, bound = plan.objective.value, plan.objective.lower_bound
    if plan.status == "optimal":
        met = value is not None and bound is not None and value <= bound + CLOSE * max(1.0, abs(bound))
        fine = met and all(finding.fine for finding in findings)
        return Finding(
            "status", fine, "optimal: cost and proven bound meet" if fine else "called optimal, which is not proven"
        )
    return Finding("status", True, plan.status)
