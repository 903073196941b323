"""Raw weight files of the SNU Multicore Computing course (2020), such as ``edges2cats_AtoB.bin``.

Such a file is little-endian float32 without a header: the tensors of a TensorFlow 1 generator
(affinelayer/pix2pix-tensorflow, 8 levels, RGB to RGB) in the alphabetical order of their names. The number of filters
follows from the file's length. The moving statistics were never updated by the training program, so they are checked
and left out.
"""

from __future__ import annotations

import math
from functools import partial

from ..errors import CheckpointError
from ..model.generator import Generator
from ..model.unet import unet
from .model_file import ModelFile
from .sample import Sample
from .tensors import StoredTensor, Unread
from .text import one_generator

_DEPTH = 8
_NUMBER = 4  # bytes
_MAX_NGF = 1024
_PARTS = {
    "bias": "conv/bias",
    "kernel": "conv/kernel",
    "beta": "batch_normalization/beta",
    "gamma": "batch_normalization/gamma",
    "mean": "batch_normalization/moving_mean",
    "variance": "batch_normalization/moving_variance",
}  # "conv" is conv2d or conv2d_transpose in the real names, which sort alike


def recognises(sample: Sample) -> bool:
    """Whether a file has the length of such a model."""
    return ngf_of(sample.size) is not None


def read(file: ModelFile, key: str | None) -> Unread:
    """Read a course file. Raises CheckpointError if its length or its content is not that of a model."""
    one_generator(key)
    ngf = ngf_of(file.size)
    if ngf is None:
        raise CheckpointError(f"a file of {file.size} bytes is no raw pix2pix model: none has that length")
    generator = _generator(ngf)
    weights, position = {}, 0
    for name, shape in tensors(generator).items():
        tensor = StoredTensor(shape, "float32", partial(file.numbers, position, "float32", shape))
        position += math.prod(shape) * _NUMBER
        if name.endswith(".variance") and not (tensor.read() >= 0).all():
            raise CheckpointError(
                f"the file has the length of a raw pix2pix model (ngf {ngf}), but where {name} should be it has "
                f"numbers that are no variances: it is damaged or something else"
            )
        if not name.endswith((".mean", ".variance")):
            weights[name] = tensor
    return generator, weights


def tensors(generator: Generator) -> dict[str, tuple[int, ...]]:
    """Canonical names and shapes of all tensors, moving statistics included, in the order of the file."""
    shapes = {name: shape for layer in generator.layers for name, shape in layer.tensors("running").items()}

    def name_in_tensorflow(name: str) -> str:
        layer, _, part = name.rpartition(".")
        return f"{layer}/{_PARTS[part]}"

    return {name: shapes[name] for name in sorted(shapes, key=name_in_tensorflow)}


def ngf_of(size: int) -> int | None:
    """The filters of the first layer in a file of ``size`` bytes, or None if no such model has that size."""
    count, remainder = divmod(size, _NUMBER)
    if remainder or not count:
        return None
    # The count is a quadratic polynomial of ngf; its leading term alone estimates ngf with an error below 1.
    at_0, at_1, at_2 = 3, count_of(1), count_of(2)
    square = (at_2 - 2 * at_1 + at_0) // 2
    estimate = math.isqrt(count // square)
    candidates = range(max(1, estimate - 1), min(_MAX_NGF, estimate + 1) + 1)
    return next((ngf for ngf in candidates if count_of(ngf) == count), None)


def count_of(ngf: int) -> int:
    """The number of floats in a file of a model with ``ngf`` filters in its first layer."""
    return sum(math.prod(shape) for shape in tensors(_generator(ngf)).values())


def _generator(ngf: int) -> Generator:
    return unet(ngf, _DEPTH, origin="course .bin", assumed=("eps", "slope"))
