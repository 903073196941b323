"""The oracle on layers that U-Nets don't have, against PyTorch's outputs, and what other engines say of them."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest

from pix2pix.cpu.engine import CpuEngine
from pix2pix.engines.reference import ReferenceEngine
from pix2pix.model.generator import Generator
from pix2pix.model.lowering import lower
from pix2pix.model.weights import fold, random_weights
from pix2pix.plans.algorithms import supports
from tests.engines.layers import BLOCK, FILTERS, NETWORKS, body, network, weights_of

EXPECTED = np.load(Path(__file__).parent / "data" / "layers.npz")


@pytest.mark.parametrize("name", NETWORKS)
@pytest.mark.parametrize("size", ["8x8", "12x16"])
def test_every_kind_of_layer_agrees_with_pytorch(name, size):
    generator = NETWORKS[name]
    weights = weights_of(name)
    x, y = EXPECTED[f"{name}/{size}/x"], EXPECTED[f"{name}/{size}/y"]
    assert y.std() > 0.1
    with ReferenceEngine(generator, weights) as engine:
        np.testing.assert_allclose(engine.run(x), y, rtol=0, atol=1e-6)


@pytest.mark.parametrize("name", ["nearest, zeros", "nearest", "inner slope", "residual"])
@pytest.mark.parametrize("statistics", ["image", "running"])
def test_a_folded_network_computes_the_same(name, statistics):
    generator = NETWORKS[name].with_statistics(statistics)
    weights = {key: np.abs(w) if key.endswith("variance") else w for key, w in weights_of(name, statistics).items()}
    folded, folded_weights = fold(generator, weights)
    assert folded != generator or statistics == "image" and "zeros" not in name
    folded.check_weights(folded_weights)
    x = EXPECTED[f"{name}/12x16/x"]
    with ReferenceEngine(generator, weights) as engine, ReferenceEngine(folded, folded_weights) as same:
        np.testing.assert_allclose(same.run(x), engine.run(x), rtol=0, atol=1e-6)


def test_nearest_upsampling_before_zeros_is_a_transposed_convolution():
    layer = fold(NETWORKS["nearest, zeros"], weights_of("nearest, zeros"))[0]["body"]
    assert (layer.transposed, layer.kernel, layer.stride, layer.padding, layer.upsample) == (
        True,
        5,
        2,
        (2, 2, 1, 1),
        1,
    )


@pytest.mark.parametrize("name", NETWORKS)
def test_descriptions_survive_json(name):
    assert Generator.from_dict(json.loads(json.dumps(NETWORKS[name].to_dict()))) == NETWORKS[name]


@pytest.mark.parametrize("name", NETWORKS)
def test_an_engine_without_a_kernel_says_what_it_lacks(name):
    generator = NETWORKS[name]
    op = lower(generator)["first"]
    assert not supports(op, "cpu")
    message = r"the CPU engine has no kernel for first \(7x7 convolution, stride 1, reflect padding"
    with pytest.raises(ValueError, match=message):
        CpuEngine(generator, random_weights(generator))


@pytest.mark.parametrize(
    "layers, message",
    [
        ([body(residual=dataclasses.replace(BLOCK.inputs[0], layer="nowhere"))], "adds 'nowhere'"),
        ([body(stride=2, residual=BLOCK.inputs[0])], "another size"),
    ],
)
def test_residuals_must_fit(layers, message):
    with pytest.raises(ValueError, match=message):
        network(*layers)


def test_a_reflection_needs_more_pixels_than_it_mirrors():
    generator = NETWORKS["reflect"]
    generator.check_size(4, 4)
    with pytest.raises(ValueError, match=r"first reflects 3 pixels of a map of 3x8"):
        generator.check_size(8, 3)


@pytest.mark.parametrize(
    "fields",
    [
        {"padding": (1, 1, 1)},
        {"padding_mode": "wrap"},
        {"output_padding": 1},
        {"transposed": True, "upsample": 2},
        {"upsample_mode": "cubic"},
        {"depthwise": (1.0, 2.0)},
        {"depthwise": (0.25, 0.5, 0.25), "in_channels": FILTERS + 1},
    ],
)
def test_senseless_layers_are_refused_in_files(fields):
    description = json.loads(json.dumps(NETWORKS["reflect"].to_dict()))
    description["layers"][1] |= fields
    with pytest.raises(ValueError):
        Generator.from_dict(description)


def test_phases_of_a_transposed_convolution_read_what_its_definition_says():
    """For every output pixel: the taps of its phase are exactly the terms of the adjoint that land on it."""
    for sampling in (lower(NETWORKS["output padding"])["body"].sampling, lower(NETWORKS["reflect"])["body"].sampling):
        top, left = sampling.padding[:2]
        for phase in sampling.phases:
            i, j = 5, 6
            y, x = sampling.scale * i + phase.row, sampling.scale * j + phase.column
            read = {(sampling.step * i + t.dy, sampling.step * j + t.dx, t.ky, t.kx) for t in phase.taps}
            taps = range(sampling.kernel)
            if sampling.transposed:
                s = sampling.stride
                expected = {
                    ((y + top - a) // s, (x + left - b) // s, a, b)
                    for a in taps
                    for b in taps
                    if (y + top - a) % s == 0 and (x + left - b) % s == 0
                }
            else:
                expected = {
                    (sampling.stride * y + a - top, sampling.stride * x + b - left, a, b) for a in taps for b in taps
                }
            assert read == expected
