"""Place of the neural surrogate of the twin, which does not exist yet."""
