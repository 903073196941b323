"""Metrics against their definitions."""

from __future__ import annotations

import math

import numpy as np
import pytest

from pix2pix.files import metrics
from tests.files.samples import noisy


def ssim_by_definition(a: np.ndarray, b: np.ndarray) -> float:
    """SSIM of two luma images, one window at a time, with variances from deviations."""
    weights = [math.exp(-(i * i + j * j) / (2 * 1.5**2)) for i in range(-5, 6) for j in range(-5, 6)]
    weights = np.array(weights).reshape(11, 11) / sum(weights)
    values = []
    for i in range(a.shape[0] - 10):
        for j in range(a.shape[1] - 10):
            x, y = a[i : i + 11, j : j + 11], b[i : i + 11, j : j + 11]
            mx, my = (weights * x).sum(), (weights * y).sum()
            vx, vy = (weights * (x - mx) ** 2).sum(), (weights * (y - my) ** 2).sum()
            covariance = (weights * (x - mx) * (y - my)).sum()
            numerator = (2 * mx * my + 2.55**2) * (2 * covariance + 7.65**2)
            values.append(numerator / ((mx**2 + my**2 + 2.55**2) * (vx + vy + 7.65**2)))
    return sum(values) / len(values)


@pytest.mark.parametrize("channels", [1, 3])
def test_ssim_is_its_definition(channels):
    a, b = noisy(24, 31, channels)
    luma = [p @ [0.299, 0.587, 0.114] if channels == 3 else p[..., 0].astype(float) for p in (a, b)]
    expected = ssim_by_definition(*luma)
    assert 0.2 < expected < 0.95
    assert metrics.ssim(a, b) == pytest.approx(expected, abs=1e-9)


def test_psnr_and_l1():
    a = np.zeros((4, 4, 3), np.uint8)
    b = a.copy()
    b[0, 0, 0] = 255
    assert metrics.l1(a, b) == metrics.l1(b, a) == pytest.approx(1 / 48)
    assert metrics.psnr(a, b) == metrics.psnr(b, a) == pytest.approx(10 * math.log10(48))


@pytest.mark.parametrize("shape", [(32, 32, 3), (11, 11, 1), (5, 40, 3), (2, 2, 3), (1, 1, 4)])
def test_equal_images(shape):
    a, _ = noisy(*shape)
    assert metrics.compare(a, a) == {"psnr": math.inf, "ssim": pytest.approx(1), "l1": 0}


def test_other_shapes_are_refused():
    with pytest.raises(ValueError, match=r"\(4, 4, 3\) and \(4, 4, 1\)"):
        metrics.compare(np.zeros((4, 4, 3), np.uint8), np.zeros((4, 4, 1), np.uint8))


def test_means_leave_out_what_is_infinite():
    rows = [{"psnr": 20.0, "ssim": 0.5, "l1": 0.1}, {"psnr": math.inf, "ssim": 1.0, "l1": 0.0}]
    assert metrics.means(rows) == {"psnr": 20.0, "ssim": 0.75, "l1": 0.05}
    assert metrics.means(rows[1:])["psnr"] == math.inf
    assert metrics.means([]) == {}


def test_means_do_not_depend_on_the_order():
    rows = [{"psnr": 0.1 * i, "ssim": 1e-3 / (i + 1), "l1": 1e-17 * i} for i in range(1000)]
    assert metrics.means(rows) == metrics.means(rows[::-1]) == metrics.means(sorted(rows, key=lambda r: r["psnr"] % 1))
