"""Many simulations at once: on all cores, with bounded memory, and to be stopped at any time."""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sized
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from itertools import islice
from typing import TypeVar

import numpy as np

from loraplan.errors import LoraplanError
from loraplan.profiles import Frontend, Profile
from loraplan.workload import Ints, Requests, Workload
from twin.metrics import Metrics, measure
from twin.recording import Recording
from twin.server import NOTHING_RECORDED, Run, simulate

T = TypeVar("T")
R = TypeVar("R")

AHEAD = 4
"""Tasks that each worker may be ahead of the result awaited: what evens out long tasks and short ones."""


@dataclass(frozen=True, eq=False, kw_only=True)
class Simulation:
    """One server and what it is asked: a simulation yet to be run. A workload's requests are drawn when it is.

    Attributes:
        profile, slots, max_rank, cpu_slots, max_outstanding, frontend: the server and its client, and
        recording: what to keep of the course of the run; all as ``twin.server.simulate`` takes them.
        ranks: shape (adapters,), rank of each adapter that the requests can name.
        workload: a law, of which ``seed`` draws the requests, or the requests themselves.
        horizon_s: seconds to simulate.
        seed: of the requests; plays no part if they are given.
        name: how errors name this simulation.
    """

    profile: Profile
    slots: int
    max_rank: int
    ranks: Ints
    workload: Workload | Requests
    horizon_s: float
    seed: int = 0
    cpu_slots: int | None = None
    max_outstanding: int | None = None
    frontend: Frontend | None = None
    recording: Recording = NOTHING_RECORDED
    name: str = "simulation"

    @classmethod
    def of(
        cls,
        workload: Workload,
        profile: Profile,
        slots: int,
        seed: int = 0,
        cpu_slots: int | None = None,
        name: str = "simulation",
    ) -> Simulation:
        """One server that gets a whole workload; its max rank is the smallest that carries the adapters.

        Raises:
            BadInputError: the server takes no rank that large.
        """
        ranks = np.array([adapter.rank for adapter in workload.adapters], dtype=np.int64)
        return cls(
            profile=profile,
            slots=slots,
            max_rank=profile.server_rank(int(ranks.max(initial=1))),
            ranks=ranks,
            workload=workload,
            horizon_s=workload.horizon_s,
            seed=seed,
            cpu_slots=cpu_slots,
            name=name,
        )

    def run(self) -> Run:
        """Draw the requests and replay them.

        Raises:
            BadInputError: the server would not start, or a setting is out of range.
        """
        asked = self.workload
        requests = asked if isinstance(asked, Requests) else asked.requests(self.seed)
        return simulate(
            self.profile,
            self.slots,
            self.max_rank,
            self.ranks,
            requests,
            self.horizon_s,
            self.cpu_slots,
            self.max_outstanding,
            self.frontend,
            self.recording,
        )

    def metrics(self) -> Metrics:
        """Run it, and keep only its figures.

        Raises:
            BadInputError: as ``run``.
        """
        return measure(self.run(), self.ranks.size)

    def __str__(self) -> str:
        """The name."""
        return self.name


def spread(
    function: Callable[[T], R],
    tasks: Iterable[T],
    on_progress: Callable[[int, int], None] | None = None,
    *,
    total: int | None = None,
    stop: Callable[[], bool] | None = None,
    workers: int | None = None,
) -> Iterator[R]:
    """Apply ``function`` to ``tasks`` in threads, on all cores (the twin holds no lock while it runs).

    Results come in the order of the tasks, each as soon as it and those before it are there; nothing runs before the
    first is asked for. Tasks are taken from their iterable a few per worker ahead of the results, so there may be any
    number of them. Leaving the loop, Ctrl-C and an error end it all, once the tasks that run just then are done.

    Args:
        function: called in the workers, as ``Simulation.metrics``; what it returns is all that is kept.
        tasks: ``Simulation`` or anything whose ``str`` names it in errors.
        on_progress: called with (results so far, results in all) as each result comes.
        total: results in all, for ``on_progress``; needed if ``tasks`` have no length.
        stop: asked between results, as ``threading.Event().is_set``; once it says true, no more come.
        workers: threads; one for each core if not given.

    Raises:
        Whatever ``function`` raises, with the name of the task.
    """
    count = workers or os.cpu_count() or 1
    if total is None and on_progress is not None:
        if not isinstance(tasks, Sized):
            raise TypeError("total is needed to report the progress of tasks that have no length")
        total = len(tasks)
    pool = ThreadPoolExecutor(count, thread_name_prefix="twin")
    coming: deque[Future[R]] = deque()
    left = iter(tasks)
    done = 0
    try:
        while not (stop is not None and stop()):
            coming.extend(pool.submit(_named, function, task) for task in islice(left, AHEAD * count - len(coming)))
            if not coming:
                return
            result = coming.popleft().result()
            done += 1
            if on_progress is not None and total is not None:
                on_progress(done, total)
            yield result
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


def _named(function: Callable[[T], R], task: T) -> R:
    """The result for ``task``; an error names it."""
    try:
        return function(task)
    except LoraplanError as error:
        raise type(error)(f"{task}: {error}") from error
    except Exception as error:
        error.add_note(f"in {task}")
        raise
