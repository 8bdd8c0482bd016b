"""Imported by the process of which those that solve cells are copies: everything they need, compiled code among it."""

from benchmarks.child import warm_up

warm_up("fluid")
