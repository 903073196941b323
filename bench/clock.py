"""Seconds that calls take. Imported by the processes of engines that are compared, so this module imports little."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any


def seconds_of(call: Callable[[], Any]) -> float:
    """Seconds that one call takes."""
    start = time.perf_counter()
    call()
    return time.perf_counter() - start


def time_calls(call: Callable[[], Any], repetitions: int) -> list[float]:
    """Seconds of each of so many calls."""
    return [seconds_of(call) for _ in range(repetitions)]
