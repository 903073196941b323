"""Plots of GPU results."""

from __future__ import annotations

import json

import pytest

from .tiny import run_of


@pytest.mark.full
def test_plots_are_drawn_of_what_there_is(results):
    pytest.importorskip("matplotlib", reason="needs matplotlib: pip install pix2pix[peers]")
    from bench.gpu import plots

    assert plots.main([]) == 0 and list(results.iterdir()) == []
    rates = {
        "pix2pix-float16": (3.0, 3.0, 3.0),
        "torch-graph-float16": (2.0, 2.0, 2.0),
        "pix2pix-tf32": (1.0, 1.0, 1.0),
    }
    (results / "gpu-1.json").write_text(json.dumps({"runs": [run_of(rates, 1), run_of(rates, 8)]}))
    row = {"layer": "encoder_1", "gflops": 5.0, "roof_gflops": 9.0}
    run = {"n": 8, "precision": "float16", "layers": [{"layer": "input", "gflops": None}, row]}
    (results / "gpu-layers.json").write_text(json.dumps({"runs": [run]}))
    assert plots.main([]) == 0
    text = (results / "gpu-throughput.svg").read_text()
    assert "PyTorch at its best, float16" in text and "pix2pix, tf32" in text and "at its best, tf32" not in text
    assert "float16, N=8" in (results / "gpu-roofline.svg").read_text()
