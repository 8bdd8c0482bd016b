"""Benchmarks: speed of the twin, and its fidelity to measured runs."""
