"""Branch and bound over bin types beside all choices there are, and the checker's word on its proofs."""

from __future__ import annotations

import contextlib
import copy
from collections.abc import Callable, Sequence
from itertools import combinations_with_replacement, product
from typing import Any, ClassVar

import numpy as np
import pytest
from support.oracles import small_problem

from loraplan.bin_types import BinType, BinTypes, Groups
from loraplan.certificate import Verdict, verify
from loraplan.errors import BadInputError
from loraplan.oracle import Oracle, Predictions
from loraplan.problem import GPULoad, Problem
from loraplan.workload import Floats, Ints
from objectives.gpu_count import GPUCount, GPUCountParams
from solvers.base import Search, SearchStoppedError
from solvers.bounds import MARGIN, Bound
from solvers.branching import Branching
from solvers.classes import make_items
from solvers.column_generation import ColumnGeneration, ColumnGenerationParams
from solvers.mixture import Mixed, Mixture
from solvers.pricing import Pricing

RATES = 4.0, 2.0, 1.0
"""Adapters are of as many kinds."""


class KnapsackTypes(BinTypes):
    """Known knapsacks; a coarse bin type is a range of them."""

    exact = True

    def __init__(self, knapsacks: Floats) -> None:
        self.knapsacks = knapsacks
        self.rows = knapsacks.shape[1]  # type: ignore[misc]

    def roots(self) -> list[BinType]:
        return [self._make(0, len(self.knapsacks))]

    def split(self, bin_type: BinType, counts: Floats) -> list[BinType]:
        low, high = bin_type.box
        middle = (low + high) // 2
        return [bin_type] if high == low + 1 else [self._make(low, middle), self._make(middle, high)]

    def _make(self, low: int, high: int) -> BinType:
        return BinType(0, 8, (1, 1), self.knapsacks[low:high].min(axis=0), 0.0, (low, high), (low,))


class KnapsackOracle(Oracle):
    """Accepts what one of some knapsacks holds, shape (knapsacks, rows, kinds)."""

    Params: ClassVar[type[Any]] = type(None)
    hereditary = True

    def __init__(self, problem: Problem, knapsacks: Floats) -> None:
        self._kind = np.array([RATES.index(rate) for rate in problem.rates.tolist()])
        self._knapsacks = knapsacks

    def predict(self, loads: Sequence[GPULoad]) -> Predictions:
        counts = np.array([np.bincount(self._kind[list(load.adapters)], minlength=len(RATES)) for load in loads])
        full = np.einsum("brk,lk->lbr", self._knapsacks, counts.reshape(-1, len(RATES))).max(axis=2).min(axis=1)
        ones = np.ones(len(loads))
        return Predictions(ones > 0, (full <= 1.0).astype(np.float64), ones, ones, ones, ones)

    def bin_types(self, group_of: Ints | None = None) -> KnapsackTypes:
        groups = Groups(np.arange(self._kind.size) if group_of is None else group_of)
        kinds = groups.least(self._kind.astype(np.float64)).astype(np.int64)
        return KnapsackTypes(self._knapsacks[:, :, kinds])


def search_of(knapsacks: Floats, counts: Sequence[int], gpus: int = 9) -> Search:
    rates = [(8, rate) for rate, count in zip(RATES, counts, strict=True) for _ in range(count)]
    problem = small_problem(rates, counts=(gpus,))
    return Search(problem, GPUCount(GPUCountParams()), KnapsackOracle(problem, knapsacks), seed=0)


def branched(search: Search, gpus: int, nodes: int = 100_000) -> tuple[Branching, Bound, bool]:
    """A search for a plan of so many GPUs, from prices of 0; and whether it found one."""
    problem, items = search.problem, make_items(search.problem)
    floor, union = search.objective.floor(problem), search.oracle.bin_types(items.group_of)
    assert floor is not None
    assert union is not None
    bound = Bound(problem, items, floor)
    bound.offer(np.zeros(items.counts.size), np.zeros(1), 0.0)
    pricing = Pricing(search, union, items, floor.of_type, np.zeros(items.counts.size))
    branching = Branching(search, pricing, bound, gpus * (1 + MARGIN), dearest=1000.0)
    found = branching.run(nodes)
    if found:
        assert len(found) <= gpus
        assert np.sum([counts for _, counts in found], axis=0) == pytest.approx(items.counts)
        assert all((one.rows @ counts <= 1.0).all() for one, counts in found)
    return branching, bound, bool(found)


