"""Benchmarks: speed and fidelity of the twin, quality of solvers."""
