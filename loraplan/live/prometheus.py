"""What a vLLM server says of itself on ``/metrics`` (Prometheus text format)."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass

_LINE = re.compile(r"(?P<name>[a-zA-Z_:][\w:]*)(?:\{(?P<labels>.*)\})?\s+(?P<value>\S+)(?:\s+\d+)?")
_LABEL = re.compile(r'([a-zA-Z_]\w*)="((?:[^"\\]|\\.)*)"')


@dataclass(frozen=True)
class Metrics:
    """The samples by name: labels and value of each."""

    samples: Mapping[str, tuple[tuple[Mapping[str, str], float], ...]]

    @classmethod
    def parse(cls, text: str) -> Metrics:
        """Read the text format; lines that are none are left out."""
        found: dict[str, list[tuple[Mapping[str, str], float]]] = defaultdict(list)
        for line in text.splitlines():
            match = None if line.startswith("#") else _LINE.fullmatch(line.strip())
            if match is None:
                continue
            try:
                value = float(match["value"])
            except ValueError:
                continue
            found[match["name"]].append((dict(_LABEL.findall(match["labels"] or "")), value))
        return cls({name: tuple(samples) for name, samples in found.items()})

    def total(self, name: str) -> float:
        """The sum over all labels; nan if there is no such metric."""
        samples = self.samples.get(name)
        return float("nan") if not samples else sum(value for _, value in samples)

    def label(self, name: str, label: str) -> str | None:
        """A label of the last sample of a metric that has it."""
        for labels, _ in reversed(self.samples.get(name, ())):
            if label in labels:
                return labels[label]
        return None
