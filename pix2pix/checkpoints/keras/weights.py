"""The network of Keras weights that come without a graph: that of the TensorFlow tutorial, in any size.

The arrays show levels, filters, channels, biases and norms. What they cannot show is assumed to be as in the tutorial:
leaky ReLU of 0.3, skips taken after it, [upsampled, skip] concatenated, eps of 0.001.

Source: https://www.tensorflow.org/tutorials/generative/pix2pix
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace

from ...errors import CheckpointError, NoGeneratorError
from ...model.generator import INPUT, Generator, Layer, Norm, Source
from ..tensors import MAX_CHANNELS, Stored, Unread, matched
from ..text import shown

_SLOPE, _EPS = 0.3, 1e-3
_MAX_CONVOLUTIONS = 24
# The tutorial on CycleGAN has a norm of its own, whose parameters are scale and offset, and another eps.
_OF_CYCLEGAN, _EPS_OF_CYCLEGAN = re.compile(r"/scale$|/instance_normalization(?:_\d+)?/vars/"), 1e-5
_GROUP_NORM = re.compile(r"(?:^|/)group_normalization(?:_\d+)?/")
_PARTS = {
    "kernel": "kernel", "bias": "bias", "gamma": "gamma", "beta": "beta", "moving_mean": "mean",
    "moving_variance": "variance", "scale": "gamma", "offset": "beta",
}  # fmt: skip
_REMARK = (
    "the file holds weights and no graph of layers: what they don't show is taken to be as in the TensorFlow tutorial "
    "on pix2pix, e.g. that skips come after the leaky ReLU. Save the whole model to be sure"
)

Block = dict[str, str]  # a convolution and its norm: canonical part -> name in the file


def read(orders: Iterable[Sequence[Block]], arrays: Stored, origin: str) -> Unread:
    """The generator and weights of a file. ``orders`` are the possible orders of its convolutions.

    Raises CheckpointError, which explains or lists what doesn't fit, for weights that are not those of a U-Net.
    """
    if any(_GROUP_NORM.search(name) for name in arrays):
        raise CheckpointError(
            "the file holds the weights of GroupNormalization layers, but not their number of groups: save the whole "
            "model, as .keras or .h5"
        )
    problem = "it has no convolutions"
    for blocks in orders:
        _check_kernels(blocks, arrays)
        try:
            generator = _generator(blocks, arrays, origin)
        except ValueError as error:
            problem = str(error)
            continue
        wanted = {}
        for layer, block in zip(generator.layers, blocks, strict=True):
            for name, shape in layer.tensors(generator.statistics).items():
                wanted[block.get(name.rpartition(".")[2], name)] = (name, shape)
        return generator, matched(wanted, arrays, [name for name in arrays if name not in wanted])
    raise CheckpointError(f"the weights are not those of a U-Net: {problem}")


def _check_kernels(blocks: Sequence[Block], arrays: Stored) -> None:
    """Raise CheckpointError that says what the file holds, if the kernels show that it is no U-Net generator."""
    shapes = [arrays[block["kernel"]].shape for block in blocks]
    if len(blocks) > _MAX_CONVOLUTIONS or any(
        len(s) != 4 or not all(1 <= n <= MAX_CHANNELS for n in s) for s in shapes
    ):
        raise CheckpointError(f"the file has {len(blocks)} kernels, or odd ones: it is no pix2pix generator")
    if (7, 7) in {shape[:2] for shape in shapes}:
        raise CheckpointError(
            "the file holds the weights of a ResNet generator, which don't say how it pads and what it adds: save the "
            "whole model, as .keras, .h5 or SavedModel"
        )
    if len(shapes) > 2 and shapes[-1][3] == 1:  # a transposed convolution would read one channel: none of a U-Net does
        raise NoGeneratorError(
            f"the file holds a discriminator ({len(blocks)} convolutions, the last with 1 filter), which training "
            f"needs and translating does not: take the generator's weights"
        )


def _generator(blocks: Sequence[Block], arrays: Stored, origin: str) -> Generator:
    """The network of ``blocks``. Raises ValueError where their channels don't fit together."""
    depth, odd = divmod(len(blocks), 2)
    if odd or depth < 2:
        raise ValueError(f"it has {len(blocks)} convolutions, expected as many down as up, and at least 2 of each")
    normed = [block for block in blocks if block.keys() & {"gamma", "mean"}]
    running = bool(normed) and all({"mean", "variance"} <= block.keys() for block in normed)
    eps = _EPS_OF_CYCLEGAN if any(_OF_CYCLEGAN.search(block.get("gamma", "")) for block in normed) else _EPS
    layers = []
    for number, block in enumerate(blocks):
        up, shape = number >= depth, arrays[block["kernel"]].shape
        level = 2 * depth - number if up else number + 1
        if not up:
            inputs = [Source(f"encoder_{number}", _SLOPE) if number else Source(INPUT)]
        elif level == depth:
            inputs = [Source(f"encoder_{depth}", _SLOPE)]
        else:
            inputs = [Source(f"decoder_{level + 1}", 0.0), Source(f"encoder_{level}", _SLOPE)]
        norm = Norm(eps, affine="gamma" in block) if block in normed else None
        name, last = f"{'decoder' if up else 'encoder'}_{level}", number + 1 == len(blocks)
        read_channels, filters = (shape[3], shape[2]) if up else (shape[2], shape[3])
        layer = Layer(name, tuple(inputs), read_channels, filters, up, bias="bias" in block, norm=norm)
        layers.append(replace(layer, activation="tanh") if last else layer)
    assumed = (("eps", bool(normed)), ("slope", True), ("statistics", running), ("size", True))
    return Generator(
        tuple(layers),
        "running" if running else "image",
        2**depth,
        origin=origin,
        assumed=tuple(name for name, unsaid in assumed if unsaid),
        remarks=(_REMARK,),
    )


