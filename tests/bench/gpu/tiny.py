"""Tiny networks, and records of runs, for the tests of GPU benchmarks."""

from __future__ import annotations

import pytest

from bench import common
from bench.gpu import contenders, tables
from pix2pix.model.unet import unet
from pix2pix.model.weights import random_weights
from tests.gpu.gpus import MISSING, SIMULATED

TINY = unet(ngf=4, depth=4)
WEIGHTS = {name: w * 5 if name.endswith("kernel") else w for name, w in random_weights(TINY).items()}
PEAKS = dict.fromkeys(contenders.PRECISIONS, 100.0)


def needs_simulator(test):
    """Decorator: a test that takes networks as tiny as the simulator's kernels."""
    reason = MISSING or "needs NUMBA_ENABLE_CUDASIM=1"
    return pytest.mark.gpu(pytest.mark.skipif(bool(MISSING) or not SIMULATED, reason=reason)(test))


def run_of(rates: dict[str, tuple[float, ...]], n: int) -> dict:
    """A run as it is saved, with these images/s by engine: resident, stream and translate."""
    engines = {}
    for name, values in rates.items():
        ways = {
            way: common.rates([n / rate], n, 10**9, 1e5) | {"block_images_per_s": [rate]}
            for way, rate in zip(tables.WAYS, values, strict=True)
        }
        engines[name] = {"precision": name.rsplit("-", 1)[1], "settings": "none", "psnr_db": 50.0, **ways}
    return {"n": n, "engines": engines}
