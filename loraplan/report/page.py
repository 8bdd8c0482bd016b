"""The page of a report: template, style, script, plotly and the data in one file that needs no network."""

from __future__ import annotations

from html import escape
from importlib.resources import files
from typing import Any

from loraplan.report.answer import in_words
from loraplan.report.data import as_json

PARTS = "loraplan.report"


def page(data: dict[str, Any]) -> str:
    """The page as HTML. All text in ``data`` may be hostile: it reaches the page as JSON and as escaped text only."""
    from plotly.offline import get_plotlyjs

    words = in_words(data["answer"]) if "answer" in data else f"{data['plan']['status']} by {data['plan']['solver']}"
    filled = {
        "TITLE": escape(data["title"]),
        "WORDS": escape(words),
        "STYLE": _part("page.css"),
        "DATA": as_json(data),
        "PLOTLY": get_plotlyjs(),
        "SCRIPT": "\n".join(_part(name) for name in ("page.js", "figures.js", "sections.js")),
    }
    # Each place is filled once, from the template: what is put in is not looked at again.
    pieces = _part("page.html").split("@@")
    return "".join(filled[piece] if i % 2 else piece for i, piece in enumerate(pieces))


def _part(name: str) -> str:
    return files(PARTS).joinpath(name).read_text(encoding="utf-8")
