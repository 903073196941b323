"""Small networks that together launch every kernel of the GPU engine, at its real tile sizes.

Each layer is compared with the oracle's, computed from the oracle's values of its inputs (:mod:`tests.gpu.layers`);
then an image is translated as a whole. They run on a GPU (``ci/gpu.sh``), and on the PTX machine (:mod:`.ptx`).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TypeVar

import numpy as np

from pix2pix.engines.reference import ReferenceEngine
from pix2pix.model.generator import Generator
from tests.engines.layers import NETWORKS
from tests.gpu.layers import PRECISIONS, UNUSUAL, check_layers, check_network, network, sample
from tests.models import PSNR, pictures

Model = tuple[Generator, dict[str, np.ndarray]]


@dataclass(frozen=True, slots=True)
class Network:
    """A U-Net whose encoders have `filters` (or ngf, ...), `images` of h x w, a plan of one algorithm."""

    algorithm: str
    images: int
    h: int
    w: int
    norm: bool
    filters: int | tuple[int, ...]
    depth: int
    precision: str = "float32"

    @property
    def model(self) -> Model:
        """The generator and its weights."""
        return network(self.precision, self.norm, self.filters, self.depth)

    def check(self) -> None:
        """Compare each layer, and a translated image, with the oracle's."""
        from pix2pix.gpu.engine import GpuEngine

        check_layers(self.precision, self.algorithm, self.images, self.h, self.w, self.norm, self.filters, self.depth)
        (g, weights), b = self.model, pictures(self.images, self.h, self.w)
        with GpuEngine(g, weights, precision=self.precision, plan=self.algorithm) as engine:
            translated = engine.translate(b)
        difference = translated.astype(float) - ReferenceEngine(g, weights).translate(b)
        if self.precision == "float32":
            assert np.abs(difference).max() <= 1  # where the oracle's value is next to an integer
        else:
            assert (difference**2).mean() < 255**2 / 10 ** (PSNR[self.precision] / 10)

    def __str__(self) -> str:
        filters = "-".join(map(str, self.filters)) if isinstance(self.filters, tuple) else self.filters
        shape = f"{self.images}x{self.h}x{self.w}"
        return f"{self.precision}-{self.algorithm}-{shape}-{'norm' if self.norm else 'plain'}-{filters}-{self.depth}"


@dataclass(frozen=True, slots=True)
class Sample:
    """A network of :func:`tests.gpu.layers.sample`, `images` of h x w, a plan of one algorithm."""

    algorithm: str
    images: int
    h: int
    w: int
    name: str
    precision: str = "float32"

    @property
    def model(self) -> Model:
        """The generator and its weights."""
        return sample(self.name)

    def check(self) -> None:
        """Compare all layers, and a translated image, with the oracle's."""
        check_network(self.name, self.precision, self.algorithm, self.images, self.h, self.w)

    def __str__(self) -> str:
        return f"{self.precision}-{self.algorithm}-{self.images}x{self.h}x{self.w}-{self.name.replace(' ', '_')}"


Case = Network | Sample
Kind = TypeVar("Kind", Network, Sample)


def _in_all(precisions: list[str], networks: Sequence[Kind]) -> list[Kind]:
    return [replace(network, precision=precision) for network in networks for precision in precisions]


