"""The neural surrogate of the twin."""
