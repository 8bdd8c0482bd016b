"""Column generation: GPUs chosen among loads that are made as needed, with a bound on what any plan costs."""

from __future__ import annotations

import math
import time
from collections.abc import Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import numpy as np

from loraplan.bin_types import BinType
from loraplan.errors import BadInputError
from loraplan.problem import GPULoad
from loraplan.workload import Floats
from solvers.base import Search, SearchStoppedError, Solution, Solver
from solvers.best_fit import BestFit, BestFitParams
from solvers.bounds import EQUAL, MARGIN, Bound
from solvers.branching import Branching
from solvers.classes import Items, make_items
from solvers.construction import with_room
from solvers.diving import Dive
from solvers.enumeration import Choose, choice_of_patterns, conclude_choice, enumerate_loads
from solvers.filling import whole_adapters, whole_gpus
from solvers.integer import choose
from solvers.large import solve_large, suits
from solvers.local_search import LocalSearch, LocalSearchParams
from solvers.master import Master, Pattern, Prices
from solvers.pricing import Pricing
from solvers.rounding import MANY, complete, realise, total_cost
from solvers.spread import Spread

SMOOTH, COLUMNS, WHOLE_EVERY, LOOKS = 0.6, 6, 25, 1000
"""How far prices are drawn to those of the best bound; loads of one pricing; rounds between searches of a plan."""
SMOOTH_SPREAD, AS_ASKED, NEAR, TIGHTER = 0.5, 3, 0.1, 0.005
"""The same for adapters in parts; one of so many pricings is at the prices themselves; the part of what is left to the
next cost that a plan can have down to which the best is to be known; how much limits on parts raise a bound at most.
All by trial on problems of 768 and 1,280 adapters."""
TURNS, NODES = 4, 50
"""Dives turn off up to 0, 1, 2, ... times, less often than this, and begin anew; so many nodes are in between."""


@dataclass(frozen=True)
class ColumnGenerationParams:
    """Settings of column generation.

    Attributes:
        patience: rounds of pricing after which the search ends, whatever the gap.
        whole_s: seconds for each search of the best plan from the loads known.
        dives: plans made by diving at most, where the gap is still open; and in turn with branch and bound.
        enumerate: up to so many loads all are columns, and the choice among them is exact for any oracle and objective.
        local: patience of the local search that begins where costs differ from load to load.
    """

    patience: int = 400
    whole_s: float = 5.0
    dives: int = 100
    enumerate: int = 20_000
    local: int = 24

    def __post_init__(self) -> None:
        """Check the settings."""
        for name in ("patience", "local"):
            if getattr(self, name) < 1:
                raise BadInputError(f"column_generation: {name} must be at least 1 (got {getattr(self, name)})")
        if not self.whole_s > 0:
            raise BadInputError(f"column_generation: whole_s must be above 0 (got {self.whole_s})")


class ColumnGeneration(Solver):
    """A master problem chooses among loads, pricing finds those it lacks, and proves that it lacks none.

    Exact for oracles with bin types and objectives with a floor; for others it is a local search without a bound.
    """

    Params: ClassVar[type[Any]] = ColumnGenerationParams

    def __init__(self, params: ColumnGenerationParams) -> None:
        """Take the settings."""
        self._params = params

    def solve(self, search: Search) -> Solution:
        """Search until bound and value meet, or patience or time is at its end."""
        search.check()
        floor = search.objective.floor(search.problem)
        if floor is not None and len(search.problem.adapters) > MANY and suits(search, floor):
            return solve_large(search, floor)
        listed = enumerate_loads(search, self._params.enumerate)
        if listed is not None:
            return conclude_choice(search, listed, choose(search, listed), "column_generation")
        if floor is None or search.oracle.bin_types(np.zeros(len(search.problem.adapters), dtype=np.int64)) is None:
            return LocalSearch(LocalSearchParams()).solve(search)
        return Generation(search, self._params).solve()


