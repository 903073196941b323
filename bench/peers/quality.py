"""PSNR of the CPU engines in lower precisions on real weights: the embedded demo model over its own label images."""

from __future__ import annotations

import tempfile
from pathlib import Path

import numpy as np

from pix2pix.demo.facades import facade
from pix2pix.engines.reference import ReferenceEngine, to_float

from ..checks import to_bytes
from ..demo_model import demo_model, difference
from . import model_files
from .contenders import Contender
from .engines import ENGINES, Task

# torch-compile-bfloat16 computes as torch-eager-bfloat16 does, and would have to be compiled again.
LOWER_PRECISION = ("pix2pix-bfloat16", "torch-eager-bfloat16", "openvino-bfloat16", "pix2pix-int8", "openvino-int8")


def measure(engines: list[str], threads: int, plan: str | None) -> dict[str, dict[str, float]]:
    """:func:`.difference` from the oracle, by name, for those engines that compute in a lower precision."""
    names = [name for name in engines if name in LOWER_PRECISION]
    generator, weights, labels = demo_model()
    x = to_float(labels)
    calibration = to_float(np.stack([facade(seed)[0] for seed in model_files.CALIBRATION_SEEDS]))
    with ReferenceEngine(generator, weights) as oracle:
        expected = to_bytes(oracle.run(x))
    report = {}
    with tempfile.TemporaryDirectory() as folder:
        formats = {ENGINES[name].file for name in names}
        model_files.export(Path(folder), generator, weights, len(x), formats, calibration)
        for name in names:
            contender = Contender(name, Task(Path(folder), x, threads, plan))
            contender.close()
            report[name] = difference(to_bytes(contender.output), expected)
    return report
