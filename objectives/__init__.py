"""Objectives: what a plan costs. One small file each; this registry is how a config finds them."""

from __future__ import annotations

from loraplan.registry import Registry
from objectives.base import Objective

OBJECTIVES: Registry[type[Objective]] = Registry("objective", "loraplan.objectives")
OBJECTIVES.register("gpu_count", "objectives.gpu_count:GPUCount", "number of GPUs in use")

__all__ = ["OBJECTIVES", "Objective"]
