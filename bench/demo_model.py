"""The embedded demo model as real weights on which the quality of lower precisions is measured."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image

from pix2pix import checkpoints, demo
from pix2pix.files import metrics
from pix2pix.model.generator import Generator, Weights

FOLDER = Path(demo.__file__).parent
EQUAL = 99.0  # stands for the infinite PSNR (dB) of equal images, which JSON cannot hold


def demo_model() -> tuple[Generator, Weights, np.ndarray]:
    """The model, and its label images, uint8 (N,256,256,3)."""
    labels = np.stack([np.asarray(Image.open(path)) for path in sorted(FOLDER.glob("labels-*.png"))])
    return *checkpoints.read(FOLDER / "facades.safetensors"), labels


def difference(result: np.ndarray, expected: np.ndarray) -> dict[str, float]:
    """Mean and least PSNR (dB) and the largest difference of uint8 images (N,H,W,C)."""
    psnr = [min(EQUAL, metrics.psnr(a, b)) for a, b in zip(result, expected, strict=True)]
    return {
        "mean_psnr_db": round(sum(psnr) / len(psnr), 2),
        "least_psnr_db": round(min(psnr), 2),
        "largest_difference": int(np.abs(result.astype(np.int16) - expected).max()),
    }
