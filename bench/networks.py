"""The networks on which engines are compared on the CPU, each with its images."""

from __future__ import annotations

import argparse
import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache, partial
from typing import Any

import numpy as np

from pix2pix.engines.reference import to_float
from pix2pix.model.generator import Generator, Weights
from pix2pix.model.resnet import resnet
from pix2pix.model.weights import random_weights

from . import common

EDGE = 256  # of a drawn facade, in pixels


@dataclass(frozen=True, slots=True)
class Network:
    """A generator and its weights, and what it runs on unless one says otherwise: ``size`` is (H, W) in pixels,
    ``batches`` are images per call."""

    make: Callable[[], tuple[Generator, Weights]]
    size: tuple[int, int]
    batches: str


def _resnet(levels: int, size: int) -> tuple[Generator, Weights]:
    """A ResNet with ngf=64, 9 blocks and random weights, on RGB images."""
    generator = resnet(ngf=64, blocks=9, levels=levels, size=size)
    return generator, random_weights(generator, common.MODEL_SEED)


UNET = "unet_256"
NETWORKS = {
    UNET: Network(common.model, (256, 256), "1,8,16"),
    "resnet_9blocks": Network(partial(_resnet, levels=2, size=256), (256, 256), "1,4"),
    # pix2pixHD's global generator. It is trained at 1024x512 on 36 channels or on RGB; the bench takes RGB.
    "pix2pixhd": Network(partial(_resnet, levels=4, size=512), (512, 1024), "1"),
}


@dataclass(frozen=True, slots=True, eq=False)
class Workload:
    """A network with random weights, and images of ``height`` x ``width`` pixels for it. ``name`` is that of
    NETWORKS."""

    name: str
    generator: Generator
    weights: Weights
    height: int
    width: int

    @property
    def flops(self) -> int:
        """Floating-point operations for one image."""
        return self.generator.flops(self.height, self.width)

    @property
    def suffix(self) -> str:
        """What tells files of results of this network at this size apart from those of others."""
        network = "" if self.name == UNET else f"-{self.name}"
        is_usual = (self.height, self.width) == NETWORKS[self.name].size
        return network if is_usual else f"{network}-{self.width}x{self.height}"

    def record(self) -> dict[str, Any]:
        """What a file of results says of the network."""
        gflop = round(self.flops / 1e9, 2)
        return {"network": self.name, "size": [self.height, self.width], "gflop_per_image": gflop}

    def images(self, n: int, first_seed: int = 0) -> np.ndarray:
        """``n`` different images, uint8 (n,H,W,3): drawn facades, side by side where one is too small."""
        rows, columns = math.ceil(self.height / EDGE), math.ceil(self.width / EDGE)
        drawn = common.images(n * rows * columns, first_seed * rows * columns)
        mosaic = drawn.reshape(n, rows, columns, EDGE, EDGE, 3).transpose(0, 1, 3, 2, 4, 5)
        whole = mosaic.reshape(n, rows * EDGE, columns * EDGE, 3)
        return np.ascontiguousarray(whole[:, -self.height :, -self.width :])

    def inputs(self, n: int, first_seed: int = 0) -> np.ndarray:
        """:meth:`images` as float32 (n,H,W,3) in [-1,1]."""
        return to_float(self.images(n, first_seed))


@cache
def workload(name: str = UNET, size: tuple[int, int] | None = None) -> Workload:
    """The workload of a network of NETWORKS at ``size``, (H, W) in pixels, by default the network's usual one.

    Raises ValueError for a size that the network cannot take.
    """
    network = NETWORKS[name]
    generator, weights = network.make()
    height, width = size or network.size
    generator.check_size(height, width)
    return Workload(name, generator, weights, height, width)


def add_options(parser: argparse.ArgumentParser, batches: str | None = None) -> None:
    """Add --network and --size, from which :func:`chosen` makes the workload, and --batches."""
    usual = ", ".join(f"{each.size[1]}x{each.size[0]}" for each in NETWORKS.values())
    numbers = batches or "; ".join(each.batches for each in NETWORKS.values())
    parser.add_argument("--network", choices=NETWORKS, default=UNET, help="(%(default)s)")
    parser.add_argument("--size", type=_size, metavar="WxH", help=f"pixels (by network: {usual})")
    parser.add_argument("--batches", type=common.numbers, default=batches, help=f"images per call ({numbers})")


def chosen(parser: argparse.ArgumentParser, arguments: argparse.Namespace) -> Workload:
    """The workload of parsed arguments. The parser ends the program for a size that the network cannot take."""
    if arguments.batches is None:
        arguments.batches = common.numbers(NETWORKS[arguments.network].batches)
    try:
        return workload(arguments.network, arguments.size)
    except ValueError as error:
        parser.error(str(error))


def _size(text: str) -> tuple[int, int]:
    """The (H, W) that WxH means."""
    width, _, height = text.partition("x")
    return int(height), int(width)
