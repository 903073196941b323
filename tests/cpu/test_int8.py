"""Convolutions of 8-bit integers on the CPU: sums bit for bit, and networks beside their emulation in NumPy."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from pix2pix import checkpoints, demo
from pix2pix.cpu.convolution import ConvolutionSpec
from pix2pix.cpu.engine import CpuEngine
from pix2pix.cpu.instruction_sets import extension
from pix2pix.engines.reference import ReferenceEngine, convolve, convolve_tiles, to_float
from pix2pix.files import metrics
from pix2pix.model.generator import INPUT, Source
from pix2pix.model.lowering import Epilogue, Op, lower
from pix2pix.model.map_units import MapUnits, map_units
from pix2pix.model.quantisation import Quantised, Range, quantise, quantise_all
from pix2pix.model.sampling import Sampling
from pix2pix.model.unet import unet
from pix2pix.model.weights import fold, random_weights
from pix2pix.plans.algorithms import CONVOLUTION, TRANSPOSED, Algorithm, algorithms
from pix2pix.plans.heuristics import choose
from pix2pix.plans.plan import Plan
from tests.cpu.isas import INT8, INTEGERS
from tests.cpu.test_kernels import (
    COLUMNS,
    DIVIDED,
    SHAPES,
    as_map,
    check_divisions,
    check_moments,
    parts_of,
    run_spec,
    strided_convolution,
    transposed_convolution,
)
from tests.cpu.test_layers import CASES, RESNETS
from tests.models import VARIANTS, pictures, weights_of

SHARED = Path(__file__).parents[3] / "shared"
HIGH = 128.0  # what 255 stands for where the zero is 127: its inverse is exact


def whole_maps(rng: np.random.Generator, shape: tuple[int, int, int, int]) -> np.ndarray:
    """Whole numbers -64 .. 128, of which each image has 128 in its first channel: so they are stored as they are."""
    x = rng.integers(-64, 129, shape).astype(np.float32)
    x[..., 1::3] = np.abs(x[..., 1::3])
    x[:, 0, 0, 0] = HIGH
    return x


def whole_kernel(rng, transposed, c, k):
    return rng.integers(-127, 128, (4, 4, k, c) if transposed else (4, 4, c, k)).astype(np.float32)


def units_for(filters: int) -> np.ndarray:
    """Of maps that are kept as float16."""
    return np.float32(2) ** np.random.default_rng(1).integers(8, 13, filters)


def run_integers(isa, vnni, transposed, x, kernel, threads=2, eps=None, bias=None):
    """The Map that a layer of 8-bit integers in units of 1 makes of whole numbers."""
    kernels, c = extension(isa), x.shape[3]
    zeros = np.where(np.arange(c) % 3 == 1, 0, 127).astype(np.float32)  # where no number is negative, 0
    quantised = Quantised(
        kernel, np.ones(kernel.shape[2 if transposed else 3], np.float32), np.ones(c, np.float32), zeros
    )
    sampling = TRANSPOSED if transposed else CONVOLUTION
    units = units_for(len(quantised.units))
    spec = ConvolutionSpec(
        kernel,
        sampling,
        [c],
        bias,
        eps=eps,
        vnni=vnni,
        tiles=isa == "amx",
        quantised=quantised,
        finds_range=True,
        map_units=MapUnits(units, units),
    )
    source = as_map(kernels, x)
    source.set_raw(x, 2, True)
    return run_spec(kernels, spec, [(source, 1.0)], threads=threads)


@pytest.mark.parametrize("isa, vnni", INTEGERS)
@pytest.mark.parametrize("transposed", [False, True])
@pytest.mark.parametrize("n, h, w, c, k", [*SHAPES, (2, 16, 16, 512, 32), (1, 6, 6, 65, 40)])
def test_sums_are_exact(isa, vnni, transposed, n, h, w, c, k):
    rng = np.random.default_rng([n, h, w, c, k])
    x, kernel = whole_maps(rng, (n, h, w, c)), whole_kernel(rng, transposed, c, k)
    bias = rng.integers(-10000, 10000, k).astype(np.float32)
    target = run_integers(isa, vnni, transposed, x, kernel, bias=bias)
    function = transposed_convolution if transposed else strided_convolution
    expected = np.stack([function(image, kernel.astype(np.float64)) for image in x.astype(np.float64)])
    got = np.asarray(target.raw)[..., :k]
    units = units_for(k) if target.half else np.ones(k, np.float32)
    sums = expected.astype(np.float32).astype(np.float64) + bias
    np.testing.assert_array_equal(got, (sums.astype(np.float32) / units).astype(got.dtype))
    np.testing.assert_array_equal(np.asarray(target.low)[:, :k], got.min((1, 2)) * units)
    np.testing.assert_array_equal(np.asarray(target.high)[:, :k], got.max((1, 2)) * units)


@pytest.mark.parametrize("isa, vnni", INTEGERS)
@pytest.mark.parametrize("transposed", [False, True])
@pytest.mark.parametrize("n, h, w, c, k", DIVIDED)
def test_how_work_is_divided_never_changes_a_bit(isa, vnni, transposed, n, h, w, c, k):
    rng = np.random.default_rng(7)
    x, kernel = whole_maps(rng, (n, h, w, c)), whole_kernel(rng, transposed, c, k)
    check_divisions(
        lambda images, threads: parts_of(run_integers(isa, vnni, transposed, images, kernel, threads, 1e-3), k), x
    )


@pytest.mark.parametrize("isa, vnni", INTEGERS)
@pytest.mark.parametrize("transposed", [False, True])
@pytest.mark.parametrize("columns", COLUMNS)
def test_moments_of_ragged_tiles(isa, vnni, transposed, columns):
    rng, step = np.random.default_rng(columns), 1 if transposed else 2
    x, kernel = whole_maps(rng, (2, 19 * step, columns * step, 24)), whole_kernel(rng, transposed, 24, 40)
    target = run_integers(isa, vnni, transposed, x, kernel, eps=1e-3)
    check_moments(target, 40, 1e-3 / units_for(40) ** 2 if target.half else 1e-3)


def run_tiles(isa, vnni, sampling, x, kernel, m, threads=2, ends=None):
    """The Map that Winograd's F(m x m, r x r) in 8-bit integers makes of ``x``; and the operation and its integers.

    ``x`` is read from two maps. Ranges are different for each channel, and one-sided for every third, of which ``x`` is
    not negative; or all have the same ``ends``.
    """
    kernels, c, k = extension(isa), x.shape[3], kernel.shape[2 if sampling.transposed else 3]
    parts = {"a": np.s_[: c // 3], "b": np.s_[c // 3 :]}
    sources, epilogue = tuple(map(Source, parts)), Epilogue(False, None, "none", None, None)
    op = Op("op", sources, "concat", c, k, sampling, (), epilogue, tuple(parts))
    low, high = (np.full(c, end) for end in ends or (-3.0, 3.0))
    if not ends:
        low, high = low * np.where(np.arange(c) % 3, 1, 0) * np.geomspace(1, 4, c), high * np.geomspace(5, 1, c)
    quantised = quantise(op, kernel, {name: Range(low[part], high[part]) for name, part in parts.items()}, m)
    channels = [x[..., part].shape[3] for part in parts.values()]
    spec = ConvolutionSpec(kernel, sampling, channels, eps=1e-3, quantised=quantised, vnni=vnni, finds_range=True)
    maps = [(as_map(kernels, np.ascontiguousarray(x[..., part])), 1.0) for part in parts.values()]
    return (
        run_spec(kernels, spec, maps, f"winograd{'-shared' if sampling.transposed else ''}{m}", threads),
        op,
        quantised,
    )


def normal(rng: np.random.Generator, sampling: Sampling, n: int, h: int, w: int, c: int, k: int):
    """Maps and a kernel of random numbers."""
    taps = (sampling.kernel, sampling.kernel)
    kernel = rng.standard_normal((*taps, k, c) if sampling.transposed else (*taps, c, k))
    x = rng.standard_normal((n, h, w, c)).astype(np.float32)
    x[..., ::3] = np.abs(x[..., ::3])
    return x, kernel.astype(np.float32)


TILED = (CONVOLUTION, TRANSPOSED, Sampling(3, 1, (1, 1, 1, 1)), Sampling(3, 1, (1, 1, 1, 1), "reflect"))
IDS = ("convolution", "transposed", "3x3", "3x3 reflect")


@pytest.mark.parametrize("isa, vnni", INTEGERS)
@pytest.mark.parametrize("m", [2, 3])
@pytest.mark.parametrize("sampling", TILED, ids=IDS)
@pytest.mark.parametrize("n, h, w, c, k", [(3, 4, 4, 16, 16), (2, 6, 10, 5, 7), (1, 48, 6, 8, 33), (1, 26, 26, 64, 64)])
def test_tiles_of_integers_compute_what_their_emulation_does(isa, vnni, m, sampling, n, h, w, c, k):
    x, kernel = normal(np.random.default_rng([n, h, w, c, k]), sampling, n, h, w, c, k)
    x[:, :, : w // 2] *= 1e-3  # each tile has steps of its own
    target, op, quantised = run_tiles(isa, vnni, sampling, x, kernel, m)
    got = np.asarray(target.raw)[..., :k]
    expected, exact = (
        np.stack([function(op, image, each) for image in x.astype(np.float64)])
        for function, each in ((convolve_tiles, quantised), (convolve, kernel.astype(np.float64)))
    )
    for part in (np.s_[:, :, : got.shape[2] // 2 - 6], np.s_[:]):
        error, noise = (np.sqrt(np.square(each - expected)[part].sum()) for each in (got, exact))
        assert error <= noise / 10


@pytest.mark.parametrize("isa, vnni", INTEGERS)
@pytest.mark.parametrize(
    "sampling, m", [(CONVOLUTION, 2), (CONVOLUTION, 3), (TRANSPOSED, 2), (TRANSPOSED, 3), (TILED[2], 2)]
)
@pytest.mark.parametrize("c, k", [(16, 16), (23, 9), (64, 40)])
def test_sums_of_tiles_are_exact(isa, vnni, sampling, m, c, k):
    """No tile has more than one pixel that is not 0, and each of these has whole numbers, 127 and -127 among them.

    Transforms that only add give these numbers then, or none; so every step is 1.
    """
    kernels, rng, size = extension(isa), np.random.default_rng([c, k]), 26
    x = np.zeros((3, size, size, c), np.float32)
    for n, y, z in ((0, 0, 0), (0, 13, 12), (0, 25, 25), (1, 4, 23), (2, 11, 7)):
        x[n, y, z] = rng.integers(-127, 128, c)
        x[n, y, z, :2] = 127, -127
    taps = sampling.kernel // sampling.stride
    points, rows, columns = (m + taps - 1) ** 2, c * sampling.step**2, k * sampling.scale**2
    whole = rng.integers(-127, 128, (points, rows, columns)).astype(np.int8)
    ones = np.ones((points, rows), np.float32)
    quantised = Quantised(whole, np.ones((points, columns), np.float32), ones, 128 * ones)
    kernel = np.zeros((sampling.kernel, sampling.kernel, *((k, c) if sampling.transposed else (c, k))), np.float32)
    spec = ConvolutionSpec(kernel, sampling, [c], quantised=quantised, vnni=vnni, finds_range=True)
    algorithm = f"winograd{'-shared' if sampling.transposed else ''}{m}"
    got = run_spec(kernels, spec, [(as_map(kernels, x), 1.0)], algorithm)
    op = Op("op", (Source("a"),), "concat", c, k, sampling, (), Epilogue(False, None, "none", None, None), ("a",))
    expected = np.stack([convolve_tiles(op, image, quantised) for image in x.astype(np.float64)])
    assert np.abs(expected).max() > 1e4
    np.testing.assert_array_equal(np.asarray(got.raw)[..., :k], expected)


@pytest.mark.parametrize("isa, vnni", INTEGERS)
@pytest.mark.parametrize("sampling", TILED, ids=IDS)
@pytest.mark.parametrize("n, h, w, c, k", [*DIVIDED, (3, 64, 64, 8, 16)])
def test_how_tiles_are_divided_never_changes_a_bit(isa, vnni, sampling, n, h, w, c, k):
    x, kernel = normal(np.random.default_rng(7), sampling, n, h, w, c, k)
    check_divisions(
        lambda images, threads: parts_of(run_tiles(isa, vnni, sampling, images, kernel, 3, threads)[0], k), x, (1, 2)
    )


@pytest.mark.parametrize("isa, vnni", INTEGERS)
@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_what_is_not_finite_stays_so_in_tiles(isa, vnni, value):
    x, kernel = normal(np.random.default_rng(0), CONVOLUTION, 2, 12, 12, 40, 8)
    x[1, 5, 5, 33] = value
    raw = np.asarray(run_tiles(isa, vnni, CONVOLUTION, x, kernel, 3)[0].raw)[..., :8]
    assert np.isfinite(raw[0]).all() and not np.isfinite(raw[1, 2:4, 2:4]).any()


@pytest.mark.parametrize("isa, vnni", INTEGERS)
def test_empty_tiles_are_zeros(isa, vnni):
    x, kernel = normal(np.random.default_rng(0), CONVOLUTION, 1, 12, 12, 8, 8)
    x[...] = 0
    x[0, 11, 11] = 1e-38
    raw = np.asarray(run_tiles(isa, vnni, CONVOLUTION, x, kernel, 2, ends=(0.0, 1e-6))[0].raw)
    assert np.abs(raw).max() < 1e-36 and np.all(raw[0, :4, :4] == 0)


@pytest.mark.parametrize("isa", INT8)
@pytest.mark.parametrize("plan", ["int8", "int8-winograd2", "int8-winograd3"])
def test_channels_that_are_nothing_nearly_count_as_nothing(isa, plan):
    """Weights of a norm may have decayed to numbers so small that one over them is infinite."""
    g, weights = VARIANTS["tensorflow"], dict(weights_of("tensorflow"))
    results = []
    for least, most in ((0, 0), (1e-45, 1e-37)):
        for name in ("encoder_2", "encoder_3", "decoder_3"):
            beta, gamma = weights[f"{name}.beta"].copy(), weights[f"{name}.gamma"].copy()
            beta[::2], gamma[::2] = 0, np.linspace(least, most, len(gamma[::2]))
            weights[f"{name}.beta"], weights[f"{name}.gamma"] = beta, gamma
        with CpuEngine(g, weights, precision="int8", plan=plan, isa=isa) as engine:
            results.append(engine.run(to_float(pictures(1, 64, 64))))
    assert np.isfinite(results[0]).all()
    np.testing.assert_allclose(*results, rtol=0, atol=1e-6)


NETWORKS = {name: (VARIANTS[name], weights_of(name)) for name in ("tensorflow", "pytorch", "keras", "running")}
NETWORKS |= {name: CASES[name] for name in (*RESNETS, "inner slope", "residual", "add", "bilinear")}


@pytest.mark.parametrize("isa", INT8)
@pytest.mark.parametrize("plan", ["int8", "int8-winograd2", "int8-winograd3"])
@pytest.mark.parametrize("name", NETWORKS)
def test_networks_compute_what_their_emulation_does(name, plan, isa):
    """Both round the same numbers, layer by layer; only those that lie halfway between two may fall on either side."""
    generator, weights = NETWORKS[name]
    x = to_float(pictures(2, *[max(32, generator.multiple)] * 2, generator.in_channels))
    names = [layer.name for layer in generator.layers]
    with CpuEngine(generator, weights, precision="int8", threads=2, isa=isa, plan=plan) as engine:
        integers = {layer: algorithm.m for layer, algorithm in engine.plan.layers.items() if algorithm.integers}
        assert plan in map(str, engine.plan.layers.values())
        got = engine.run(x, outputs=names)
    quantised = quantise_all(generator, weights, integers, integers)
    kept_in = map_units(generator, weights) if isa == "amx" else {}
    if isa == "amx":  # of tiles, maps are float32
        kept_in = {name: units for name, units in kept_in.items() if not integers.get(name)}
    oracle = ReferenceEngine(generator, weights)
    emulation = ReferenceEngine(*fold(generator, weights), quantised=quantised, kept_in=kept_in)
    for each in integers:
        reads = {read: got[read] for read in oracle.program[each].reads}
        exact, expected = (engine.run(inputs=reads, outputs=[each])[each] for engine in (oracle, emulation))
        error, noise = (np.sqrt(((a - expected) ** 2).mean()) for a in (got[each], exact))
        assert error < noise / 10 + 1e-5, each
    given = {layer.name: got[layer.name] for layer in generator.layers if layer.inputs[0].layer == INPUT}
    last = names[-1]  # in bfloat16 where the processor has it
    error = np.abs(got[last] - emulation.run(inputs=given, outputs=[last])[last])
    assert np.sqrt((error**2).mean()) < 0.01
    assert error.max() < 0.06 or isa != INT8[0]
    reads = {read: got[read] for read in oracle.program[last].reads}
    if name != "bilinear":  # of which no map tells the size of the image
        error = got[last] - oracle.run(inputs=reads, outputs=[last])[last]
        assert np.sqrt((error**2).mean()) < 0.005


def test_the_demo_model_is_near_the_oracle():
    folder = Path(demo.__file__).parent
    generator, weights = checkpoints.read(folder / "facades.safetensors")
    b = np.asarray(Image.open(folder / "labels-1.png"))[None]
    with CpuEngine(generator, weights, precision="int8", isa=INT8[0]) as engine:
        assert floating_layers(engine) == ["encoder_1", "decoder_1"]
        result = engine.translate(b)
    with ReferenceEngine(generator, weights) as oracle:
        assert 44 < metrics.psnr(result, oracle.translate(b)) < 60


def floating_layers(engine: CpuEngine) -> list[str]:
    return [name for name, algorithm in engine.plan.layers.items() if not algorithm.integers]


def test_a_model_that_integers_would_harm_keeps_layers_in_floating_point():
    """A model of line drawings: a drawing, its mirror image, and edges of something else."""
    if not (SHARED / "models/edges2cats").exists():
        pytest.skip("the real edges2cats model is not in ../shared/models")
    generator, weights = checkpoints.read(SHARED / "models/edges2cats")
    drawing, labels = (
        np.asarray(Image.open(SHARED / "images" / name).convert("RGB"))
        for name in ("edges2cats-input.png", "facades-labels-1.png")
    )
    differs = [np.abs(np.diff(labels.astype(int), axis=axis, append=0)).max(2) > 10 for axis in (0, 1)]
    edges = np.where(np.any(differs, axis=0)[..., None], 0, 255).astype(np.uint8).repeat(3, 2)
    b = np.stack([drawing, drawing[:, ::-1], edges])
    with CpuEngine(generator, weights) as exact:
        expected = exact.translate(b)
    worst = []
    for plan in (None, "int8"):
        with CpuEngine(generator, weights, precision="int8", isa=INT8[0], plan=plan) as engine:
            worst.append(min(map(metrics.psnr, engine.translate(b), expected)))
            kept = floating_layers(engine)
            assert (len(kept) == 2) if plan else ({"encoder_2", "decoder_2"} < {*kept} and len(kept) < 15)
    assert worst[0] > 40 > 34 > worst[1]


def test_images_beyond_all_that_weights_tell_are_not_clipped():
    """A line on an empty image: its maps are constant but for few pixels, many standard deviations away."""
    g, weights = VARIANTS["tensorflow"], weights_of("tensorflow")
    b = np.full((1, 256, 256, 3), 255, np.uint8)
    b[0, 128, 40:44] = 0
    names = ["encoder_2", "encoder_3", "decoder_2", "decoder_1"]
    with CpuEngine(g, weights, precision="int8", isa=INT8[0]) as engine, ReferenceEngine(g, weights) as oracle:
        got, expected = (each.run(to_float(b), outputs=names) for each in (engine, oracle))
    deviations = np.abs(expected["encoder_2"]).max((0, 1, 2)) / np.abs(weights["encoder_2.gamma"])
    assert deviations.max() > 12
    for name in names:
        assert np.sqrt(((got[name] - expected[name]) ** 2).mean()) < 0.12 * expected[name].std(), name


def test_int8_is_refused_where_nothing_would_be_computed_in_it():
    g, weights = VARIANTS["tensorflow"], weights_of("tensorflow")
    for plan in ("direct", Plan({layer.name: "direct" for layer in g.layers}, precision="int8")):
        with pytest.raises(ValueError, match="no layer would be computed in it.*use bfloat16 or float32"):
            CpuEngine(g, weights, precision="int8", plan=plan, isa=INT8[0])
    with pytest.raises(ValueError, match="the plan has 'int8' for encoder_1"):
        plan = Plan({layer.name: "int8" for layer in g.layers}, precision="int8")
        CpuEngine(g, weights, precision="int8", plan=plan, isa=INT8[0])
    with pytest.raises(ValueError, match="no layer can be computed by 'int8' in precision 'float32'"):
        CpuEngine(g, weights, plan="int8")


def test_sums_that_could_overflow_are_not_offered():
    wide = lower(unet(depth=2, filters=(4200, 8)))["encoder_2"]
    assert Algorithm("int8") not in algorithms(wide, precision="int8")
    plan = choose(unet(depth=3, filters=(8, 4200, 8)), "throughput", precision="int8")
    assert plan.layers["encoder_3"].kind == "direct" and plan.layers["encoder_2"].kind == "int8"


def test_layers_may_stay_in_floating_point():
    """A plan says which: the more of them do, the nearer the output is to float32's."""
    g = VARIANTS["tensorflow"]
    weights, b = random_weights(g, 3), pictures(1, 64, 64)
    plan = choose(g, "throughput", precision="int8")
    kept = {name: "direct" if name in ("encoder_2", "decoder_2") else str(a) for name, a in plan.layers.items()}
    with ReferenceEngine(g, weights) as oracle:
        expected = oracle.run(to_float(b))
    errors = []
    for each in (plan, Plan(kept, precision="int8")):
        with CpuEngine(g, weights, precision="int8", plan=each, isa=INT8[0]) as engine:
            errors.append(np.square(engine.run(to_float(b)) - expected).mean())
    assert errors[1] < errors[0]
