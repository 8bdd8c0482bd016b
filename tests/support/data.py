"""Where the measured data and public traces lie; tests that need them skip where they do not."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

DATA = Path(os.environ.get("LORAPLAN_DATA", Path(__file__).parents[2].parent / "shared" / "data"))


def data_file(name: str) -> Path:
    """The path of a data file (``traces/azure_llm_2023_conv.csv``); skips the test if it is not there."""
    path = DATA / name
    if not path.exists():
        pytest.skip(f"no {path}; set LORAPLAN_DATA to the folder that holds {name}")
    return path
