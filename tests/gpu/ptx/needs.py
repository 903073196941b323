"""Whether kernels can be compiled here."""

from __future__ import annotations

import importlib.util
import os


def missing() -> str:
    """Why kernels cannot be compiled; nothing where they can."""
    if not importlib.util.find_spec("numba_cuda"):
        return "needs numba-cuda: ci/setup cuda"
    if os.environ.get("NUMBA_ENABLE_CUDASIM") == "1":
        return "compiles kernels, which Numba's simulator replaces"
    return ""


MISSING = missing()
