"""Weights and images that are told by names and sizes, so that tests need not store them: no PyTorch is needed here."""

from __future__ import annotations

import zlib
from collections.abc import Mapping

import numpy as np

FILTERS = {3: (0.25, 0.5, 0.25), 4: (0.25, 0.75, 0.75, 0.25)}  # CUT's, by their number of taps


def numbers(name: str, shape: tuple[int, ...], seed: int = 0) -> np.ndarray:
    """The tensor of a state dict, float32 (int64 for counters): random, and large enough that every part matters."""
    if name.endswith("num_batches_tracked"):
        return np.zeros(shape, np.int64)
    if name.endswith("filt"):
        taps = FILTERS[shape[-1]]
        return np.tile(np.outer(taps, taps).astype(np.float32), (*shape[:2], 1, 1))
    rng = np.random.default_rng(zlib.crc32(name.encode(), seed))
    drawn = rng.standard_normal(shape)
    if len(shape) == 4:
        drawn *= 1.4 / np.sqrt(shape[1] * shape[2] * shape[3])
        if name.startswith("deconv3"):  # whose result is an image from 0 to 255
            drawn *= 60
    elif name.endswith("running_var"):
        drawn = rng.uniform(2, 4, shape)
    else:
        drawn = drawn * 0.2 + name.endswith("weight")
    return drawn.astype(np.float32)


def state_dict(shapes: Mapping[str, list[int]]) -> dict[str, np.ndarray]:
    """A state dict of tensors with these names and shapes."""
    return {name: numbers(name, tuple(shape)) for name, shape in shapes.items()}


def input_image(h: int, w: int, c: int) -> np.ndarray:
    """A uint8 image (h,w,c) that varies in all three directions."""
    y, x, z = np.ogrid[:h, :w, :c]
    return ((y // 4 * 37 + x // 4 * 53 * (z + 1) + x % 4 * 9) % 256).astype(np.uint8)
