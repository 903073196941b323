"""Times of layers and kernels on a GPU."""

from __future__ import annotations

import numpy as np

from bench.gpu import kernels, layers, tables
from pix2pix.model.lowering import lower
from tests.models import pictures

from .tiny import PEAKS, TINY, WEIGHTS, needs_simulator


@needs_simulator
def test_every_launch_is_timed(results):
    from bench.gpu import peak
    from pix2pix.gpu.engine import GpuEngine

    b = pictures(1, 16, 16)
    with GpuEngine(TINY, WEIGHTS) as engine:
        expected = engine.translate(b)
        peaks = {**peak.measure(engine), "cublas_gflops": PEAKS}
        assert peaks["fma_gflops"] > 0 and peaks["bandwidth_gbs"] > 0
        rows, launched = layers.roofline(engine, b, peaks), kernels.measure(engine, b)
        np.testing.assert_array_equal(engine.translate(b), expected)  # measuring has left the engine as it was
    assert (launched[0]["layer"], launched[-1]["kernel"]) == ("input", "to_image")
    constant = lower(TINY).constants(16, 16)
    assert constant and [row["layer"] for row in rows if row["gflops"]] == [
        layer.name for layer in TINY.layers if layer.name not in constant
    ]
    assert [row["kernel"] for row in launched].count("simt_gemm") == len(TINY.layers) - len(constant)
    assert all(row["us"] > 0 for row in rows) and all(0 < row["of_roof"] for row in rows if row["gflops"])
    assert tables.layer_table(rows).count("\n") == len(rows) + 2
    assert tables.kernel_table(launched).count("\n") == len(launched) + 1
