"""A tiny network in place of the benchmarks' own."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from bench import networks
from bench.networks import UNET, Network, Workload
from pix2pix.model.generator import Generator
from pix2pix.model.resnet import resnet
from pix2pix.model.unet import unet
from pix2pix.model.weights import random_weights


@pytest.fixture
def tiny(monkeypatch) -> Iterator[Workload]:
    """A network that takes 256x256 images, run by the benchmarks of the CPU engine."""
    yield from small(monkeypatch, UNET, unet(ngf=4, depth=6), (256, 256))


@pytest.fixture
def tiny_resnet(monkeypatch) -> Iterator[Workload]:
    """The same for images of 64x32."""
    yield from small(monkeypatch, "resnet_9blocks", resnet(ngf=4, blocks=2), (32, 64))


def small(
    monkeypatch: pytest.MonkeyPatch, name: str, generator: Generator, size: tuple[int, int]
) -> Iterator[Workload]:
    """The workload of a small network in place of the one of that name."""
    network = Network(lambda: (generator, random_weights(generator)), size, "1")
    monkeypatch.setitem(networks.NETWORKS, name, network)
    networks.workload.cache_clear()
    yield networks.workload(name)
    networks.workload.cache_clear()
