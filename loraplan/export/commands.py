"""A shell script per server, with its ``vllm serve`` command."""

from __future__ import annotations

import shlex

from loraplan.export.servers import Server, Settings


def commands(servers: tuple[Server, ...], settings: Settings) -> dict[str, str]:
    """A script per server. Each takes further arguments: ``sh gpu-0.sh --dtype bfloat16``."""
    return {f"{server.name}.sh": _script(server) for server in servers}


def _script(server: Server) -> str:
    lines = [f"exec vllm serve {shlex.quote(server.model)}", f"--port {server.port}"]
    option: list[str] = []
    for part in (*server.options, "--lora-modules"):
        if part.startswith("--") and option:
            lines.append(shlex.join(option))
            option = []
        option.append(part)
    lines += [shlex.join(option), *(f"  {shlex.quote(module.argument)}" for module in server.modules), '"$@"']
    return "#!/bin/sh\n" + " \\\n  ".join(lines) + "\n"
