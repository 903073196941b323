"""The ResNet generators as data: counts of the published networks, variants, and the local enhancer's graph.

What they compute is compared with PyTorch in tests/checkpoints/test_resnets.py.
"""

from __future__ import annotations

import json

import numpy as np
import pytest

from pix2pix.engines.reference import ReferenceEngine
from pix2pix.model.generator import Generator, Norm, Source
from pix2pix.model.pix2pixhd import Coarse, local_enhancer
from pix2pix.model.resnet import ResnetVariant, resnet
from pix2pix.model.weights import fold, random_weights

VARIANTS = {
    "CycleGAN": resnet(4, 2),
    "TensorFlow": resnet(4, 2, variant=ResnetVariant(pads_after=True)),
    "CUT": resnet(4, 2, variant=ResnetVariant(down="blurred", up="bilinear")),
    "TransformerNet": resnet(
        4,
        1,
        variant=ResnetVariant(
            Norm(), up="nearest", down_padding="reflect", up_padding="reflect", edge_kernel=9, activation="none"
        ),
    ),
    "PyTorch-GAN": resnet(4, 1, variant=ResnetVariant(up="nearest", block_padding="zeros")),
    "batch": resnet(4, 1, variant=ResnetVariant(Norm(), bias="ups", up="bilinear-corners"), statistics="running"),
    "local enhancer": local_enhancer(2, 1, coarse=Coarse(2, 1), enhancers=2, size=32),
}


def parameters(generator: Generator) -> int:
    return sum(int(np.prod(shape)) for shape in generator.tensors().values())


def test_counts_of_the_published_networks():
    cyclegan = resnet()
    assert (cyclegan.ngf, cyclegan.depth, cyclegan.multiple, cyclegan.size, cyclegan.eps) == (64, 2, 4, 256, 1e-5)
    assert parameters(cyclegan) == 11_378_179
    assert round(cyclegan.flops() / 1e9) == 99
    blocks = sum(macs for name, macs in cyclegan.macs(256, 256).items() if name.startswith("block"))
    assert round(2 * blocks / 1e9) == 87
    assert parameters(resnet(blocks=6)) == 7_837_699
    assert round(resnet(variant=ResnetVariant(down="blurred", up="bilinear")).flops() / 1e9) == 128
    hd = resnet(in_channels=36, levels=4)
    assert round(parameters(hd) / 1e6) == 183 and hd.multiple == 16 and hd.depth == 4


@pytest.mark.parametrize("name", VARIANTS)
def test_images_keep_their_size_and_descriptions_survive_json(name):
    generator = VARIANTS[name]
    assert Generator.from_dict(json.loads(json.dumps(generator.to_dict()))) == generator
    side = 2 * generator.multiple
    assert generator.shapes(side, 3 * side)[generator.layers[-1].name] == (side, 3 * side, 3)


@pytest.mark.parametrize("name", VARIANTS)
def test_a_folded_network_computes_the_same(name):
    generator = VARIANTS[name]
    weights = random_weights(generator, seed=3)
    x = np.random.default_rng(1).uniform(-1, 1, (1, 32, 48, 3)).astype(np.float32)
    y = ReferenceEngine(generator, weights).run(x)
    assert np.ptp(y) > 1e-3
    np.testing.assert_allclose(ReferenceEngine(*fold(generator, weights)).run(x), y, rtol=0, atol=1e-5)


def test_residuals_read_what_their_block_reads():
    generator = VARIANTS["CycleGAN"]
    assert generator["block_1_2"].residual == generator["block_1_1"].inputs[0] == Source("down_2", 0.0)
    assert generator["block_2_2"].residual == generator["block_2_1"].inputs[0] == Source("block_1_2")
    assert generator["up_1"].inputs == (Source("block_2_2"),)


def test_a_local_enhancer_adds_the_coarser_network():
    generator = VARIANTS["local enhancer"]
    assert (generator.ngf, generator.depth, generator.multiple) == (2, 4, 16)
    assert generator["join"].inputs == (Source("down_1", 0.0), Source("enhancer_1_up_1", 0.0))
    assert generator["enhancer_1_join"].inputs == (Source("enhancer_1_down_1", 0.0), Source("coarse_up_2", 0.0))
    assert generator["block_1_2"].residual == Source("join")
    assert generator["coarse_first"].inputs == (Source("average_2"),)
    assert generator["enhancer_1_first"].inputs == (Source("average_1"),)


@pytest.mark.parametrize(
    "make",
    [
        lambda: resnet(blocks=0),
        lambda: resnet(levels=0),
        lambda: resnet(filters=[4, 8]),
        lambda: local_enhancer(enhancers=0),
        lambda: local_enhancer(coarse=Coarse(0, 9)),
    ],
)
def test_networks_without_parts_are_refused(make):
    with pytest.raises(ValueError, match="expected 1 or more"):
        make()
