"""How what a model says of loads agrees with what the twin, or a server, made of them."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from itertools import pairwise
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from loraplan.errors import BadInputError
from loraplan.profiles import load_profile
from loraplan.workload import Floats, Ints
from surrogate.calibration import Calibration
from surrogate.examples import TARGETS
from surrogate.model import Judged
from twin.agreement import STARVED_BELOW, Errors, errors, labels, mean
from twin.fidelity import Scores

FIGURES = {
    "throughput": "throughput_tok_s",
    "itl": "itl_ms",
    "ttft": "ttft_s",
    "kv": "kv_utilisation",
}
"""The figures compared, and the columns of a dataset that hold what was seen."""

RANDOM = "random profiles"
"""The group of all loads on varied profiles."""

SERVED_BANDS = (0.0, 0.5, 0.8, 0.88, 0.92, 0.98, math.inf)
"""Served fraction: its distance from the limit, 0.9."""
SHARE_BANDS = (0.0, 0.5, 0.8, 0.95, 1.05, 1.25, math.inf)
"""Share of what the server can carry that the load takes, as the surrogate says."""
SLOTS_BANDS = ("adapters <= slots", "adapters <= 4 x slots", "more adapters")

Mask = NDArray[np.bool_]


@dataclass(frozen=True, eq=False)
class Seen:
    """What was seen of n loads, by the twin or on a server.

    Attributes:
        group: shape (n,), names of the profiles, or ``RANDOM``.
        slots, adapters: shape (n,).
        served: shape (n,), served fractions.
        figures: by the names of ``FIGURES``, each of shape (n,); nan where there is none.
    """

    group: NDArray[np.str_]
    slots: Ints
    adapters: Ints
    served: Floats
    figures: Mapping[str, Floats]

    @property
    def starved(self) -> Mask:
        """Shape (n,)."""
        return np.asarray(self.served < STARVED_BELOW)

    def select(self, which: Mask) -> Seen:
        """Those loads."""
        figures = {name: values[which] for name, values in self.figures.items()}
        return Seen(self.group[which], self.slots[which], self.adapters[which], self.served[which], figures)


@dataclass(frozen=True, eq=False)
class Said:
    """What a model says of n loads: some of ``FIGURES``, and whether they starve, all of shape (n,)."""

    figures: Mapping[str, Floats]
    starved: Mask

    def select(self, which: Mask) -> Said:
        """Those loads."""
        return Said({name: values[which] for name, values in self.figures.items()}, self.starved[which])


@dataclass(frozen=True)
class Acceptance:
    """What is accepted at a risk.

    Attributes:
        risk: asked for: of the accepted loads at most this share starves.
        threshold: on the score; nan if nothing is accepted.
        accepted: loads.
        starved_of_accepted: percent; nan if none is accepted.
        carried: loads that do not starve.
        accepted_of_carried: percent of them; nan if there are none.
    """

    risk: float
    threshold: float
    accepted: int
    starved_of_accepted: float
    carried: int
    accepted_of_carried: float


@dataclass(frozen=True)
class Coverage:
    """Where figures lie beside their 5 % and 95 % quantiles: percent of ``n`` (should be 5, 90 and 5)."""

    below: float
    within: float
    above: float
    n: int


@dataclass(frozen=True)
class Bin:
    """Loads of which similar probabilities are said that they starve.

    Attributes:
        said: mean of the probabilities, percent.
        seen: share of these loads that starve, percent.
        n: loads.
    """

    said: float
    seen: float
    n: int


def seen_in(table: pa.Table) -> Seen:
    """What a dataset's rows saw."""
    return Seen(
        group=groups_of(table),
        slots=table["slots"].to_numpy().astype(np.int64),
        adapters=adapters_of(table),
        served=table["served_fraction"].to_numpy(),
        figures={name: table[column].to_numpy() for name, column in FIGURES.items()},
    )


def said_by(judged: Judged, offered_tok_s: Floats) -> Said:
    """What the surrogate says: medians of the figures, and that loads of a score above 0 starve."""
    return Said(
        figures={
            "throughput": offered_tok_s * judged.median("served_fraction"),
            "itl": judged.median("itl_ms"),
            "ttft": judged.median("ttft_s"),
            "kv": judged.median("kv_utilisation"),
        },
        starved=np.asarray(judged.score > 0.0),
    )


def adapters_of(table: pa.Table) -> Ints:
    """Number of adapters of each row, shape (n,)."""
    counts = [np.diff(np.asarray(batch["rates"].offsets)) for batch in table.to_batches()]
    return np.concatenate(counts).astype(np.int64) if counts else np.zeros(0, dtype=np.int64)


