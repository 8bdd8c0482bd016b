"""Running a cell where it can do no harm: a process of its own, killed when it takes too much time or memory."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from multiprocessing import forkserver, get_context
from multiprocessing.context import ForkServerContext
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

from benchmarks import child
from benchmarks.cells import Limits

START_S = 120.0
"""Seconds that importing everything may take, on a busy machine."""
LOOK_S = 0.02
PAGE_MB = os.sysconf("SC_PAGE_SIZE") / 2**20
ONE_THREAD = dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"), "1")
"""A cell has a core, and not those of its neighbours."""


@dataclass(frozen=True)
class Outcome:
    """How the process ended.

    Attributes:
        kind: ``plan``; else ``timeout``, ``memory``, ``crash``, ``wrong plan`` or ``refused``.
        reason: of what is no plan, in one line.
        plan: the text of plan.json; empty if there is none.
        wall_s: seconds since everything was imported.
        peak_mb: the most resident memory.
    """

    kind: str
    reason: str
    plan: str
    wall_s: float
    peak_mb: float


def run_guarded(config: dict[str, Any], limits: Limits) -> Outcome:
    """Solve ``config`` in a process of its own."""
    with tempfile.TemporaryDirectory(prefix="loraplan-bench-") as name:
        folder = Path(name)
        task = {"config": config, "memory_gb": limits.memory_gb}
        (folder / "task.json").write_text(json.dumps(task), encoding="utf-8")
        process = _server().Process(target=child.main, args=(folder,))
        process.start()
        try:
            return _watch(process, folder, limits)
        finally:
            _kill(process)


@cache
def _server() -> ForkServerContext:
    """Makes processes as copies of one that has imported everything, so that a cell costs no second of start."""
    context = get_context("forkserver")
    context.set_forkserver_preload(["benchmarks.preload"])
    path = {"PYTHONPATH": os.pathsep.join(part for part in sys.path if part)}
    before = dict(os.environ)
    os.environ.update(ONE_THREAD | path)
    try:
        forkserver.ensure_running()
    finally:
        os.environ.clear()
        os.environ.update(before)
    return context


def _watch(process: BaseProcess, folder: Path, limits: Limits) -> Outcome:
    began = time.monotonic()
    ready: float | None = None
    peak = 0.0
    kind, reason = "", ""
    pid = process.pid or 0
    while process.is_alive() and not kind:
        time.sleep(LOOK_S)
        now = time.monotonic()
        if ready is None and (folder / "ready").exists():
            ready = now
        used = sum(_resident_mb(pid) for pid in _family(pid))
        peak = max(peak, used)
        if used > limits.memory_gb * 1024:
            kind, reason = "memory", f"killed above {limits.memory_gb:g} GB of memory"
        elif ready is None and now - began > START_S:
            kind, reason = "timeout", f"not even started after {START_S:g} s"
        elif ready is not None and now - ready > limits.time_limit_s + limits.grace_s:
            told = f"its time limit of {limits.time_limit_s:g} s and {limits.grace_s:g} s more"
            kind, reason = "timeout", f"killed after {told}"
    wall_s = time.monotonic() - (ready or began)
    if not kind:
        kind, reason = _told(process.exitcode or 0, folder)
    told_peak = folder / "peak"
    peak = max(peak, float(told_peak.read_text())) if told_peak.exists() else peak
    plan = (folder / "plan.json").read_text(encoding="utf-8") if kind == "plan" else ""
    return Outcome(kind, reason, plan, wall_s, peak)


def _told(code: int, folder: Path) -> tuple[str, str]:
    """What a process left that has ended by itself."""
    if (folder / "plan.json").exists():
        return "plan", ""
    if (folder / "failure.json").exists():
        failure = json.loads((folder / "failure.json").read_text(encoding="utf-8"))
        return failure["kind"], failure["reason"]
    stderr = folder / "stderr"
    last = stderr.read_text(encoding="utf-8", errors="replace").strip().splitlines()[-1:] if stderr.exists() else []
    how = f"ended by signal {signal.Signals(-code).name}" if code < 0 else f"ended with exit code {code}"
    return "crash", ": ".join([how, *(line[:200] for line in last)])


def _family(pid: int) -> Iterator[int]:
    """A process and all below it."""
    yield pid
    try:
        for task in Path(f"/proc/{pid}/task").iterdir():
            for child in (task / "children").read_text().split():
                yield from _family(int(child))
    except (OSError, ValueError):  # it has ended, or this is no Linux
        return


def _resident_mb(pid: int) -> float:
    try:
        return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * PAGE_MB
    except (OSError, IndexError):
        return 0.0


def _kill(process: BaseProcess) -> None:
    """The process, and all in its session that are still there."""
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(process.pid or 0, signal.SIGKILL)
    process.kill()
    process.join()
    process.close()
