"""Small networks that together launch every kernel of the GPU engine, at its real tile sizes.

Each layer is compared with the oracle's, computed from the oracle's values of its inputs (:mod:`tests.gpu.layers`);
then an image is translated as a whole.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from pix2pix.engines.reference import ReferenceEngine
from pix2pix.gpu.engine import GpuEngine
from tests.gpu.layers import PRECISIONS, check_layers, network
from tests.models import PSNR, pictures

from .compiler import name_of
from .device import Session, on_machine
from .machine import Options


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

    def __str__(self) -> str:
        filters = "-".join(map(str, self.filters)) if isinstance(self.filters, tuple) else self.filters
        shape = f"{self.images}x{self.h}x{self.w}"
        return f"{self.precision}-{self.algorithm}-{shape}-{'norm' if self.norm else 'plain'}-{filters}-{self.depth}"


def _in_all(precisions: list[str], networks: list[Network]) -> list[Network]:
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
# Networks of `make test`. They launch every specialisation, but of bfloat16 only some, and of tf32 only some of
# Hopper's: these differ from float16 in their format alone.
QUICK = [
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
    *_in_all(["float16", "tf32"], TENSOR),
    *_in_all(["float16"], [*HOPPER, SMALL_HOPPER]),
]
# What else there is to go wrong: networks of `make test-full`.
MORE = [
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
ADVERSE = {
    "random order, early copies": Options(order="random", late=False, spurious=True, seed=1),
    "random order, late copies": Options(order="random", late=True, spurious=True, seed=2),
    "early copies": Options(late=False, seed=3),
}


def check(case: Network, session: Session) -> None:
    """Compare all layers, and a translated image, with the oracle's."""
    with on_machine(session):
        check_layers(case.precision, case.algorithm, case.images, case.h, case.w, case.norm, case.filters, case.depth)
        g, weights = network(case.precision, case.norm, case.filters, case.depth)
        b = pictures(case.images, case.h, case.w)
        with GpuEngine(g, weights, precision=case.precision, plan=case.algorithm) as engine:
            translated = engine.translate(b)
    difference = translated.astype(float) - ReferenceEngine(g, weights).translate(b)
    if case.precision == "float32":
        assert np.abs(difference).max() <= 1  # where the oracle's value is next to an integer
    else:
        assert (difference**2).mean() < 255**2 / 10 ** (PSNR[case.precision] / 10)


class DryRun(Session):
    """Counts launches, and runs nothing."""

    def launch(self, kernel, configuration, arguments):
        self.launches[name_of(kernel)] += 1


def launches_of(case: Network, architecture: str) -> set[str]:
    """The kernels that :func:`check` has to launch."""
    session = DryRun(architecture)
    g, weights = network(case.precision, case.norm, case.filters, case.depth)
    with on_machine(session), GpuEngine(g, weights, precision=case.precision, plan=case.algorithm) as engine:
        x = np.zeros((case.images, case.h, case.w, 3), np.float32)
        engine.run(x, outputs=[layer.name for layer in g.layers])
        engine.run(x)
        engine.translate(pictures(case.images, case.h, case.w))
    return set(session.launches)
