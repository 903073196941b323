"""The ResNet generators of CycleGAN and its kin as data: each variant is a call of :func:`resnet` with other arguments.

Sources: Johnson et al., "Perceptual Losses for Real-Time Style Transfer and Super-Resolution", arXiv:1603.08155; Zhu
et al., "Unpaired Image-to-Image Translation using Cycle-Consistent Adversarial Networks", arXiv:1703.10593; Park et
al., "Contrastive Learning for Unpaired Image-to-Image Translation", arXiv:2007.15651.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from .generator import INPUT, Generator, Layer, Norm, Source
from .sampling import PaddingMode, Upsampling

BLUR = (0.25, 0.5, 0.25)  # the taps of CUT's filter against aliasing
_AFTER = (0, 0, 1, 1)  # top, left, bottom, right


@dataclass(frozen=True, slots=True)
class ResnetVariant:
    """In what published ResNet generators differ. The default is CycleGAN's.

    ``bias``: which convolutions have one; ``ups`` are those of the second half, ``last`` the last alone. ``down``: by
    convolutions of stride 2, or by ones of stride 1 that a blur of stride 2 follows, as in CUT. ``up``: by transposed
    convolutions, or by an upsampling and a convolution. The padding modes are those of 3x3 convolutions in each part,
    and of the first and the last (``edge``), whose size is ``edge_kernel``. ``pads_after``: strided and transposed
    convolutions pad below and to the right alone, which is TensorFlow's SAME.
    """

    norm: Norm | None = Norm(affine=False)
    bias: Literal["all", "ups", "last"] = "all"
    down: Literal["strided", "blurred"] = "strided"
    up: Literal["transposed"] | Upsampling = "transposed"
    block_padding: PaddingMode = "reflect"
    edge_padding: PaddingMode = "reflect"
    down_padding: PaddingMode = "zeros"
    up_padding: PaddingMode = "zeros"
    edge_kernel: int = 7
    pads_after: bool = False
    activation: Literal["none", "tanh"] = "tanh"


def resnet(
    ngf: int = 64,
    blocks: int = 9,
    in_channels: int = 3,
    out_channels: int = 3,
    variant: ResnetVariant = ResnetVariant(),
    *,
    levels: int = 2,
    filters: Sequence[int] | None = None,
    **fields: Any,
) -> Generator:
    """A ResNet generator: first, down_1..levels, block_1_1 and block_1_2 to those of ``blocks``, up_1..levels, last.

    ``filters`` are those of the first layer and of each level (default: ngf x 1, 2, 4, ...). ``fields`` are those of
    :class:`Generator`; ``size`` defaults to 256 pixels. Raises ValueError for no blocks, no levels or a wrong number of
    filters.
    """
    widths = list(filters) if filters is not None else [ngf * 2**level for level in range(levels + 1)]
    if blocks < 1 or levels < 1 or len(widths) != levels + 1:
        raise ValueError(
            f"got {blocks} blocks, {levels} levels and {len(widths)} filter counts: expected 1 or more blocks and "
            f"levels, and one filter count more than levels"
        )
    layers = [edge_layer("first", Source(INPUT), in_channels, widths[0], variant)]
    source = Source("first", 0.0)
    for level in range(1, levels + 1):
        layers += down_layers(level, source, widths[level - 1], widths[level], variant)
        source = read_after_down(layers[-1])
    layers += block_layers(blocks, source, widths[-1], variant)
    layers += up_layers(Source(layers[-1].name), widths, variant)
    layers.append(edge_layer("last", Source(layers[-1].name, 0.0), widths[0], out_channels, variant))
    return Generator(tuple(layers), **{"size": 256} | fields)


def edge_layer(name: str, source: Source, in_channels: int, filters: int, variant: ResnetVariant) -> Layer:
    """The first or the last layer; the last alone has an activation, and no norm."""
    last = name == "last"
    return Layer(
        name,
        (source,),
        in_channels,
        filters,
        kernel=variant.edge_kernel,
        stride=1,
        padding=variant.edge_kernel // 2,
        padding_mode=variant.edge_padding,
        bias=last or variant.bias == "all",
        norm=None if last else variant.norm,
        activation=variant.activation if last else "none",
    )


def down_layers(
    level: int, source: Source, in_channels: int, filters: int, variant: ResnetVariant, prefix: str = ""
) -> Iterator[Layer]:
    """The layer down_``level``, and blur_``level`` behind it if the variant has them."""
    blurred = variant.down == "blurred"
    yield Layer(
        f"{prefix}down_{level}",
        (source,),
        in_channels,
        filters,
        kernel=3,
        stride=1 if blurred else 2,
        padding=_AFTER if variant.pads_after and not blurred else 1,
        padding_mode=variant.down_padding,
        bias=variant.bias == "all",
        norm=variant.norm,
    )
    if blurred:
        yield Layer(
            f"{prefix}blur_{level}",
            (Source(f"{prefix}down_{level}", 0.0),),
            filters,
            filters,
            kernel=3,
            padding_mode="reflect",
            bias=False,
            depthwise=BLUR,
        )


def read_after_down(layer: Layer) -> Source:
    """How the last of a level's layers is read: the ReLU comes before a blur, not after it."""
    return Source(layer.name, 1.0 if layer.depthwise else 0.0)


def block_layers(
    blocks: int, source: Source, filters: int, variant: ResnetVariant, prefix: str = ""
) -> Iterator[Layer]:
    """The residual blocks: x + norm(conv(relu(norm(conv(x))))), where ``source`` is the first x."""

    def convolution(name: str, read: Source, residual: Source | None = None) -> Layer:
        return Layer(
            name,
            (read,),
            filters,
            filters,
            kernel=3,
            stride=1,
            padding_mode=variant.block_padding,
            bias=variant.bias == "all",
            norm=variant.norm,
            residual=residual,
        )

    for block in range(1, blocks + 1):
        inner, outer = (f"{prefix}block_{block}_{half}" for half in (1, 2))
        yield convolution(inner, source)
        yield convolution(outer, Source(inner, 0.0), residual=source)
        source = Source(outer)


def up_layers(source: Source, widths: Sequence[int], variant: ResnetVariant, prefix: str = "") -> Iterator[Layer]:
    """The layers up_1, up_2, ... from the last of ``widths`` to the first of them."""
    transposed = variant.up == "transposed"
    for step, (filters, in_channels) in enumerate(reversed(list(zip(widths, widths[1:], strict=False))), 1):
        yield Layer(
            f"{prefix}up_{step}",
            (source,),
            in_channels,
            filters,
            transposed=transposed,
            kernel=3,
            stride=2 if transposed else 1,
            padding=_AFTER if variant.pads_after and transposed else 1,
            padding_mode="zeros" if transposed else variant.up_padding,
            bias=variant.bias != "last",
            norm=variant.norm,
            output_padding=int(transposed and not variant.pads_after),
            upsample=1 if transposed else 2,
            upsample_mode="nearest" if variant.up == "transposed" else variant.up,
        )
        source = Source(f"{prefix}up_{step}", 0.0)
