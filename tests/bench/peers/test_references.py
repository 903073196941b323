"""When a comparison is void."""

from __future__ import annotations

import pytest

from bench import common
from bench.networks import UNET, Workload
from bench.peers import references, tables
from pix2pix.model.resnet import resnet
from pix2pix.model.unet import unet

ENGINES = {
    "pix2pix": {"precision": "float32", "median_images_per_s": 9.0},
    "torch-eager": {"precision": "float32", "median_images_per_s": 1.0, "of_reference": 0.8},
    "openvino": {"precision": "float32", "median_images_per_s": 2.0, "of_reference": 0.95},
    "openvino-bfloat16": {"precision": "bfloat16", "median_images_per_s": 4.0},
}


@pytest.fixture
def model(monkeypatch) -> None:
    generator = unet(ngf=64, depth=8)
    monkeypatch.setattr(common, "model", lambda: (generator, {}))


def test_every_float32_peer_of_the_unet_must_reach_its_reference():
    run = {"n": 1, "engines": ENGINES}
    assert references.too_slow(run, UNET) == ["torch-eager at N=1"]


def test_of_other_networks_the_fastest_peer_must():
    run = {"n": 1, "engines": ENGINES}
    assert references.too_slow(run, "pix2pixhd") == []
    slow = {**ENGINES, "openvino": {**ENGINES["openvino"], "of_reference": 0.89}}
    assert references.too_slow({"n": 1, "engines": slow}, "pix2pixhd") == ["openvino at N=1"]
    assert references.too_slow({"n": 1, "engines": {"pix2pix": ENGINES["pix2pix"]}}, "pix2pixhd") == []


def test_references_are_scaled_by_the_peak_and_by_the_arithmetic(model):
    generator = resnet(ngf=64)
    both = [Workload(UNET, common.model()[0], {}, 256, 256), Workload("resnet_9blocks", generator, {}, 512, 512)]
    u, r = (references.reference_rate(workload, "openvino", 8, 2 * references.PEAK) for workload in both)
    assert u == 2 * 15.8
    assert r == pytest.approx(u * both[0].flops / both[1].flops)
    assert references.reference_rate(both[0], "openvino", 16, 233.0) is None
    assert references.reference_rate(both[0], "openvino-bfloat16", 1, 233.0) is None


def test_memory_is_compared_with_the_fastest_peer_of_the_precision():
    memory = {name: {**entry, "peak_memory_mib": 100.0 + i} for i, (name, entry) in enumerate(ENGINES.items())}
    runs = [{"n": 1, "threads": 2, "engines": memory}, {"n": 1, "threads": 1, "engines": memory}]
    assert tables.memory(runs) == [
        {"engine": "pix2pix", "n": 1, "mib": 100.0, "against": "openvino", "their_mib": 102.0}
    ]
