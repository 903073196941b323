"""Winograd's minimal filtering as matrices, and what of it becomes integers."""

from __future__ import annotations

import numpy as np
import pytest

from pix2pix.engines.reference import (
    ReferenceEngine,
    convolve,
    convolve_integers,
    gather,
    leaky_relu,
)
from pix2pix.model.lowering import lower
from pix2pix.model.quantisation import LEVELS, MOST_WEIGHT, quantise, ranges
from pix2pix.model.winograd import input_transform, kernel_transform, output_transform
from pix2pix.plans.algorithms import Algorithm, algorithms
from tests.engines.layers import NETWORKS
from tests.engines.layers import weights_of as layer_weights
from tests.models import VARIANTS, weights_of


@pytest.mark.parametrize("m", [2, 3, 4])
@pytest.mark.parametrize("r", [2, 3])
def test_tiles_are_convolutions(m, r):
    rng, t = np.random.default_rng(0), m + r - 1
    d, k = rng.normal(size=(t, t)), rng.normal(size=(r, r))
    expected = [[(d[y : y + r, x : x + r] * k).sum() for x in range(m)] for y in range(m)]
    a, b, g = output_transform(m, t), input_transform(t), kernel_transform(r, t)
    np.testing.assert_allclose(a @ ((g @ k @ g.T) * (b @ d @ b.T)) @ a.T, expected, rtol=1e-12, atol=1e-13)


CASES = {"unet": (VARIANTS["tensorflow"], weights_of("tensorflow"), 64)}
CASES |= {name: (NETWORKS[name], layer_weights(name), 31) for name in ("residual", "bilinear")}


@pytest.mark.parametrize("m", [2, 3])
@pytest.mark.parametrize("name", CASES)
def test_integers_lose_about_as_much_as_in_direct_convolution(name, m):
    g, weights, side = CASES[name]
    x = np.random.default_rng(1).uniform(-1, 1, (1, side, side, g.in_channels)).astype(np.float32)
    ops = [op for op in lower(g).ops if Algorithm("int8-winograd", m) in algorithms(op, precision="int8")]
    assert ops
    values = ReferenceEngine(g, weights).run(x, outputs=[layer.name for layer in g.layers])
    known = ranges(g, weights)
    for op in ops:
        kernel = weights[f"{op.name}.kernel"].astype(np.float64)
        quantised = quantise(op, kernel, known, m)
        assert quantised.is_transformed and np.abs(quantised.kernel).max() == MOST_WEIGHT
        zeros = quantised.zeros
        assert np.all((zeros == np.rint(zeros)) & (zeros >= 0) & (zeros <= LEVELS))
        inputs = [leaky_relu(values[s.layer][0].astype(np.float64), s.slope) for s in op.sources]
        exact = convolve(op, gather(op, inputs), kernel)
        error, expected = (
            np.square(convolve_integers(op, inputs, each) - exact).mean()
            for each in (quantised, quantise(op, kernel, known))
        )
        assert error < 6 * expected, op.name
