"""Starting vLLM servers of our own, and ending them whatever happens."""

from __future__ import annotations

import os
import re
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Self

from loraplan.errors import ServerError
from loraplan.live import keeper

START_S = 900.0
"""Longest that a server may take to start: large models are read from slow disks."""
POLL_S = 0.2
NOT_INHERITED = ("PYTHONPATH", "PYTHONHOME", "VIRTUAL_ENV", "PYTEST_CURRENT_TEST")
"""Variables of our own environment that would make another one's Python import our packages."""


CPU_ENVIRONMENT = {
    "HF_HUB_OFFLINE": "1",
    "TRANSFORMERS_OFFLINE": "1",
    "VLLM_NO_USAGE_STATS": "1",
    "VLLM_CPU_KVCACHE_SPACE": "1",
    "VLLM_CPU_OMP_THREADS_BIND": "nobind",
    "OMP_NUM_THREADS": "1",
    "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
}
CPU_ARGUMENTS = ("--dtype", "bfloat16", "--enforce-eager", "--distributed-executor-backend", "uni")
"""For vLLM on few CPU cores: its default executor keeps two of them busy with waiting."""


@dataclass(frozen=True)
class Launcher:
    """How servers of our own are started.

    Attributes:
        executable: the ``vllm`` command.
        environment: variables of the servers, beside our own.
        arguments: further arguments of every server.
        folder: where their logs go.
    """

    executable: str
    folder: Path
    environment: Mapping[str, str] = field(default_factory=dict)
    arguments: tuple[str, ...] = ()

    @contextmanager
    def start(self, serve: Sequence[Sequence[str]], names: Sequence[str]) -> Iterator[list[LaunchedServer]]:
        """Start servers, all at once, and wait until all answer; end them with the block.

        Args:
            serve: of each, the arguments of ``vllm serve`` but for the port; adapters come last.
            names: of their logs.
        """
        ports = free_ports(len(serve))
        commands = [
            [self.executable, "serve", model, "--port", str(port), *self.arguments, *more]
            for (model, *more), port in zip(serve, ports, strict=True)
        ]
        logs = [self.folder / f"{name}.log" for name in names]
        with launched(commands, ports, logs, self.environment) as servers:
            yield servers


class LaunchedServer:
    """A server of our own: a process group that ends with the block, with this process, and with its keeper."""

    def __init__(self, command: Sequence[str], port: int, log: Path, environment: Mapping[str, str]) -> None:
        """Start ``command``, which listens on ``port``, with its output in ``log``."""
        self.url = f"http://127.0.0.1:{port}"
        self.log = log
        kept = {name: value for name, value in os.environ.items() if name not in NOT_INHERITED}
        with log.open("wb") as output:
            self.process = subprocess.Popen(  # noqa: S603 - what the user asked for
                [sys.executable, "-I", keeper.__file__, *command],
                stdin=subprocess.PIPE,
                stdout=output,
                stderr=subprocess.STDOUT,
                env=kept | dict(environment),
                start_new_session=True,
            )

    def __enter__(self) -> Self:
        """Nothing more."""
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        """End it."""
        self.stop()

    def wait_until_ready(self, longest_s: float = START_S) -> None:
        """Wait until it answers.

        Raises:
            ServerError: it ends, or takes too long.
        """
        deadline = time.monotonic() + longest_s
        while time.monotonic() < deadline:
            self.check()
            try:
                with urllib.request.urlopen(f"{self.url}/health", timeout=5) as answer:  # noqa: S310 - our own server
                    if answer.status == 200:
                        return
            except (OSError, urllib.error.URLError):
                pass
            time.sleep(POLL_S)
        raise ServerError(f"the server did not start within {longest_s:g} s; its log is {self.log}")

    def check(self) -> None:
        """Check that it runs.

        Raises:
            ServerError: it has ended.
        """
        code = self.process.poll()
        if code is not None:
            raise ServerError(f"the server ended with code {code}: {self.last_words()} (its log is {self.log})")

    def last_words(self) -> str:
        """The last error in its log, or its last line."""
        lines = self.log.read_text(encoding="utf-8", errors="replace").splitlines() if self.log.exists() else []
        lines = [re.sub(r"\x1b\[[0-9;]*m", "", line).strip() for line in lines]
        lines = [line for line in lines if line]
        errors = [line for line in lines if re.search(r"\b\w*(Error|Exception)\b: .", line)]
        return (errors or lines or ["it said nothing"])[-1][:300]

    def stop(self) -> None:
        """End the process group; returns when nobody of it is left."""
        if self.process.stdin is not None and not self.process.stdin.closed:
            self.process.stdin.close()  # the keeper ends the others
        try:
            with suppress(subprocess.TimeoutExpired):
                self.process.wait(keeper.PATIENCE_S + 5)
        finally:
            with suppress(ProcessLookupError):
                os.killpg(self.process.pid, signal.SIGKILL)  # the group has the keeper's number
            self.process.wait()


@contextmanager
def launched(
    commands: Sequence[Sequence[str]], ports: Sequence[int], logs: Sequence[Path], environment: Mapping[str, str]
) -> Iterator[list[LaunchedServer]]:
    """Start servers, all at once, and wait until all answer; end them with the block."""
    servers: list[LaunchedServer] = []
    try:
        for command, port, log in zip(commands, ports, logs, strict=True):
            servers.append(LaunchedServer(command, port, log, environment))
        for server in servers:
            server.wait_until_ready()
        yield servers
    finally:
        _stop_all(servers)


def _stop_all(servers: Sequence[LaunchedServer]) -> None:
    """End all, also if one cannot be ended or Ctrl-C comes meanwhile."""
    for server in servers:
        if server.process.stdin is not None:
            server.process.stdin.close()
    for n, server in enumerate(servers):
        try:
            server.stop()
        except BaseException:
            _stop_all(servers[n + 1 :])
            raise


def free_ports(count: int) -> list[int]:
    """Ports of this machine that nobody listens on."""
    sockets = [socket.socket() for _ in range(count)]
    try:
        for one in sockets:
            one.bind(("127.0.0.1", 0))
        return [int(one.getsockname()[1]) for one in sockets]
    finally:
        for one in sockets:
            one.close()
