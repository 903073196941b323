"""Maps that AMX keeps as float16: numbers of any size fit, for their units follow from the weights."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest

from pix2pix.cpu.engine import CpuEngine
from pix2pix.engines.reference import ReferenceEngine, normalise, to_float
from pix2pix.model.generator import Generator, Norm
from pix2pix.model.map_units import Expected, map_units
from pix2pix.model.unet import UnetVariant, unet
from pix2pix.model.weights import random_weights
from tests.cpu.isas import BFLOAT16
from tests.engines.layers import FIRST, LAST, NETWORKS, body, network, weights_of
from tests.models import VARIANTS, check_layer, pictures
from tests.models import weights_of as unet_weights

FAR = 2.0**30  # beyond 65504, and its inverse is beyond the least number of float16


def residual_without_norm() -> tuple[Generator, dict[str, np.ndarray]]:
    block, second = NETWORKS["residual"].layers[1:3]
    generator, weights = network(block, dataclasses.replace(second, norm=None)), weights_of("residual")
    return generator, {name: weights[name] for name in generator.tensors()}


def scaled(weights: dict[str, np.ndarray], names: tuple[str, ...], factor: float) -> dict[str, np.ndarray]:
    return {name: w * np.float32(factor) if name in names else w for name, w in weights.items()}


CASES = {
    "sums": (VARIANTS["tensorflow"], unet_weights("tensorflow"), ("encoder_2.kernel", "decoder_3.kernel")),
    "a bias before a norm": (VARIANTS["tensorflow"], unet_weights("tensorflow"), ("encoder_2.bias",)),
    "sums without a norm": (VARIANTS["no-norm"], unet_weights("no-norm"), ("encoder_2.kernel", "encoder_2.bias")),
    "a norm's result": (VARIANTS["running"], unet_weights("running"), ("encoder_2.gamma", "encoder_2.beta")),
    "sums with a residual": (*residual_without_norm(), ("body.kernel", "body.bias")),
}


@pytest.mark.skipif("amx" not in BFLOAT16, reason="this processor has no AMX")
@pytest.mark.parametrize("factor", [FAR, 1 / FAR])
@pytest.mark.parametrize("case", CASES)
def test_maps_of_large_and_small_numbers(case, factor):
    generator, weights, names = CASES[case]
    weights = scaled(weights, names, factor)
    inner = [layer.name for layer in generator.layers[:-1]]
    if generator.statistics == "running":  # which are not those of what follows any more
        inner = inner[: inner.index("encoder_2") + 1]
    x = to_float(pictures(2, 64, 64, generator.in_channels))
    with (
        CpuEngine(generator, weights, precision="bfloat16", isa="amx") as engine,
        ReferenceEngine(generator, weights) as oracle,
    ):
        assert all(engine.convolutions[name].half for name in inner)
        got, expected = (each.run(x, outputs=inner) for each in (engine, oracle))
    for name in inner:
        check_layer(got[name], expected[name], "bfloat16", name)


@pytest.mark.skipif("amx" not in BFLOAT16, reason="this processor has no AMX")
@pytest.mark.parametrize("width", [4, 7, 21, 48])  # patches; ragged and whole tiles
def test_constant_maps_stay_constant(width):
    """Their norm multiplies what is left of them by 1 / sqrt(eps): means must be those of the rounded numbers."""
    g = network(body(padding_mode="reflect", norm=Norm(eps=1e-5)))
    x = np.full((1, 16, width, 3), 0.3, np.float32)
    weights = weights_of("reflect") | {"body.kernel": weights_of("reflect")["body.kernel"][1:4, 1:4].copy()}
    weights |= {"body.gamma": np.ones(4, np.float32), "body.beta": np.full(4, 0.25, np.float32)}
    weights = {name: np.ascontiguousarray(weights[name]) for name in g.tensors()}
    with CpuEngine(g, weights, precision="bfloat16", isa="amx") as engine:
        assert engine.convolutions["body"].half
        np.testing.assert_allclose(engine.run(x, outputs=["body"])["body"], 0.25, rtol=0, atol=1e-4)


@pytest.mark.skipif("amx" not in BFLOAT16, reason="this processor has no AMX")
def test_what_is_far_beyond_all_expectation_is_no_number():
    """A caller may give it: a map that no 8-bit image leads to."""
    generator, weights = VARIANTS["tensorflow"], unet_weights("tensorflow")
    given = np.random.default_rng(0).standard_normal((1, 32, 32, generator["encoder_1"].filters)).astype(np.float32)
    with CpuEngine(generator, weights, precision="bfloat16", isa="amx") as engine:
        far, near = (
            engine.run(inputs={"encoder_1": given * np.float32(factor)}, outputs=["encoder_2"])["encoder_2"]
            for factor in (2.0**25, 2.0**10)
        )
    assert np.isnan(far).all() and np.isfinite(near).all()


@pytest.mark.parametrize("shift", [0, 0.1])
def test_units_are_powers_of_two_near_what_maps_hold(shift):
    """Also of many layers without a norm, and where what they read has a mean."""
    generator = unet(ngf=4, depth=7, variant=UnetVariant(norm=None, bias="last", innermost_norm=False, skip_first=True))
    weights = {name: w * 5 + shift / 4 for name, w in random_weights(generator, seed=1).items()}
    x = to_float(pictures(1, 128, 128))
    inner = [layer.name for layer in generator.layers[:-1]]
    with ReferenceEngine(generator, weights) as oracle:
        values = oracle.run(x, outputs=inner)
    units = map_units(generator, weights)
    for name in inner:
        assert np.all(np.frexp(units[name].sums)[0] == 0.5) and np.all(np.frexp(units[name].values)[0] == 0.5), name
        root_mean_square = np.sqrt((values[name] ** 2).mean((0, 1, 2)))
        exponents = np.log2(root_mean_square / units[name].sums)  # 15 would be infinite, -14 would lose digits
        assert -10 < exponents.min() and exponents.max() < 2, name


def test_channels_that_are_normalised_together_have_one_unit():
    """Whatever they hold by themselves: statistics are added up in it."""
    norm = Norm(groups=3)
    generator = Generator((FIRST, body(filters=12, norm=norm), dataclasses.replace(LAST, in_channels=12)), size=8)
    weights = random_weights(generator, seed=2)
    weights["body.kernel"] *= np.exp2(2 * np.arange(12, dtype=np.float32))
    units = map_units(generator, weights)["body"].sums.reshape(norm.groups, -1)
    assert (units == units[:, :1]).all() and (np.diff(np.log2(units[:, 0])) > 4).all()


@pytest.mark.parametrize("norm", [Norm(), Norm(groups=2)])
def test_what_is_expected_behind_a_norm_is_what_it_makes(norm):
    rng = np.random.default_rng(0)
    expected = Expected(np.float64([1, -2, 0, 5]), np.float64([1, 9, 4, 0.25]))
    y = rng.normal(expected.mean, np.sqrt(expected.variance), (300, 300, 4))
    found = normalise(y, *norm.statistics(y.mean((0, 1)), y.var((0, 1))), norm.eps)
    for want, got in zip(expected.normalised(norm), (found.mean((0, 1)), found.var((0, 1))), strict=True):
        np.testing.assert_allclose(got, want, atol=0.02)
