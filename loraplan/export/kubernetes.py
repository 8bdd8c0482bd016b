"""Kubernetes manifests: a Deployment and a Service per server."""

from __future__ import annotations

from typing import Any

import yaml

from loraplan.export.images import image_of
from loraplan.export.servers import Server, Settings

HTTP = 8000


def kubernetes(servers: tuple[Server, ...], settings: Settings) -> dict[str, str]:
    """A file per server, to be applied in any order."""
    return {
        f"{server.name}.yaml": yaml.safe_dump_all(
            [_deployment(server, settings), _service(server)], sort_keys=False, explicit_start=True, width=110
        )
        for server in servers
    }


def _labels(server: Server) -> dict[str, str]:
    return {"app.kubernetes.io/name": "vllm", "app.kubernetes.io/instance": server.name}


def _head(kind: str, version: str, server: Server) -> dict[str, Any]:
    return {"apiVersion": version, "kind": kind, "metadata": {"name": server.name, "labels": _labels(server)}}


def _deployment(server: Server, settings: Settings) -> dict[str, Any]:
    token = {"secretKeyRef": {"name": "hf-token", "key": "token", "optional": True}}
    health = {"httpGet": {"path": "/health", "port": HTTP}, "periodSeconds": 10}
    container = {
        "name": "vllm",
        "image": image_of(server, settings),
        "command": ["vllm", "serve"],
        # $(NAME) stands for a variable in arguments, $$ for a dollar.
        "args": [part.replace("$", "$$") for part in server.arguments(HTTP)],
        "env": [{"name": "HF_TOKEN", "valueFrom": token}],
        "ports": [{"name": "http", "containerPort": HTTP}],
        "resources": {"limits": {"nvidia.com/gpu": 1}},
        "startupProbe": {**health, "failureThreshold": 90},
        "readinessProbe": health,
        "volumeMounts": [
            {"name": "adapters", "mountPath": settings.folder, "readOnly": True},
            {"name": "shm", "mountPath": "/dev/shm"},  # noqa: S108 - in the container
        ],
    }
    volumes = [
        {"name": "adapters", "persistentVolumeClaim": {"claimName": settings.claim, "readOnly": True}},
        {"name": "shm", "emptyDir": {"medium": "Memory", "sizeLimit": "2Gi"}},
    ]
    spec = {
        "replicas": 1,
        "strategy": {"type": "Recreate"},  # the old server has the GPU until it is gone
        "selector": {"matchLabels": _labels(server)},
        "template": {"metadata": {"labels": _labels(server)}, "spec": {"containers": [container], "volumes": volumes}},
    }
    return _head("Deployment", "apps/v1", server) | {"spec": spec}


def _service(server: Server) -> dict[str, Any]:
    spec = {"selector": _labels(server), "ports": [{"name": "http", "port": HTTP, "targetPort": HTTP}]}
    return _head("Service", "v1", server) | {"spec": spec}
