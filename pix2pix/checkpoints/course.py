"""Raw weight files of the SNU Multicore Computing course (2020), such as ``edges2cats_AtoB.bin``.

Nothing but little-endian float32: the tensors of a TensorFlow 1 generator (affinelayer/pix2pix-tensorflow, 8 levels,
RGB to RGB) in the alphabetical order of their names, with no header. The number of filters follows from the file's
length. The moving statistics in it were never updated by the training program, so they are checked and left out.
"""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np

from ..errors import CheckpointError
from ..model.generator import Generator
from ..model.unet import unet

_DEPTH = 8
_BYTES = 4
_MAX_NGF = 1024
_PARTS = {
    "bias": "conv/bias",
    "kernel": "conv/kernel",
    "beta": "batch_normalization/beta",
    "gamma": "batch_normalization/gamma",
    "mean": "batch_normalization/moving_mean",
    "variance": "batch_normalization/moving_variance",
}  # "conv" is conv2d or conv2d_transpose in the real names, which sort alike


def tensors(generator: Generator) -> dict[str, tuple[int, ...]]:
    """Canonical names and shapes of all tensors, moving statistics included, in the order of the file."""
    shapes = {name: shape for layer in generator.layers for name, shape in layer.tensors("running").items()}

    def name_in_tensorflow(name: str) -> str:
        layer, _, part = name.rpartition(".")
        return f"{layer}/{_PARTS[part]}"

    return {name: shapes[name] for name in sorted(shapes, key=name_in_tensorflow)}


def ngf_of(size: int) -> int | None:
    """The filters of the first layer in a file of ``size`` bytes, or None if no such model has that size."""
    count, remainder = divmod(size, _BYTES)
    if remainder or not count:
        return None
    # The count is a quadratic polynomial of ngf; its leading term is off by less than 1 in ngf.
    at_0, at_1, at_2 = 3, _count(1), _count(2)
    square = (at_2 - 2 * at_1 + at_0) // 2
    estimate = math.isqrt(count // square)
    candidates = range(max(1, estimate - 1), min(_MAX_NGF, estimate + 1) + 1)
    return next((ngf for ngf in candidates if _count(ngf) == count), None)


def read(path: Path) -> tuple[Generator, dict[str, np.ndarray]]:
    """Read a course file. Raises CheckpointError if its length or its content is not that of a model."""
    size = path.stat().st_size
    ngf = ngf_of(size)
    if ngf is None:
        raise CheckpointError(f"a file of {size} bytes is no raw pix2pix model: none has that length")
    numbers = np.fromfile(path, "<f4").astype(np.float32, copy=False)
    if numbers.nbytes != size:
        raise CheckpointError(f"got {numbers.nbytes} bytes of {size}: the file changed while it was read")
    generator = _generator(ngf)
    weights, position = {}, 0
    for name, shape in tensors(generator).items():
        array = numbers[position : position + math.prod(shape)].reshape(shape)
        position += array.size
        if name.endswith(".variance") and not (array >= 0).all():
            raise CheckpointError(
                f"the file has the length of a raw pix2pix model (ngf {ngf}), but where {name} should be it has "
                f"numbers that are no variances: it is damaged or something else"
            )
        if not name.endswith((".mean", ".variance")):
            weights[name] = array
    return generator, weights


def _generator(ngf: int) -> Generator:
    return unet(ngf, _DEPTH, origin="course .bin", assumed=("eps", "slope"))


def _count(ngf: int) -> int:
    """The number of floats in a file."""
    return sum(math.prod(shape) for shape in tensors(_generator(ngf)).values())
