"""The process in which one cell is solved; `benchmarks.guard` starts it.

In: task.json in a folder. Out: ``ready`` once all is imported, then ``plan.json`` or ``failure.json``, and ``peak``.
"""

from __future__ import annotations

import ctypes
import json
import os
import resource
import signal
import sys
import threading
import time
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from loraplan.registry import Spec

WATCH_S = 0.5
SPARE_GB = 6.0
"""Address space that libraries and threads reserve and never use."""
PR_SET_PDEATHSIG = 1


def main(folder: Path) -> None:
    """Solve the task; whatever goes wrong is written down."""
    os.setsid()  # so that its own children can be killed with it
    _die_with(os.getppid())
    _silence(folder / "stderr")
    task = json.loads((folder / "task.json").read_text(encoding="utf-8"))
    resource.setrlimit(resource.RLIMIT_AS, (int((task["memory_gb"] + SPARE_GB) * 2**30),) * 2)
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    from loraplan.api import solve_config, spec
    from loraplan.config import parse_config
    from loraplan.errors import LoraplanError, PluginError

    def fail(kind: str, text: str) -> None:
        words = " ".join(text.split()) or kind
        _write(folder / "failure.json", json.dumps({"kind": kind, "reason": words[:300]}))

    try:
        config = parse_config(task["config"])
        warm_up(spec(config.oracle))
        _write(folder / "ready", "")
        plan = solve_config(config)
        _write(folder / "plan.json", plan.to_json())
    except PluginError as error:
        fail("wrong plan", str(error))
    except LoraplanError as error:
        fail("refused", str(error))
    except MemoryError as error:
        fail("memory", f"MemoryError: {error}")
    except KeyboardInterrupt:
        raise
    except BaseException as error:
        fail("crash", f"{type(error).__name__}: {error}")
    _write(folder / "peak", str(_peak_mb()))
    os._exit(0)  # threads that a solver left behind must not keep the process


def _silence(stderr: Path) -> None:
    """Nothing is read, nothing printed, and complaints go to a file."""
    nothing = os.open(os.devnull, os.O_RDWR)
    complaints = os.open(stderr, os.O_WRONLY | os.O_CREAT, 0o600)
    for number, target in ((0, nothing), (1, nothing), (2, complaints)):
        os.dup2(target, number)


def warm_up(oracle: Spec) -> None:
    """Have what is compiled loaded, by a small problem that no plugin of the task but its oracle sees."""
    from loraplan.api import solve
    from loraplan.problem import ProblemBuilder

    builder = ProblemBuilder().gpus("h100-64gb/llama-3.1-8b", count=2)
    for i in range(2):
        builder.adapter(f"a{i}", rank=8, rate=0.1, tokens_in=100, tokens_out=100)
    solve(builder.build(), solver="best_fit", oracle=oracle)


def _die_with(parent: int) -> None:
    """End when the parent does, even if that is killed: told by the kernel, and by a look now and then."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(WATCH_S)
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


def _peak_mb() -> float:
    """The most resident memory so far; getrusage would count what the parent had when it forked."""
    status = Path("/proc/self/status")
    if status.exists():
        for line in status.read_text().splitlines():
            if line.startswith("VmHWM"):
                return int(line.split()[1]) / 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def _write(path: Path, text: str) -> None:
    """A file is there in full or not at all."""
    part = path.with_suffix(".part")
    part.write_text(text, encoding="utf-8")
    part.replace(path)
