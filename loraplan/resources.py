"""The resources of a server, and the same server with more of one of them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

from loraplan.profiles import Profile
from loraplan.workload import Adapter

MORE = 0.1
"""How much more of a resource, as a part of what there is."""


@dataclass(frozen=True)
class Server:
    """One server and all that is on it.

    Attributes:
        profile: its constants.
        slots: ``--max-loras``.
        adapters: with the requests/s that they get here.
    """

    profile: Profile
    slots: int
    adapters: tuple[Adapter, ...]

    @property
    def max_rank(self) -> int:
        """``--max-lora-rank``."""
        return self.profile.server_rank(max(adapter.rank for adapter in self.adapters))


Improved = tuple[Server, str] | None
"""A server with more of a resource and what was changed, in words; None if there is nothing to change."""


def improved(server: Server, resource: str) -> Improved:
    """The server with a tenth more of ``resource``, a key of `RESOURCES`."""
    return RESOURCES[resource](server)


def _kv(server: Server) -> Improved:
    """The memory of the slots is not the KV cache's: a tenth of what they leave."""
    law = server.profile.kv
    more = MORE * max(0.0, server.profile.kv_tokens(server.slots, server.max_rank))
    return _with(server, kv=law.model_copy(update={"tokens": law.tokens + more})), "10 % more KV cache"


def _steps(server: Server) -> Improved:
    return _with(server, step_ms=_faster(server.profile.step_ms)), "10 % faster steps"


def _loads(server: Server) -> Improved:
    return _with(server, load_ms=_faster(server.profile.load_ms)), "10 % faster adapter loads"


def _tokens(server: Server) -> Improved:
    limits = server.profile.limits
    more = _tenth(limits.max_num_batched_tokens)
    return (
        _with(server, limits=limits.model_copy(update={"max_num_batched_tokens": more})),
        f"--max-num-batched-tokens {more}",
    )


def _seqs(server: Server) -> Improved:
    """A server takes no more requests at once than tokens in a step, so those may have to grow as well."""
    limits = server.profile.limits
    more = _tenth(limits.max_num_seqs)
    changes = {"max_num_seqs": more, "max_num_batched_tokens": max(more, limits.max_num_batched_tokens)}
    return _with(server, limits=limits.model_copy(update=changes)), f"--max-num-seqs {more}"


def _slots(server: Server) -> Improved:
    """At the price of the memory and the time that they take."""
    more = _tenth(server.slots)
    return replace(server, slots=more), f"--max-loras {more}"


def _rank(server: Server) -> Improved:
    """If a single adapter sets the max rank: what its width costs the others."""
    widest = max(server.adapters, key=lambda adapter: adapter.rank)
    others = [adapter.rank for adapter in server.adapters if adapter is not widest]
    if not others or server.profile.server_rank(max(others)) == server.max_rank:
        return None
    narrow = tuple(replace(a, rank=max(others)) if a is widest else a for a in server.adapters)
    return replace(server, adapters=narrow), f"{widest.name} of rank {max(others)} instead of {widest.rank}"


RESOURCES: dict[str, Callable[[Server], Improved]] = {
    "kv": _kv,
    "slots": _slots,
    "tokens": _tokens,
    "seqs": _seqs,
    "rank": _rank,
    "loads": _loads,
    "steps": _steps,
}
"""KV cache, slots, token budget of a step, requests at once, a max rank that one adapter sets; and what takes time."""

LIMITS = ("kv", "slots", "tokens", "seqs", "rank")
TIMES = ("loads", "steps")


def _tenth(count: int) -> int:
    """A tenth more, at least one."""
    return count + max(1, round(MORE * count))


def _faster(times: Any) -> Any:
    """The same constants, all of them times, of a server that is a tenth faster."""
    return times.model_copy(update={name: value / (1 + MORE) for name, value in times.model_dump().items()})


def _with(server: Server, **parts: Any) -> Server:
    return replace(server, profile=server.profile.model_copy(update=parts))
