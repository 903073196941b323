"""Images for models with real weights, and the measure of how far two are apart."""

from __future__ import annotations

import functools
from pathlib import Path

import numpy as np
import pytest

from bench import real_models
from pix2pix import checkpoints
from tests.models import pictures


def test_edges_are_lines_of_one_pixel_between_labels():
    labels = np.zeros((5, 6, 3), np.uint8)
    labels[2:4, 2:5, 1] = 9
    expected = ["......", "..###.", ".#..#.", ".####.", "......"]
    drawn = real_models.edges(labels)
    assert drawn.dtype == np.uint8 and drawn.shape == labels.shape and set(np.unique(drawn)) == {0, 255}
    assert ["".join(".#"[int(pixel[0] == 0)] for pixel in row) for row in drawn] == expected


def test_images_are_as_far_apart_as_their_worst():
    expected = pictures(2, 16, 16)
    off = np.where(expected > 127, expected - 3, expected + 3).astype(np.uint8)
    equal = {"mean_psnr_db": 99.0, "least_psnr_db": 99.0, "mean_ssim": 1.0, "largest_difference": 0}
    assert real_models.difference(expected, expected) == equal
    found = real_models.difference(np.stack([expected[0], off[1]]), expected)
    psnr = 20 * np.log10(255 / 3)
    assert found["least_psnr_db"] == round(psnr, 2) and found["largest_difference"] == 3
    assert found["mean_psnr_db"] == pytest.approx((99 + psnr) / 2, abs=0.01) and 0.9 < found["mean_ssim"] < 1


def test_no_model_is_calibrated_on_what_is_measured(monkeypatch):
    monkeypatch.setattr(checkpoints, "read", lambda path: (None, None))  # images alone matter here
    monkeypatch.setattr(real_models, "calibration_labels", functools.cache(real_models.calibration_labels))
    models = list(real_models.models(real_models.NAMES, real_models.SHARED, Path("resnet.safetensors")))
    assert {"demo", "resnet"} <= {model.name for model in models}
    for model in models:
        measured = {image.tobytes() for image in model.images}
        assert len(measured) == len(model.images), model.name
        assert len(model.calibration) and not measured & {image.tobytes() for image in model.calibration}, model.name
