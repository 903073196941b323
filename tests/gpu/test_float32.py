"""CUDA kernels one by one, and the GPU engine beyond the protocol: on a GPU, or in numba's simulator."""

from __future__ import annotations

import itertools
import threading
from pathlib import Path

import numpy as np
import pytest

import pix2pix
from pix2pix import checkpoints
from pix2pix.engines.reference import ReferenceEngine, conv2d, conv2d_transpose, pad, to_float, to_uint8
from pix2pix.model.lowering import lower
from pix2pix.plans.algorithms import TRANSPOSED, algorithms
from pix2pix.plans.heuristics import choose
from pix2pix.plans.plan import Plan
from tests.gpu.gpus import EDGE, MISSING, SIMULATED
from tests.models import TOLERANCE, VARIANTS, check_layer, check_output, pictures, weights_of

if MISSING:
    pytest.skip(MISSING, allow_module_level=True)

from numba import cuda

from pix2pix.gpu import engine as gpu
from pix2pix.gpu.engine import GpuEngine
from pix2pix.gpu.float32_forward import LANES, ROWS, gemm, kernels
from pix2pix.gpu.float32_packing import _flipped, all_taps, parity_taps, plain_taps
from pix2pix.gpu.kernels import float32_norm as _cuda_norm
from pix2pix.gpu.kernels.float32_gemm import SIMULATED_TILE, TILES
from pix2pix.gpu.kernels.parameters import Images
from pix2pix.gpu.launches import THREADS

pytestmark = pytest.mark.gpu
ONE = np.float32(1)

PADDING = (1, 1, 1, 1)


# -- kernels ----------------------------------------------------------------------------------------------------------


def launch(kernel, grid, threads, *arguments):
    """Run a kernel on NumPy arrays (which it changes) and numbers."""
    arrays = [(a, cuda.to_device(a.reshape(-1))) for a in arguments if isinstance(a, np.ndarray)]
    ready = iter(device for _, device in arrays)
    kernel[grid, threads](*(next(ready) if isinstance(a, np.ndarray) else a for a in arguments))
    for host, device in arrays:
        host[...] = device.copy_to_host().reshape(host.shape)


def noise(*shape, seed=0):
    return np.random.default_rng([seed, *shape]).standard_normal(shape, np.float32)


def relu(x, slope):
    return np.where(x > 0, x, x * slope)


# (h, w, channels of both sources, filters, splits): tiles that are full and ragged, rows that end inside a tile
SHAPES = [(4, 6, 8, 8, 16, 1), (2, 2, 16, 0, 8, 1), (6, 4, 8, 16, 24, 2), (8, 8, 8, 0, 40, 3), (2, 4, 24, 8, 8, 32)]


