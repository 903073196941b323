"""pix2pixHD's label maps as a network's input: encoded as 0 and 1, where engines' images are -1 and 1.

That program makes a channel of each label, 1 where it is (one-hot), and one more of the edges of instances. With x from
-1 to 1, its network reads (x + 1) / 2, and what first multiplies it does so exactly with other weights:

    conv((x + 1) / 2, k) + b = conv(x, k / 2) + (b + sum(k) / 2)

for padding by reflection, which is no constant. Averages of the input read (x + 1) / 2, too.

Source: models/pix2pixHD_model.py of https://github.com/NVIDIA/pix2pixHD.
"""

from __future__ import annotations

import dataclasses

import numpy as np

from ...errors import CheckpointError
from ...model.generator import INPUT, Generator, Layer
from ..tensors import StoredTensor, Unread

IMAGE_CHANNELS = (1, 3, 4)


def takes_labels(in_channels: int) -> bool:
    """Whether a network of pix2pixHD with so many input channels takes label maps: it cannot take images."""
    return in_channels not in IMAGE_CHANNELS


def with_labels(generator: Generator, weights: dict[str, StoredTensor]) -> Unread:
    """The generator that takes labels, and its weights, of one that takes 0 and 1.

    Raises CheckpointError where the input is padded with a constant, or read without a bias.
    """
    weights, inputs = dict(weights), {INPUT}
    for layer in generator.layers:
        if not inputs.intersection(source.layer for source in layer.inputs):
            continue
        if layer.depthwise:  # an average, of padding that does not count
            inputs.add(layer.name)
            continue
        _check(layer)
        kernel, bias = (f"{layer.name}.{part}" for part in ("kernel", "bias"))
        weights[kernel], weights[bias] = _halved(weights[kernel]), _shifted(weights[kernel], weights[bias])
    return dataclasses.replace(generator, takes="labels"), weights


def _check(layer: Layer) -> None:
    if layer.padding_mode != "reflect" or not layer.bias:
        raise CheckpointError(
            f"the network reads label maps by {layer.name}, which should pad by reflection and have a bias as in "
            f"pix2pixHD: its network was changed"
        )


def _halved(kernel: StoredTensor) -> StoredTensor:
    return StoredTensor(kernel.shape, "float32", lambda: kernel.read() / np.float32(2))


def _shifted(kernel: StoredTensor, bias: StoredTensor) -> StoredTensor:
    """The bias, with half the sums of the kernel (kh,kw,in,out)."""

    def load() -> np.ndarray:
        return (bias.read() + kernel.read().sum((0, 1, 2), np.float64) / 2).astype(np.float32)

    return StoredTensor(bias.shape, "float32", load)
