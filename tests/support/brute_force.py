"""The ground truth for up to about ten adapters, which ships with the checks for plugins."""

from loraplan.testing.brute_force import feasible_subsets, fewest_gpus, fits_nowhere, least_cost

__all__ = ["feasible_subsets", "fewest_gpus", "fits_nowhere", "least_cost"]
