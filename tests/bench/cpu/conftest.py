"""A tiny network in place of the benchmarks' own."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from bench import networks
from bench.networks import UNET, Network, Workload
from pix2pix.model.unet import unet
from pix2pix.model.weights import random_weights


@pytest.fixture
def tiny(monkeypatch) -> Iterator[Workload]:
    """A network that takes 256x256 images, run by the benchmarks of the CPU engine."""
    generator = unet(ngf=4, depth=6)
    network = Network(lambda: (generator, random_weights(generator)), (256, 256), "1")
    monkeypatch.setitem(networks.NETWORKS, UNET, network)
    networks.workload.cache_clear()
    yield networks.workload()
    networks.workload.cache_clear()
