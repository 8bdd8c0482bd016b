"""What errors say of names that nobody knows."""

from __future__ import annotations

from loraplan.errors import MOST_KNOWN, did_you_mean

NAMES = [f"run-{i:03d}" for i in range(1_500)]


def test_few_known_names_are_listed_in_order() -> None:
    assert did_you_mean("gredy", ["pi", "greedy"]) == "; did you mean 'greedy'? known: greedy, pi"
    assert did_you_mean("zzz", ["pi", "greedy"]) == "; known: greedy, pi"
    assert did_you_mean("zzz", NAMES[:MOST_KNOWN]) == f"; known: {', '.join(NAMES[:MOST_KNOWN])}"


def test_of_many_known_names_only_the_first_are_listed() -> None:
    listed = ", ".join(NAMES[:MOST_KNOWN])
    assert did_you_mean("zzz", NAMES[: MOST_KNOWN + 1]) == f"; known: {listed} and 1 more"
    assert did_you_mean("run-1499x", NAMES) == f"; did you mean 'run-1499'? known: {listed} and 1,488 more"
