"""A real browser without a screen; tests that need it skip where there is none."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path

import pytest

NAMES = ("chromium", "chromium-browser", "google-chrome", "chrome")
FLAGS = (
    "--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--hide-scrollbars",
    "--enable-logging=stderr", "--virtual-time-budget=10000", "--no-first-run",
)  # fmt: skip
SLOW = "Too many auto-margin redraws"
"""What Plotly's layout says on a busy machine."""


def browser() -> str:
    """The program."""
    found = next((path for path in map(shutil.which, NAMES) if path), None)
    if found is None:
        pytest.skip(f"no browser: none of {', '.join(NAMES)} is installed")
    return found


def run(page: Path, *flags: str, size: tuple[int, int] = (1280, 900)) -> tuple[str, list[str]]:
    """Open ``page`` with further ``flags``; what is printed, and what the console says."""
    profile = page.parent / "profile"
    window = f"--window-size={size[0]},{size[1]}"
    command = [browser(), *FLAGS, f"--user-data-dir={profile}", window, *flags, page.as_uri()]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    shutil.rmtree(profile, ignore_errors=True)
    said = re.findall(r"CONSOLE.*", done.stderr)
    return done.stdout, [line for line in said if SLOW not in line]


def after(page: Path, script: str) -> tuple[str, list[str]]:
    """The document of ``page`` once ``script`` has run in it, and what the console says."""
    changed = page.with_name(f"after-{page.name}")
    changed.write_text(page.read_text(encoding="utf-8").replace("</body>", f"<script>{script}</script></body>"))
    return run(changed, "--dump-dom")
