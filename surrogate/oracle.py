"""The surrogate as an oracle: what the twin would say of GPU loads, in microseconds, with a risk that is calibrated."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from itertools import chain
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from loraplan.bin_types import BinTypes
from loraplan.errors import BadInputError
from loraplan.oracle import Oracle, Predictions
from loraplan.problem import GPULoad, Problem
from loraplan.workload import Floats, Ints
from surrogate import features, kernel
from surrogate.bin_types import SurrogateBinTypes
from surrogate.calibration import Calibration
from surrogate.model import SHIPPED, Model, aligned

FEW_SLOTS = 8
"""Loads with fewer slots, and one for each adapter, are judged as if they had up to so many, too."""

Server = tuple[int, int, int]
"""GPU type, slots, max rank."""


@dataclass(frozen=True)
class SurrogateParams:
    """Settings of the surrogate oracle.

    Attributes:
        model: folder of a model that `loraplan train` made; the one that comes with loraplan if not given.
        risk: of the loads accepted, at most this part starves in the twin.
        cv: coefficient of variation of the gaps between an adapter's requests; 1 is Poisson.
    """

    model: str | None = None
    risk: float = 0.01
    cv: float = 1.0

    def __post_init__(self) -> None:
        """Check the settings."""
        if not 0 < self.risk < 1:
            raise BadInputError(f"oracle 'surrogate': risk must be above 0 and below 1 (got {self.risk})")
        if not 0 < self.cv <= 20:
            raise BadInputError(f"oracle 'surrogate': cv must be above 0 and at most 20 (got {self.cv})")


class SurrogateOracle(Oracle):
    """Predictions distilled from the twin; hereditary: taking an adapter away never makes a load infeasible.

    The served fraction is what a load reaches with probability 1 - risk; all other figures are medians.
    """

    Params: ClassVar[type[Any]] = SurrogateParams
    hereditary = True

    def __init__(self, problem: Problem, params: SurrogateParams, model: Model | None = None) -> None:
        """Read the model, unless it is given, and embed the adapters of ``problem``, once for each GPU type.

        Raises:
            BadInputError: the model cannot be read.
        """
        self._problem = problem
        self._cv = params.cv
        self.model = model or load_model(params.model)
        self._served_at = _served_at(self.model.calibration, params.risk, problem.constraints.served_fraction)
        self._tables, self._adapters = _tables(problem)
        self._places: dict[Server, int] = {}
        self._servers = self.model.servers(np.zeros((0, len(kernel.SERVER_TERMS))), np.zeros((0, features.CONTEXT)))

    def predict(self, loads: Sequence[GPULoad]) -> Predictions:
        """Judge every load; TTFT is inf where too little is served for it to settle."""
        sizes = np.fromiter((len(load.adapters) for load in loads), np.int64, len(loads))
        members = np.fromiter(chain.from_iterable(load.adapters for load in loads), np.int64, int(sizes.sum()))
        gpu_type = np.fromiter((load.gpu_type for load in loads), np.int64, len(loads))
        slots = np.fromiter((load.slots for load in loads), np.int64, len(loads))
        return self.predict_arrays(members, np.cumsum(sizes), gpu_type, slots)

    def predict_arrays(self, members: Ints, ends: Ints, gpu_type: Ints, slots: Ints) -> Predictions:
        """Judge n loads given as arrays: many at once, without objects.

        Args:
            members: adapters of load after load.
            ends: shape (n,), where in ``members`` each load ends.
            gpu_type, slots: shape (n,).
        """
        sums = np.empty((ends.size, kernel.EMBEDDING))
        totals = np.empty(ends.size, dtype=kernel.ADAPTER)
        kernel.add_up(self._tables, self._adapters, gpu_type, members, ends, sums, totals)
        server_of = self._servers_of(gpu_type, slots, totals["rank"])
        starts = server_of >= 0
        serves = starts & (totals["offered"] > 0)
        judged = self.model.judge(sums[serves], self._servers, server_of[serves])
        score = np.zeros(ends.size)
        score[serves] = judged.score
        self._with_slots_to_spare(score, sums, serves & (np.diff(ends, prepend=0) <= slots), gpu_type, slots, totals)
        served = np.where(starts, 1.0, 0.0)
        served[serves] = self._served(score[serves]) * totals["accepted"][serves]

        def figure(target: str, otherwise: float) -> Floats:
            values = np.full(ends.size, otherwise)
            values[serves] = judged.median(target)
            return values

        return Predictions(
            starts=starts,
            served_fraction=served,
            throughput_tok_s=figure("served_fraction", 0.0) * totals["accepted"] * totals["offered"],
            itl_ms=figure("itl_ms", np.nan),
            ttft_s=figure("ttft_s", np.nan),
            kv_utilisation=figure("kv_utilisation", 0.0),
        )

    def _with_slots_to_spare(
        self,
        score: Floats,
        sums: Floats,
        spare: NDArray[np.bool_],
        gpu_type: Ints,
        slots: Ints,
        totals: NDArray[np.void],
    ) -> None:
        """Lower the scores of loads that have a slot for every adapter to those with more slots, up to ``FEW_SLOTS``.

        More slots than adapters only cost memory and time: what fits with them fits without. So a load on few slots,
        of which the training has seen little, is judged by what it has seen more of, too.
        """
        for more in range(2, FEW_SLOTS + 1):
            rows = np.flatnonzero(spare & (slots < more))
            if not rows.size:
                continue
            server_of = self._servers_of(gpu_type[rows], np.full(rows.size, more), totals["rank"][rows])
            rows, server_of = rows[server_of >= 0], server_of[server_of >= 0]
            if rows.size:
                judged = self.model.judge(sums[rows], self._servers, server_of)
                score[rows] = np.minimum(score[rows], judged.score)

    def _served(self, score: Floats) -> Floats:
        """The served fraction that loads of these scores reach at the risk asked for, shape (n,)."""
        scores, fractions = self._served_at
        beyond = np.maximum(score - scores[-1], 0.0)  # of what is known; such loads are hopeless anyway
        return np.asarray(np.interp(score, scores, fractions) * np.exp(-beyond / features.USUAL_SHARPNESS))

    def bin_types(self, group_of: Ints | None = None) -> BinTypes:
        """One for every server, way to serve and pace, in ranges as fine as they are asked for."""
        group_of = np.arange(len(self._problem.adapters)) if group_of is None else group_of
        score = self._largest_score(self._problem.constraints.served_fraction)
        return SurrogateBinTypes(self._problem, self.model, self._cv, score, self._tables, group_of, FEW_SLOTS)

    def _largest_score(self, limit: float) -> float | None:
        """The score up to which loads reach the limit at the risk asked for; None if none do."""
        low, high = -1e3, float(self._served_at[0][-1]) + 1e3
        if self._served(np.array([low]))[0] < limit:
            return None
        while high - low > 1e-9:
            middle = 0.5 * (low + high)
            low, high = (middle, high) if self._served(np.array([middle]))[0] >= limit else (low, middle)
        return high

    def outside(self, load: GPULoad) -> tuple[str, ...]:
        """What of a load is out of the range of the model's training; empty if nothing is."""
        members, one = np.array(load.adapters, dtype=np.int64), np.array([load.gpu_type])
        sums, totals = np.empty((1, kernel.EMBEDDING)), np.empty(1, dtype=kernel.ADAPTER)
        kernel.add_up(self._tables, self._adapters, one, members, np.array([members.size]), sums, totals)
        place = self._servers_of(one, np.array([load.slots]), totals["rank"])[0]
        if place < 0 or totals["offered"][0] == 0:
            return ()
        inputs = np.empty((1, kernel.HEAD_INPUTS))
        kernel.all_head_inputs(sums, self._servers.terms[[place]], inputs)
        context = features.context(self._problem.profile(load), load.slots, self._cv)[None]
        beyond = self.model.outside(inputs, context)[0]
        return tuple(name for name, out in zip(features.INPUT_NAMES, beyond, strict=True) if out)

    def _servers_of(self, gpu_type: Ints, slots: Ints, rank: Ints) -> Ints:
        """Each load's place among the prepared servers, shape (n,); -1 where the server does not start."""
        asked = np.column_stack((gpu_type, slots, rank))
        kinds, kind_of = np.unique(asked, axis=0, return_inverse=True) if len(asked) != 1 else (asked, np.zeros(1, int))
        return np.array([self._place(*map(int, kind)) for kind in kinds], dtype=np.int64)[kind_of.reshape(-1)]

    def _place(self, gpu_type: int, slots: int, rank: int) -> int:
        """The place of one server, prepared when it is first asked for."""
        key = (gpu_type, slots, rank)
        if key not in self._places:
            profile = self._problem.fleet.types[gpu_type].profile
            self._places[key] = -1
            if rank <= max(profile.limits.lora_ranks) and profile.starts(slots, profile.server_rank(rank)):
                terms = features.server(profile, slots, profile.server_rank(rank))
                new = self.model.servers(terms[None], features.context(profile, slots, self._cv)[None])
                self._places[key] = len(self._servers.terms)
                self._servers = self._servers.extended(new)
        return self._places[key]


