"""A tiny network in place of the benchmarks' own."""

from __future__ import annotations

import pytest

from bench import common
from bench.cpu import kernels, stages
from pix2pix.model.generator import Generator
from pix2pix.model.unet import unet
from pix2pix.model.weights import random_weights


@pytest.fixture
def tiny(monkeypatch) -> Generator:
    """A network that takes 256x256 images, run by the benchmarks of the CPU engine."""
    generator = unet(ngf=4, depth=6)
    weights = random_weights(generator)
    for module in (common, kernels, stages):
        monkeypatch.setattr(module, "model", lambda: (generator, weights))
    return generator
