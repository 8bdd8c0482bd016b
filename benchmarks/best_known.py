"""The best values and bounds known for the instances of the suites: a file that changes on proof or improvement."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Literal

from pydantic import Field, ValidationError

from benchmarks.brute_force import MOST_ADAPTERS, least_cost
from benchmarks.suites import fingerprint, load_suite, problem_size
from loraplan.config.part import Part
from loraplan.errors import BadInputError
from loraplan.files import write_text
from loraplan.profiles import first_problem

PATH = Path(__file__).parent / "best_known.json"
SAME = 1e-6
"""Values that differ by less than this part are the same."""
BRUTE_FORCE = "brute force"

Key = tuple[str, str, str, str]
"""Suite, instance, oracle, objective."""


class Best(Part):
    """What is known of an instance, with respect to an oracle and an objective."""

    suite: str
    instance: str
    oracle: str
    objective: str
    problem: str
    """Fingerprint of the problem: what is known of another one says nothing."""
    value: float | None = None
    """Cost of the best plan seen."""
    by: str = ""
    """Who found it."""
    bound: float | None = None
    """No plan costs less, with respect to the oracle."""
    proven: str = ""
    """How that is known."""
    date: str = ""
    """Of the last change."""

    @property
    def key(self) -> Key:
        """What it is about."""
        return self.suite, self.instance, self.oracle, self.objective

    @property
    def closed(self) -> bool:
        """Whether the best plan is proven to be optimal."""
        return self.value is not None and self.bound is not None and self.value <= self.bound * (1 + SAME)

    def improved(self, value: float | None, bound: float | None, who: str) -> Best:
        """The same with a better value or a higher bound; itself if neither is better.

        Raises:
            BadInputError: value and bound contradict what is known: one of the two is wrong.
        """
        best, most = self.value, self.bound
        values = [x for x in (value, best) if x is not None]
        bounds = [x for x in (bound, most) if x is not None]
        if values and bounds and max(bounds) > min(values) * (1 + SAME):
            raise BadInputError(
                f"{self.suite}/{self.instance}, {self.objective} on {self.oracle}: bound {max(bounds):g} is above "
                f"value {min(values):g}; {who} or {self.proven or self.by} is wrong"
            )
        changes: dict[str, object] = {}
        if value is not None and (best is None or value < best * (1 - SAME)):
            changes |= {"value": value, "by": who}
        if bound is not None and (most is None or bound > most * (1 + SAME)):
            changes |= {"bound": bound, "proven": who}
        return self.model_copy(update={**changes, "date": today()}) if changes else self


class BestKnown(Part):
    """The file (schema version 1)."""

    schema_version: Literal[1] = 1
    entries: tuple[Best, ...] = Field(default=())

    def by_key(self) -> dict[Key, Best]:
        """The entries by what they are about."""
        return {entry.key: entry for entry in self.entries}

    def save(self, path: Path = PATH) -> None:
        """Write the file atomically, an entry a line, in order."""
        lines = [json.dumps(entry.model_dump(mode="json")) for entry in sorted(self.entries, key=lambda one: one.key)]
        write_text(path, '{"schema_version": 1, "entries": [\n' + ",\n".join(lines) + "\n]}\n")


def today() -> str:
    """The date, UTC."""
    return datetime.now(UTC).date().isoformat()


def read_best_known(path: Path = PATH) -> BestKnown:
    """Read the file; one that is not there knows nothing.

    Raises:
        BadInputError: it is not such a file.
    """
    if not path.exists():
        return BestKnown()
    try:
        return BestKnown.model_validate_json(path.read_text(encoding="utf-8"))
    except (OSError, ValidationError) as error:
        text = first_problem(error) if isinstance(error, ValidationError) else error.strerror
        raise BadInputError(f"best-known file {path}: {text}") from None


def updated(known: BestKnown, found: Iterable[Best]) -> tuple[BestKnown, int]:
    """What is known with what was ``found`` (each with its own ``by`` and ``proven``), and how many entries changed."""
    entries, changed = known.by_key(), set[Key]()
    for one in found:
        old = entries.get(one.key)
        if old is None or old.problem != one.problem:
            old = one.model_copy(update={"value": None, "bound": None, "by": "", "proven": ""})
        new = old.improved(one.value, None, one.by).improved(None, one.bound, one.proven)
        if new is not entries.get(one.key) and (new.value is not None or new.bound is not None):
            entries[one.key] = new
            changed.add(one.key)
    return BestKnown(entries=tuple(entries.values())), len(changed)


def by_brute_force(suite: str, objective: str = "gpu_count", oracle: str = "fluid") -> list[Best]:
    """The optima of a suite's instances, as far as they are small enough."""
    found = []
    for one in load_suite(suite).instances:
        if problem_size(one.config) <= MOST_ADAPTERS:
            least = least_cost(one.config, objective, oracle)
            about: Mapping[str, str] = {"suite": suite, "instance": one.name, "oracle": oracle, "objective": objective}
            values = {"value": least, "by": BRUTE_FORCE, "bound": least, "proven": BRUTE_FORCE, "date": today()}
            found.append(Best.model_validate({**about, "problem": fingerprint(one.config), **values}))
    return found


def main() -> None:
    """Put the optima of suite ``tiny`` into the file; ``python -m benchmarks.best_known``, a few minutes."""
    known, changed = updated(read_best_known(), by_brute_force("tiny"))
    known.save()
    print(f"{changed} entries changed, {len(known.entries)} in all")


if __name__ == "__main__":
    main()
