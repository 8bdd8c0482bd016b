"""Keeps one server: starts it, and ends it with all its processes as soon as whoever asked for it is gone.

A program of its own, with the standard library alone: ``python keeper.py COMMAND ...`` in a process group of its own.
It reads from stdin, where nothing ever comes; when that ends, because the parent closed it or died in whatever way, the
group gets SIGTERM, and SIGKILL if that does not help.
"""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import threading

PATIENCE_S = 10.0
"""How long a server may take to end by itself."""


def main(command: list[str]) -> int:
    """Run ``command`` until it ends or stdin does; its exit code."""
    signal.signal(signal.SIGTERM, lambda *_: None)  # meant for the others of the group; not inherited by them
    try:
        server = subprocess.Popen(command, stdin=subprocess.DEVNULL)  # noqa: S603 - what the user asked for
    except OSError as error:
        print(f"{command[0]}: {error.strerror or error}", file=sys.stderr, flush=True)  # noqa: T201
        return 127
    gone = threading.Event()

    def watch() -> None:
        while os.read(0, 4096):
            pass
        gone.set()
        os.killpg(0, signal.SIGTERM)
        with contextlib.suppress(subprocess.TimeoutExpired):
            server.wait(PATIENCE_S)
        os.killpg(0, signal.SIGKILL)  # whatever of the group is left, this process too

    threading.Thread(target=watch, daemon=True).start()
    code = server.wait()
    if gone.is_set():
        threading.Event().wait(2 * PATIENCE_S)  # the watcher ends the group
    return code if code >= 0 else 128 - code


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
