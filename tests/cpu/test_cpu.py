"""The CPU engine beyond the protocol: its kernels layer by layer, threads, instruction sets, memory, Ctrl-C."""

from __future__ import annotations

import os
import pickle
import sys
import threading

import numpy as np
import pytest

from pix2pix.cpu import instruction_sets as isa_module
from pix2pix.cpu import peaks
from pix2pix.cpu.convolution import ConvolutionSpec
from pix2pix.cpu.engine import CpuEngine
from pix2pix.cpu.instruction_sets import build_info, extension, instruction_sets
from pix2pix.engines.reference import conv2d, conv2d_transpose, pad
from pix2pix.model.unet import UnetVariant, unet
from pix2pix.model.weights import random_weights
from pix2pix.plans.algorithms import CONVOLUTION, TRANSPOSED, parse
from pix2pix.plans.heuristics import choose
from pix2pix.plans.plan import Plan
from tests.cpu.isas import BFLOAT16, EACH_BFLOAT16, EXTENSIONS, NO_BFLOAT16
from tests.fresh import run_code
from tests.models import VARIANTS, pictures, weights_of


def as_map(kernels, value, mean=None, scale=None, shift=None):
    """A Map of (N,H,W,C) values, with padding that would show if it were read as data."""
    n, h, w, c = value.shape
    stride = kernels.padded(c)
    raw = np.zeros((n, h, w, stride), np.float32)
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
    target = as_map(kernels, np.full((n, *spec.sampling.output_size(h, w), filters), np.nan, np.float32))
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


DIVIDED = [(1, 32, 32, 40, 24), (3, 20, 20, 40, 24)]  # with tiles: by block or by panel; by patch if not transposed
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
    )


