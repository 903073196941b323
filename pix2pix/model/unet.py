"""The U-Net of pix2pix as data: every published variant is a call of :func:`unet` with other arguments.

Source: Isola et al., "Image-to-Image Translation with Conditional Adversarial Networks", arXiv:1611.07004.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

from .generator import DEFAULT_SLOPE, INPUT, Generator, Layer, Norm, Source


@dataclass(frozen=True, slots=True)
class UnetVariant:
    """In what published U-Nets differ. The default is that of affinelayer/pix2pix-tensorflow.

    ``innermost_norm``: whether the last encoder has a norm. ``bias``: which convolutions have one. ``slope``: that of
    the encoders' leaky ReLU. ``skip_slope``: the slope with which decoders read skips, 0 (ReLU) in PyTorch and
    TensorFlow 1, that of the leaky ReLU in Keras. ``skip_first`` puts the skip before the upsampled map, as PyTorch
    concatenates.
    """

    norm: Norm | None = Norm()
    innermost_norm: bool = True
    bias: Literal["all", "last", "none"] = "all"
    slope: float = DEFAULT_SLOPE
    skip_slope: float = 0.0
    skip_first: bool = False


def unet(
    ngf: int = 64,
    depth: int = 8,
    in_channels: int = 3,
    out_channels: int = 3,
    variant: UnetVariant = UnetVariant(),
    *,
    filters: Sequence[int] | None = None,
    **fields: Any,
) -> Generator:
    """A U-Net generator: ``depth`` convolutions encoder_1..depth, then decoder_depth..1 with skip connections.

    ``filters`` are the encoders' filters, outermost first (default: ngf x 1, 2, 4, 8, 8, ...). ``fields`` are those of
    :class:`Generator`; ``size`` defaults to 2**depth pixels. Raises ValueError for fewer than 2 levels.
    """
    widths = list(filters) if filters is not None else [ngf * min(2**i, 8) for i in range(depth)]
    if len(widths) != depth or depth < 2:
        raise ValueError(f"got {len(widths)} filter counts for {depth} levels: expected one each, and 2 levels or more")

    def norm_at(level: int, *, encoder: bool) -> Norm | None:
        outermost, innermost = level == 1, level == depth
        return None if outermost or (innermost and encoder and not variant.innermost_norm) else variant.norm

    layers = []
    for level, width in enumerate(widths, 1):
        source = Source(f"encoder_{level - 1}", variant.slope) if level > 1 else Source(INPUT)
        read = widths[level - 2] if level > 1 else in_channels
        norm_here = norm_at(level, encoder=True)
        layers.append(Layer(f"encoder_{level}", (source,), read, width, bias=variant.bias == "all", norm=norm_here))
    sources: tuple[Source, ...]
    for level in range(depth, 0, -1):
        if level == depth:
            sources, read = (Source(f"encoder_{depth}", 0.0),), widths[-1]
        else:
            up, skip = Source(f"decoder_{level + 1}", 0.0), Source(f"encoder_{level}", variant.skip_slope)
            sources, read = ((skip, up) if variant.skip_first else (up, skip)), 2 * widths[level - 1]
        last = level == 1
        layers.append(
            Layer(
                f"decoder_{level}",
                sources,
                read,
                out_channels if last else widths[level - 2],
                transposed=True,
                bias=variant.bias == "all" or (variant.bias == "last" and last),
                norm=norm_at(level, encoder=False),
                activation="tanh" if last else "none",
            )
        )
    return Generator(tuple(layers), **{"size": 2**depth} | fields)
