"""The servers of a plan as vLLM is told of them: names that every format takes, arguments, adapters."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import PurePosixPath
from urllib.parse import quote

from loraplan.errors import BadInputError
from loraplan.plan import Plan, PlannedGPU
from loraplan.profiles import Profile

LONGEST_NAME = 50
"""Of a server, before what tells it from others; a DNS label has 63 characters at most."""
DNS_NAME = re.compile(r"[a-z]([-a-z0-9]*[a-z0-9])?")
PLAIN = re.compile(r"[A-Za-z0-9._/:@+][A-Za-z0-9._/:@+-]*")
"""What ``--lora-modules NAME=PATH`` can hold; anything else is given as JSON, which no option begins like."""


@dataclass(frozen=True)
class Settings:
    """How servers are started.

    Attributes:
        adapter_path: where an adapter's files are; ``{name}`` and ``{rank}`` stand for the adapter's.
        model: instead of the profile's base model.
        cpu_slots: ``--max-cpu-loras``; None for all adapters of the server.
        port: of the first server on one machine; the others count on.
        urls: where the servers answer, in order; if there are none, at their names.
        image: container image; None for vLLM's own of the profile's version.
        claim: Kubernetes volume claim with the adapters.
        arguments: further arguments of every server.
    """

    adapter_path: str = "/adapters/{name}"
    model: str | None = None
    cpu_slots: int | None = None
    port: int = 8000
    urls: tuple[str, ...] = ()
    image: str | None = None
    claim: str = "lora-adapters"
    arguments: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        """Check them."""
        if "{name}" not in self.adapter_path:
            raise BadInputError(f"adapter path: expected {{name}} in it (got {self.adapter_path!r})")
        if not 1 <= self.port <= 65535:
            raise BadInputError(f"port must be between 1 and 65535 (got {self.port})")

    def path(self, name: str, rank: int) -> str:
        """Where an adapter's files are."""
        return self.adapter_path.replace("{name}", file_name(name)).replace("{rank}", str(rank))

    @property
    def folder(self) -> str:
        """The folder of all adapters."""
        return str(PurePosixPath(self.adapter_path.partition("{name}")[0] + "x").parent)


@dataclass(frozen=True)
class Module:
    """An adapter on a server: its name, its files, and the share of its requests that this server gets."""

    name: str
    path: str
    share: float

    @property
    def argument(self) -> str:
        """As ``--lora-modules`` takes it: NAME=PATH, or JSON where the name or the path would break that."""
        if PLAIN.fullmatch(self.name) and PLAIN.fullmatch(self.path):
            return f"{self.name}={self.path}"
        return json.dumps({"name": self.name, "path": self.path})


@dataclass(frozen=True)
class Server:
    """One vLLM server of the plan.

    Attributes:
        gpu: the GPU's id in the plan.
        name: a DNS label, of this server alone.
        model: what it serves.
        engine: version of vLLM, as the profile has it.
        options: arguments of ``vllm serve`` after the model, but for host, port and adapters.
        modules: its adapters.
        port, url: where it listens if all servers are on one machine, and where clients find it.
    """

    gpu: str
    name: str
    model: str
    engine: str
    options: tuple[str, ...]
    modules: tuple[Module, ...]
    port: int
    url: str

    def arguments(self, port: int) -> tuple[str, ...]:
        """Arguments of ``vllm serve``; the adapters, as many as there are, come last."""
        adapters = (module.argument for module in self.modules)
        return (self.model, "--port", str(port), *self.options, "--lora-modules", *adapters)


def servers_of(plan: Plan, settings: Settings) -> tuple[Server, ...]:
    """The servers of a complete plan, in its order.

    Raises:
        BadInputError: the plan is not complete, a name cannot be an argument, or there are too few URLs.
    """
    if not plan.complete:
        raise BadInputError(f"there is no complete plan to deploy: its status is {plan.status} ({plan.reason})")
    if settings.urls and len(settings.urls) != len(plan.gpus):
        raise BadInputError(f"the plan has {len(plan.gpus)} GPUs, but {len(settings.urls)} URLs are given")
    if settings.port + len(plan.gpus) - 1 > 65535:
        raise BadInputError(f"port: {len(plan.gpus)} servers from {settings.port} on go beyond 65535")
    names = dns_names(gpu.id for gpu in plan.gpus)
    return tuple(
        _server(gpu, plan.provenance.profiles[gpu.profile], name, n, settings)
        for n, (gpu, name) in enumerate(zip(plan.gpus, names, strict=True))
    )


