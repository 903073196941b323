"""pix2pixHD's local enhancer as data: a ResNet of the halved image, and finer networks that its result is added to.

The global generator of the same paper is :func:`..resnet.resnet` with more levels.

Source: Wang et al., "High-Resolution Image Synthesis and Semantic Manipulation with Conditional GANs",
arXiv:1711.11585.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from .generator import INPUT, Generator, Layer, Source
from .resnet import ResnetVariant, block_layers, down_layers, edge_layer, up_layers

COARSE = "coarse_"  # how the names of the coarse network's layers begin
_DEFAULT_VARIANT = ResnetVariant()
_AVERAGE = (1 / 3, 1 / 3, 1 / 3)


@dataclass(frozen=True, slots=True)
class Coarse:
    """The size of the network that reads the smallest image: a global generator without its last layer."""

    levels: int = 3
    blocks: int = 9


def enhancer_prefix(number: int, enhancers: int) -> str:
    """How the names of the layers of one enhancer begin; those of the last and finest are plain."""
    return "" if number == enhancers else f"enhancer_{number}_"


def local_enhancer(
    ngf: int = 32,
    blocks: int = 3,
    in_channels: int = 3,
    out_channels: int = 3,
    variant: ResnetVariant = _DEFAULT_VARIANT,
    *,
    coarse: Coarse = Coarse(),
    enhancers: int = 1,
    **fields: Any,
) -> Generator:
    """A generator of ``enhancers`` enhancers with ``blocks`` blocks each, over a coarse network.

    ``ngf`` are the filters of the finest enhancer's first layer; each coarser network has twice as many. The layers of
    the finest are first, down_1, join (its sum with the next coarser network), block_1_1, ..., up_1, last. Names in
    coarser ones begin with ``enhancer_1_`` and so on, or ``coarse_``. ``fields`` are those of :class:`Generator`;
    ``size`` defaults to 512 pixels. Raises ValueError if there are no enhancers, blocks or levels.
    """
    if min(enhancers, blocks, coarse.levels, coarse.blocks) < 1:
        raise ValueError(f"got {enhancers} enhancers, {blocks} blocks and {coarse}: expected 1 or more of each")
    layers = [*_entry("", Source(INPUT), in_channels, ngf, variant)]  # the first to be read, so that it gives ngf
    images = [INPUT]
    for halving in range(1, enhancers + 1):
        layers.append(_average(f"average_{halving}", images[-1], in_channels))
        images.append(layers[-1].name)
    widths = [ngf * 2 ** (enhancers + level) for level in range(coarse.levels + 1)]
    layers += _coarse(coarse.blocks, Source(images[-1]), in_channels, widths, variant)
    for number in range(1, enhancers + 1):
        prefix = enhancer_prefix(number, enhancers)
        width = ngf * 2 ** (enhancers - number)
        below = Source(layers[-1].name, 0.0)
        if prefix:
            layers += _entry(prefix, Source(images[enhancers - number]), in_channels, width, variant)
        layers.append(_join(prefix, below, 2 * width))
        layers += block_layers(blocks, Source(f"{prefix}join"), 2 * width, variant, prefix)
        layers += up_layers(Source(layers[-1].name), [width, 2 * width], variant, prefix)
    layers.append(edge_layer("last", Source(layers[-1].name, 0.0), ngf, out_channels, variant))
    return Generator(tuple(layers), **{"size": 512} | fields)


def _entry(prefix: str, image: Source, in_channels: int, width: int, variant: ResnetVariant) -> Iterator[Layer]:
    """What an enhancer makes of its image."""
    yield edge_layer(f"{prefix}first", image, in_channels, width, variant)
    yield from down_layers(1, Source(f"{prefix}first", 0.0), width, 2 * width, variant, prefix)


def _coarse(blocks: int, image: Source, in_channels: int, widths: list[int], variant: ResnetVariant) -> Iterator[Layer]:
    """The coarse network, from its image to its last up layer."""
    yield edge_layer(f"{COARSE}first", image, in_channels, widths[0], variant)
    source = Source(f"{COARSE}first", 0.0)
    for level in range(1, len(widths)):
        yield from down_layers(level, source, widths[level - 1], widths[level], variant, COARSE)
        source = Source(f"{COARSE}down_{level}", 0.0)
    yield from block_layers(blocks, source, widths[-1], variant, COARSE)
    yield from up_layers(Source(f"{COARSE}block_{blocks}_2"), widths, variant, COARSE)


def _average(name: str, image: str, channels: int) -> Layer:
    """The image halved by averages of 3x3 pixels, which leave the padding out."""
    return Layer(
        name,
        (Source(image),),
        channels,
        channels,
        kernel=3,
        padding_mode="uncounted",
        bias=False,
        depthwise=_AVERAGE,
    )


def _join(prefix: str, below: Source, channels: int) -> Layer:
    """The sum of an enhancer's map and the coarser network's: the first residual block needs its value."""
    return Layer(
        f"{prefix}join",
        (Source(f"{prefix}down_1", 0.0), below),
        channels,
        channels,
        join="add",
        kernel=1,
        stride=1,
        padding=0,
        bias=False,
        depthwise=(1.0,),
    )
