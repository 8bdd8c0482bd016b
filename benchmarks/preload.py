"""Imported by the process of which those that solve cells are copies: everything they need, compiled code among it."""

import joblib.externals.loky.backend.context  # noqa: F401 - a worker of joblib names this as its way to start processes

from benchmarks.child import warm_up

warm_up("fluid")
