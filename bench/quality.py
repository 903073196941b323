"""What lower precision costs on real weights: the embedded demo model over its own label pictures.

PSNR of 8-bit pictures against the float64 oracle. Int8 gets its ranges from labels that are not among those pictures.
"""

from __future__ import annotations

import tempfile
from pathlib import Path

import numpy as np
from PIL import Image

from pix2pix import checkpoints, demo, metrics
from pix2pix.demo.facades import facade
from pix2pix.reference import ReferenceEngine

from . import common, files
from .contenders import CALIBRATION_PICTURES, CALIBRATION_SEED, Contender
from .engines import ENGINES, Task

DEMO = Path(demo.__file__).parent
LOWER_PRECISION = ("pix2pix-bfloat16", "torch-eager-bfloat16", "openvino-bfloat16", "openvino-int8")


def measure(engines: list[str], threads: int, plan: str | None) -> dict[str, dict[str, float]]:
    """Mean and least PSNR (dB) over the pictures, and the largest difference: for those of the engines that compute in
    less than float32 (inductor's bfloat16 is PyTorch's, and would take its time to compile)."""
    names = [name for name in engines if name in LOWER_PRECISION]
    generator, weights = checkpoints.read(DEMO / "facades.safetensors")
    x = common.to_float(np.stack([np.asarray(Image.open(path)) for path in sorted(DEMO.glob("labels-*.png"))]))
    seeds = range(CALIBRATION_SEED, CALIBRATION_SEED + CALIBRATION_PICTURES)
    calibration = common.to_float(np.stack([facade(seed)[0] for seed in seeds]))
    with ReferenceEngine(generator, weights) as oracle:
        expected = common.to_bytes(oracle.run(x))
    report = {}
    with tempfile.TemporaryDirectory() as folder:
        files.export(Path(folder), generator, weights, len(x), {ENGINES[name].file for name in names}, calibration)
        for name in names:
            contender = Contender(name, Task(Path(folder), x, threads, plan))
            contender.close()
            result = common.to_bytes(contender.output)
            psnr = [metrics.psnr(a, b) for a, b in zip(result, expected, strict=True)]
            report[name] = {
                "mean_psnr_db": round(sum(psnr) / len(psnr), 2),
                "least_psnr_db": round(min(psnr), 2),
                "largest_difference": int(np.abs(result.astype(np.int16) - expected).max()),
            }
    return report
