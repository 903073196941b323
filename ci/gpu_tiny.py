"""A tiny network under several plans on a GPU, for compute-sanitizer: every kernel, and a result that is right."""

import sys
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from pix2pix.generator import random_weights, unet  # noqa: E402
from pix2pix.gpu import GpuEngine  # noqa: E402
from pix2pix.metrics import psnr  # noqa: E402
from pix2pix.reference import ReferenceEngine  # noqa: E402
from tests.models import PSNR  # noqa: E402

FLOAT32 = (None, "implicit-32x128-split4", "implicit-128x128", "im2col")
LOWER = (None, "tensor-64x64-split4", "tensor-128x128", "tensor-64x64")

generator = unet(ngf=5, depth=4)
weights = random_weights(generator)
b = np.random.default_rng(0).integers(0, 256, (2, 64, 96, 3), np.uint8)
expected = ReferenceEngine(generator, weights).translate(b)
for precision, plans in {"float32": FLOAT32, **dict.fromkeys(PSNR, LOWER)}.items():
    for plan in plans:
        with GpuEngine(generator, weights, precision=precision, plan=plan) as engine:
            result = engine.translate(b)
            engine.run(b[:1] / np.float32(255), outputs=["encoder_1", "decoder_2"])
        difference = np.abs(result.astype(int) - expected).max()
        print(precision, plan or "default plan", "differs by", difference)
        assert difference <= 1 if precision == "float32" else psnr(result, expected) >= PSNR[precision]
