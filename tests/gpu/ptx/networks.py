"""The networks of :mod:`tests.gpu.networks` on the PTX machine."""

from __future__ import annotations

import numpy as np

from pix2pix.gpu.engine import GpuEngine
from tests.gpu.networks import Case
from tests.models import pictures

from .compiler import name_of
from .device import Session, on_machine
from .machine import Options

ADVERSE = {
    "random order, early copies": Options(order="random", late=False, spurious=True, seed=1),
    "random order, late copies": Options(order="random", late=True, spurious=True, seed=2),
    "early copies": Options(late=False, seed=3),
}


def check(case: Case, session: Session) -> None:
    """Compare all layers, and a translated image, with the oracle's."""
    with on_machine(session):
        case.check()


class DryRun(Session):
    """Counts launches, and runs nothing."""

    def launch(self, kernel, configuration, arguments):
        self.launches[name_of(kernel)] += 1


def launches_of(case: Case, architecture: str) -> set[str]:
    """The kernels that :func:`check` has to launch."""
    session = DryRun(architecture)
    g, weights = case.model
    with on_machine(session), GpuEngine(g, weights, precision=case.precision, plan=case.algorithm) as engine:
        x = np.zeros((case.images, case.h, case.w, g.in_channels), np.float32)
        engine.run(x, outputs=[layer.name for layer in g.layers])
        engine.run(x)
        if g.shapes(case.h, case.w)[g.layers[-1].name] == x.shape[1:]:
            engine.translate(pictures(case.images, case.h, case.w))
    return set(session.launches)