def checked(search: Search, bound: Bound, branching: Branching) -> Verdict:
    assert branching.tree is not None
    bound.exclude(branching.base, branching.most, branching.tree)
    given, floor = bound.certificate(), search.objective.floor(search.problem)
    assert given is not None
    assert floor is not None
    return verify(search.problem, search.oracle, floor, given)


def least_gpus(knapsacks: Floats, counts: Sequence[int]) -> int:
    """By trying all numbers of GPUs, all their bin types and all loads."""
    loads = np.array(list(product(*(range(count + 1) for count in counts))))
    holds = [loads[(loads @ rows.T <= 1.0).all(axis=1)] for rows in knapsacks]
    for gpus in range(1, sum(counts) + 1):
        for chosen in combinations_with_replacement(range(len(knapsacks)), gpus):
            left = {tuple(counts)}
            for b in chosen:
                left = {tuple(np.subtract(rest, load)) for rest in left for load in holds[b] if (load <= rest).all()}
            if (0,) * len(counts) in left:
                return gpus
    raise AssertionError("every adapter fits somewhere")


def random_case(seed: int) -> tuple[Floats, list[int]]:
    rng = np.random.default_rng(seed)
    knapsacks = rng.uniform(0.12, 0.9, (int(rng.integers(2, 5)), 2, len(RATES)))
    return knapsacks, rng.integers(1, 4, len(RATES)).tolist()


@pytest.mark.parametrize("seed", range(12))
def test_as_many_gpus_as_brute_force(seed: int) -> None:
    knapsacks, counts = random_case(seed)
    search, least = search_of(knapsacks, counts), least_gpus(knapsacks, counts)
    assert branched(search, least)[2]
    if least > 1:
        branching, bound, found = branched(search, least - 1)
        assert not found
        if branching.tree is None:  # it was known before: no bin type was left, or there was no use for so many GPUs
            return
        verdict = checked(search, bound, branching)
        assert verdict.proven, verdict.reason
        assert verdict.bound == pytest.approx(least)
        assert bound.rounded() == pytest.approx(least)


def without_gpus(knapsacks: Floats, counts: Sequence[int], gpus: int) -> tuple[Search, Bound, Branching]:
    search = search_of(knapsacks, counts)
    branching, bound, found = branched(search, gpus)
    assert not found
    return search, bound, branching


def test_prices_and_packings_both_close_branches() -> None:
    kinds = [name for seed in range(12) for name in leaves_of(*random_case(seed))]
    assert {"worth", "packed"} == set(kinds)


def leaves_of(knapsacks: Floats, counts: Sequence[int]) -> list[str]:
    least = least_gpus(knapsacks, counts)
    branching = branched(search_of(knapsacks, counts), least - 1)[0] if least > 1 else None
    waiting, found = [branching.tree] if branching is not None and branching.tree is not None else [], list[str]()
    while waiting:
        node = waiting.pop()
        waiting += [node[name] for name in ("fewer", "more") if name in node]
        found += [name for name in ("worth", "packed") if name in node]
    return found


Change = Callable[[dict[str, Any]], None]


def proven_case() -> tuple[Search, dict[str, Any]]:
    """A problem, and a certificate whose tree has forks and leaves of both kinds."""
    for seed in range(12):
        knapsacks, counts = random_case(seed)
        if set(leaves_of(knapsacks, counts)) == {"worth", "packed"}:
            search, bound, branching = without_gpus(knapsacks, counts, least_gpus(knapsacks, counts) - 1)
            assert checked(search, bound, branching).proven
            given = bound.certificate()
            assert given is not None
            return search, given
    raise AssertionError("no such case")


def leaf(tree: dict[str, Any], name: str) -> dict[str, Any]:
    """The first leaf of this kind."""
    waiting = [tree]
    while waiting:
        node = waiting.pop()
        if name in node:
            return node
        waiting += [node[part] for part in ("fewer", "more") if part in node]
    raise AssertionError("no such leaf")