def groups_of(table: pa.Table) -> NDArray[np.str_]:
    """The named profile that each row's server is, shape (n,); ``RANDOM`` where it is none as it stands."""
    names = [
        base if _same(base, profile) else RANDOM
        for base, profile in zip(table["base"].to_pylist(), table["profile"].to_pylist(), strict=True)
    ]
    return np.array(names, dtype=np.str_)


def _same(base: str, profile: str) -> bool:
    """Whether a profile is the named one, but for the frontend, which no dataset simulates."""
    named = _named(base)
    return named is not None and {**json.loads(profile), "frontend": None} == named


@cache
def _named(base: str) -> dict[str, Any] | None:
    try:
        return {**load_profile(base).model_dump(mode="json"), "frontend": None}
    except BadInputError:  # a file of another machine
        return None


def by_group(seen: Seen) -> dict[str, Mask]:
    """Which loads are on each profile, on random ones, and all; each of shape (n,)."""
    names = sorted(set(seen.group.tolist()), key=lambda name: (name == RANDOM, name))
    masks = {str(name): seen.group == name for name in names}
    return masks | {"all": np.ones(seen.group.size, dtype=np.bool_)}


def by_region(seen: Seen, share: Floats) -> Iterator[tuple[str, Mask]]:
    """Regions that have loads, with a name: by served fraction, by ``share`` of the capacity, by slots."""
    for what, values, edges in (("served", seen.served, SERVED_BANDS), ("share", share, SHARE_BANDS)):
        for low, high in pairwise(edges):
            name = f"{what} {low:g} to {high:g}"
            if low == 0.0 or high == math.inf:
                name = f"{what} below {high:g}" if low == 0.0 else f"{what} {low:g} and more"
            yield from _if_any(name, (values >= low) & (values < high))
    resident, several = seen.adapters <= seen.slots, seen.adapters <= 4 * seen.slots
    for name, mask in zip(SLOTS_BANDS, (resident, several & ~resident, ~several), strict=True):
        yield from _if_any(name, mask)


def _if_any(name: str, mask: Mask) -> Iterator[tuple[str, Mask]]:
    if mask.any():
        yield name, mask


def scores(said: Said, seen: Seen) -> Scores:
    """Errors of the figures that the model says, and labels."""

    def of(mask: Mask) -> dict[str, Errors]:
        return {name: errors(values[mask], seen.figures[name][mask]) for name, values in said.figures.items()}

    return Scores(
        all=of(np.ones_like(seen.starved)),
        starved=of(seen.starved),
        not_starved=of(~seen.starved),
        starvation=labels(said.starved, seen.starved, seen.served),
    )


def acceptance(calibration: Calibration, score: Floats, starved: Mask, risk: float) -> Acceptance:
    """What a calibration accepts of loads of these scores at ``risk``, and how much of that starves; shapes (n,)."""
    threshold = calibration.threshold(STARVED_BELOW, risk)
    accepted = score <= threshold
    return Acceptance(
        risk=risk,
        threshold=threshold if math.isfinite(threshold) else math.nan,
        accepted=int(accepted.sum()),
        starved_of_accepted=100.0 * mean(starved[accepted]),
        carried=int((~starved).sum()),
        accepted_of_carried=100.0 * mean(accepted[~starved]),
    )


def coverage(judged: Judged, seen: Seen, which: Mask) -> dict[str, Coverage]:
    """By target: where what was seen lies beside the 5 % and the 95 % quantile, over the loads ``which``."""
    true = {
        "served_fraction": seen.served,
        "itl_ms": seen.figures["itl"],
        "ttft_s": seen.figures["ttft"],
        "kv_utilisation": seen.figures["kv"],
    }
    found = {}
    for place, target in enumerate(TARGETS):
        known = which & np.isfinite(true[target])
        low, high = judged.figures[known, 0, place], judged.figures[known, -1, place]
        below, above = true[target][known] < low, true[target][known] > high
        found[target] = Coverage(
            below=100.0 * mean(below), within=100.0 * mean(~below & ~above), above=100.0 * mean(above), n=below.size
        )
    return found


def reliability(score: Floats, starved: Mask, bins: int = 20) -> tuple[Bin, ...]:
    """Whether as many loads starve as the score says; shapes (n,).

    The score is the logit of the probability: bins are equally wide in the probability, and without empty ones.
    """
    said = 1.0 / (1.0 + np.exp(-np.clip(score, -50.0, 50.0)))
    place = np.minimum((said * bins).astype(np.int64), bins - 1)
    return tuple(
        Bin(100.0 * mean(said[place == one]), 100.0 * mean(starved[place == one]), int((place == one).sum()))
        for one in np.unique(place)
    )
