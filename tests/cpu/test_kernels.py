"""The kernels of the CPU, layer by layer: results, how work is divided, statistics."""

from __future__ import annotations

import numpy as np
import pytest

from pix2pix.cpu.convolution import ConvolutionSpec
from pix2pix.cpu.engine import CpuEngine
from pix2pix.cpu.instruction_sets import extension
from pix2pix.engines.reference import conv2d, conv2d_transpose, pad
from pix2pix.model.unet import UnetVariant, unet
from pix2pix.plans.algorithms import CONVOLUTION, TRANSPOSED
from tests.cpu.isas import BFLOAT16, EACH_BFLOAT16, EXTENSIONS, NO_BFLOAT16

FLOAT16_ROUNDING = 2.0**-11  # relative


def as_map(kernels, value, mean=None, scale=None, shift=None, half=False):
    """A Map of (N,H,W,C) values, with padding that would show if it were read as data."""
    n, h, w, c = value.shape
    stride = kernels.padded(c)
    raw = np.zeros((n, h, w, stride), np.float16 if half else np.float32)
    raw[..., :c] = value

    def widen(values, fill):
        wide = np.full((n, stride), fill, np.float32)
        if values is not None:
            wide[:, :c] = values
        return wide

    return kernels.Map(raw, widen(mean, 0), widen(scale, 1), widen(shift, 0)[0])


def to_bfloat16(x):
    """float32 rounded to bfloat16, to nearest, ties to even."""
    bits = x.view(np.uint32)
    return (bits + 0x7FFF + (bits >> 16 & 1) >> 16 << 16).astype(np.uint32).view(np.float32)


def convolution(kernels, algorithm, spec, threads):
    """A packed layer."""
    if algorithm == "direct":
        return kernels.DirectConvolution(spec, threads)
    return kernels.WinogradConvolution(spec, int(algorithm[-1]), "shared" in algorithm, threads)


def run_spec(kernels, spec, source, algorithm="direct", threads=2):
    """The Map that one layer makes of pairs (Map, slope), or of an image."""
    layer = convolution(kernels, algorithm, spec, threads)
    n, h, w, _ = (source[0][0].raw if isinstance(source, list) else source).shape
    filters = spec.kernel.shape[2 if spec.sampling.transposed else 3]
    target = as_map(kernels, np.full((n, *spec.sampling.output_size(h, w), filters), np.nan), half=layer.half)
    scratch = np.full(layer.scratch(n, h, w, threads) + 1, np.nan, np.float32)
    layer.run(source, target, scratch, threads)
    return target


def parts_of(target, filters):
    """A Map's (raw, mean, scale) without padding."""
    return [np.asarray(part)[..., :filters] for part in (target.raw, target.mean, target.scale)]


def run_layer(
    kernels,
    transposed,
    x,
    kernel,
    bias,
    algorithm="direct",
    threads=2,
    slopes=(1.0,),
    splits=(),
    norm=(None, None, None),
    bfloat16=False,
    tiles=False,
):
    """One layer over maps cut from x at `splits`: (raw, mean, scale)."""
    parts = np.split(x, splits, axis=3)
    sampling = TRANSPOSED if transposed else CONVOLUTION
    spec = ConvolutionSpec(kernel, sampling, [p.shape[3] for p in parts], bias, *norm, bfloat16, tiles)
    sources = [(as_map(kernels, p), slope) for p, slope in zip(parts, slopes, strict=True)]
    return parts_of(run_spec(kernels, spec, sources, algorithm, threads), kernel.shape[2 if transposed else 3])


PADDING = (1, 1, 1, 1)


def strided_convolution(image: np.ndarray, kernel: np.ndarray) -> np.ndarray:
    return conv2d(pad(image, PADDING), kernel, 2)


def transposed_convolution(image: np.ndarray, kernel: np.ndarray) -> np.ndarray:
    return conv2d_transpose(image, kernel, TRANSPOSED)


