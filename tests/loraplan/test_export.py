"""What deploys a plan says what the plan says, whatever the names in it; nothing in a name gets out of its quotes."""

from __future__ import annotations

import json
import os
import re
import subprocess
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import yaml
from support.cli import invoke
from support.oracles import small_problem

import loraplan
from loraplan.errors import BadInputError
from loraplan.export import Settings, export, servers_of
from loraplan.export.servers import dns_names, file_name
from loraplan.plan import Plan, PlannedAdapter

HOSTILE = (
    "plain-8",
    'it\'s "quoted"',
    "two\nlines: [yes]",
    "$(touch pwned)`touch pwned`$HOME ${HOME}",
    "- !!python/object:os.system",
    "null",
    "1e3",
    "--api-key=x",
    "a=b,c",
    "{name}",
    "../../etc/passwd",
    "..",
    "team/adapter",
    "Ünïcode \U0001f600",
    " \t#comment",
    "&anchor",
    "y",
    "%(x)s",
    "; rm -rf /",
)


@cache
def plan_of(names: tuple[str, ...], ids: tuple[str, ...] = ("gpu-0", "gpu-1"), share: float = 1.0) -> Plan:
    """A plan with these names: the first adapter on both GPUs if ``share`` is below 1, the others dealt."""
    plan = loraplan.solve(
        small_problem([(8, 25.0), (16, 15.0), (8, 25.0), (8, 0.0)]), solver="best_fit", oracle="fluid"
    )
    adapters: list[list[PlannedAdapter]] = [[], []]
    for n, name in enumerate(names):
        part = share if n == 0 else 1.0
        adapters[n % 2].append(PlannedAdapter(name=name, rank=8, rate=1.0, share=part))
    if share < 1:
        adapters[1].append(PlannedAdapter(name=names[0], rank=8, rate=1.0, share=1 - share))
    gpus = [
        gpu.model_copy(update={"id": name, "adapters": tuple(mine)})
        for gpu, name, mine in zip(plan.gpus, ids, adapters, strict=True)
    ]
    return Plan.model_validate(plan.model_copy(update={"gpus": tuple(gpus)}).model_dump())


def modules(arguments: list[str]) -> dict[str, str]:
    """Adapters in the arguments, as vLLM's own parser (entrypoints/openai/cli_args.py) reads them."""
    found = {}
    for item in arguments[arguments.index("--lora-modules") + 1 :]:
        assert not item.startswith("-")
        if "=" in item and "," not in item:
            name, path = item.split("=")
        else:
            read = json.loads(item)
            name, path = read["name"], read["path"]
        found[name] = path
    return found


def run_script(text: str, folder: Path) -> list[str]:
    """The arguments that the script gives to ``vllm``."""
    fake = folder / "bin" / "vllm"
    fake.parent.mkdir(exist_ok=True)
    fake.write_text('#!/bin/sh\nfor part in "$@"; do printf "%s\\0" "$part"; done\n')
    fake.chmod(0o755)
    path = f"{fake.parent}:{os.environ['PATH']}"
    done = subprocess.run(
        ["/bin/sh", "-c", text], cwd=folder, env={"PATH": path, "HOME": "/home"}, capture_output=True, check=True
    )
    return done.stdout.decode().split("\0")[:-1]


def compose_literal(text: str) -> str:
    """As docker compose reads a string: a variable in it would be an error here."""
    assert "$" not in text.replace("$$", "")
    return text.replace("$$", "$")


def asked(names: tuple[str, ...]) -> dict[str, str]:
    return {name: f"/srv/{file_name(name)}" for name in names}


def test_a_script_per_gpu_serves_what_the_plan_says() -> None:
    plan = plan_of(("a", "b", "c"))
    files = export(plan, "vllm", Settings(adapter_path="/srv/lora/{rank}/{name}", arguments=("--dtype", "bfloat16")))
    assert list(files) == ["gpu-0.sh", "gpu-1.sh"]
    limits = plan.provenance.profiles[plan.gpus[0].profile].limits
    profile, gpu = plan.provenance.profiles[plan.gpus[0].profile], plan.gpus[0]
    assert (
        files["gpu-0.sh"]
        == f"""#!/bin/sh
exec vllm serve {profile.base_model} \\
  --port 8000 \\
  --max-model-len {limits.max_model_len} \\
  --max-num-seqs {limits.max_num_seqs} \\
  --max-num-batched-tokens {limits.max_num_batched_tokens} \\
  --max-loras {gpu.slots} \\
  --max-cpu-loras {max(2, gpu.slots)} \\
  --max-lora-rank {gpu.max_rank} \\
  --enable-lora \\
  --no-enable-prefix-caching \\
  --dtype bfloat16 \\
  --lora-modules \\
    a=/srv/lora/8/a \\
    c=/srv/lora/8/c \\
  "$@"
"""
    )


def test_scripts_quote_any_name(tmp_path: Path) -> None:
    files = export(plan_of(HOSTILE), "vllm", Settings(adapter_path="/srv/{name}"))
    seen: dict[str, str] = {}
    for text in files.values():
        seen |= modules(run_script(text, tmp_path))
    assert seen == asked(HOSTILE)
    assert [path.name for path in tmp_path.iterdir()] == ["bin"]


def test_compose_and_kubernetes_quote_any_name() -> None:
    settings = Settings(adapter_path="/srv/{name}", image="vllm:$1")
    composed = yaml.safe_load(export(plan_of(HOSTILE), "compose", settings)["compose.yaml"])
    seen: dict[str, str] = {}
    for service in composed["services"].values():
        seen |= modules([compose_literal(part) for part in service["command"]])
    assert seen == asked(HOSTILE)
    seen = {}
    for text in export(plan_of(HOSTILE), "kubernetes", settings).values():
        deployment, _ = yaml.safe_load_all(text)
        container = deployment["spec"]["template"]["spec"]["containers"][0]
        assert all(re.search(r"(?<!\$)(\$\$)*\$\(", part) is None for part in container["args"])
        seen |= modules([part.replace("$$", "$") for part in container["args"]])
    assert seen == asked(HOSTILE)


