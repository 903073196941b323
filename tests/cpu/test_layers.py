"""The CPU engine on every kind of layer, and on small ResNet generators, against the float64 oracle."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest

from pix2pix.cpu.engine import CpuEngine
from pix2pix.cpu.instruction_sets import extension, instruction_sets
from pix2pix.engines.reference import ReferenceEngine
from pix2pix.model.generator import Generator, Norm
from pix2pix.model.pix2pixhd import Coarse, local_enhancer
from pix2pix.model.resnet import ResnetVariant, resnet
from pix2pix.model.weights import random_weights
from tests.engines import layers
from tests.models import check_layer, check_output

ISAS = instruction_sets()
BFLOAT16 = extension(ISAS[0]).build_facts()["bfloat16"] == "yes"
SIZES = [(1, 4, 4), (3, 3, 5), (1, 17, 35)]  # numbers of images; height and width in steps of at least 4 pixels
RESNETS = {
    "resnet": resnet(ngf=12, blocks=2, in_channels=1),
    "resize": resnet(ngf=8, blocks=1, variant=ResnetVariant(up="bilinear", up_padding="reflect")),
    "corners": resnet(ngf=8, blocks=1, variant=ResnetVariant(up="bilinear-corners", block_padding="replicate")),
    "nearest": resnet(ngf=8, blocks=1, variant=ResnetVariant(up="nearest", up_padding="reflect", activation="none")),
    "cut": resnet(ngf=17, blocks=1, variant=ResnetVariant(down="blurred", up="bilinear")),
    "tensorflow": resnet(ngf=6, blocks=1, out_channels=4, variant=ResnetVariant(pads_after=True, norm=Norm(1e-3))),
    "pix2pixhd": local_enhancer(8, blocks=1, coarse=Coarse(blocks=1, levels=2), size=64),
    "running": resnet(ngf=10, blocks=2, variant=ResnetVariant(norm=Norm(), bias="last"), statistics="running"),
}


def with_large_kernels(generator: Generator) -> dict[str, np.ndarray]:
    """Random weights, such that no map is near zero variance and the output is not all -1 and 1."""
    weights = random_weights(generator, seed=3)
    factors = {name: 5 if name.endswith("kernel") and not name.startswith("last") else 1 for name in weights}
    return {name: np.abs(w) if name.endswith("variance") else w * factors[name] for name, w in weights.items()}


CASES = {name: (generator, layers.weights_of(name)) for name, generator in layers.NETWORKS.items()}
CASES |= {name: (generator, with_large_kernels(generator)) for name, generator in RESNETS.items()}


def compare(engine: CpuEngine, generator: Generator, weights: dict[str, np.ndarray], precision: str) -> None:
    names = [layer.name for layer in generator.layers]
    with engine, ReferenceEngine(generator, weights) as oracle:
        step = max(4, generator.multiple)
        for n, rows, columns in SIZES:
            h, w = rows * step, columns * step
            x = np.random.default_rng([n, h, w]).uniform(-1, 1, (n, h, w, generator.in_channels)).astype(np.float32)
            got, expected = engine.run(x, outputs=names), oracle.run(x, outputs=names)
            for name in names[:-1]:
                assert expected[name].std() > 0.02, name
                check_layer(got[name], expected[name], precision, name)
            check_output(got[names[-1]], expected[names[-1]], precision)


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("plan", ["direct", None, "winograd2", "winograd3"])
@pytest.mark.parametrize("name", CASES)
def test_every_layer_agrees_with_the_oracle(name, plan, isa):
    generator, weights = CASES[name]
    try:
        engine = CpuEngine(generator, weights, plan=plan, isa=isa, threads=2)
    except ValueError as error:
        assert plan in str(error) and "no layer can be computed" in str(error)
        return
    compare(engine, generator, weights, "float32")


@pytest.mark.skipif(not BFLOAT16, reason="this processor has no AVX512_BF16")
@pytest.mark.parametrize("plan", ["direct", None])
@pytest.mark.parametrize("name", CASES)
def test_bfloat16_is_as_near_as_it_must_be(name, plan):
    generator, weights = CASES[name]
    compare(CpuEngine(generator, weights, plan=plan, precision="bfloat16"), generator, weights, "bfloat16")


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("name", RESNETS)
def test_bytes_depend_on_neither_batch_nor_threads_nor_what_is_asked_for(name, isa):
    generator, weights = CASES[name]
    shape = 3, 11 * generator.multiple, 15 * generator.multiple, generator.in_channels
    b = np.random.default_rng(5).integers(0, 256, shape, np.uint8)
    results = []
    for threads in (1, 2, 5):
        with CpuEngine(generator, weights, threads=threads, isa=isa) as engine:
            results.append(engine.translate(b))
            results.append(np.concatenate([engine.translate(b[i : i + 1]) for i in range(3)]))
            x = (b.astype(np.float32) / np.float32(255)) * np.float32(2) - np.float32(1)
            everything = engine.run(x, outputs=[layer.name for layer in generator.layers])
            np.testing.assert_array_equal(everything["last"], engine.run(x))
    assert results[0].std() > 5
    for other in results[1:]:
        np.testing.assert_array_equal(other, results[0])


def test_maps_share_memory_unless_both_are_needed():
    """Memory of a deeper network is that of a shallow one: its blocks' maps take turns."""
    sizes = []
    for blocks in (2, 9):
        generator = resnet(ngf=8, blocks=blocks)
        with CpuEngine(generator, random_weights(generator)) as engine:
            engine.run(np.zeros((1, 64, 64, 3), np.float32))
            sizes.append(engine._forward.memory.size)
    assert sizes[0] == sizes[1]


@pytest.mark.parametrize(
    "change, what",
    [
        ({"kernel": 11, "padding": 5}, "11x11"),
        ({"stride": 3, "transposed": True}, "stride 3"),
        ({"transposed": True, "stride": 2, "padding": 0}, "transposed convolution"),
        ({"activation": "tanh"}, "activation tanh"),
    ],
)
def test_layers_without_kernels_are_refused(change, what):
    generator = layers.network(layers.body(**change))
    with pytest.raises(ValueError, match=f"the CPU engine has no kernel for body .*{what}"):
        CpuEngine(generator, random_weights(generator))


def test_the_output_may_be_of_another_size_than_the_input():
    generator = RESNETS["resnet"]
    last = dataclasses.replace(generator.layers[-1], padding=0)
    generator = dataclasses.replace(generator, layers=(*generator.layers[:-1], last))
    weights = CASES["resnet"][1]
    x = np.random.default_rng(1).uniform(-1, 1, (2, 24, 20, 1)).astype(np.float32)
    with CpuEngine(generator, weights) as engine, ReferenceEngine(generator, weights) as oracle:
        assert engine.run(x).shape == (2, 18, 14, 3)
        np.testing.assert_allclose(engine.run(x), oracle.run(x), rtol=0, atol=5e-5)
        b = ((x + 1) * 127.5).astype(np.uint8)
        assert engine.translate(b).shape == (2, 18, 14, 3) == oracle.translate(b).shape
        assert engine.translate(b[0]).shape == (18, 14, 3)