# How far algorithms may be off, calibrated at about half of these: in float32, in units of the rounding errors of
# plain sums; in bfloat16, root mean square in units of the result's deviation. Transforms' coefficients grow with m.
NOISE = {"direct": (1, 0.004), "winograd2": (1, 0.008), "winograd3": (1, 0.007), "winograd4": (1.5, 0.015)}
ALGORITHMS = [(transposed, name) for transposed in (False, True) for name in NOISE]
ALGORITHMS += [(True, f"winograd-shared{m}") for m in (2, 3, 4)]
IDS = [f"{'transposed' if transposed else 'conv'}-{name}" for transposed, name in ALGORITHMS]


def noise_of(algorithm):
    return NOISE[algorithm.replace("-shared", "")]


SHAPES = [  # (n, h, w, channels, filters): by patch, panel and block; ragged blocks, panels and rows
    (1, 2, 2, 24, 40),
    (3, 4, 4, 16, 16),
    (2, 2, 6, 5, 7),
    (1, 48, 6, 8, 33),
    (1, 16, 16, 64, 64),
    (2, 16, 32, 32, 48),
    (5, 32, 32, 9, 19),
    (1, 64, 64, 16, 32),
    (4, 36, 20, 40, 24),
    (1, 4, 300, 8, 16),
    (2, 66, 260, 4, 8),
]


@pytest.mark.parametrize("isa", EXTENSIONS)
@pytest.mark.parametrize("transposed, algorithm", ALGORITHMS, ids=IDS)
@pytest.mark.parametrize("n, h, w, c, k", SHAPES)
def test_one_layer(isa, transposed, algorithm, n, h, w, c, k):
    rng = np.random.default_rng([n, h, w, c, k])
    x = rng.standard_normal((n, h, w, c)).astype(np.float32)
    kernel = rng.standard_normal((4, 4, k, c) if transposed else (4, 4, c, k)).astype(np.float32)
    bias = rng.standard_normal(k).astype(np.float32)
    gamma = rng.uniform(0.5, 2, k).astype(np.float32)
    norm = gamma, bias, 1e-3
    raw, mean, scale = run_layer(extension(isa), transposed, x, kernel, bias, algorithm, norm=norm)
    function = transposed_convolution if transposed else strided_convolution
    expected = np.stack([function(image, kernel.astype(np.float64)) for image in x.astype(np.float64)]) + bias
    factor, _ = noise_of(algorithm)
    noise = factor * 1e-6 * np.sqrt(16 * c)  # a rounding error of float32 per term, added up at random
    np.testing.assert_allclose(raw, expected, rtol=0, atol=8 * noise)
    np.testing.assert_allclose(mean, expected.mean((1, 2)), rtol=0, atol=4 * noise)
    np.testing.assert_allclose(scale, gamma / np.sqrt(expected.var((1, 2)) + 1e-3), rtol=factor * 2e-5)


DIVIDED = [(1, 32, 32, 40, 112), (3, 20, 20, 40, 112)]  # with tiles: by block or panel; by patch if not transposed
COLUMNS = [16, 20, 40]  # pairs of tiles are then of two lines; 16 + 4 of one line; 16 + 16, 8 + 16 and 16 + 8


def check_divisions(run, x, all_threads=(1, 2, 3)):
    """Assert that (raw, mean, scale) = run(images, threads) depend on neither the threads nor the other images."""
    results = [run(x, threads) for threads in all_threads]
    for other in results[1:]:
        for got, expected in zip(other, results[0], strict=True):
            np.testing.assert_array_equal(got, expected)
    for i in range(len(x)):
        for got, expected in zip(run(x[i : i + 1], 2), results[0], strict=True):
            np.testing.assert_array_equal(got[0], expected[i])


