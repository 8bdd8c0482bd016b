"""Whether a server keeps up: how fast the work it has not done grows, and where that work is."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, get_args

import numpy as np

from loraplan.workload import Floats, Requests

Verdict = Literal["steady", "filling", "starved"]
VERDICTS: tuple[Verdict, ...] = get_args(Verdict)

LIMIT = 0.05
"""A server that falls behind by no more than this share of what arrives counts as steady."""

NOISE = 3.0
"""Standard deviations of chance that a waiting line must outgrow before the server is called starved."""


@dataclass(frozen=True)
class Drift:
    """How much of what arrives in the second half of a run is left over: shares of its tokens, 1 if nothing is done.

    Attributes:
        work: the trend of the work outstanding (tokens of the requests that have arrived and are not answered), as a
            share of the trend of all that has arrived.
        waiting: the part of ``work`` in requests that have no token yet.
        noise: the standard deviation of such a trend by chance alone, if arrivals are Poisson.
        verdict: ``steady`` if ``work`` is at most 5 %; else ``starved`` if what grows is the waiting line
            (``waiting`` above 5 % and above three times ``noise``): the server serves less than arrives; else
            ``filling``: the run is too short to tell, or the server still fills up with running requests.
    """

    work: float
    waiting: float
    noise: float
    verdict: Verdict


def measure_drift(asked: Requests, first_token_s: Floats, finish_s: Floats, horizon_s: float) -> Drift:
    """The drift of a run; times in arrays of shape (requests,), nan if not within the horizon.

    A trend is the slope of the least-squares line through what has accumulated, over the second half. For jumps by w at
    times u it is the sum of 6/L^3 * w * (L^2/4 - (u - middle)^2), with L the length of the half: no grid is needed, and
    a jump near either end hardly counts.
    """

    def jumps(times: Floats) -> Floats:
        """Tokens of the requests with ``times`` in the second half, times what their jumps add to a slope."""
        inside = np.flatnonzero((times > 0.5 * horizon_s) & (times < horizon_s))
        from_middle = 4 * times[inside] / horizon_s - 3
        weighted: Floats = (asked.tokens_in[inside] + asked.tokens_out[inside]) * (1 - from_middle**2)
        return weighted

    arrived = jumps(asked.arrival_s)
    offered = float(arrived.sum())
    if offered == 0:
        return Drift(0.0, 0.0, 0.0, "steady")
    work = 1 - float(jumps(finish_s).sum()) / offered
    waiting = 1 - float(jumps(first_token_s).sum()) / offered
    noise = float(np.sqrt((arrived**2).sum())) / offered
    verdict: Verdict = "filling"
    if work <= LIMIT:
        verdict = "steady"
    elif waiting > max(LIMIT, NOISE * noise):
        verdict = "starved"
    return Drift(work, waiting, noise, verdict)