# -- the order of the convolutions ----------------------------------------------------------------------------


def from_list(arrays: Stored) -> list[list[Block]]:
    """The one order of arrays that are called "<layer>/<part>" and listed in the order of the layers."""
    blocks: list[Block] = []
    homes: dict[str, Block] = {}
    for name in arrays:
        layer, _, own = name.rpartition("/")
        part = _PARTS.get(own)
        if part == "kernel":
            homes[layer] = {}
            blocks.append(homes[layer])
        if part is None or not blocks:
            raise CheckpointError(f"weight {shown(name)} is of a kind that no pix2pix U-Net has there")
        block = homes.setdefault(layer, blocks[-1])
        if part in block:
            raise CheckpointError(f"weight {shown(name)}: a second norm after the same convolution, unlike in a U-Net")
        block[part] = name
    return [blocks]


def numbered(name: str) -> tuple[str, int]:
    """Class and number of the layer that Keras 3 calls ``name`` in a file: ("conv2d", 3) of "conv2d_3"."""
    match = re.fullmatch(r"(.*?)(?:_(\d{1,4}))?", name)
    return (match[1], int(match[2] or 0)) if match else (name, 0)


def from_groups(arrays: Stored) -> Iterator[list[Block]]:
    """The possible orders of arrays that are called "layers/sequential_1/layers/conv2d/vars/0".

    Layers of one class are numbered in their order. Nothing says how layers of two classes, or layers inside and
    outside of Sequentials, interleave.
    """
    kept: dict[str, list[str]] = {}
    for name in arrays:
        layer, _, _ = name.rpartition("/vars/")
        kept.setdefault(layer, []).append(name)
    layers = sorted(kept, key=lambda layer: [numbered(step) for step in layer.split("/")])
    blocks: dict[str, Block] = {}
    norms: dict[str, Block] = {}
    for layer in layers:
        names = sorted(kept[layer], key=lambda name: numbered(f"_{name.rpartition('/')[2]}"))
        if len(arrays[names[0]].shape) == 4:
            blocks[layer] = dict(zip(("kernel", "bias"), names, strict=False))
        else:
            norms[layer] = _norm(layer, names)
    containers = {layer.rpartition("/")[0]: block for layer, block in blocks.items() if layer.count("/") > 1}
    for layer, norm in norms.items():
        if layer.count("/") > 1:
            containers.get(layer.rpartition("/")[0], {}).update(norm)
    loose = [norm for layer, norm in norms.items() if layer.count("/") == 1]
    downs, ups = ([layer for layer in blocks if ("transpose" in layer) is up] for up in (False, True))
    for order in itertools.product(_mixed(downs), _mixed(ups)):
        names = [*order[0], *order[1]]
        yield _with_norms([blocks[name] for name in names], [name.count("/") == 1 for name in names], loose)


def _mixed(layers: list[str]) -> list[list[str]]:
    """The possible orders of layers inside Sequentials and layers outside of them."""
    inside = [layer for layer in layers if layer.count("/") > 1]
    outside = [layer for layer in layers if layer.count("/") == 1]
    return [inside + outside, outside + inside] if inside and outside else [layers]


def _norm(layer: str, names: list[str]) -> Block:
    """The parts of a norm."""
    moving = "batch" in layer.rpartition("/")[2]
    parts = {4: ["gamma", "beta", "mean", "variance"], 2: ["mean", "variance"] if moving else ["gamma", "beta"]}
    if len(names) not in parts:
        raise CheckpointError(f"layer {shown(layer)} has {len(names)} arrays: no layer of a pix2pix U-Net has so many")
    return dict(zip(parts[len(names)], names, strict=True))


def _with_norms(blocks: list[Block], outside: list[bool], norms: list[Block]) -> list[Block]:
    """``blocks`` with ``norms`` given, in order, to those blocks that are outside of Sequentials.

    The first and the last convolution have none; in some networks the innermost one has none either.
    """
    first, innermost, last = 0, len(blocks) // 2 - 1, len(blocks) - 1
    for without in ({first, last}, {first, innermost, last}, {last}, set[int]()):
        takers = [number for number, taker in enumerate(outside) if taker and number not in without]
        if len(takers) == len(norms):
            given = dict(zip(takers, norms, strict=True))
            return [{**block, **given.get(number, {})} for number, block in enumerate(blocks)]
    if norms:
        raise CheckpointError(f"it cannot be told which of {len(blocks)} convolutions the {len(norms)} norms follow")
    return blocks
