"""Where the vLLM that ``make vllm`` installs is; tests that need it skip where it is not."""

from __future__ import annotations

from pathlib import Path

import pytest

FOLDER = Path(__file__).parents[2] / ".venv-vllm"


def vllm_python() -> str:
    """Its Python; skips the test if there is none."""
    if not (FOLDER / "ready").exists():
        pytest.skip(f"no vLLM in {FOLDER}: `make vllm` installs it")
    return str(FOLDER / "bin" / "python")


def vllm_command() -> str:
    """Its ``vllm``."""
    return str(Path(vllm_python()).with_name("vllm"))
