"""Container images of vLLM."""

from __future__ import annotations

import re

from loraplan.export.servers import Server, Settings


def image_of(server: Server, settings: Settings) -> str:
    """The image asked for, or vLLM's own of the version that the profile was calibrated on."""
    if settings.image is not None:
        return settings.image
    version = re.search(r"\d+\.\d+(\.\d+)?", server.engine)
    return f"vllm/vllm-openai:v{version.group()}" if version else "vllm/vllm-openai:latest"
