"""Comparisons with the float64 oracle. A benchmark times nothing before its output has passed one of them."""

from __future__ import annotations

import numpy as np

from pix2pix.engines.reference import ReferenceEngine, to_float, to_uint8
from pix2pix.files import metrics
from pix2pix.model.generator import Generator, Weights
from pix2pix.plans.precisions import PRECISIONS

TOLERANCE = 1e-4  # max abs error after tanh in float32; a wrong network is off by far more
PEER_TOLERANCE = 1 / 255  # the same for peers: half a step of 8-bit images
# Least PSNR (dB) of 8-bit images in lower precisions; a wrong network has about 10.
LEAST_PSNR = {"tf32": 35.0, "float16": 35.0, "bfloat16": 35.0, "int8": 15.0}


def required_psnr(precision: str) -> float:
    """Least PSNR (dB) that this project promises in a precision, as 8-bit images; 0 in float32."""
    return PRECISIONS[precision].psnr or 0.0


class Oracle:
    """The reference engine's output for the first and the last image of a batch. Each image is computed once."""

    def __init__(self, generator: Generator, weights: Weights) -> None:
        self._engine = ReferenceEngine(generator, weights)
        self._known: dict[bytes, np.ndarray] = {}

    def __call__(self, b: np.ndarray) -> dict[int, np.ndarray]:
        """uint8 images (N,H,W,C) -> float32 outputs (H,W,C) by index."""
        return {index: self._output(b[index]) for index in (0, len(b) - 1)}

    def _output(self, image: np.ndarray) -> np.ndarray:
        key = image.tobytes()
        if key not in self._known:
            self._known[key] = self._engine.run(to_float(image))
        return self._known[key]


def to_bytes(y: np.ndarray) -> np.ndarray:
    """Outputs in [-1,1] as 8-bit images, by PyTorch's rule: the fraction is truncated."""
    return to_uint8(y, 255.0)


def check_close(name: str, result: np.ndarray, expected: np.ndarray, tolerance: float = TOLERANCE) -> float:
    """The largest absolute error. RuntimeError if it exceeds ``tolerance``, or if the result is constant."""
    _check_shapes(name, result, expected)
    error = float(np.abs(result.astype(np.float64) - expected).max())
    if not error <= tolerance or result.std() == 0:
        raise RuntimeError(f"{name} is {error:.2e} off the oracle (at most {tolerance:.0e}): not timed")
    return error


def check_psnr(name: str, result: np.ndarray, expected: np.ndarray, least: float) -> float:
    """PSNR (dB) of two outputs in [-1,1] as 8-bit images. RuntimeError if it is below ``least``."""
    _check_shapes(name, result, expected)
    psnr = metrics.psnr(to_bytes(result), to_bytes(expected))
    if not psnr >= least or result.std() == 0:
        raise RuntimeError(f"{name} has {psnr:.1f} dB against the oracle (at least {least:.0f}): not timed")
    return psnr


def check_images(name: str, result: np.ndarray, expected: np.ndarray) -> None:
    """RuntimeError unless uint8 images equal the oracle's up to the direction of rounding."""
    difference = np.abs(result.astype(np.int16) - expected)
    if result.std() == 0 or difference.max() > 1 or difference.mean() > 0.01:
        raise RuntimeError(
            f"{name} is up to {difference.max()} (mean {difference.mean():.3f}) off the oracle: not timed"
        )


def verify(
    name: str, precision: str, output: np.ndarray, expected: dict[int, np.ndarray], tolerance: float = TOLERANCE
) -> dict[str, float]:
    """Distance of ``output`` (N,H,W,C) from the oracle's images: ``max_abs_error`` in float32, else ``psnr_db``.

    RuntimeError if it is too far off (in float32: more than ``tolerance``), or if all images of the output are the
    same.
    """
    if len(np.unique(output[:, 0, 0, 0])) == 1 < len(output):
        raise RuntimeError(f"{name} gave the same for different images: not timed")
    result, truth = output[list(expected)], np.stack(list(expected.values()))
    if precision == "float32":
        return {"max_abs_error": check_close(name, result, truth, tolerance)}
    return {"psnr_db": round(check_psnr(name, result, truth, LEAST_PSNR[precision]), 1)}


def _check_shapes(name: str, result: np.ndarray, expected: np.ndarray) -> None:
    if result.shape != expected.shape:
        raise RuntimeError(f"{name} gave {result.shape}, the oracle {expected.shape}: not the same network")
