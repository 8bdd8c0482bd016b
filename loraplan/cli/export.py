"""``loraplan export``: what deploys a plan."""

from __future__ import annotations

import shlex
from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from loraplan.cli import terminal
from loraplan.cli.options import PlanArgument
from loraplan.export import Settings, export
from loraplan.files import make_folder, write_text
from loraplan.plan import read_plan


class ExportFormat(StrEnum):
    """What the plan is exported for."""

    vllm = "vllm"
    compose = "compose"
    kubernetes = "kubernetes"
    litellm = "litellm"


AdapterPathOption = Annotated[
    str,
    typer.Option("--adapter-path", metavar="TEMPLATE", help="Where an adapter's files are; {name}, {rank}: its own."),
]
ServeOption = Annotated[
    str, typer.Option("--vllm-args", metavar="ARGS", help="Further arguments of every `vllm serve`, as a shell has it.")
]
CPUSlotsOption = Annotated[
    int | None,
    typer.Option("--cpu-slots", min=1, help="--max-cpu-loras of every server; all of its adapters if not given."),
]


def export_plan(
    plan: PlanArgument,
    form: Annotated[ExportFormat, typer.Option("--format", help="What for.")],
    output: Annotated[
        Path | None, typer.Option("-o", "--output", metavar="DIR", help="Write files there, instead of printing them.")
    ] = None,
    adapter_path: AdapterPathOption = "/adapters/{name}",
    model: Annotated[str | None, typer.Option("--model", help="Instead of the profile's base model.")] = None,
    cpu_slots: CPUSlotsOption = None,
    port: Annotated[int, typer.Option("--port", help="Of the first server of one machine; others count on.")] = 8000,
    urls: Annotated[
        str | None,
        typer.Option("--urls", metavar="URL,...", help="Where the servers answer, in the plan's order (litellm)."),
    ] = None,
    image: Annotated[str | None, typer.Option("--image", help="Container image (compose, kubernetes).")] = None,
    claim: Annotated[
        str, typer.Option("--claim", help="Volume claim that holds the adapters (kubernetes).")
    ] = "lora-adapters",
    vllm_args: ServeOption = "",
) -> None:
    """Write what deploys a plan: `vllm serve` scripts, a compose file, Kubernetes manifests, a LiteLLM proxy's config.

    Names of GPUs become names that the format takes; names of adapters stay as they are, and are quoted.
    """
    settings = Settings(
        adapter_path=adapter_path,
        model=model,
        cpu_slots=cpu_slots,
        port=port,
        urls=split_urls(urls),
        image=image,
        claim=claim,
        arguments=tuple(shlex.split(vllm_args)),
    )
    files = export(read_plan(plan), form.value, settings)
    if output is None:
        typer.echo("\n".join(files.values()), nl=False)
        return
    make_folder(output, "output")
    for name, text in files.items():
        write_text(output / name, text)
        if name.endswith(".sh"):
            (output / name).chmod(0o755)
    terminal.note(f"{len(files)} files written to {output}: {', '.join(files)}")


def split_urls(urls: str | None) -> tuple[str, ...]:
    """URLs with commas between."""
    return tuple(url.strip() for url in (urls or "").split(",") if url.strip())
