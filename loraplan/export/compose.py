"""A docker compose file: a service per server, a GPU each."""

from __future__ import annotations

import yaml

from loraplan.export.images import image_of
from loraplan.export.servers import Server, Settings


def compose(servers: tuple[Server, ...], settings: Settings) -> dict[str, str]:
    """``compose.yaml``; the adapters are read from this machine's folder of the same path."""
    services = {server.name: _service(server, place, settings) for place, server in enumerate(servers)}
    return {"compose.yaml": yaml.safe_dump({"services": services}, sort_keys=False, width=110)}


def _service(server: Server, place: int, settings: Settings) -> dict[str, object]:
    device = {"driver": "nvidia", "device_ids": [str(place)], "capabilities": ["gpu"]}
    mounts = [{"type": "bind", "source": settings.folder, "target": settings.folder, "read_only": True}]
    service: dict[str, object] = {
        "image": image_of(server, settings),
        "entrypoint": ["vllm", "serve"],
        "command": list(server.arguments(8000)),
        "ports": [f"{server.port}:8000"],
        "ipc": "host",
        "volumes": mounts,
        "healthcheck": {
            "test": ["CMD", "curl", "-sf", "http://localhost:8000/health"],
            "interval": "10s",
            "start_period": "10m",
        },
        "deploy": {"resources": {"reservations": {"devices": [device]}}},
    }
    escaped: dict[str, object] = _literal(service)  # type: ignore[assignment]
    # The only thing that compose shall fill in: the token of who starts it.
    return escaped | {"environment": {"HF_TOKEN": "${HF_TOKEN:-}"}}


def _literal(value: object) -> object:
    """``value`` with every dollar doubled: compose would fill in variables."""
    if isinstance(value, str):
        return value.replace("$", "$$")
    if isinstance(value, dict):
        return {key: _literal(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_literal(item) for item in value]
    return value
