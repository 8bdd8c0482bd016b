"""How close does the twin come to measured runs? The tables of ``loraplan fidelity``.

Run: ``python -m benchmarks.twin_fidelity RUNS.csv [REFERENCE.csv]``
"""

from __future__ import annotations

import sys
from pathlib import Path

from loraplan.cli.fidelity import print_tables, study
from loraplan.errors import LoraplanError


def main(arguments: list[str]) -> int:
    """Replay the runs of the file and print the tables; return the exit code."""
    if len(arguments) not in (1, 2):
        print("usage: python -m benchmarks.twin_fidelity RUNS.csv [REFERENCE.csv]", file=sys.stderr)
        return 2
    runs, *reference = map(Path, arguments)
    try:
        found, _ = study(runs, reference[0] if reference else None, [], None, 1)
    except LoraplanError as error:
        print(f"error: {error}", file=sys.stderr)
        return error.exit_code
    print_tables(found)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