@pytest.mark.parametrize("isa", EXTENSIONS)
@pytest.mark.parametrize("transposed, algorithm", ALGORITHMS, ids=IDS)
@pytest.mark.parametrize("n, h, w, c, k", [(1, 32, 32, 40, 24), (1, 64, 128, 8, 16), (3, 4, 4, 20, 40)])
def test_how_work_is_divided_never_changes_a_bit(isa, transposed, algorithm, n, h, w, c, k):
    rng = np.random.default_rng(7)
    x = rng.standard_normal((n, h, w, c)).astype(np.float32)
    kernel = rng.standard_normal((4, 4, k, c) if transposed else (4, 4, c, k)).astype(np.float32)
    norm = np.ones(k, np.float32), np.ones(k, np.float32), 1e-5
    check_divisions(
        lambda images, threads: run_layer(
            extension(isa), transposed, images, kernel, None, algorithm, threads=threads, norm=norm
        ),
        x,
        (1, 2, 3, 16),  # many threads: together rather than alone
    )


@pytest.mark.skipif(not BFLOAT16, reason=NO_BFLOAT16)
@pytest.mark.parametrize("isa", EACH_BFLOAT16)
@pytest.mark.parametrize("transposed", [False, True])
@pytest.mark.parametrize("n, h, w, c, k", DIVIDED)
def test_how_work_is_divided_never_changes_a_bit_in_bfloat16(isa, transposed, n, h, w, c, k):
    rng = np.random.default_rng(7)
    x = rng.standard_normal((n, h, w, c)).astype(np.float32)
    kernel = rng.standard_normal((4, 4, k, c) if transposed else (4, 4, c, k)).astype(np.float32)
    how = {"norm": (None, None, 1e-5), "bfloat16": True, "tiles": isa == "amx"}
    check_divisions(
        lambda images, threads: run_layer(extension(isa), transposed, images, kernel, None, threads=threads, **how),
        x,
        (1, 2, 3, 16),
    )


