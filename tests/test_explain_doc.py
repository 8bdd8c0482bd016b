"""docs/explain.md is true: its commands print what it shows, and its table has every resource."""

from __future__ import annotations

import re
from pathlib import Path

from support.printed import assert_prints

from loraplan.resources import RESOURCES

ROOT = Path(__file__).parents[1]
PAGE = (ROOT / "docs" / "explain.md").read_text(encoding="utf-8")


def test_the_commands_print_what_the_page_shows() -> None:
    plan, conflict = re.findall(r"```console\n(.*?)```", PAGE, flags=re.DOTALL)
    assert_prints(plan, ROOT)
    assert_prints(conflict, ROOT, code=1)


def test_every_resource_is_explained() -> None:
    assert re.findall(r"^\| `(\w+)` \|", PAGE, flags=re.MULTILINE) == list(RESOURCES)
