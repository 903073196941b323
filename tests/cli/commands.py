"""What tests of the command line share."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image

import pix2pix
from pix2pix.cli import main
from pix2pix.files.fitting import pad
from pix2pix.model.unet import unet

GENERATOR = unet(ngf=2, depth=5, origin="a test")


def noise(h: int = 32, w: int = 32, seed: int = 0) -> np.ndarray:
    """An image of noise: uint8 (h,w,3)."""
    return np.random.default_rng(seed).integers(0, 256, (h, w, 3), dtype=np.uint8)


def save(name: str, *args: int) -> None:
    """Save the image ``noise(*args)``."""
    Path(name).parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(noise(*args)).save(name)


def translate(*argv: str, model: str = "model.safetensors") -> int:
    """Run ``pix2pix translate``; returns the exit status."""
    return main(["translate", *argv, "-m", model])


def names(folder: str) -> list[str]:
    """The names of all files in a folder, hidden ones too."""
    return sorted(p.relative_to(folder).as_posix() for p in Path(folder).rglob("*") if p.is_file())


def pixels_of(name: str) -> np.ndarray:
    with Image.open(name) as image:
        return np.asarray(image)


def expected(*args: int, fit: str = "resize") -> np.ndarray:
    """What the model makes of ``noise(*args)``."""
    x = noise(*args)
    h, w = x.shape[:2]
    with pix2pix.load("model.safetensors") as engine:
        return engine.translate(pad(x, 32))[:h, :w]