@pytest.mark.parametrize("isa", [*EXTENSIONS, *(isa for isa in BFLOAT16 if isa == "amx")])
def test_large_weights_never_change_a_bit(isa):
    """They let all threads share the input, unless the images are too many for it to be copied as a whole."""
    kernels, rng, tiles = extension(isa), np.random.default_rng(8), isa == "amx"
    h, w, c, k = 32, 32, 320 if tiles else 160, 176
    x = rng.standard_normal((2, h, w, c)).astype(np.float32)
    kernel = rng.standard_normal((4, 4, c, k)).astype(np.float32)
    spec = ConvolutionSpec(kernel, CONVOLUTION, [c], bfloat16=tiles, tiles=tiles)
    layer, words = convolution(kernels, "direct", spec, 1), c // 2 if tiles else c
    many = 12
    assert layer.scratch(1, h, w, 1) > h * w * words > layer.scratch(many, h, w, 1)  # an image, or a block of it

    def run(images, threads):
        how = {"norm": (None, None, 1e-5), "bfloat16": tiles, "tiles": tiles}
        return run_layer(kernels, False, images, kernel, None, threads=threads, **how)

    check_divisions(run, x)
    expected = run(x, 2)
    for got, pair in zip(run(np.tile(x, (many // 2, 1, 1, 1)), 1), expected, strict=True):
        np.testing.assert_array_equal(got, np.concatenate([pair] * (many // 2)))
    image, weights = ((to_bfloat16(a) if tiles else a).astype(np.float64) for a in (x[1], kernel))
    exact = strided_convolution(image, weights)
    rounding = FLOAT16_ROUNDING if tiles else 0
    np.testing.assert_allclose(expected[0][1], exact, rtol=rounding, atol=8e-6 * np.sqrt(16 * c))


def check_moments(target, filters, eps):
    """Assert that mean, scale, low and high are those of the raw numbers."""
    raw, mean, scale = parts_of(target, filters)
    numbers = raw.astype(np.float64)
    deviation = numbers.std((1, 2))
    np.testing.assert_allclose(mean / deviation, numbers.mean((1, 2)) / deviation, rtol=0, atol=2e-6)
    np.testing.assert_allclose(scale, 1 / np.sqrt(deviation**2 + eps), rtol=2e-6)
    np.testing.assert_array_equal(np.asarray(target.low)[:, :filters], (raw.min((1, 2)) - mean) * scale)
    np.testing.assert_array_equal(np.asarray(target.high)[:, :filters], (raw.max((1, 2)) - mean) * scale)


@pytest.mark.skipif(not BFLOAT16, reason=NO_BFLOAT16)
@pytest.mark.parametrize("isa", EACH_BFLOAT16)
@pytest.mark.parametrize("transposed", [False, True])
@pytest.mark.parametrize("columns", COLUMNS)
def test_moments_of_ragged_tiles_in_bfloat16(isa, transposed, columns):
    kernels, rng = extension(isa), np.random.default_rng(columns)
    step, c, k, slope = 1 if transposed else 2, 24, 40, 0.3
    x = rng.standard_normal((2, 19 * step, columns * step, c)).astype(np.float32)
    kernel = rng.standard_normal((4, 4, k, c) if transposed else (4, 4, c, k)).astype(np.float32)
    sampling = TRANSPOSED if transposed else CONVOLUTION
    spec = ConvolutionSpec(
        kernel, sampling, [c], eps=1e-3, bfloat16=True, tiles=isa == "amx", inner_slope=slope, finds_range=True
    )
    target = run_spec(kernels, spec, [(as_map(kernels, x), 1.0)])
    check_moments(target, k, 1e-3)
    function = transposed_convolution if transposed else strided_convolution
    images, weights = (to_bfloat16(a).astype(np.float64) for a in (x, kernel))
    exact = np.stack([function(image, weights) for image in images])
    raw = np.asarray(target.raw)[..., :k]
    rounding = FLOAT16_ROUNDING if target.half else 0
    np.testing.assert_allclose(raw, np.where(exact > 0, exact, slope * exact), rtol=rounding, atol=1e-4)


@pytest.mark.parametrize("isa", EXTENSIONS)
@pytest.mark.parametrize("algorithm", ["direct", "winograd4"])
def test_statistics_do_not_cancel(isa, algorithm):
    """A map whose mean is 1000 times its deviation: sums of squares in float32 would lose it all."""
    rng = np.random.default_rng(3)
    x = rng.standard_normal((1, 64, 64, 16)).astype(np.float32)
    kernel = rng.standard_normal((4, 4, 16, 16)).astype(np.float32) * 0.06
    bias = np.full(16, 1000, np.float32)
    norm = np.ones(16, np.float32), np.ones(16, np.float32), 1e-5
    _, mean, scale = run_layer(extension(isa), False, x, kernel, bias, algorithm, norm=norm)
    expected = conv2d(pad(x[0].astype(np.float64), PADDING), kernel.astype(np.float64), 2)
    np.testing.assert_allclose(mean[0], expected.mean((0, 1)) + 1000, rtol=1e-6)
    np.testing.assert_allclose(scale[0], 1 / np.sqrt(expected.var((0, 1)) + 1e-5), rtol=1e-3)


@pytest.mark.parametrize("isa", EXTENSIONS)
def test_sources_are_normalised_activated_and_joined_on_reading(isa):
    kernels = extension(isa)
    rng = np.random.default_rng(5)
    x, y = (rng.standard_normal((2, 8, 16, c)).astype(np.float32) for c in (5, 12))
    kernel = rng.standard_normal((4, 4, 6, 17)).astype(np.float32)
    raw, _, _ = run_layer(kernels, True, np.concatenate([x, y], 3), kernel, None, slopes=(0.3, 0.0), splits=[5])
    joined = np.concatenate([np.where(x > 0, x, 0.3 * x), np.maximum(y, 0)], 3).astype(np.float64)
    expected = np.stack([conv2d_transpose(image, kernel.astype(np.float64), TRANSPOSED) for image in joined])
    np.testing.assert_allclose(raw, expected, rtol=0, atol=1e-4)


@pytest.mark.parametrize("isa", EXTENSIONS)
def test_padding_is_zero_after_the_norm_not_before(isa):
    """A map of raw zeros with shift 1 has the value 1, but outside of it there are zeros."""
    kernels = extension(isa)
    kernel = np.ones((4, 4, 4, 4), np.float32)
    layer = kernels.DirectConvolution(ConvolutionSpec(kernel, CONVOLUTION, [4]), 1)
    source = as_map(kernels, np.zeros((1, 16, 16, 4), np.float32), shift=np.ones((1, 4), np.float32))
    target = as_map(kernels, np.zeros((1, 8, 8, 4), np.float32))
    layer.run([(source, 1.0)], target, np.zeros(layer.scratch(1, 16, 16, 1), np.float32), 1)
    inside, corner = np.asarray(target.raw)[0, 4, 4, 0], np.asarray(target.raw)[0, 0, 0, 0]
    assert (inside, corner) == (64, 36)


def test_tanh_of_the_last_layer():
    """Over the whole range, through a network of one weight: the last layer alone, fed by a given map."""
    g = unet(ngf=1, depth=2, in_channels=1, out_channels=1, variant=UnetVariant(norm=None, bias="none"))
    weights = {name: np.zeros(shape, np.float32) for name, shape in g.tensors().items()}
    weights["decoder_1.kernel"][1, 1, 0, 0] = 1  # output (2i, 2j) = up (i, j), where that is positive
    weights["decoder_1.kernel"][2, 2, 0, 0] = -1  # output (2i+1, 2j+1) = -up (i, j)
    values = np.linspace(0, 12, 64 * 64, dtype=np.float32).reshape(1, 64, 64, 1)
    for isa in EXTENSIONS:
        with CpuEngine(g, weights, isa=isa) as engine:
            y = engine.run(inputs={"decoder_2": values, "encoder_1": values * 0})
        exact = np.tanh(values[0, :, :, 0].astype(np.float64))
        np.testing.assert_allclose(y[0, ::2, ::2, 0], exact, rtol=0, atol=5e-7)
        np.testing.assert_allclose(y[0, 1::2, 1::2, 0], -exact, rtol=0, atol=5e-7)
        assert np.abs(y).max() <= 1


@pytest.mark.skipif(not BFLOAT16, reason=NO_BFLOAT16)
@pytest.mark.parametrize("isa", EACH_BFLOAT16)
@pytest.mark.parametrize("transposed, algorithm", ALGORITHMS, ids=IDS)
@pytest.mark.parametrize("n, h, w, c, k", [(3, 4, 4, 16, 16), (1, 16, 16, 64, 64), (2, 36, 20, 40, 24)])
def test_one_layer_in_bfloat16(transposed, algorithm, n, h, w, c, k, isa):
    kernels = extension(isa)
    rng = np.random.default_rng([n, h, w, c, k])
    x = rng.standard_normal((n, h, w, c)).astype(np.float32)
    kernel = rng.standard_normal((4, 4, k, c) if transposed else (4, 4, c, k)).astype(np.float32)
    function = transposed_convolution if transposed else strided_convolution
    raw, _, _ = run_layer(kernels, transposed, x, kernel, None, algorithm, bfloat16=True, tiles=isa == "amx")
    expected = np.stack([function(image, kernel.astype(np.float64)) for image in x.astype(np.float64)])
    error = np.sqrt(((raw - expected) ** 2).mean()) / expected.std()
    assert error < noise_of(algorithm)[1]
    if algorithm == "direct":  # exact products of rounded numbers
        rounded = [to_bfloat16(a).astype(np.float64) for a in (x, kernel)]
        exact = np.stack([function(image, rounded[1]) for image in rounded[0]])
        rounding = FLOAT16_ROUNDING if raw.dtype == np.float16 else 0
        np.testing.assert_allclose(raw, exact, rtol=rounding, atol=1e-4)
