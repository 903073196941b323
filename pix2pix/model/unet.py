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
    the encoders' leaky ReLU. ``skip_slope``: the slope with which decoders read encoders, 0 (ReLU) in PyTorch and
    TensorFlow 1, that of the leaky ReLU in Keras and PyTorch-GAN. ``skip_first`` puts the skip before the upsampled
    map, as pytorch-CycleGAN-and-pix2pix concatenates. ``last_up``: decoder_1 is a transposed convolution or, in
    PyTorch-GAN, repeats pixels before a convolution that pads 2 pixels above and left, 1 below and right.
    """

    norm: Norm | None = Norm()
    innermost_norm: bool = True
    bias: Literal["all", "last", "none"] = "all"
    slope: float = DEFAULT_SLOPE
    skip_slope: float = 0.0
    skip_first: bool = False
    last_up: Literal["transposed", "nearest"] = "transposed"


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

    layers = [Layer("encoder_1", (Source(INPUT),), in_channels, widths[0], bias=variant.bias == "all")]
    for level in range(2, depth + 1):
        norm = variant.norm if variant.innermost_norm or level < depth else None
        source = Source(f"encoder_{level - 1}", variant.slope)
        read, filters_here = widths[level - 2 : level]
        layers.append(Layer(f"encoder_{level}", (source,), read, filters_here, bias=variant.bias == "all", norm=norm))
    for level in range(depth, 0, -1):
        up, skip = Source(f"decoder_{level + 1}", 0.0), Source(f"encoder_{level}", variant.skip_slope)
        sources: tuple[Source, ...] = (skip, up) if variant.skip_first else (up, skip)
        if level == depth:
            sources = (skip,)
        last = level == 1
        nearest = last and variant.last_up == "nearest"
        layers.append(
            Layer(
                f"decoder_{level}",
                sources,
                len(sources) * widths[level - 1],
                out_channels if last else widths[level - 2],
                transposed=not nearest,
                stride=1 if nearest else 2,
                padding=(2, 2, 1, 1) if nearest else 1,
                upsample=2 if nearest else 1,
                bias=variant.bias == "all" or (variant.bias == "last" and last),
                norm=None if last else variant.norm,
                activation="tanh" if last else "none",
            )
        )
    return Generator(tuple(layers), **{"size": 2**depth} | fields)
