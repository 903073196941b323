"""What jobs of several ranks work on."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from pix2pix import checkpoints
from pix2pix.model.unet import unet
from pix2pix.model.weights import random_weights
from tests.mpi.jobs import IMAGES, command


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """A folder with a model, images in ``in``, and in ``expected`` what one process makes of them."""
    folder = tmp_path_factory.mktemp("mpi")
    generator = unet(ngf=4, depth=5)
    checkpoints.write(folder / "model.safetensors", generator, random_weights(generator))
    (folder / "in" / "deep").mkdir(parents=True)
    for i in range(IMAGES):
        pixels = np.random.default_rng(i).integers(0, 256, (64, 64, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / "in" / ("deep" if i % 3 else "") / f"x{i}.png")
    assert command(folder, "-o", "expected").returncode == 0
    return folder
