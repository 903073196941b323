"""Quality on real weights: what is compared, and what is reported as wrong."""

from __future__ import annotations

import json

import numpy as np

from bench import common, real_models
from bench.gpu import quality
from pix2pix.engines.reference import ReferenceEngine
from tests.models import pictures

from .tiny import TINY, WEIGHTS


def test_quality_is_measured_on_all_models_that_are_there(results, monkeypatch, capsys):
    class Engine(ReferenceEngine):
        """The GPU engine's part, in float32 throughout; bfloat16 is a little off."""

        def __init__(self, g, w, options):
            super().__init__(g, w, np.float32)
            self.off = options.precision == "bfloat16"

        def translate(self, b, out=None):
            return super().translate(b) ^ (3 * self.off)

    monkeypatch.setattr(common, "missing_device", lambda *arguments: "")
    monkeypatch.setattr(quality, "make_engine", Engine)
    tiny = real_models.RealModel("demo", TINY, WEIGHTS, pictures(3, 16, 16), pictures(1, 16, 16))
    monkeypatch.setattr(real_models, "demo_model", lambda: tiny)
    assert quality.main(["--shared", str(results)]) == 0
    record = json.loads((results / "gpu-quality.json").read_text())
    assert list(record["models"]) == ["demo"] and list(record["models"]["demo"]) == list(quality.PRECISIONS)
    assert "edges2cats: left out" in capsys.readouterr().out
    psnr = {precision: entry["least_psnr_db"] for precision, entry in record["models"]["demo"].items()}
    assert (
        38 < psnr["bfloat16"] < 45 < psnr["float32"] and record["models"]["demo"]["bfloat16"]["largest_difference"] >= 3
    )
    assert "| demo, bfloat16 |" in (results / "gpu.md").read_text()
    assert "| SSIM, mean |" in (results / "gpu.md").read_text()
    monkeypatch.setattr(quality, "required_psnr", lambda precision: 45.0)
    assert quality.main(["--shared", str(results)]) == 1
    assert "WRONG: demo, bfloat16" in capsys.readouterr().out
