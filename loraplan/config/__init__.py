"""Configurations: the format of the file, reading it, and the planning task it describes."""

from loraplan.config.case import Case, build, build_constraints, build_fleet, build_workload, planned_workload
from loraplan.config.laws import ArrivalsSpec, LengthsSpec, PopularitySpec
from loraplan.config.load import load_config, load_settings, parse_config
from loraplan.config.schema import (
    Config,
    ConstraintsSpec,
    FleetItem,
    GenerateSpec,
    PluginSpec,
    TraceAdaptersSpec,
    WorkloadSpec,
)

__all__ = [
    "Config",
    "load_config",
    "load_settings",
    "parse_config",
    "Case",
    "build",
    "build_workload",
    "planned_workload",
    "build_fleet",
    "build_constraints",
    "WorkloadSpec",
    "TraceAdaptersSpec",
    "GenerateSpec",
    "PopularitySpec",
    "ArrivalsSpec",
    "LengthsSpec",
    "FleetItem",
    "ConstraintsSpec",
    "PluginSpec",
]
