"""The networks and images of benchmarks."""

from __future__ import annotations

import numpy as np
import pytest

from bench import common, networks
from bench.networks import NETWORKS, Network, Workload
from pix2pix.model.resnet import resnet


@pytest.fixture
def small(monkeypatch) -> None:
    """A narrow network for each name, so that no large weights are made."""
    for name, usual in list(NETWORKS.items()):
        monkeypatch.setitem(NETWORKS, name, Network(lambda: (resnet(4, 1, levels=2), {}), usual.size, usual.batches))
    networks.workload.cache_clear()
    yield
    networks.workload.cache_clear()


def parsed(*words: str) -> tuple[Workload, list[int]]:
    parser = common.argument_parser("bench", "A benchmark.")
    networks.add_options(parser)
    arguments = parser.parse_args(words)
    return networks.chosen(parser, arguments), arguments.batches


@pytest.mark.parametrize(
    ("words", "size", "batches", "suffix"),
    [
        ([], (256, 256), [1, 8, 16], ""),
        (["--network", "resnet_9blocks"], (256, 256), [1, 4], "-resnet_9blocks"),
        (["--network", "resnet_9blocks", "--size", "512x512"], (512, 512), [1, 4], "-resnet_9blocks-512x512"),
        (["--network", "pix2pixhd"], (512, 1024), [1], "-pix2pixhd"),
        (["--network", "pix2pixhd", "--size", "1024x512", "--batches", "2"], (512, 1024), [2], "-pix2pixhd"),
        (["--size", "512x256"], (256, 512), [1, 8, 16], "-512x256"),
    ],
)
def test_options_choose_the_network(words, size, batches, suffix, small):
    workload, chosen = parsed(*words)
    assert (workload.height, workload.width) == size and chosen == batches and workload.suffix == suffix
    assert workload.record()["gflop_per_image"] == round(workload.generator.flops(*size) / 1e9, 2)


@pytest.mark.parametrize("size", ["255x256", "0x0", "big", "256"])
def test_a_size_that_no_network_takes_is_refused(size, small, capsys):
    with pytest.raises(SystemExit):
        parsed("--size", size)
    assert "size" in capsys.readouterr().err or "multiples" in capsys.readouterr().err


@pytest.mark.parametrize("size", [(256, 256), (512, 1024), (64, 320)])
def test_images_are_different_and_of_that_size(size, small):
    drawn = networks.workload("resnet_9blocks", size).images(3)
    assert drawn.shape == (3, *size, 3) and drawn.dtype == np.uint8
    assert all((drawn[i] != drawn[j]).mean() > 0.1 for i, j in [(0, 1), (0, 2), (1, 2)])
    if size == (256, 256):
        assert np.array_equal(drawn, common.images(3))
    others = networks.workload("resnet_9blocks", size).images(3, first_seed=2)
    assert np.array_equal(others[0], drawn[2])
