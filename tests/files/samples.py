"""Images for tests of files, and files of them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image

from pix2pix.engines.reference import ReferenceEngine
from pix2pix.model.generator import Generator
from pix2pix.model.weights import random_weights

SIZE = 32  # of a small model


def photo(h: int = 40, w: int = 56, channels: int = 3, seed: int = 0) -> np.ndarray:
    """A smooth image with some noise: uint8 (h,w,channels)."""
    rng = np.random.default_rng(seed)
    y, x, c = np.ogrid[:h, :w, :channels]
    smooth = 120 + 70 * np.sin(x / 7 + c) + 50 * np.cos(y / 5 - c)
    return np.clip(smooth + rng.normal(0, 8, (h, w, channels)), 0, 255).astype(np.uint8)


def noise(h: int = SIZE, w: int = SIZE, seed: int = 0) -> np.ndarray:
    """An image of noise: uint8 (h,w,3)."""
    return np.random.default_rng(seed).integers(0, 256, (h, w, 3), dtype=np.uint8)


def save(folder: Path, name: str, *args: int) -> Path:
    """Save the image ``noise(*args)``; returns its file."""
    path = folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(noise(*args)).save(path)
    return path


def pixels_of(path: Path) -> np.ndarray:
    with Image.open(path) as image:
        return np.asarray(image)


def engine_of(generator: Generator) -> ReferenceEngine:
    return ReferenceEngine(generator, random_weights(generator), np.float32)


def noisy(h: int, w: int, channels: int = 3, noise: float = 12, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """An image and a noisy copy of it."""
    rng = np.random.default_rng(seed)
    y, x, c = np.ogrid[:h, :w, :channels]
    smooth = 120 + 60 * np.sin(x / 6 + c) + 50 * np.cos(y / 4)
    other = smooth + rng.normal(0, noise, smooth.shape)
    return tuple(np.clip(a, 0, 255).astype(np.uint8) for a in (smooth, other))
