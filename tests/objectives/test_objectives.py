"""What every registered objective must do."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from loraplan.testing.objectives import OBJECTIVE_CHECKS, ObjectiveSubject, objective_subject
from objectives import OBJECTIVES

SETTINGS: dict[str, dict[str, Any]] = {"migration": {"placement": [["a0", "a1", "a2"], ["a3", "a4"]]}}
"""Of objectives that cannot do without."""


@pytest.mark.parametrize("check", OBJECTIVE_CHECKS, ids=lambda check: check.__name__)
@pytest.mark.parametrize("name", OBJECTIVES.names())
def test_every_objective(name: str, check: Callable[[ObjectiveSubject], None]) -> None:
    check(objective_subject(name, SETTINGS.get(name)))


def test_gpu_count_counts() -> None:
    subject = objective_subject("gpu_count")
    assert subject.costs(subject.loads).sum() == len(subject.loads)
