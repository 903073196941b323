"""How much memory a call takes, as the system counts it."""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from pathlib import Path

import pytest


def peak(call: Callable[[], object]) -> int:
    """The most bytes that a call has taken, libraries' included. Skips where that cannot be measured."""
    try:
        ctypes.CDLL(None).malloc_trim(0)
        Path("/proc/self/clear_refs").write_text("5")
        before, _ = memory()
        call()
        return memory()[1] - before
    except (OSError, AttributeError):
        pytest.skip("peaks of memory cannot be measured here")


def memory() -> tuple[int, int]:
    """The bytes that this process holds now, and the most that it has held."""
    status = dict(line.split(":") for line in Path("/proc/self/status").read_text().splitlines())
    return int(status["VmRSS"].split()[0]) << 10, int(status["VmHWM"].split()[0]) << 10
