"""What there is to know of a server before it is probed: from itself, or from the files it serves."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from pathlib import Path

from loraplan.errors import BadInputError, ServerError
from loraplan.live.client import Client
from loraplan.profiles import RuleSet


@dataclass(frozen=True)
class Facts:
    """What a server says of itself.

    Attributes:
        version: of vLLM.
        model: the base model's name.
        adapters: names of its LoRA adapters.
        max_model_len: longest request.
        kv_tokens, block_tokens: what its KV cache holds.
        slots: ``--max-loras``; None where it does not say so before the first LoRA request.
        cpu: it runs on CPUs.
    """

    version: str
    model: str
    adapters: tuple[str, ...]
    max_model_len: int
    kv_tokens: int
    block_tokens: int
    slots: int | None
    cpu: bool

    @property
    def rules(self) -> RuleSet:
        """The rule set of this version; on CPUs without async scheduling (``vllm/platforms/cpu.py``)."""
        numbers = [int(part) for part in re.findall(r"\d+", self.version)[:2]]
        if numbers < [0, 10]:
            return "vllm-0.8.5"
        return "vllm-0.32" if self.cpu else "vllm-0.32-async"


async def facts_of(client: Client, url: str, cpu: bool) -> Facts:
    """Ask the server at ``url``, of which one knows that it runs on CPUs; not every build of vLLM says so.

    Raises:
        ServerError: it does not answer, or is no vLLM with LoRA adapters.
    """
    version = await client.json(f"{url}/version")
    listed = await client.json(f"{url}/v1/models")
    metrics = await client.metrics(url)
    cache = "vllm:cache_config_info"
    try:
        cards = {card["id"]: card for card in listed["data"]}
        base = next(card for card in cards.values() if not card.get("parent"))
        adapters = tuple(name for name, card in cards.items() if card.get("parent"))
        blocks, block = metrics.label(cache, "num_gpu_blocks"), metrics.label(cache, "block_size")
        slots = metrics.label("vllm:lora_requests_info", "max_lora")
        return Facts(
            version=str(version["version"]),
            model=str(base["id"]),
            adapters=adapters,
            max_model_len=int(base["max_model_len"]),
            kv_tokens=int(blocks or "") * int(block or ""),
            block_tokens=int(block or ""),
            slots=int(slots) if slots else None,
            cpu=cpu or "cpu" in str(version["version"]),
        )
    except (KeyError, TypeError, ValueError, StopIteration, AttributeError) as error:
        raise ServerError(f"{url}: not what a vLLM server says ({type(error).__name__}: {error})") from None


@dataclass(frozen=True)
class AdapterFiles:
    """A LoRA adapter on disk."""

    name: str
    path: Path
    rank: int


def adapters_in(folder: Path) -> list[AdapterFiles]:
    """The adapters in the folders of ``folder``, by name.

    Raises:
        BadInputError: there are none, or one cannot be read.
    """
    found = []
    for config in sorted(folder.glob("*/adapter_config.json")):
        try:
            rank = int(json.loads(config.read_text(encoding="utf-8"))["r"])
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise BadInputError(f"{config}: no rank in it ({type(error).__name__}: {error})") from None
        found.append(AdapterFiles(config.parent.name, config.parent.resolve(), rank))
    if not found:
        raise BadInputError(f"{folder}: no folder in it has an adapter_config.json")
    return found
