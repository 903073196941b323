"""Tiny networks under several plans, for compute-sanitizer: every kernel runs on a GPU, and results are checked."""

import sys
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from pix2pix.engines.reference import ReferenceEngine  # noqa: E402
from pix2pix.files.metrics import psnr  # noqa: E402
from pix2pix.gpu.device import HOPPER, capability_of  # noqa: E402
from pix2pix.gpu.engine import GpuEngine  # noqa: E402
from pix2pix.model.unet import unet  # noqa: E402
from pix2pix.model.weights import random_weights  # noqa: E402
from tests.models import PSNR  # noqa: E402

FLOAT32 = (None, "implicit-32x128-split4", "implicit-128x128", "im2col")
LOWER = (None, "tensor-64x64-split4", "tensor-128x128", "tensor-64x64")
ON_HOPPER = ("hopper-128x64-split4", "hopper-128x256", "hopper-128x128", "hopper-128x64")

narrow, wide, plain = unet(ngf=5, depth=4), unet(ngf=32, depth=3), unet(ngf=32, depth=3, norm=None)
cases = [(narrow, "float32", FLOAT32), *((narrow, precision, LOWER) for precision in PSNR)]
if capability_of(0) == HOPPER:
    cases += [(wide, precision, ON_HOPPER) for precision in PSNR]
    cases += [(plain, precision, ON_HOPPER[1:]) for precision in PSNR]
b = np.random.default_rng(0).integers(0, 256, (2, 64, 128, 3), np.uint8)
for generator, precision, plans in cases:
    weights = random_weights(generator)
    expected = ReferenceEngine(generator, weights).translate(b)
    for plan in plans:
        with GpuEngine(generator, weights, precision=precision, plan=plan) as engine:
            result = engine.translate(b)
            engine.run(b[:1] / np.float32(255), outputs=["encoder_1", "decoder_2"])
        difference = np.abs(result.astype(int) - expected).max()
        print(precision, plan or "default plan", "differs by", difference)
        assert difference <= 1 if precision == "float32" else psnr(result, expected) >= PSNR[precision]
