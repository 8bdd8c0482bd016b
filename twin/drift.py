"""Whether a server keeps up: how fast the work it has not done grows, and where that work is."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np

from loraplan.workload import Floats

Verdict = Literal["steady", "filling", "starved"]

LIMIT = 0.05
"""A server that falls behind by no more than this share of what arrives counts as steady."""

NOISE = 3.0
"""Standard deviations of chance that a waiting line must outgrow before the server is called starved."""


@dataclass(frozen=True)
class Drift:
    """How much of what arrives in the second half of a run is left over; shares of the tokens that arrive in it.

    Attributes:
        work: the trend of the work outstanding (tokens of the requests that have arrived and are not answered).
        waiting: the part of ``work`` in requests that have no token yet.
        noise: the standard deviation of such a trend if arrivals were Poisson, by chance alone.
        verdict: ``steady`` if ``work`` is at most 5 %; else ``starved`` if what grows is the waiting line
            (``waiting`` above 5 % and above three times ``noise``): the server serves less than arrives; else
            ``filling``: the run is too short to tell, or the server still fills up with running requests.
    """

    work: float
    waiting: float
    noise: float
    verdict: Verdict


def measure_drift(
    arrival_s: Floats, first_token_s: Floats, finish_s: Floats, tokens: Floats, horizon_s: float
) -> Drift:
    """The drift of a run; arrays of shape (requests,), times nan if not within the horizon.

    A trend is the slope of the least-squares line through the course of the work outstanding over the second half. For
    what jumps by w at the times u, that slope is a sum over the jumps, 6/L^3 * sum(w * (L^2/4 - (u - middle)^2)), with L
    the length of the half: no grid is needed, and a jump at either end hardly counts.
    """
    arrived = arrival_s[arrival_s > 0.5 * horizon_s], tokens[arrival_s > 0.5 * horizon_s]
    offered = float(arrived[1].sum())
    if offered == 0:
        return Drift(0.0, 0.0, 0.0, "steady")

    def trend(times: Floats) -> float:
        """The slope that is due to jumps by ``tokens`` at ``times``, as a share of what arrives."""
        from_middle = times / horizon_s - 0.75
        inside = np.abs(from_middle) < 0.25
        return float(6 * (tokens[inside] * (0.25 - 4 * from_middle[inside] ** 2)).sum()) / offered

    work = trend(arrival_s) - trend(finish_s)
    waiting = trend(arrival_s) - trend(first_token_s)
    noise = float(np.sqrt(1.2 * (arrived[1] ** 2).sum())) / offered
    verdict: Verdict = "filling"
    if work <= LIMIT:
        verdict = "steady"
    elif waiting > max(LIMIT, NOISE * noise):
        verdict = "starved"
    return Drift(work, waiting, noise, verdict)
