"""Objectives: what a plan costs. One small file each; this registry is how a config finds them."""

from __future__ import annotations

from loraplan.registry import Registry
from objectives.base import Objective

OBJECTIVES: Registry[type[Objective]] = Registry("objective", "loraplan.objectives")
OBJECTIVES.register("gpu_count", "objectives.gpu_count:GPUCount", "number of GPUs in use")
OBJECTIVES.register("latency", "objectives.latency:Latency", "mean ITL or TTFT of a request, with the GPUs there are")
OBJECTIVES.register("cost", "objectives.cost:Cost", "price per hour of the GPUs in use, by the fleet's prices")
OBJECTIVES.register("energy", "objectives.energy:Energy", "power of the GPUs in use, or energy per token")
OBJECTIVES.register("migration", "objectives.migration:Migration", "loading time of what a plan in force has elsewhere")
OBJECTIVES.register("headroom", "objectives.headroom:Headroom", "how close the fullest GPU is to starving")
OBJECTIVES.register("weighted", "objectives.combined:Weighted", "weighted sum of objectives")
OBJECTIVES.register("lexicographic", "objectives.combined:Lexicographic", "one objective, ties decided by the next")

__all__ = ["OBJECTIVES", "Objective"]