def cheaper(tree: dict[str, Any]) -> None:
    node = leaf(tree, "worth")
    node["worth"] = [worth / 2 for worth in node["worth"]]


def dearer(tree: dict[str, Any]) -> None:
    node = leaf(tree, "worth")
    node["worth"] = [worth * 2 for worth in node["worth"]]


def unforced(tree: dict[str, Any]) -> None:
    leaf(tree, "packed")["packed"].pop()


def elsewhere(tree: dict[str, Any]) -> None:
    packed = dict(leaf(tree, "packed"))
    tree.clear()
    tree.update(packed)


def grafted(tree: dict[str, Any]) -> None:
    tree["fewer"], tree["more"] = tree["more"], tree["fewer"]


@pytest.mark.parametrize("change", [cheaper, dearer, unforced, elsewhere, grafted])
def test_a_false_tree_is_found(change: Change) -> None:
    search, given = proven_case()
    floor = search.objective.floor(search.problem)
    assert floor is not None
    false = copy.deepcopy(given)
    change(false["branches"]["tree"])
    try:
        assert not verify(search.problem, search.oracle, floor, false).proven
    except BadInputError as error:  # rents of other limits than there are
        assert "certificate: branches" in str(error)
    more = copy.deepcopy(given)
    more["branches"]["most"] += 1.0
    assert not verify(search.problem, search.oracle, floor, more).proven


@pytest.mark.parametrize(
    "broken",
    [
        {"most": 1.0, "tree": None},
        {"most": "much", "tree": {}},
        {"most": float("inf"), "tree": {}},
        {"most": 1.0, "tree": 3},
        {"tree": {}},
        {"tree": {"worth": [1.0], "rents": []}},
        {"tree": {"packed": [3]}},
        {"tree": {"least": [0], "most": [0, 1], "gpus": 1, "fewer": {}, "more": {}}},
    ],
)
def test_what_is_no_tree_is_refused_in_a_line(broken: dict[str, Any]) -> None:
    search, given = proven_case()
    floor = search.objective.floor(search.problem)
    assert floor is not None
    with pytest.raises(BadInputError, match="certificate: branches: ") as caught:
        verify(
            search.problem, search.oracle, floor, {**given, "branches": {"most": given["branches"]["most"], **broken}}
        )
    assert "\n" not in str(caught.value)


def test_it_goes_on_where_it_was_left() -> None:
    knapsacks, counts = random_case(13)
    search, nodes = search_of(knapsacks, counts), 0
    branching, _, _ = branched(search, 6, nodes=1)
    while not branching.ended:
        branching.run(1)
        nodes += 1
    assert nodes > 10
    assert branching.tree == branched(search, 6)[0].tree


def test_nothing_is_lost_where_time_is_up(monkeypatch: pytest.MonkeyPatch) -> None:
    knapsacks, counts = random_case(13)
    search, calls = search_of(knapsacks, counts), 0
    branching, bound, _ = branched(search, 6, nodes=1)
    solve = Mixture.solve

    def stopped(self: Mixture, *given: Any) -> Mixed:
        nonlocal calls
        calls += 1
        if calls % 4 == 0:
            raise SearchStoppedError("the time limit was reached")
        return solve(self, *given)

    monkeypatch.setattr(Mixture, "solve", stopped)
    while not branching.ended:
        with contextlib.suppress(SearchStoppedError):
            branching.run(100)
    assert calls > 20
    assert checked(search, bound, branching).proven


def test_column_generation_branches_where_prices_leave_a_gap() -> None:
    knapsacks, counts = random_case(13)
    search = search_of(knapsacks, counts)
    solution = ColumnGeneration(ColumnGenerationParams(enumerate=0)).solve(search)
    floor = search.objective.floor(search.problem)
    assert solution.status == "optimal"
    assert len(solution.loads) == least_gpus(knapsacks, counts)
    assert solution.certificate is not None
    assert solution.certificate["branches"] is not None
    assert floor is not None
    assert verify(search.problem, search.oracle, floor, solution.certificate).proven
