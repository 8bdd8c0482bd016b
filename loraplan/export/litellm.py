"""A LiteLLM proxy's config: each adapter's name goes to its server, or to its servers by weight."""

from __future__ import annotations

from typing import Any

import yaml

from loraplan.errors import BadInputError
from loraplan.export.servers import Module, Server, Settings

WHOLE = 1000
"""Weights are whole numbers: the shares of an adapter's servers in this many parts."""


def litellm(servers: tuple[Server, ...], settings: Settings) -> dict[str, str]:
    """``litellm.yaml``; the proxy takes its master key from ``LITELLM_MASTER_KEY``.

    Raises:
        BadInputError: a name means something else to LiteLLM.
    """
    config = {
        "model_list": [_entry(module, server) for server in servers for module in server.modules],
        # Picks a server by weight.
        "router_settings": {"routing_strategy": "simple-shuffle"},
        "general_settings": {"master_key": "os.environ/LITELLM_MASTER_KEY"},
    }
    return {"litellm.yaml": yaml.safe_dump(config, sort_keys=False, width=110)}


def _entry(module: Module, server: Server) -> dict[str, Any]:
    _check(module.name)
    target: dict[str, Any] = {"model": f"hosted_vllm/{module.name}", "api_base": f"{server.url}/v1"}
    if module.share < 1:
        target["weight"] = max(1, round(WHOLE * module.share))
    return {"model_name": module.name, "litellm_params": target, "model_info": {"id": f"{server.name}/{module.name}"}}


def _check(name: str) -> None:
    """LiteLLM takes a star for any characters, and ``os.environ/NAME`` for what a variable holds."""
    if "*" in name:
        raise BadInputError(f"adapter {name!r}: LiteLLM takes the * for a pattern; rename the adapter")
    if name.startswith("os.environ/"):
        raise BadInputError(f"adapter {name!r}: LiteLLM would read a variable in its place; rename the adapter")
