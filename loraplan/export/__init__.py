"""What deploys a plan: ``vllm serve`` commands, a compose file, Kubernetes manifests, a LiteLLM proxy's config.

Names come from users and may hold anything. Wherever a name has to be of a certain form it is made so, without two
becoming one; elsewhere it stays as it is and is quoted as its format asks for. What no format could carry is refused.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Literal

from loraplan.export.commands import commands
from loraplan.export.compose import compose
from loraplan.export.kubernetes import kubernetes
from loraplan.export.litellm import litellm
from loraplan.export.servers import Server, Settings, servers_of
from loraplan.plan import Plan

Format = Literal["vllm", "compose", "kubernetes", "litellm"]

_FORMATS: Mapping[Format, Callable[[tuple[Server, ...], Settings], dict[str, str]]] = {
    "vllm": commands,
    "compose": compose,
    "kubernetes": kubernetes,
    "litellm": litellm,
}


def export(plan: Plan, form: Format, settings: Settings | None = None) -> dict[str, str]:
    """The files that deploy ``plan``: their names and what is in them.

    Raises:
        BadInputError: the plan is not complete, or has a name that the format cannot carry.
    """
    settings = settings or Settings()
    return _FORMATS[form](servers_of(plan, settings), settings)


__all__ = ["Format", "Server", "Settings", "export", "servers_of"]
