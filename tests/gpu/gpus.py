"""Whether tests can have a GPU, or numba's simulator of one, for which NUMBA_ENABLE_CUDASIM=1 is set from the start."""

from __future__ import annotations

import os
from typing import Any

import pytest

SIMULATED = os.environ.get("NUMBA_ENABLE_CUDASIM") == "1"


def missing() -> str:
    """Why there is no GPU that can be used; nothing where there is one."""
    try:
        if SIMULATED:
            from . import simulator  # noqa: F401  (which makes it quick)
        from pix2pix.devices import count_gpus

        count_gpus()
    except (ImportError, RuntimeError) as error:
        return f"{error} (or set NUMBA_ENABLE_CUDASIM=1 to test in numba's simulator)"
    return ""


MISSING = missing()
EDGE, NUMBER = (32, 3) if SIMULATED else (64, 11)  # of images, where tests may choose: the simulator is slow


def needs_gpu(test: Any) -> Any:
    """Decorator: a test of the marker `gpu`, skipped where there is no GPU and no simulator."""
    return pytest.mark.gpu(pytest.mark.skipif(bool(MISSING), reason=MISSING)(test))
