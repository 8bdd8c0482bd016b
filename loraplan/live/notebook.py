"""What has been measured so far, kept line by line: who is interrupted goes on from there."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from loraplan.errors import BadInputError
from loraplan.files import make_folder


class Notebook:
    """A folder with ``notes.jsonl``: a line that says what is measured, then one line per measurement."""

    def __init__(self, folder: Path, subject: Mapping[str, Any]) -> None:
        """Open the notebook, or begin one on ``subject``.

        Raises:
            BadInputError: it is about something else, or cannot be read or written.
        """
        make_folder(folder, "state")
        self.folder = folder
        self._path = folder / "notes.jsonl"
        self._notes: dict[str, Any] = {}
        lines = list(self._lines())
        if not lines:
            self._append({"subject": dict(subject)})
            return
        written = lines[0].get("subject") if isinstance(lines[0], dict) else None
        if written != json.loads(json.dumps(subject)):
            other = written if isinstance(written, dict) else {}
            keys = [key for key in subject if other.get(key) != json.loads(json.dumps(subject[key]))]
            raise BadInputError(
                f"{self._path} is of another server ({', '.join(keys) or 'unreadable'} differ): "
                "give another --state, or remove it"
            )
        for line in lines[1:]:
            self._notes[line["name"]] = line["value"]

    def _lines(self) -> Iterator[Any]:
        """The lines that are whole: the last one may have been cut off."""
        if not self._path.exists():
            return
        text = self._path.read_text(encoding="utf-8", errors="replace")
        if text and not text.endswith("\n"):
            text = text[: text.rfind("\n") + 1]
            self._path.write_text(text, encoding="utf-8")
        for line in text.splitlines():
            try:
                yield json.loads(line)
            except ValueError:
                raise BadInputError(f"{self._path}: not valid JSON: {line[:60]!r}; remove it") from None

    def __contains__(self, name: str) -> bool:
        """Whether it has been measured."""
        return name in self._notes

    def __getitem__(self, name: str) -> Any:
        """What was measured."""
        return self._notes[name]

    def items(self) -> Iterator[tuple[str, Any]]:
        """All that was measured, in order."""
        yield from self._notes.items()

    def write(self, name: str, value: Any) -> None:
        """Keep a measurement, from now on."""
        self._append({"name": name, "value": value})
        self._notes[name] = json.loads(json.dumps(value))

    def _append(self, line: Mapping[str, Any]) -> None:
        with self._path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(line, allow_nan=False) + "\n")