class Generation:
    """One search.

    Attributes:
        bound, best, value: what is proven, the best plan and what it costs.
        pricing: has the bin types, finer where it mattered.
        whole: whether adapters may be placed one by one.
        parts: whether parts of adapters may tell something, and have not yet.
    """

    def __init__(self, search: Search, params: ColumnGenerationParams, choose: Choose | None = None) -> None:
        """Prepare; ``choose`` makes whole choices among the loads found, or HiGHS does where it is not given."""
        self.search, self.params, self.choose, problem = search, params, choose, search.problem
        search.check()
        floor = search.objective.floor(problem)
        self.items: Items = make_items(problem)
        union = search.oracle.bin_types(self.items.group_of)
        assert floor is not None  # noqa: S101
        assert union is not None  # noqa: S101
        self.floor = floor
        per_ms = np.array([floor.per_ms[list(mine)].min() for mine in self.items.members])
        self.pricing = Pricing(search, union, self.items, floor.of_type, per_ms)
        self.bound = Bound(problem, self.items, floor)
        self.best: tuple[GPULoad, ...] = ()
        self.value = math.inf
        self.whole = not any(len(unit) > 1 for unit in problem.units)
        self.parts = self.whole and floor.exact and union.exact
        self.dearest = 10.0 * max(float(floor.of_type.max()), 1e3 * float(floor.per_ms.max()))
        coarse = self.items.coarse.shape[0] < self.items.basis.shape[0]
        self.master = Master(
            problem, replace(self.items, basis=self.items.coarse) if coarse else self.items, self.dearest
        )
        self.branching: Branching | None = None
        self.reason = ""

    def solve(self) -> Solution:
        """First a plan, then proofs and better ones in turn."""
        try:
            first = self._begin()
            if first is not None:
                return first
            self._search()
        except (SearchStoppedError, KeyboardInterrupt):
            if not self.best:
                raise
        return self._conclude()

    def resume(self, best: Sequence[GPULoad]) -> None:
        """Go on where ``solve`` ended for want of time, with the best plan that is known by now."""
        if best:
            self._offer(list(best))
        with suppress(SearchStoppedError):
            self._search()

    def _search(self) -> None:
        """Proofs and plans: by adapters in parts, then by loads, with few prices first."""
        if self.parts:
            self._fill(self._spread())
            self.parts = False
        if not self._closed():
            self._generate()
        if not self._closed() and self.master.items is not self.items:
            self._refine()
            self._generate()
        self._dive_and_branch()

    def _begin(self) -> Solution | None:
        """A plan by best-fit, whose loads are the first patterns; a solution if that is all there is to say."""
        search = self.search
        if len(search.problem.adapters) <= MANY:
            first = BestFit(BestFitParams()).solve(search)
            if first.status == "infeasible":
                return first
            self.reason = first.reason
            loads: Sequence[GPULoad] = first.loads
            if first.status == "feasible":
                self._offer(list(loads))
        else:
            loads = complete(search, [], range(len(search.problem.adapters))) or []
            if loads:
                self._offer(list(loads))
        if not self.floor.exact and self.best:
            self._improve()
            loads = self.best
        if loads:
            _, predicted = search.judge(loads)
            costs = search.costs(loads, predicted)
            for load, cost in zip(loads, costs, strict=True):
                groups = self.items.group_of[list(load.adapters)]
                counts = np.bincount(groups, minlength=self.items.counts.size).astype(np.float64)
                self.master.add(Pattern(load, counts, float(cost)))
        return None

    def _improve(self) -> None:
        """Local search from the best plan known."""
        search = self.search
        before, search.start = search.start, self.best
        try:
            better = LocalSearch(LocalSearchParams(self.params.local)).solve(search)
        finally:
            search.start = before
            search.publish(self.best, self.value)
        if better.status == "feasible":
            self._offer(list(better.loads))

    def _refine(self) -> None:
        """All prices, after a few: those found so far are near the best, which a few loads alone would not tell."""
        coarse, self.master = self.master, Master(self.search.problem, self.items, self.dearest)
        for pattern in coarse.patterns:
            self.master.add(pattern)

    def _generate(self) -> None:
        """Pricing in rounds; whole plans from time to time, and where pricing finds nothing more."""
        smooth, stuck, since = 0.0, 0, 0
        for _ in range(self.params.patience):
            prices = self.master.solve()
            known = self.pricing.again(prices.items, self.bound.limits(prices, self.value), 3 * COLUMNS)
            if sum(self.master.add(pattern) for pattern in known):
                continue
            asked = self.bound.smoothed(prices, smooth)
            priced = self.pricing.price(asked.items, self.bound.limits(asked, self.value), COLUMNS, LOOKS)
            if not prices.missing > 1e-6 or (priced.done and not priced.patterns):
                self.bound.priced(asked, priced.upper)
            if self._closed() or self._proven(prices):
                return
            fresh = [self._gains(pattern, prices) for pattern in priced.patterns if self.master.add(pattern)]
            since += 1
            if not fresh and not priced.done:
                continue
            if since >= WHOLE_EVERY or not (fresh or smooth):
                self._whole(prices)
                since = 0
                if self._closed():
                    return
            stuck = stuck + 1 if not (fresh or smooth) else 0
            if stuck > 1:
                return
            smooth = SMOOTH if any(fresh) else 0.0

    def _spread(self) -> Spread:
        """A bound by adapters in parts, with a price for each; what proves it."""
        spread, pricing, bound = Spread(self.search, self.items.counts, self.dearest), self.pricing, self.bound
        self._widen(spread, [self.master.patterns[k] for k in np.flatnonzero(self.master.solve().used > EQUAL)])
        for turn in range(self.params.patience):
            prices = spread.solve()
            asked = bound.smoothed(prices, 0.0 if turn % AS_ASKED == AS_ASKED - 1 else SMOOTH_SPREAD)
            priced = pricing.price(asked.items, bound.limits(asked, self.value), COLUMNS, LOOKS)
            if not prices.missing > 1e-6:
                bound.priced(asked, priced.upper)
            if self._closed() or self._enough(prices):
                break
            lacks = bound.step_below(self.value) - prices.value
            news = spread.tighten() if 0.0 < lacks < TIGHTER * prices.value else 0
            news += self._widen(spread, priced.patterns)
            if not news and asked is prices and priced.done:
                break
        return spread

    def _widen(self, spread: Spread, patterns: Sequence[Pattern]) -> int:
        """Add the bin types of patterns that are new; how many."""
        found = 0
        for pattern in patterns:
            one = self.pricing.finest(pattern)
            if one is not None:
                per_ms = one.floor_ms * self.pricing.per_ms
                found += spread.add(one, self.pricing.rows_of(one), float(self.floor.of_type[one.gpu_type]), per_ms)
        return found

    def _enough(self, prices: Prices) -> bool:
        """Whether no more will be proven, and to know what is possible more exactly would tell little."""
        room = self.bound.rounded() - self.bound.value
        return bool(not prices.missing > 1e-6 and prices.value < self.bound.value + NEAR * room)

    def _fill(self, spread: Spread) -> None:
        """A plan on GPUs of the bin types of a spread, as long as one that costs less could be among them."""
        if self._closed():
            return
        times = whole_gpus(spread, self.bound.step_below(self.value) * (1 + EQUAL))
        if times is None or not any(times):
            return
        gpus = [one for one, often in zip(spread.bins, times, strict=True) for _ in range(often)]
        rows = [self.pricing.rows_of(one) for one in gpus]
        worth = self.bound.worth if self.bound.worth is not None else np.ones(self.items.counts.size)
        for careful in (False, True):
            filled = None if self._closed() else whole_adapters(self.search, rows, self.items.counts, worth, careful)
            if filled is None:
                return
            self._fit(gpus, filled)

    def _branch(self) -> None:
        """A plan that costs less, or the proof of none, by branching on the bin types of GPUs; a part of it."""
        if self._closed() or not self.best or not self.pricing.union.exact:
            return
        most = self.bound.step_below(self.value)
        most += MARGIN * max(1.0, most)
        if self.branching is None or self.branching.most > most:
            self.branching = Branching(self.search, self.pricing, self.bound, most, self.dearest)
        found = self.branching.run(NODES)
        if self.branching.tree is not None:
            self.bound.exclude(self.branching.base, most, self.branching.tree)
        if found:
            self._fit([one for one, _ in found], [counts for _, counts in found])

    def _fit(self, bins: Sequence[BinType], filled: Sequence[Floats]) -> None:
        """A plan on GPUs of these bin types with so many of each item."""
        patterns = [
            Pattern(GPULoad(one.gpu_type, (), one.slots[0]), counts, 0.0)
            for one, counts in zip(bins, filled, strict=True)
        ]
        loads = realise(self.search, self.items, patterns, np.ones(len(patterns)))
        if loads is not None:
            self._offer(loads)

    def _dive_and_branch(self) -> None:
        """Plans and proofs in turn, as long as one GPU less might do."""
        if not self.whole or not self.floor.exact:
            return
        rng = np.random.default_rng(self.search.seed)
        for turn in range(0, self.params.dives, TURNS):
            self._dive(range(turn, min(turn + TURNS, self.params.dives)), rng)
            self._branch()

    def _dive(self, turns: Iterable[int], rng: np.random.Generator) -> None:
        """Plans by diving, as long as one GPU less might do."""
        for turn in turns:
            if self._closed():
                return
            known = list(self.master.patterns)
            dive = Dive(self.search.problem, self.master.items, self.dearest, known, self.floor.of_type)
            chosen = dive.run(self.pricing, self.value * (1 - EQUAL), rng if turn else None, turn % TURNS)
            if chosen is not None:
                patterns, times = [pattern for pattern, _ in chosen], np.array([often for _, often in chosen])
                loads = realise(self.search, self.items, patterns, times)
                if loads is not None:
                    self._offer(loads)
            for pattern in known[len(self.master.patterns) :]:
                self.master.add(pattern)
            if turn % WHOLE_EVERY == WHOLE_EVERY - 1 and not self._closed():
                self._whole(self.master.solve())

    def _gains(self, pattern: Pattern, prices: Prices) -> bool:
        """Whether the master will use the pattern."""
        t = pattern.load.gpu_type
        return bool(prices.items @ pattern.counts > pattern.cost + prices.types[t] + prices.gpus + 1e-9)

    @property
    def _sharing(self) -> bool:
        """Whether the master has fewer prices than there are items."""
        return bool(self.master.items.basis.shape[0] < self.items.counts.size)

    def _proven(self, prices: Prices) -> bool:
        """Whether no more can be proven by prices as few as these: what the master asks is below the bound, rounded."""
        asked = prices.value if not prices.missing > 1e-6 else math.inf
        return self._sharing and self.floor.exact and bool(asked < self.bound.rounded())

    def _closed(self) -> bool:
        return bool(self.bound.rounded() >= self.value - EQUAL * max(abs(self.value), 1e-12))

    def _whole(self, prices: Prices) -> None:
        """Plans from the patterns known: rounded up, and the best combination that is found in time.

        Not while items have no prices of their own: then many loads would do that leave adapters over.
        """
        if not self.whole or self._sharing:
            return
        seconds = self.params.whole_s
        if self.search.deadline is not None:
            seconds = min(seconds, max(0.0, 0.5 * (self.search.deadline - time.monotonic())))
        patterns = self.master.patterns
        if self.choose is None:
            times = self.master.whole(seconds)
        else:
            times = choice_of_patterns(self.search, self.items, patterns, self.choose, seconds)
        for chosen in (times, np.floor(prices.used + 1e-6), np.round(prices.used)):
            if chosen is not None:
                loads = realise(self.search, self.items, patterns, chosen)
                if loads is not None:
                    self._offer(loads)

    def _offer(self, loads: list[GPULoad]) -> None:
        """Take over a plan if it keeps all limits and costs less."""
        loads = [load for load in loads if load.adapters]
        cost = total_cost(self.search, loads)
        if cost < self.value * (1 - 1e-12):
            self.value, self.best = cost, tuple(loads)
            self.search.publish(self.best, self.value)

    def _conclude(self) -> Solution:
        lower = self.bound.rounded()
        lower_bound = None if not math.isfinite(lower) else max(min(lower, self.value), 0.0)
        if not self.best:
            return Solution(
                "unknown", self.search.incumbent, lower_bound, self.reason, certificate=self.bound.certificate()
            )
        with suppress(SearchStoppedError):
            self.best = with_room(self.search, self.best)
        self.search.publish(self.best, self.value)
        status = "optimal" if self._closed() else "feasible"
        return Solution(status, self.best, lower_bound, certificate=self.bound.certificate())  # type: ignore[arg-type]
