"""Where simulations run: the cores of this machine, or a Ray cluster. Both through joblib, with results in order."""

from __future__ import annotations

import os
import signal
import socket
import threading
import time
import warnings
from collections.abc import Callable, Generator, Iterator, Sequence
from concurrent.futures.process import BrokenProcessPool
from contextlib import closing, contextmanager
from dataclasses import dataclass
from enum import StrEnum
from functools import cache
from typing import Any, TypeVar

import joblib

from loraplan.errors import BadInputError, LoraplanError

T = TypeVar("T")
R = TypeVar("R")

LOKY = "loky"
"""joblib's worker processes on this machine."""

RESTARTS = 3
"""How often in a row workers may die without a single result between: what dies so often will do so again."""


CONNECT_S = 10.0
"""Seconds that the head of a Ray cluster may take to answer."""

WATCH_S = 0.5
"""Seconds between looks whether the process that asked for the work is still there."""


class ExecutorName(StrEnum):
    """Who runs the simulations."""

    local = "local"
    ray = "ray"


class WorkersDiedError(LoraplanError):
    """Workers were killed again and again."""

    exit_code = 1


@dataclass(frozen=True)
class Executor:
    """Worker processes for many tasks.

    Attributes:
        backend: joblib's name of who runs the tasks, or the backend itself.
        workers: processes at a time.
        deaths: errors that say that a worker died, and not that a task is wrong.
    """

    backend: Any
    workers: int
    deaths: tuple[type[BaseException], ...]

    def results(self, function: Callable[[T], R], tasks: Sequence[T]) -> Generator[R, None, None]:
        """Apply ``function`` to ``tasks``; results come in the order of the tasks, each as soon as it can.

        If a worker dies (out of memory, its machine is gone), the workers are started anew and what had no result yet
        is done again. Close the iterator to stop them.

        Raises:
            WorkersDiedError: they died ``RESTARTS`` times and more, with no result between.
            Whatever ``function`` raises.
        """
        done = deaths = 0
        while done < len(tasks):
            try:
                with closing(self._stream(function, tasks[done:])) as results:
                    for result in results:
                        done += 1
                        deaths = 0
                        yield result
            except self.deaths as error:
                deaths += 1
                if deaths > RESTARTS:
                    raise WorkersDiedError(
                        f"the workers died {deaths} times in a row; is there enough memory for {self.workers} workers? "
                        f"({type(error).__name__})"
                    ) from error

    def _stream(self, function: Callable[[T], R], tasks: Sequence[T]) -> Generator[R, None, None]:
        parallel = joblib.Parallel(self.workers, backend=self.backend, return_as="generator", batch_size=1)
        if self.backend == LOKY:
            with _ctrl_c_ignored():
                results = parallel(joblib.delayed(_as_child)(os.getpid(), function, task) for task in tasks)
        else:
            results = parallel(joblib.delayed(function)(task) for task in tasks)
        try:
            yield from results
        finally:
            with warnings.catch_warnings():  # it is on purpose if there are results which nobody wants any more
                warnings.simplefilter("ignore")
                results.close()


@contextmanager
def opened(name: str = "local", workers: int | None = None, ray_address: str | None = None) -> Iterator[Executor]:
    """Workers to be used in the block.

    Args:
        name: ``local`` or ``ray``.
        workers: processes; one for each core (of the cluster) if not given.
        ray_address: of the cluster's head, as ``ray.init`` takes it; if it is not given, nor in the environment as
            RAY_ADDRESS, Ray is started on this machine for the time of the block.

    Raises:
        BadInputError: a wrong argument; Ray is not installed, cannot be reached or has too few cores.
    """
    if workers is not None and workers < 1:
        raise BadInputError(f"workers: expected at least 1, got {workers}")
    if name == ExecutorName.ray:
        with _ray(workers, ray_address) as executor:
            yield executor
        return
    if name != ExecutorName.local:
        raise BadInputError(f"unknown executor {name!r}; known: {', '.join(ExecutorName)}")
    if ray_address is not None:
        raise BadInputError("an address of Ray makes no sense without the executor 'ray'")
    yield Executor(LOKY, workers or joblib.cpu_count(), (BrokenProcessPool,))


@contextmanager
def _ctrl_c_ignored() -> Iterator[None]:
    """Ctrl-C has no effect in the block, nor in processes started in it, to which a terminal sends it as well.

    They end when this process does or tells them to; without this each would print a traceback.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)


def _as_child(parent: int, function: Callable[[T], R], task: T) -> R:
    """Apply ``function`` in a process that ends when ``parent`` does, even if that is killed."""
    if os.getpid() != parent:
        _watch(parent)
    return function(task)


@cache
def _watch(parent: int) -> None:
    """Have this process end soon after its parent."""

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(WATCH_S)
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


@contextmanager
def _ray(workers: int | None, address: str | None) -> Iterator[Executor]:
    try:
        import ray
        from ray.util.joblib.ray_backend import RayBackend
    except ImportError:
        raise BadInputError(
            "the executor 'ray' needs Ray, which is not installed: pip install 'loraplan[ray]'"
        ) from None

    backend: Any = RayBackend()
    backend.supports_return_generator = True  # it hands over each result as it comes, but does not tell joblib so
    started = not ray.is_initialized()
    if started:
        _connect(ray, workers, address or os.environ.get("RAY_ADDRESS"))
    try:
        cores = int(ray.cluster_resources().get("CPU", 0))
        if (workers or 1) > cores:
            raise BadInputError(f"workers: the Ray cluster has {cores} CPUs, {workers or 1} are asked for")
        errors = ray.exceptions
        deaths = (errors.RayActorError, errors.WorkerCrashedError, errors.ObjectLostError)
        yield Executor(backend, workers or cores, deaths)
    finally:
        if started:
            ray.shutdown()


def _connect(ray: Any, workers: int | None, address: str | None) -> None:
    """Join the cluster at ``address``, or start one on this machine."""
    quiet = {"log_to_driver": False, "logging_level": "ERROR"}
    if address is None:
        os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # nothing is sent to anybody unless that is asked for
        ray.init(num_cpus=workers or joblib.cpu_count(), include_dashboard=False, **quiet)
        return
    _require_listener(address)
    try:
        ray.init(address=address, **quiet)
    except (ConnectionError, ValueError, RuntimeError) as error:
        raise BadInputError(f"Ray at {address}: {' '.join(str(error).split()):.200}") from None


def _require_listener(address: str) -> None:
    """Find out in seconds what Ray would try for minutes: that nobody listens at ``[ray://]host:port``."""
    host, colon, port = address.removeprefix("ray://").rpartition(":")
    if not colon or not port.isdecimal():  # "auto" and such
        return
    try:
        socket.create_connection((host, int(port)), CONNECT_S).close()
    except (OSError, OverflowError) as error:
        raise BadInputError(f"Ray at {address}: {error}") from None
