"""How far a translated image is from its target: PSNR, SSIM and L1, of 8-bit images.

SSIM as in Wang, Bovik, Sheikh and Simoncelli, "Image quality assessment: from error visibility to structural
similarity", IEEE Transactions on Image Processing 13 (2004): on luma, an 11x11 Gaussian window of sigma 1.5,
K1 = 0.01, K2 = 0.03, averaged over the windows that lie wholly inside the image.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping

import numpy as np

LUMA = (0.299, 0.587, 0.114)  # ITU-R BT.601
NAMES = ("psnr", "ssim", "l1")


def compare(a: np.ndarray, b: np.ndarray) -> dict[str, float]:
    """PSNR (dB), SSIM (-1 to 1) and L1 (0 to 1) of two uint8 images (H,W,C). Raises ValueError if shapes differ."""
    if a.shape != b.shape:
        raise ValueError(f"got images of shapes {a.shape} and {b.shape}, expected the same")
    return {"psnr": psnr(a, b), "ssim": ssim(a, b), "l1": l1(a, b)}


def psnr(a: np.ndarray, b: np.ndarray) -> float:
    """Peak signal-to-noise ratio in dB of two uint8 images; infinite if they are equal."""
    error = np.mean(np.square(a.astype(np.float32) - b), dtype=np.float64)
    return math.inf if error == 0 else 10 * math.log10(255**2 / error)


def l1(a: np.ndarray, b: np.ndarray) -> float:
    """Mean absolute difference of two uint8 images, as a fraction of 255."""
    return float(np.mean(np.abs(a.astype(np.float32) - b), dtype=np.float64)) / 255


def ssim(a: np.ndarray, b: np.ndarray) -> float:
    """Mean structural similarity of two uint8 images (H,W,C) on luma; the window shrinks to fit a tiny image."""
    x, y = _luma(a), _luma(b)
    window = min(11, *(n - 1 + n % 2 for n in x.shape))
    taps = np.exp(-0.5 * (np.arange(window) - window // 2) ** 2 / 1.5**2)
    taps /= taps.sum()
    mean_x, mean_y = _filter(x, taps), _filter(y, taps)
    squares = _filter(x * x + y * y, taps)
    product = _filter(x * y, taps)
    c1, c2 = (0.01 * 255) ** 2, (0.03 * 255) ** 2
    means, mean_squares = mean_x * mean_y, mean_x**2 + mean_y**2
    similarity = (2 * means + c1) * (2 * (product - means) + c2)
    similarity /= (mean_squares + c1) * (squares - mean_squares + c2)
    return float(similarity.mean())


def _luma(image: np.ndarray) -> np.ndarray:
    """uint8 (H,W,C) -> float64 (H,W); a fourth channel is left out."""
    return image[..., :3] @ np.array(LUMA) if image.shape[2] >= 3 else image[..., 0].astype(np.float64)


def _filter(x: np.ndarray, taps: np.ndarray) -> np.ndarray:
    """(H,W) -> (H - n + 1, W - n + 1): the separable filter of n taps, where it lies wholly inside."""
    for axis in (0, 1):
        n = x.shape[axis] - len(taps) + 1
        y = np.zeros([n if i == axis else size for i, size in enumerate(x.shape)])
        for i, tap in enumerate(taps):
            y += tap * (x[i : i + n] if axis == 0 else x[:, i : i + n])
        x = y
    return x


def means(all_metrics: Iterable[Mapping[str, float]]) -> dict[str, float]:
    """The mean of each metric; that of PSNR over the images that differ from their target. Empty for no images."""
    rows = list(all_metrics)
    result = {}
    for name in NAMES:
        values = [row[name] for row in rows if math.isfinite(row[name])]
        if rows:
            result[name] = math.fsum(values) / len(values) if values else math.inf  # exact, so in any order
    return result
