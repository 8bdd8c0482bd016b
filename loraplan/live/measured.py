"""What answers mean: the figures of vLLM's own benchmark (vllm/benchmarks/serve.py, ``calculate_metrics``)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from loraplan.live.client import Answer


@dataclass(frozen=True)
class Figures:
    """Figures over the finished answers of a run; nan where there are none.

    Attributes:
        sent, completed, failed: requests; the rest was still running at the end.
        offered_tok_s, throughput_tok_s: prompt and answer tokens of what was due, and of what was finished, per second.
        served_fraction: the second of these / the first; 1 if nothing was due.
        ttft_s, ttft_p95_s: time to first token, from when the request was due.
        tpot_ms: mean over requests of (last - first token) / (tokens - 1).
        itl_ms: mean gap between two chunks, over all gaps.
        late_s: 95th percentile of how late the client itself was.
    """

    sent: int
    completed: int
    failed: int
    offered_tok_s: float
    throughput_tok_s: float
    served_fraction: float
    ttft_s: float
    ttft_p95_s: float
    tpot_ms: float
    itl_ms: float
    late_s: float


def figures(answers: Sequence[Answer], seconds: float) -> Figures:
    """The figures of a run of so many seconds; what was finished after them does not count."""
    done = [answer for answer in answers if answer.finished and answer.last_s <= seconds]
    served = sum(answer.tokens_in + answer.tokens_out for answer in done) / seconds
    offered = sum(answer.tokens_in + answer.asked for answer in answers) / seconds
    ttft = [answer.first_s - answer.due_s for answer in done]
    tpot = [(a.last_s - a.first_s) / (a.tokens_out - 1) for a in done if a.tokens_out > 1]
    gaps = [gap for answer in done for gap in answer.gaps_s]
    late = [answer.sent_s - answer.due_s for answer in answers if not np.isnan(answer.sent_s)]
    return Figures(
        sent=len(answers),
        completed=len(done),
        failed=sum(answer.error != "" for answer in answers),
        offered_tok_s=offered,
        throughput_tok_s=served,
        served_fraction=served / offered if offered > 0 else 1.0,
        ttft_s=_mean(ttft),
        ttft_p95_s=float(np.percentile(ttft, 95)) if ttft else float("nan"),
        tpot_ms=1e3 * _mean(tpot),
        itl_ms=1e3 * _mean(gaps),
        late_s=float(np.percentile(late, 95)) if late else float("nan"),
    )


def _mean(values: Sequence[float]) -> float:
    return float(np.mean(values)) if values else float("nan")
