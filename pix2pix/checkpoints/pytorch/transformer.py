"""TransformerNet, the generator of fast style transfer, inferred from the names and shapes of its tensors.

Its images are numbers from 0 to 255, in and out, and it ends with no tanh. That is made part of its first and last
convolution: with x = (v + 1) * 127.5, a convolution K of x is 127.5 * K of v plus 127.5 times the sum of K's taps. This
is exact at the borders, too, because they are padded by reflection.

Source: fast_neural_style/neural_style/transformer_net.py of https://github.com/pytorch/examples.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator

import numpy as np

from ...errors import CheckpointError
from ...model.generator import Norm
from ...model.resnet import ResnetVariant, resnet
from ..tensors import Stored, StoredTensor, Unread
from .layout import Norms, Place, canonical, counted, extent, running_names

INNER = re.compile(r"(?:^|\.)(?P<block>res(?P<number>\d{1,2})\.(?:conv[12]\.conv2d|in[12])\.[a-z_]+)$")
_MAX_BLOCKS = 64
_HALF = 127.5  # of the range from 0 to 255
_VARIANT = ResnetVariant(
    norm=Norm(),
    up="nearest",
    down_padding="reflect",
    up_padding="reflect",
    edge_kernel=9,
    activation="none",
)


def read(tensors: Stored, origin: str) -> Unread:
    """The network that has these tensors, which have no prefix, and its weights.

    Raises CheckpointError that lists all tensors that don't fit.
    """
    blocks = max(int(match["number"]) for name in tensors if (match := INNER.match(name)))
    network = f"a TransformerNet of fast style transfer ({counted(blocks)})"
    if not 1 <= blocks <= _MAX_BLOCKS:
        raise CheckpointError(f"the file holds {network}: expected 1 to {_MAX_BLOCKS}")
    places = dict(_places(blocks))
    generator = resnet(
        0,
        blocks,
        extent(tensors, "conv1.conv2d.weight", 1),
        extent(tensors, "deconv3.conv2d.weight", 0),
        _VARIANT,
        filters=[extent(tensors, f"conv{number}.conv2d.weight", 0) for number in (1, 2, 3)],
        origin=f"{origin}: {network}",
        assumed=("eps", "size"),
    )
    norms = Norms(_VARIANT.norm, running=False, unused=running_names(places))  # stored by PyTorch before 0.4
    return generator, _from_bytes(canonical(tensors, generator, places, norms, network))


def _places(blocks: int) -> Iterator[tuple[str, Place]]:
    """(layer, place of its tensors)."""
    for number, layer in enumerate(("first", "down_1", "down_2"), 1):
        yield layer, Place(f"conv{number}.conv2d.", f"in{number}.")
    for block in range(1, blocks + 1):
        for half in (1, 2):
            yield f"block_{block}_{half}", Place(f"res{block}.conv{half}.conv2d.", f"res{block}.in{half}.")
    yield "up_1", Place("deconv1.conv2d.", "in4.")
    yield "up_2", Place("deconv2.conv2d.", "in5.")
    yield "last", Place("deconv3.conv2d.")


def _from_bytes(weights: dict[str, StoredTensor]) -> dict[str, StoredTensor]:
    """The weights of the network between images from -1 to 1 instead of 0 to 255."""

    def numbers(name: str) -> np.ndarray:
        return weights[name].read().astype(np.float64)

    changed: dict[str, Callable[[], np.ndarray]] = {
        "first.kernel": lambda: numbers("first.kernel") * _HALF,
        "first.bias": lambda: numbers("first.bias") + numbers("first.kernel").sum((0, 1, 2)) * _HALF,
        "last.kernel": lambda: numbers("last.kernel") / _HALF,
        "last.bias": lambda: numbers("last.bias") / _HALF - 1,
    }
    return weights | {name: StoredTensor(weights[name].shape, "float64", load) for name, load in changed.items()}