def _server(gpu: PlannedGPU, profile: Profile, name: str, place: int, settings: Settings) -> Server:
    in_cpu = max(gpu.slots, len(gpu.adapters)) if settings.cpu_slots is None else settings.cpu_slots
    if in_cpu < gpu.slots:
        raise BadInputError(f"GPU {gpu.id}: --max-cpu-loras of {in_cpu} is below its {gpu.slots} slots")
    limits, model = profile.limits, settings.model or profile.base_model
    modules = tuple(Module(_argument(a.name), _argument(settings.path(a.name, a.rank)), a.share) for a in gpu.adapters)
    if model.startswith("-"):
        raise BadInputError(f"model {model!r}: a command would take it for an option")
    if model in {module.name for module in modules}:
        raise BadInputError(f"adapter {model!r} has the base model's name: clients could not ask for it")
    numbers = {
        "--max-model-len": limits.max_model_len,
        "--max-num-seqs": limits.max_num_seqs,
        "--max-num-batched-tokens": limits.max_num_batched_tokens,
        "--max-loras": gpu.slots,
        "--max-cpu-loras": in_cpu,
        "--max-lora-rank": gpu.max_rank,
    }
    options = [part for option, value in numbers.items() for part in (option, str(value))]
    # The engine as it was calibrated: without prefix caching, which the twin does not model.
    options += ["--enable-lora", "--no-enable-prefix-caching"]
    if profile.rules == "vllm-0.32":
        options.append("--no-async-scheduling")
    port = settings.port + place
    return Server(
        gpu=gpu.id,
        name=name,
        model=_argument(model),
        engine=profile.engine,
        options=(*options, *settings.arguments),
        modules=modules,
        port=port,
        url=settings.urls[place].rstrip("/") if settings.urls else f"http://{name}:8000",
    )


def dns_names(ids: Iterable[str]) -> list[str]:
    """A DNS label (RFC 1123, with a letter first) for each id, all different; an id that is one stays as it is."""
    ids = list(ids)
    taken = {one for one in ids if _is_dns(one)}
    names = []
    for one in ids:
        if _is_dns(one):
            names.append(one)
            continue
        plain = re.sub(r"[^a-z0-9]+", "-", one.lower()).strip("-")[:LONGEST_NAME].strip("-")
        plain = plain if plain[:1].isalpha() else f"gpu-{plain}".strip("-")
        digest = hashlib.sha256(one.encode("utf-8", "surrogatepass")).hexdigest()
        name = next(made for n in range(6, 65) if (made := f"{plain[:LONGEST_NAME]}-{digest[:n]}"[:63]) not in taken)
        taken.add(name)
        names.append(name)
    return names


def _is_dns(name: str) -> bool:
    return len(name) <= LONGEST_NAME and DNS_NAME.fullmatch(name) is not None


def file_name(name: str) -> str:
    """``name`` in a path: below its folder whatever it is, and different for different names.

    Slashes stay, for names such as ``team/adapter``; other characters than letters, digits, ``.``, ``_`` and ``-``
    become ``%`` and two hex digits, as in URLs, and so do the dots and slashes of a name that would lead elsewhere.
    """
    parts = name.split("/")
    if all(part.strip(".") for part in parts):
        return "/".join(quote(part, safe="", errors="surrogatepass") for part in parts)
    return quote(name, safe="", errors="surrogatepass").replace(".", "%2E")


def _argument(text: str) -> str:
    """``text``, if a process can be given it.

    Raises:
        BadInputError: it holds a character that no argument and no file can.
    """
    if "\0" in text or any(0xD800 <= ord(character) < 0xE000 for character in text):
        raise BadInputError(f"the name {text!r:.80} holds a character that no command line can carry; rename it")
    return text