@pytest.mark.parametrize("h, w, first, second, filters, splits", SHAPES)
@pytest.mark.parametrize("tile", ["128x64"] if SIMULATED else ["128x128", "128x64", "32x128"])
@pytest.mark.parametrize("kind", ["conv", "transposed"])
def test_gemm_is_a_convolution_of_concatenated_maps(kind, tile, h, w, first, second, filters, splits):
    n, channels = 3, first + second
    a = noise(n, h, w, channels + 16)  # the maps are a slice, with something else on either side
    x = a[..., 8 : 8 + channels]
    kernel, bias = noise(4, 4, channels, filters), noise(filters)
    slopes = np.float32(0.25), np.float32(0)
    active = np.concatenate([relu(x[..., :first], slopes[0]), relu(x[..., first:], slopes[1])], axis=3)
    active = active.astype(np.float64)
    if kind == "conv":
        expected = np.stack([conv2d(pad(image, PADDING), kernel.astype(float), 2) for image in active]) + bias
        weights, how, parities, rows, grid = plain_taps(kernel), (4, 2, -1, 1), 1, n * h * w // 4, (h // 2, w // 2)
    else:
        flipped = kernel.transpose(0, 1, 3, 2).astype(float)
        expected = np.stack([conv2d_transpose(image, flipped, TRANSPOSED) for image in active]) + bias
        weights, how, parities, rows, grid = parity_taps(kernel), (2, 1, 0, -1), 4, n * h * w, (h, w)
    stride = filters + 8
    out = np.full((*expected.shape[:3], stride), 7, np.float32)
    target, to = (
        (out, (stride, 4)) if splits == 1 else (np.empty((splits, parities, rows, filters), np.float32), (0, 0))
    )
    shape = (h, w, channels + 16, 8, channels, first, *slopes, *how, rows, *grid, filters, parities, splits, *to)
    size = SIMULATED_TILE if SIMULATED else TILES[tile]
    blocks = (-(-rows // size.bm), -(-filters // size.bn), parities * splits)
    launch(gemm(tile), blocks, size.threads, a, np.ascontiguousarray(weights), bias, target, *shape)
    if splits > 1:
        shape = (rows, grid[1], filters, parities, splits, stride, 4)
        launch(kernels().add_splits, 3, THREADS, target, bias, out, *shape)
    assert np.abs(out[..., 4 : 4 + filters] - expected).max() < 2e-6 * np.sqrt(16 * channels) * 4
    assert (out[..., :4] == 7).all() and (out[..., 4 + filters :] == 7).all()


@pytest.mark.parametrize("transposed", [False, True])
def test_im2col_and_zero_insertion_are_the_convolution(transposed):
    n, h, w, channels, filters = 2, 4, 6, 16, 8
    a, kernel = noise(n, h, w, channels + 8), noise(4, 4, channels, filters)
    x = relu(a[..., 8:], np.where(np.arange(channels) < 8, 0.25, 0)).astype(np.float64)
    slopes = np.float32(0.25), np.float32(0)
    if transposed:
        expected = np.stack(
            [conv2d_transpose(image, kernel.transpose(0, 1, 3, 2).astype(float), TRANSPOSED) for image in x]
        )
        inserted = np.full((n, 2 * h + 3, 2 * w + 3, channels), np.nan, np.float32)
        launch(kernels().insert_zeros, 2, THREADS, a, inserted, n, h, w, channels + 8, 8, channels, 8, *slopes)
        source, matrix = inserted, _flipped(kernel)[0]
        shape = (2 * h + 3, 2 * w + 3, channels, 0, channels, channels, ONE, ONE, 1, 0, 2 * h, 2 * w)
    else:
        expected = np.stack([conv2d(pad(image, PADDING), kernel.astype(float), 2) for image in x])
        source, matrix = a, plain_taps(kernel)[0]
        shape = (h, w, channels + 8, 8, channels, 8, *slopes, 2, -1, h // 2, w // 2)
    rows = expected.size // filters
    columns = np.full((rows, 16 * channels), np.nan, np.float32)
    for begin in (0, rows // 3):
        part = columns[begin:] if begin else columns[: rows // 3]
        launch(kernels().im2col, 2, THREADS, source, part, begin, len(part), *shape)
    np.testing.assert_allclose(columns @ matrix, expected.reshape(rows, filters), rtol=0, atol=1e-4)


@pytest.mark.parametrize("pixels, channels, offset", [(1, 8, 0), (6, 16, 3), (40, 24, 1000), (1030, 8, -100)])
def test_norms_are_exact_even_far_from_zero(pixels, channels, offset):
    n, stride = 2, channels + 8
    a = noise(n, pixels, stride) * 2 + np.float32(offset)
    a[:, 0] += 50  # an outlier where sums begin
    x = a[..., 8:].astype(np.float64)
    gamma, beta = noise(channels, seed=1), noise(channels, seed=2)
    mean, variance = x.mean(1, keepdims=True), x.var(1, keepdims=True)
    expected = (x - mean) / np.sqrt(variance + 1e-5) * gamma + beta
    chunk = 512 if pixels > 1024 else _cuda_norm.chunk_size(pixels)
    chunks = -(-pixels // chunk)
    statistics = np.empty((n, chunks, 2, channels), np.float32)
    shape, grid = (pixels, chunk, stride, 8, channels), (-(-channels // (4 * LANES)), chunks, n)
    launch(kernels().chunk_statistics, grid, LANES * ROWS, a, statistics, *shape)
    before = a[..., :8].copy()
    launch(kernels().normalise, grid, LANES * ROWS, a, statistics, gamma, beta, *shape, np.float32(1e-5))
    np.testing.assert_allclose(statistics[:, 0, 0], x[:, :chunk].mean(1), rtol=1e-6, atol=2e-6)
    np.testing.assert_array_equal(a[..., :8], before)
    if pixels == 1:
        np.testing.assert_array_equal(a[:, 0, 8:], np.broadcast_to(beta, (n, channels)))
    assert np.abs(a[..., 8:] - expected).max() < 3e-6 + 2e-7 * abs(offset)


def test_chunks_depend_on_the_map_alone_and_are_few():
    for pixels in (1, 1024, 1025, 16384, 10**6, 2**24):
        size = _cuda_norm.chunk_size(pixels)
        assert size >= 1024 and -(-pixels // size) <= 64


def test_pictures_become_maps_exactly():
    b = np.arange(256, dtype=np.uint8).reshape(64, 4)
    out = np.full((64, 8), np.nan, np.float32)
    launch(kernels().from_picture, 2, THREADS, b, out, 64, 4, 8)
    np.testing.assert_array_equal(out[:, :4], to_float(b))
    assert not out[:, 4:].any()


@pytest.mark.parametrize("as_bytes", [False, True])
@pytest.mark.parametrize("taps", [False, True])
def test_the_last_layer_becomes_a_picture_by_the_rule(taps, as_bytes):
    n, h, w, channels, depth = 2, 4, 6, 3, 8
    kernel, bias = noise(4, 4, depth, channels), noise(8)
    if taps:
        x = noise(n, h // 2, w // 2, depth)
        a = (x.reshape(-1, depth) @ all_taps(kernel)[0]).reshape(n, h // 2, w // 2, 48)
        flipped = kernel.transpose(0, 1, 3, 2).astype(float)
        total = np.stack([conv2d_transpose(image, flipped, TRANSPOSED) for image in x.astype(float)]) + bias[:channels]
    else:
        a = noise(n, h, w, 8)
        total = a[..., :channels].astype(float)
    out = np.zeros((n, h, w, channels), np.float32)
    shape = Images(n, h, w, channels), a.shape[3], np.float32(255.5)
    launch(kernels().to_image[taps, False], 2, THREADS, a, bias, out, *shape)
    np.testing.assert_allclose(out, np.tanh(total), rtol=0, atol=2e-6)
    if as_bytes:
        b = np.zeros(out.shape, np.uint8)
        launch(kernels().to_image[taps, True], 2, THREADS, a, bias, b, *shape)
        np.testing.assert_array_equal(b, to_uint8(out, 255.5))
        assert len(np.unique(b)) > 50


def test_channels_are_copied_between_slices():
    source, out = noise(6, 8), np.full((12, 24), 7, np.float32)
    launch(kernels().copy_channels, 2, THREADS, source, out, 12, 6, 5, 8, 1, 8, 24, 8)
    np.testing.assert_array_equal(out[:, 8:13], np.tile(source[:, 1:6], (2, 1)))
    assert not out[:, 13:16].any() and (out[:, :8] == 7).all() and (out[:, 16:] == 7).all()


if SIMULATED:

    def test_the_simulator_shows_missing_barriers():
        @cuda.jit
        def shift(out):
            values = cuda.shared.array(8, np.int32)
            thread = cuda.threadIdx.x
            values[thread] = -1
            cuda.syncthreads()
            values[thread] = thread
            out[cuda.blockIdx.x, thread] = values[(thread + 1) % 8]  # without the barrier that belongs between

        out = np.zeros((4, 8), np.int32)
        shift[4, 8](out)
        assert (out == -1).any()

    def test_the_simulator_shows_barriers_that_not_all_reach():
        @cuda.jit
        def stuck(out):
            if cuda.threadIdx.x == 0:
                cuda.syncthreads()

        with pytest.raises(RuntimeError, match="have ended"):
            stuck[1, 4](np.zeros(1))


# -- the engine -------------------------------------------------------------------------------------------------------


@pytest.fixture
def engine():
    with GpuEngine(VARIANTS["tensorflow"], weights_of("tensorflow")) as engine:
        yield engine


@pytest.mark.parametrize("tune", ["latency", "throughput"])
def test_the_published_network_has_plans_that_fit_it(tune):
    g = pix2pix.model.generator.unet(ngf=64, depth=8)
    plan = choose(g, tune, hardware="cuda")
    plan.check(g)
    assert all(name.startswith("implicit-") for name in plan.layers.values())
    splits = [int(name.partition("-split")[2] or 1) for name in plan.layers.values()]
    assert splits[0] <= splits[4] and max(splits) > 1


def test_a_plan_may_name_any_algorithm_for_any_layer():
    g = VARIANTS["tensorflow"]
    takes = algorithms(lower(g).ops[0], "cuda")
    names = itertools.cycle(np.random.default_rng(0).permutation(takes).tolist())
    x = to_float(pictures(1, 32, 64))
    expected = ReferenceEngine(g, weights_of("tensorflow")).run(x)
    for _ in range(-(-len(takes) // len(g.layers))):
        plan = Plan({layer.name: next(names) for layer in g.layers}, "cuda")
        with GpuEngine(g, weights_of("tensorflow"), plan=plan) as engine:
            check_output(engine.run(x), expected, "float32")


def test_the_courses_plan_computes_the_whole_network():
    x = to_float(pictures(3, 32, 32))
    expected = ReferenceEngine(VARIANTS["no-norm"], weights_of("no-norm")).run(x)
    with GpuEngine(VARIANTS["no-norm"], weights_of("no-norm"), plan="im2col") as engine:
        check_output(engine.run(x), expected, "float32")


def test_engines_share_weights_and_outlive_each_other():
    g, weights = VARIANTS["tensorflow"], weights_of("tensorflow")
    b = pictures(2, 32, 32)
    first = GpuEngine(g, weights)
    expected = first.translate(b)
    with first.share() as second:
        assert second._weights is first._weights
        results = []
        threads = [threading.Thread(target=lambda e=e: results.append(e.translate(b))) for e in (first, second)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        first.close()
        results.append(second.translate(b))
    assert len(results) == 3
    for result in results:
        np.testing.assert_array_equal(result, expected)
    with pytest.raises(RuntimeError, match="closed"):
        first.share()


def test_a_batch_is_halved_until_it_fits_and_goes_on(engine, monkeypatch, caplog):
    b = pictures(5, 32, 32)
    expected = engine.translate(b)
    limit = gpu.Forward.floats(engine._weights, 2, 32, 32)
    engine._do(engine._forget)
    allocate = engine._device.empty

    def empty(size, dtype=np.float32):
        if size > limit:
            raise MemoryError(f"cuda:0 has no {size} bytes of memory left")
        return allocate(size, dtype)

    monkeypatch.setattr(engine._device, "empty", empty)
    np.testing.assert_array_equal(engine.translate(b), expected)
    assert "memory left: going on with 2 images at a time" in caplog.text
    np.testing.assert_array_equal(next(engine.stream([b])), expected)
    with pytest.raises(MemoryError, match="no .* memory left"):
        engine.translate(pictures(1, 64, 96))
    np.testing.assert_array_equal(engine.translate(b[:1])[0], expected[0])


def test_a_session_keeps_values_in_the_gpus_memory(engine):
    x = to_float(pictures(2, 32, 64))
    names = ["encoder_2", "encoder_3", "decoder_2", "decoder_1"]
    expected = engine.run(x, outputs=names)
    with engine.session() as session:
        first = session.run({"input": x}, ["encoder_3"], ["encoder_1", "encoder_2"])
        second = session.run({"encoder_3": first["encoder_3"]}, ["decoder_2", "encoder_2"], ["encoder_1", "decoder_2"])
        third = session.run({}, ["decoder_1"])
    for name, value in {**first, **second, **third}.items():
        np.testing.assert_allclose(value, expected[name], rtol=0, atol=1e-6, err_msg=name)


def test_a_session_keeps_what_it_was_given_and_has_not_read_yet(engine):
    known = engine.run(to_float(pictures(1, 32, 32)), outputs=["encoder_1", "encoder_2", "decoder_2"])
    given = {"encoder_1": known["encoder_1"] * 2, "decoder_2": known["decoder_2"]}
    with engine.session() as session:
        session.run({"encoder_1": given["encoder_1"], "encoder_2": known["encoder_2"]}, ["encoder_3"], ["encoder_1"])
        y = session.run({"decoder_2": given["decoder_2"]}, ["decoder_1"])["decoder_1"]
    np.testing.assert_array_equal(y, engine.run(inputs=given))


def test_constant_layers_are_there_whatever_the_memory_held(engine):
    """Their values are kept apart: other sizes compute in the same memory."""
    x = to_float(pictures(2, 32, 32))
    names = lower(engine.generator).constants(32, 32)
    assert names == ("encoder_5", "decoder_5")
    expected = ReferenceEngine(VARIANTS["tensorflow"], weights_of("tensorflow")).run(x, outputs=names)
    for inputs in ({"input": x}, engine.run(x, outputs=["encoder_4"])):
        engine._do(engine._memory.copy_to_device, np.full(engine._memory.size, 7, np.float32))
        values = engine.run(inputs=inputs, outputs=names)
        for name in names:
            check_layer(values[name], expected[name], "float32", name)


def test_a_stream_may_be_left_and_other_calls_come_between(engine):
    batches = [pictures(n, 32, 32, seed=n) for n in (1, 2, 1)]
    expected = [engine.translate(b) for b in batches]
    results = engine.stream(iter(batches))
    np.testing.assert_array_equal(next(results), expected[0])
    np.testing.assert_array_equal(engine.translate(batches[2]), expected[2])
    np.testing.assert_array_equal(next(results), expected[1])
    results.close()
    np.testing.assert_array_equal(engine.translate(batches[1]), expected[1])


def test_sizes_are_forgotten_when_they_are_many(engine):
    for h in range(32 * (gpu.SIZES_KEPT + 3), 0, -32):
        engine._do(engine._size, 1, h, 32)
    assert len(engine._sizes) == gpu.SIZES_KEPT
    held = engine._memory.size
    engine.translate(pictures(1, 32, 32))
    assert engine._memory.size == held


def test_load_takes_a_gpu_and_auto_finds_it(tmp_path):
    g, weights = VARIANTS["no-norm"], weights_of("no-norm")
    checkpoints.write(tmp_path / "model.safetensors", g, weights)
    b = pictures(1, 32, 32)
    expected = ReferenceEngine(g, weights).run(to_float(b))
    for device in ("cuda:0", "auto"):
        with pix2pix.load(tmp_path / "model.safetensors", device=device, workers=1) as engine:
            assert "cuda:0" in str(engine.info)
            check_output(engine.run(to_float(b)), expected, "float32")


def test_what_is_not_there_is_named():
    g, weights = VARIANTS["tensorflow"], weights_of("tensorflow")
    with pytest.raises(RuntimeError, match="device cuda:97: this machine has"):
        GpuEngine(g, weights, index=97)
    with pytest.raises(ValueError, match="precision 'float8', expected one of"):
        GpuEngine(g, weights, precision="float8")
    with pytest.raises(ValueError, match="has no layer for 'cuda'"):
        GpuEngine(g, weights, plan=choose(g, "latency"))


if not SIMULATED:

    def test_launches_are_recorded_as_graphs(engine):
        engine.translate(pictures(1, EDGE, EDGE))
        assert engine._device.has_graphs and "CUDA graphs" in engine.info.description

    def test_memory_is_freed():
        g = pix2pix.model.generator.unet(ngf=64, depth=8)
        weights = pix2pix.model.generator.random_weights(g)
        free, free_memory = [], lambda: cuda.current_context().get_memory_info().free
        for _ in range(3):
            with GpuEngine(g, weights) as engine:
                engine.translate(pictures(8, 256, 256))
                free.append(engine._do(free_memory))
        assert free[2] >= free[0] - (1 << 26)

    def test_the_demo_model_agrees_with_the_oracle():
        generator, weights = checkpoints.read(Path(pix2pix.__file__).parent / "demo" / "facades.safetensors")
        x = to_float(pictures(2, generator.size, generator.size))
        expected = ReferenceEngine(generator, weights).run(x)
        for plan in (None, "im2col"):
            with GpuEngine(generator, weights, plan=plan) as engine:
                assert np.abs(engine.run(x) - expected).max() < TOLERANCE["float32"][1]
