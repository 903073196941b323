"""The CPU engine on every kind of layer, and on small ResNet generators, against the float64 oracle."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest

from pix2pix.cpu.convolution import ConvolutionSpec
from pix2pix.cpu.engine import CpuEngine
from pix2pix.cpu.instruction_sets import extension
from pix2pix.engines.reference import ReferenceEngine, conv2d, conv2d_transpose, pad
from pix2pix.model.generator import Generator, Norm
from pix2pix.model.pix2pixhd import Coarse, local_enhancer
from pix2pix.model.resnet import ResnetVariant, resnet
from pix2pix.model.sampling import Sampling
from pix2pix.model.weights import random_weights
from tests.cpu.isas import BFLOAT16, EACH_BFLOAT16, EXTENSIONS, NO_BFLOAT16
from tests.cpu.test_kernels import FLOAT16_ROUNDING, as_map, run_spec, to_bfloat16
from tests.engines import layers
from tests.models import check_layer, check_output

SIZES = [(1, 4, 4), (3, 3, 5), (1, 17, 35)]  # numbers of images; height and width in steps of at least 4 pixels
RESNETS = {
    "resnet": resnet(ngf=12, blocks=2, in_channels=1),
    "resize": resnet(ngf=8, blocks=1, variant=ResnetVariant(up="bilinear", up_padding="reflect")),
    "corners": resnet(ngf=8, blocks=1, variant=ResnetVariant(up="bilinear-corners", block_padding="replicate")),
    "nearest": resnet(ngf=8, blocks=1, variant=ResnetVariant(up="nearest", up_padding="reflect", activation="none")),
    "cut": resnet(ngf=17, blocks=1, variant=ResnetVariant(down="blurred", up="bilinear")),
    "tensorflow": resnet(ngf=6, blocks=1, out_channels=4, variant=ResnetVariant(pads_after=True, norm=Norm(1e-3))),
    "groups": resnet(ngf=9, blocks=1, variant=ResnetVariant(norm=Norm(groups=3), bias="all")),
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


@pytest.mark.parametrize("isa", EXTENSIONS)
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


@pytest.mark.skipif(not BFLOAT16, reason=NO_BFLOAT16)
@pytest.mark.parametrize("isa, plan", [*((isa, None) for isa in EACH_BFLOAT16), ("avx512", "direct")])
@pytest.mark.parametrize("name", CASES)
def test_bfloat16_is_as_near_as_it_must_be(name, isa, plan):
    generator, weights = CASES[name]
    engine = CpuEngine(generator, weights, plan=plan, precision="bfloat16", isa=isa)
    compare(engine, generator, weights, "bfloat16")


@pytest.mark.skipif(not BFLOAT16, reason=NO_BFLOAT16)
@pytest.mark.parametrize("isa", EACH_BFLOAT16)
@pytest.mark.parametrize("mode", ["zeros", "reflect"])
@pytest.mark.parametrize("taps, stride", [(4, 2), (7, 1)])
@pytest.mark.parametrize("channels", [1, 3, 4])
def test_the_first_layer_in_bfloat16_is_exact_products_of_rounded_numbers(channels, taps, stride, mode, isa):
    rng, kernels, k = np.random.default_rng([channels, taps]), extension(isa), 40
    kernel = rng.standard_normal((taps, taps, channels, k)).astype(np.float32)
    sampling = Sampling(taps, stride, ((taps - 1) // 2,) * 4, mode)
    spec = ConvolutionSpec(kernel, sampling, [channels], bfloat16=True, tiles=isa == "amx", reads_image=True)
    weights = to_bfloat16(kernel).astype(np.float64)
    for w in (14, 38):  # patches; blocks, of tiles of which some are ragged
        b = rng.integers(0, 256, (2, 22, w, channels), np.uint8)
        values = b.astype(np.float32) / np.float32(255) * np.float32(2) - np.float32(1)
        noise = rng.standard_normal(b.shape).astype(np.float32)
        for image, x in ((b, values), (noise, noise)):
            images = to_bfloat16(x).astype(np.float64)
            exact = np.stack([conv2d(pad(each, sampling.padding, mode), weights, stride) for each in images])
            target = run_spec(kernels, spec, image)
            rounding = FLOAT16_ROUNDING if target.half else 0
            np.testing.assert_allclose(target.raw[..., :k], exact, rtol=rounding, atol=2e-6 * exact.std())


LAST_LAYERS = [
    Sampling(4, 2, (1, 1, 1, 1), transposed=True),
    Sampling(3, 2, (1, 1, 1, 1), transposed=True, output_padding=1),  # phases of two taps, and of one
    Sampling(4, 2, (3, 3, 0, 0), transposed=True, output_padding=1),  # the last row and column meet no tap
    Sampling(9, 2, (4, 3, 3, 4), transposed=True),
    Sampling(7, 1, (3, 3, 3, 3), "reflect"),
    Sampling(4, 1, (1, 1, 2, 2)),
]


@pytest.mark.parametrize("isa, bfloat16", [(isa, False) for isa in EXTENSIONS] + [(isa, True) for isa in BFLOAT16])
@pytest.mark.parametrize("sampling", LAST_LAYERS)
@pytest.mark.parametrize("h, w, c, k", [(40, 33, 20, 3), (9, 300, 5, 17), (5, 300, 500, 3)])
def test_last_layers(isa, bfloat16, sampling, h, w, c, k):
    """Results, however many strips there are; infinity reaches the pixels that read it, and no others."""
    kernels, rng = extension(isa), np.random.default_rng([h, w, c, k])
    x = rng.standard_normal((h, w, c)).astype(np.float32)
    shape = (k, c) if sampling.transposed else (c, k)
    kernel = rng.standard_normal((sampling.kernel, sampling.kernel, *shape)).astype(np.float32)
    bias = rng.standard_normal(k).astype(np.float32)
    layer = kernels.OutputConvolution(
        ConvolutionSpec(kernel, sampling, [c], bias, bfloat16=bfloat16, tiles=isa == "amx"), False
    )

    def run(image, threads):
        got = np.full((1, *sampling.output_size(h, w), k), np.nan, np.float32)
        scratch = np.full(layer.scratch(1, h, w, threads) + 1, np.nan, np.float32)
        layer.run([(as_map(kernels, image[None]), 1.0)], got, 1.0, scratch, threads)
        return got[0]

    def oracle(image, weights):
        if sampling.transposed:
            return conv2d_transpose(image, weights, sampling)
        return conv2d(pad(image, sampling.padding, sampling.padding_mode), weights, 1)

    image, weights = ((to_bfloat16(a) if bfloat16 else a).astype(np.float64) for a in (x, kernel))
    got = run(x, 1)
    np.testing.assert_allclose(got, oracle(image, weights) + bias, rtol=0, atol=8e-6 * np.sqrt(c) * sampling.kernel)
    np.testing.assert_array_equal(run(x, 5), got)
    x[h // 2, w // 3], mark = np.inf, np.zeros((h, w, 1))
    mark[h // 2, w // 3] = 1
    reached = oracle(mark, np.ones((sampling.kernel, sampling.kernel, 1, 1))) > 0
    np.testing.assert_array_equal(~np.isfinite(run(x, 2)), np.broadcast_to(reached, got.shape))


@pytest.mark.parametrize("isa", EXTENSIONS)
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