def test_litellm_routes_every_name_to_its_servers_by_weight() -> None:
    settings = Settings(urls=("http://10.0.0.1:8000/", "http://10.0.0.2:8000"))
    config = yaml.safe_load(export(plan_of(HOSTILE, share=0.25), "litellm", settings)["litellm.yaml"])
    routes: dict[str, list[Any]] = {name: [] for name in HOSTILE}
    for entry in config["model_list"]:
        target = entry["litellm_params"]
        assert target["model"] == f"hosted_vllm/{entry['model_name']}"
        routes[entry["model_name"]].append((target["api_base"], target.get("weight")))
    first, second = "http://10.0.0.1:8000/v1", "http://10.0.0.2:8000/v1"
    assert routes[HOSTILE[0]] == [(first, 250), (second, 750)]
    assert all(routes[name] == [((first, second)[n % 2], None)] for n, name in enumerate(HOSTILE) if n)
    assert config["general_settings"]["master_key"] == "os.environ/LITELLM_MASTER_KEY"
    assert config["router_settings"]["routing_strategy"] == "simple-shuffle"


@pytest.mark.parametrize("name", ["all*", "os.environ/HOME"])
def test_litellm_is_given_no_name_that_means_something_to_it(name: str) -> None:
    with pytest.raises(BadInputError, match="rename"):
        export(plan_of((name, "b")), "litellm")


def test_kubernetes_manifests_are_a_deployment_and_a_service_that_finds_it() -> None:
    files = export(plan_of(("a", "b")), "kubernetes", Settings(claim="mine"))
    assert list(files) == ["gpu-0.yaml", "gpu-1.yaml"]
    deployment, service = yaml.safe_load_all(files["gpu-0.yaml"])
    assert (deployment["kind"], service["kind"]) == ("Deployment", "Service")
    template = deployment["spec"]["template"]
    assert (
        deployment["spec"]["selector"]["matchLabels"] == service["spec"]["selector"] == template["metadata"]["labels"]
    )
    container = template["spec"]["containers"][0]
    assert container["command"] == ["vllm", "serve"]
    assert container["resources"] == {"limits": {"nvidia.com/gpu": 1}}
    assert template["spec"]["volumes"][0]["persistentVolumeClaim"]["claimName"] == "mine"
    assert container["volumeMounts"][0]["mountPath"] == "/adapters"


def test_names_of_servers_are_dns_labels_and_never_two_the_same() -> None:
    ids = ["gpu-0", "GPU 0", "gpu 0", "gpu_0", "$(x)", "\n", "0", "ü" * 300, "x" * 63, "a.b", "-a-"]
    names = dns_names(ids)
    assert names[0] == "gpu-0"
    assert len(set(names)) == len(ids)
    assert all(len(name) <= 63 and re.fullmatch(r"[a-z]([-a-z0-9]*[a-z0-9])?", name) for name in names)
    assert dns_names(ids) == names
    files = export(plan_of(("a", "b"), ("../x", "$(y)")), "vllm")
    assert all("/" not in name and "$" not in name for name in files)


def test_paths_of_adapters_stay_below_their_folder_and_differ() -> None:
    names = [*HOSTILE, "a/../b", "/a", "a/", "a//b", ".", "%2E%2E", "a%2Fb", "..."]
    paths = [file_name(name) for name in names]
    assert len(set(paths)) == len(names)
    for path in paths:
        assert path == os.path.normpath(path)
        assert not path.startswith(("/", ".."))
    assert file_name("team/adapter") == "team/adapter"


def test_what_cannot_be_deployed_is_refused() -> None:
    plan = plan_of(("a", "b"))
    many = plan.model_copy(update={"gpus": tuple(gpu.model_copy(update={"slots": 2}) for gpu in plan.gpus)})
    with pytest.raises(BadInputError, match="no complete plan"):
        export(plan.model_copy(update={"status": "infeasible"}), "vllm")
    with pytest.raises(BadInputError, match="2 GPUs, but 1 URLs"):
        export(plan, "litellm", Settings(urls=("http://x",)))
    with pytest.raises(BadInputError, match="no command line"):
        export(plan_of(("a\0b", "b")), "vllm")
    with pytest.raises(BadInputError, match="an option"):
        export(plan, "vllm", Settings(model="-rf"))
    with pytest.raises(BadInputError, match="base model's name"):
        export(plan, "vllm", Settings(model="a"))
    with pytest.raises(BadInputError, match="max-cpu-loras"):
        export(many, "vllm", Settings(cpu_slots=1))
    with pytest.raises(BadInputError, match=r"\{name\}"):
        Settings(adapter_path="/adapters")
    with pytest.raises(BadInputError, match="beyond 65535"):
        servers_of(plan, Settings(port=65535))


def test_the_command_writes_files_or_prints_them(tmp_path: Path) -> None:
    plan_of(("a", "b")).save(tmp_path / "plan.json")
    arguments = ["export", str(tmp_path / "plan.json"), "--format", "vllm"]
    done = invoke(*arguments, "-o", tmp_path / "out", "--port", "9000")
    assert done.exit_code == 0, done.output
    script = tmp_path / "out" / "gpu-1.sh"
    assert "--port 9001" in script.read_text()
    assert os.access(script, os.X_OK)
    printed = invoke(*arguments[:2], "--format", "kubernetes")
    assert [part["kind"] for part in yaml.safe_load_all(printed.stdout)] == ["Deployment", "Service"] * 2
