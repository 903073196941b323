"""How kernels are made."""

from __future__ import annotations

import threading
import time
from concurrent.futures import ThreadPoolExecutor

import pytest

pytest.importorskip("numba")

from pix2pix.gpu.jit import made_once


def test_threads_that_need_a_kernel_at_once_get_the_same():
    together = threading.Barrier(4)

    @made_once
    def make(size: int) -> list[int]:
        time.sleep(0.05)
        return [size]

    def ask(size: int) -> list[int]:
        together.wait()
        return make(size)

    with ThreadPoolExecutor(4) as threads:
        first, second, other, fourth = threads.map(ask, (1, 1, 2, 1))
    assert first is second is fourth and other == [2]