@cache
def load_model(folder: str | None) -> Model:
    """The model in ``folder``, or the one that comes with loraplan; read once.

    Raises:
        BadInputError: it cannot be read.
    """
    return Model.load(SHIPPED if folder is None else Path(folder))


@cache
def _served_at(calibration: Calibration, risk: float, limit: float) -> tuple[Floats, Floats]:
    """As the calibration has it, found once: whoever looks for headroom makes oracles by the hundred."""
    return calibration.served_at(risk, limit)


def _tables(problem: Problem) -> tuple[NDArray[np.int64], NDArray[np.void]]:
    """Embeddings, shape (types, adapters, EMBEDDING), and ``kernel.ADAPTER`` records, (types, adapters)."""
    types, n = problem.fleet.types, len(problem.adapters)
    traffic = np.zeros(n, dtype=kernel.TRAFFIC)
    traffic["rate"] = problem.rates
    laws = {id(adapter.lengths): adapter.lengths for adapter in problem.adapters}
    means = {key: features.length_means(law) for key, law in laws.items()}
    for name in kernel.LAW:
        traffic[name] = [means[id(adapter.lengths)][name] for adapter in problem.adapters]
    tables = aligned(np.zeros((len(types), n, kernel.EMBEDDING), dtype=np.int64))
    adapters = np.zeros((len(types), n), dtype=kernel.ADAPTER)
    adapters["rank"], adapters["offered"] = problem.ranks, problem.offered
    for place, gpu_type in enumerate(types):
        kernel.fixed_embeddings(traffic, 1e-3 * gpu_type.profile.step_ms.base, tables[place])
        longest = gpu_type.profile.limits.max_model_len
        part = {key: law.accepted(longest) for key, law in laws.items()}
        adapters["accepted"][place] = [part[id(a.lengths)] if a.rate > 0 else 1.0 for a in problem.adapters]
    return tables, adapters
