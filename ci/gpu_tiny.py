"""A tiny network under both plans on a GPU, for compute-sanitizer: every kernel, and a result that is right."""

import sys
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from pix2pix.generator import random_weights, unet  # noqa: E402
from pix2pix.gpu import GpuEngine  # noqa: E402
from pix2pix.reference import ReferenceEngine  # noqa: E402

generator = unet(ngf=5, depth=4)
weights = random_weights(generator)
b = np.random.default_rng(0).integers(0, 256, (3, 16, 48, 3), np.uint8)
expected = ReferenceEngine(generator, weights).translate(b).astype(int)
for plan in (None, "implicit-32x128-split4", "implicit-128x128", "im2col"):
    with GpuEngine(generator, weights, plan=plan) as engine:
        difference = np.abs(engine.translate(b) - expected).max()
    print(plan or "default plan", "differs by", difference)
    assert difference <= 1