TENSOR = [
    Network("tensor-128x128", 1, 48, 80, True, 4, 3),  # statistics of tiles, the last of which is ragged
    Network("tensor-64x64", 1, 40, 32, True, 5, 3),
    Network("tensor-128x128-split4", 1, 64, 96, True, 3, 2),  # shared sums of large maps: statistics of parts
]
HOPPER = [
    Network("hopper-128x256", 1, 64, 64, True, 32, 3),
    Network("hopper-128x128", 1, 64, 64, True, 32, 3),
    Network("hopper-128x256", 1, 32, 64, False, (64, 64, 64), 3),  # values that two layers read
    Network("hopper-128x128", 1, 32, 64, False, (64, 136), 2),  # a full tile of columns and some of the next
]
SMALL_HOPPER = Network("hopper-128x64", 3, 32, 32, False, 32, 3)
# Statistics of padded maps and residuals, phases with 1, 2 and 4 taps, 7x7; enlarged maps without statistics; a leaky
# ReLU before the norm, which takes partial sums.
SAMPLES = [
    Sample("tensor-64x64", 1, 24, 32, "resnet"),
    Sample("tensor-64x64", 2, 8, 12, "bilinear"),
    Sample("tensor-64x64", 2, 8, 12, "inner slope"),
]
REST = [name for name in (*UNUSUAL, *NETWORKS) if name not in ("bilinear", "inner slope", "group norm")]
# Networks of `make test`. They launch every specialisation, but of bfloat16 only some, and of tf32 only some of
# Hopper's: these differ from float16 in their format alone.
QUICK: list[Case] = [
    Network("tensor-64x64", 1, 64, 64, True, 2, 3, "float16"),  # sums of one step, whose stage lies where statistics do
    Network("implicit-128x128", 1, 48, 48, True, 9, 3),
    Network("implicit-128x64", 1, 48, 56, True, 5, 3),
    Network("implicit-32x128", 1, 24, 40, True, 5, 3),
    Network("implicit-32x128-split4", 3, 16, 16, True, 5, 4),
    Network("implicit-128x64-split2", 1, 72, 64, True, 2, 2),  # statistics of parts of partial sums
    Network("im2col", 3, 16, 16, True, 5, 3),
    *_in_all(
        PRECISIONS,
        [
            Network("tensor-128x64", 1, 40, 72, True, 9, 3),
            Network("hopper-128x64", 1, 64, 64, True, 32, 3),
        ],
    ),
    *_in_all(["float16", "tf32"], [TENSOR[0], TENSOR[2]]),
    *_in_all(["float16"], [*HOPPER, SMALL_HOPPER]),
    *_in_all(["float16", "tf32"], SAMPLES[1:]),
    replace(SAMPLES[0], precision="float16"),
    Sample("tensor-64x64", 2, 8, 12, "residual", "tf32"),
    Sample("implicit-128x64", 1, 24, 32, "resnet"),
    Sample("implicit-128x64-split2", 2, 8, 12, "bilinear"),
    Sample("implicit-128x64", 2, 8, 12, "inner slope"),
    Sample("tensor-64x64", 2, 8, 12, "group norm", "float16"),
    Sample("hopper-128x64", 1, 32, 64, "wide resnet", "float16"),
    Sample("tensor-64x64", 2, 8, 12, "local enhancer", "float16"),
    replace(SAMPLES[1], precision="bfloat16"),
]
# What else there is to go wrong: networks of `make test-full`.
MORE: list[Case] = [
    *_in_all(["bfloat16"], [SAMPLES[0], SAMPLES[2]]),
    replace(SAMPLES[0], precision="tf32"),
    *_in_all(["float16", "tf32"], [TENSOR[1]]),
    *_in_all(["bfloat16", "tf32"], [Sample("hopper-128x128", 1, 64, 64, "wide resnet")]),
    *_in_all(PRECISIONS, [Sample("tensor-128x64-split4", 2, 16, 24, "resnet")]),
    *_in_all(PRECISIONS, [Sample("tensor-64x64", 2, 8, 12, name) for name in REST]),
    *(Sample("implicit-128x64", 2, 8, 12, name) for name in REST),
    *(Sample("im2col", 1, 16, 24, name) for name in ("resnet", "local enhancer")),
    *_in_all(PRECISIONS, [Sample("tensor-128x64-split4", 2, 16, 24, "two enhancers of labels")]),
    Sample("implicit-128x64", 2, 16, 24, "two enhancers of labels"),
    Sample("implicit-128x64", 2, 16, 24, "grouped resnet"),
    *_in_all(["bfloat16"], TENSOR),
    *_in_all(["bfloat16", "tf32"], [*HOPPER, SMALL_HOPPER]),
    Network("implicit-32x128-split32", 1, 16, 32, False, 8, 4),
    Network("implicit-128x64", 1, 96, 96, True, 2, 2),
    Network("implicit-128x128", 1, 16, 32, True, (8, 136), 2),
    *_in_all(
        PRECISIONS,
        [
            Network("tensor-64x64", 1, 64, 40, True, 9, 3),
            Network("tensor-128x64-split32", 3, 16, 16, True, 4, 4),  # more splits than steps
            Network("tensor-64x64-split2", 1, 24, 40, False, 4, 3),
            Network("tensor-128x64", 3, 24, 24, False, 10, 3),
            Network("tensor-128x128", 1, 24, 24, False, 33, 2),
            Network("tensor-128x128", 1, 32, 64, True, (8, 136), 2),
            Network("tensor-128x64-split2", 1, 16, 24, True, (8, 72), 2),
            Network("hopper-128x128", 3, 32, 32, True, 32, 3),  # several images to a tile, one of which is missing
            Network("hopper-128x64-split32", 1, 32, 32, True, 32, 3),
            Network("hopper-128x256", 1, 32, 64, True, (64, 264), 2),
            Network("hopper-128x128-split2", 1, 32, 32, True, (64, 136), 2),
            Network("hopper-128x256-split32", 1, 16, 32, True, (64, 264), 2),  # a step for 16 blocks, none for 16
        ],
    ),
]


def launching_all() -> list[Case]:
    """Networks that together launch every kernel, the most useful precision and the oldest instructions first."""
    of_hopper = _in_all(["bfloat16", "tf32"], [*HOPPER, SMALL_HOPPER])
    rest = [*_in_all(["bfloat16"], [*TENSOR, SAMPLES[0], SAMPLES[2]]), *of_hopper]
    return sorted([*QUICK, *rest], key=_urgency)


def _urgency(case: Case) -> tuple[bool, int]:
    return case.algorithm.startswith("hopper"), ["float32", *PRECISIONS].index(case.precision)
