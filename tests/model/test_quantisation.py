"""Ranges that follow from weights, and kernels in whole numbers."""

from __future__ import annotations

import numpy as np
import pytest

from pix2pix.engines.reference import ReferenceEngine
from pix2pix.model.generator import INPUT
from pix2pix.model.lowering import lower
from pix2pix.model.quantisation import LEVELS, MOST_PRODUCTS, MOST_WEIGHT, quantise, ranges
from tests.engines.layers import NETWORKS
from tests.engines.layers import weights_of as layer_weights
from tests.models import VARIANTS, weights_of


def test_a_normalised_channel_has_the_range_that_beta_and_gamma_give():
    g, weights = VARIANTS["tensorflow"], dict(weights_of("tensorflow"))
    weights["encoder_3.gamma"] = -weights["encoder_3.gamma"]
    beta, gamma = weights["encoder_3.beta"], np.abs(weights["encoder_3.gamma"])
    found = ranges(g, weights)["encoder_3"]
    np.testing.assert_allclose(found.low, beta - 6 * gamma, rtol=1e-6)
    np.testing.assert_allclose(found.high, beta + 6 * gamma, rtol=1e-6)


@pytest.mark.parametrize("name", NETWORKS)
def test_ranges_are_of_the_size_of_the_values(name):
    """Whatever a layer is made of: expected ranges hold nearly all of what it computes, and are not far too wide."""
    g, weights = NETWORKS[name], layer_weights(name)
    x = np.random.default_rng(1).uniform(-1, 1, (2, 32, 32, 3)).astype(np.float32)
    names = [layer.name for layer in g.layers]
    values = ReferenceEngine(g, weights).run(x, outputs=names)
    known = ranges(g, weights)
    assert set(known) == {INPUT, *names}
    for inner in names[:-1]:
        low, high = known[inner]
        assert (values[inner] > low).mean() > 0.99 and (values[inner] < high).mean() > 0.99
        assert np.all(high - low < 12 * np.ptp(values[inner], (0, 1, 2))), inner


@pytest.mark.parametrize("variant", ["tensorflow", "no-norm", "running"])
def test_kernels_become_whole_numbers(variant):
    g, weights = VARIANTS[variant], weights_of(variant)
    known = ranges(g, weights)
    for op in lower(g).ops[1:-1]:
        kernel = weights[f"{op.name}.kernel"]
        got = quantise(op, kernel, known)
        scales = got.scales if op.sampling.transposed else got.scales[:, None]
        units = got.units[:, None] if op.sampling.transposed else got.units
        assert {each.dtype for each in got} == {np.dtype(np.float32)} and got.kernel.shape == kernel.shape
        assert np.abs(got.kernel).max() == MOST_WEIGHT and np.all(got.kernel == np.rint(got.kernel))
        assert np.all((got.zeros == np.rint(got.zeros)) & (got.zeros >= 0) & (got.zeros <= LEVELS))
        assert np.all(np.abs(got.kernel * units / scales - kernel) <= units / scales * 0.501)
        ends = got.ends
        first = 0
        for source in op.sources:
            low, high = known[source.layer]
            part = slice(first, first + len(low))
            first += len(low)
            assert np.all(ends.low[part] <= np.minimum(0, low * (low > 0) + low * source.slope * (low < 0)) + 1e-5)
            assert np.all(ends.high[part] >= high * (1 - 1e-5))


def test_no_sum_overflows():
    assert MOST_PRODUCTS * LEVELS * MOST_WEIGHT < 2**31 <= (MOST_PRODUCTS + 1) * LEVELS * MOST_WEIGHT