@pytest.mark.parametrize("isa", EXTENSIONS)
def test_large_weights_never_change_a_bit(isa):
    """They let all threads share the input, unless the images are too many for it to be copied as a whole."""
    kernels, rng = extension(isa), np.random.default_rng(8)
    h, w, c, k = 32, 32, 160, 176
    x = rng.standard_normal((2, h, w, c)).astype(np.float32)
    kernel = rng.standard_normal((4, 4, c, k)).astype(np.float32)
    layer = convolution(kernels, "direct", ConvolutionSpec(kernel, CONVOLUTION, [c]), 1)
    many = 12
    assert layer.scratch(1, h, w, 1) > h * w * c > layer.scratch(many, h, w, 1)  # holds an image, or a block of it

    def run(images, threads):
        return run_layer(kernels, False, images, kernel, None, threads=threads, norm=(None, None, 1e-5))

    check_divisions(run, x)
    expected = run(x, 2)
    for got, pair in zip(run(np.tile(x, (many // 2, 1, 1, 1)), 1), expected, strict=True):
        np.testing.assert_array_equal(got, np.concatenate([pair] * (many // 2)))
    exact = strided_convolution(x[1].astype(np.float64), kernel.astype(np.float64))
    np.testing.assert_allclose(expected[0][1], exact, rtol=0, atol=8e-6 * np.sqrt(16 * c))


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
    np.testing.assert_allclose(raw, np.where(exact > 0, exact, slope * exact), rtol=0, atol=1e-4)


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


def test_results_do_not_depend_on_threads():
    g = unet(ngf=16, depth=6)
    weights = random_weights(g)
    b = pictures(3, 64, 192)
    results = []
    for threads in (1, 2, 3, 8):
        with CpuEngine(g, weights, threads=threads) as engine:
            results.append(engine.translate(b))
    assert results[0].std() > 5
    for other in results[1:]:
        np.testing.assert_array_equal(other, results[0])


def count_threads() -> int:
    return len(os.listdir("/proc/self/task"))


@pytest.mark.skipif(not os.path.isdir("/proc/self/task"), reason="counts threads through /proc")
def test_callers_in_many_threads_do_not_multiply_the_engines_threads():
    b = pictures(1, 32, 32)
    with CpuEngine(VARIANTS["tensorflow"], weights_of("tensorflow"), threads=3) as engine:
        engine.translate(b)
        before, seen = count_threads(), []

        def work():
            for _ in range(10):
                engine.translate(b)
                seen.append(count_threads())

        callers = [threading.Thread(target=work) for _ in range(5)]
        for caller in callers:
            caller.start()
        for caller in callers:
            caller.join()
        assert max(seen) <= before + len(callers)


@pytest.mark.parametrize("isa", instruction_sets())
def test_the_environment_forces_an_instruction_set(isa, monkeypatch):
    monkeypatch.setenv("PIX2PIX_ISA", isa)
    with CpuEngine(VARIANTS["tensorflow"], weights_of("tensorflow")) as engine:
        assert engine.info.instruction_set == ("avx512" if isa == "amx" else isa)
    if isa in BFLOAT16:
        with CpuEngine(VARIANTS["tensorflow"], weights_of("tensorflow"), precision="bfloat16") as engine:
            assert engine.info.instruction_set == isa
    assert isa in build_info()["instruction set"]


def test_unknown_instruction_sets_are_refused(monkeypatch):
    monkeypatch.setenv("PIX2PIX_ISA", "sse9")
    with pytest.raises(RuntimeError, match="sse9.*expected one of"):
        CpuEngine(VARIANTS["tensorflow"], weights_of("tensorflow"))


def test_an_instruction_set_that_the_processor_lacks_is_refused(monkeypatch):
    monkeypatch.setattr(isa_module, "instruction_sets", lambda: ["portable"])
    with pytest.raises(RuntimeError, match="avx512.*this machine and this build have portable"):
        extension("avx512")


def test_bfloat16_needs_a_processor_that_has_it():
    g, weights = VARIANTS["tensorflow"], weights_of("tensorflow")
    with pytest.raises(RuntimeError, match="AVX512_BF16.*portable.*use float32"):
        CpuEngine(g, weights, precision="bfloat16", isa="portable")
    with pytest.raises(RuntimeError, match="tf32.*float32 or bfloat16"):
        CpuEngine(g, weights, precision="tf32")
    with pytest.raises(ValueError, match="plan is for bfloat16"):
        CpuEngine(g, weights, plan=choose(g, "latency", None, "bfloat16"))


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
        np.testing.assert_allclose(raw, exact, rtol=0, atol=1e-4)


@pytest.mark.parametrize("threads", [0, -1, 1.5, True, "2", 10**6])
def test_threads_must_be_positive(threads):
    with pytest.raises(ValueError, match="threads"):
        CpuEngine(VARIANTS["tensorflow"], weights_of("tensorflow"), threads=threads)


def test_plans(tmp_path):
    g, weights = VARIANTS["tensorflow"], weights_of("tensorflow")
    b = pictures(1, 32, 32)
    plan = Plan({layer.name: "direct" for layer in g.layers}, tune="latency")
    plan.save(tmp_path / "plan.json")
    results = []
    for given in ("direct", plan, tmp_path / "plan.json"):
        with CpuEngine(g, weights, plan=given) as engine:
            assert dict(engine.plan.layers) == dict(plan.layers)
            results.append(engine.translate(b))
    assert all(np.array_equal(r, results[0]) for r in results)
    shared = Plan({**plan.layers, "encoder_2": "winograd-shared3"})
    picture = Plan({**plan.layers, "encoder_1": "winograd3"})
    for bad in ("winograd", Plan({"encoder_1": "direct"}), tmp_path / "absent.json", shared, picture):
        with pytest.raises(ValueError, match="plan"):
            CpuEngine(g, weights, plan=bad)
    with pytest.raises(ValueError, match="expected one of direct"):
        Plan({"encoder_1": "magic"})
    with pytest.raises(ValueError, match="tune"):
        CpuEngine(g, weights, tune="fast")
    with pytest.raises(ValueError, match="precision"):
        Plan(plan.layers, precision="int4")
    assert pickle.loads(pickle.dumps(plan)) == plan and hash(plan) == hash(Plan(plan.layers, tune="latency"))


def test_plans_are_made_for_the_models_own_size():
    g = unet()
    latency, throughput = (choose(g, tune).to_dict()["layers"] for tune in ("latency", "throughput"))
    assert {latency[f"encoder_{i}"] for i in (2, 3, 4)} == {"winograd4"}
    assert latency["encoder_1"] == latency["decoder_1"] == latency["encoder_8"] == "direct"
    assert latency["encoder_5"] == "winograd2" and throughput["encoder_5"] == "winograd4"
    assert choose(g, "latency", precision="bfloat16").to_dict()["layers"] == latency
    assert choose(g, "latency", "winograd-shared3").layers["encoder_3"] == parse("direct")
    assert choose(g.with_overrides({"size": 512}), "latency").layers["encoder_5"] == parse("winograd4")


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads the peak of memory from /proc")
def test_memory_is_bounded_by_the_largest_of_200_sizes():
    code = """
        import numpy as np
        from pix2pix.cpu.engine import CpuEngine
        from pix2pix.model.unet import UnetVariant, unet
        from pix2pix.model.weights import random_weights

        def peak():
            return int(open("/proc/self/status").read().partition("VmHWM:")[2].split()[0])

        g = unet(ngf=8, depth=5)
        sizes = [(32 * i, 32 * j) for i in range(1, 17) for j in range(1, 14)][:200]
        b = np.random.default_rng(0).integers(0, 256, (1, 512, 512, 3), np.uint8)
        with CpuEngine(g, random_weights(g), threads=2) as engine:
            base = peak()
            engine.translate(b)
            largest = peak()
            for h, w in sizes:
                engine.translate(b[:, :h, :w])
            print(largest - base, peak() - largest)
    """
    one, more = map(int, run_code(code).split())
    assert one > 10_000  # kB: the largest size does take memory, so that the next line means something
    assert more < 0.25 * one


@pytest.mark.skipif(sys.platform == "win32", reason="sends SIGINT")
def test_ctrl_c_interrupts_a_long_call_and_the_engine_goes_on():
    code = """
        import os, signal, sys, threading, time
        import numpy as np
        from pix2pix.cpu.engine import CpuEngine
        from pix2pix.model.unet import UnetVariant, unet
        from pix2pix.model.weights import random_weights

        g = unet(ngf=16, depth=8)
        with CpuEngine(g, random_weights(g)) as engine:
            b = np.zeros((20, 256, 256, 3), np.uint8)
            engine.translate(b)
            start = time.monotonic()
            engine.translate(b)
            whole = 100 * (time.monotonic() - start)  # what the call would take, on a machine as busy as this one is
            many = np.zeros((2000, 256, 256, 3), np.uint8)
            threading.Timer(1, os.kill, (os.getpid(), signal.SIGINT)).start()
            start = time.monotonic()
            try:
                engine.translate(many)
                print("not interrupted")
            except KeyboardInterrupt:
                print("interrupted", time.monotonic() - start < 1 + whole / 2)
            engine.translate(b)
            print("goes on")
    """
    assert run_code(code).split() == ["interrupted", "True", "goes", "on"]


@pytest.mark.skipif(sys.platform == "win32", reason="sends SIGINT")
def test_ctrl_c_gives_up_what_a_stream_computes():
    code = """
        import os, signal, threading, time
        import numpy as np
        from pix2pix.cpu.engine import CpuEngine
        from pix2pix.model.unet import UnetVariant, unet
        from pix2pix.model.weights import random_weights

        g = unet(ngf=16, depth=8)
        with CpuEngine(g, random_weights(g)) as engine:
            engine.translate(np.zeros((20, 256, 256, 3), np.uint8))
            start = time.monotonic()
            engine.translate(np.zeros((20, 256, 256, 3), np.uint8))
            whole = 100 * (time.monotonic() - start)
            many = np.zeros((2000, 256, 256, 3), np.uint8)
            threading.Timer(1, os.kill, (os.getpid(), signal.SIGINT)).start()
            start = time.monotonic()
            try:
                for _ in engine.stream([many]):
                    print("not interrupted")
            except KeyboardInterrupt:
                print("interrupted", time.monotonic() - start < 1 + whole / 2)
    """
    assert run_code(code).split() == ["interrupted", "True"]


def test_measured_peaks_are_plausible():
    rates = peaks.measure(threads=1, seconds=0.05)
    assert 1 < rates["fma_gflops"] < 1000 and 0.5 < rates["bandwidth_gbs"] < 1000
    if extension().build_facts()["bfloat16"] == "yes":
        assert 1 < peaks.measure(1, 0.05, "bfloat16")["fma_gflops"] < 5000
    if extension().build_facts()["int8"] == "yes":
        assert 1 < peaks.measure(1, 0.05, "int8")["fma_gflops"] < 10000
    with pytest.raises(RuntimeError, match="AVX512_BF16"):
        extension("portable").run_multiply_adds(1, 1, 2)
    with pytest.raises(RuntimeError, match="no AMX"):
        extension("portable").run_multiply_adds(1, 1, 4, True)
