"""CUDA kernels one by one, on a GPU or in Numba's simulator: products in float32, norms, maps, images."""

from __future__ import annotations

import numpy as np
import pytest

from pix2pix.engines.reference import conv2d, conv2d_transpose, pad, to_float, to_uint8
from pix2pix.model.sampling import Sampling
from pix2pix.plans.algorithms import CONVOLUTION, TRANSPOSED
from tests.gpu.gpus import MISSING, SIMULATED

if MISSING:
    pytest.skip(MISSING, allow_module_level=True)

from numba import cuda

from pix2pix.gpu.filters import all_taps, flipped_taps, phase_taps, plain_taps, reorder_columns
from pix2pix.gpu.jit import THREADS
from pix2pix.gpu.kernels.epilogue import MAPS, NORMALISED, PARTIAL_SUMS, STATISTICS
from pix2pix.gpu.kernels.parameters import (
    NO_TARGET,
    ZEROS,
    Frame,
    Gemm,
    Grid,
    Images,
    Inserted,
    Norm,
    Source,
    Sums,
    Target,
    Targets,
    Values,
)
from pix2pix.gpu.kernels.simt_gemm import SIMT_TILES, SIMULATED_SIMT_TILE
from pix2pix.gpu.map_writer import FINISH_LANES, LANES, ROWS, finish_kernel, kernels
from pix2pix.gpu.products import average_kernel, gemm_kernel, im2col_kernels
from pix2pix.gpu.ptx.fragments import column_order
from pix2pix.gpu.ptx.packed_words import FLOAT32
from pix2pix.gpu.windows import ONE_PIXEL, square, window_of

pytestmark = pytest.mark.gpu
ONE, QUARTER, ZERO = np.float32(1), np.float32(0.25), np.float32(0)
NO_TARGETS = Targets(NO_TARGET, NO_TARGET)
TILES = [SIMULATED_SIMT_TILE] if SIMULATED else list(SIMT_TILES.values())  # tests/gpu/ptx runs the real ones


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


def convolution(a, kernel):
    """4x4, stride 2, of (n, h, w, in) by (4, 4, in, out), in float64."""
    return np.stack([conv2d(pad(image, TRANSPOSED.padding), kernel.astype(float), 2) for image in a.astype(float)])


def transposed_convolution(a, kernel):
    """The same of a transposed one."""
    adjoint = kernel.transpose(0, 1, 3, 2).astype(float)
    return np.stack([conv2d_transpose(image, adjoint, TRANSPOSED) for image in a.astype(float)])


def multiply(tile, epilogue, operands, gemm, outputs, groups=1, targets=NO_TARGETS):
    """Run simt_gemm; operands are a, W and bias (affine), outputs are out, out2 and statistics."""
    a, matrix, affine = operands
    gemm = gemm._replace(grid=gemm.grid._replace(tiles=-(-gemm.grid.rows // tile.bm)))
    w = reorder_columns(matrix, column_order(gemm.columns, tile.lx, 4))
    blocks = (groups * gemm.grid.tiles, -(-gemm.columns // tile.bn), gemm.phases * gemm.splits)
    nothing = np.zeros(1, np.float32)
    out, out2, statistics = (nothing if array is None else array for array in outputs)
    kernel = gemm_kernel(tile, FLOAT32, epilogue)
    launch(kernel, blocks, tile.threads, a, w, affine, out, out2, statistics, gemm, targets)


def affine_of(columns, seed=0):
    """bias, gamma, beta."""
    return noise(3, columns, seed=seed)


# -- products ---------------------------------------------------------------------------------------------------------

# (h, w, channels, filters, splits): tiles that are full and ragged, rows that end inside a tile
SHAPES = [(4, 6, 16, 16, 1), (2, 2, 16, 8, 1), (6, 4, 24, 24, 2), (8, 8, 8, 40, 3), (2, 4, 32, 8, 32)]


@pytest.mark.parametrize("h, w, channels, filters, splits", SHAPES)
@pytest.mark.parametrize("tile", TILES, ids=lambda tile: f"{tile.bm}x{tile.bn}")
@pytest.mark.parametrize("kind", ["conv", "transposed"])
def test_simt_gemm_is_a_convolution(kind, tile, h, w, channels, filters, splits):
    """Written for two readers, each with a slope of its own, between channels of others that stay as they are."""
    n = 3
    a, kernel, affine = noise(n, h, w, channels), noise(4, 4, channels, filters), affine_of(filters)
    if kind == "conv":
        expected = convolution(a, kernel) + affine[0]
        matrix, window, phases, grid = (
            plain_taps(kernel),
            window_of(CONVOLUTION),
            1,
            Grid(h // 2, w // 2, n * h * w // 4, 0),
        )
    else:
        expected = transposed_convolution(a, kernel) + affine[0]
        matrix, window, phases, grid = (
            phase_taps(kernel, TRANSPOSED),
            window_of(TRANSPOSED),
            4,
            Grid(h, w, n * h * w, 0),
        )
    gemm = Gemm(Source(h, w, channels), window, grid, filters, phases, splits)
    out = np.full((*expected.shape[:3], filters + 8), 7, np.float32)
    out2 = np.full((*expected.shape[:3], filters), 7, np.float32)
    targets = Targets(Target(filters + 8, 4, QUARTER), Target(filters, 0, ZERO))
    if splits == 1:
        multiply(tile, MAPS, (a, matrix, affine), gemm, (out, out2, None), targets=targets)
    else:
        partial = np.full((splits, phases, grid.rows, filters), np.nan, np.float32)
        multiply(tile, PARTIAL_SUMS, (a, matrix, affine), gemm, (partial, None, None))
        sums = Sums(grid.h, grid.w, phases, splits, filters, 5, ZERO, ONE)
        blocks = (-(-filters // (8 * FINISH_LANES)), -(-phases * grid.h * grid.w // 5), n)
        arguments = partial, affine, out, out2, np.zeros(1, np.float32), sums, targets
        launch(finish_kernel(FLOAT32, MAPS), blocks, LANES * ROWS, *arguments)
    tolerance = 2e-6 * np.sqrt(16 * channels) * 4
    assert np.abs(out[..., 4 : 4 + filters] - relu(expected, 0.25)).max() < tolerance
    assert np.abs(out2 - relu(expected, 0)).max() < tolerance
    assert (out[..., :4] == 7).all() and (out[..., 4 + filters :] == 7).all()


@pytest.mark.parametrize("transposed", [False, True])
def test_im2col_and_zero_insertion_are_the_convolution(transposed):
    n, h, w, channels, filters = 2, 4, 6, 16, 8
    a, kernel = noise(n, h, w, channels), noise(4, 4, channels, filters)
    insert_zeros, im2col = im2col_kernels()
    if transposed:
        expected = transposed_convolution(a, kernel)
        source = np.full((n, 2 * h + 3, 2 * w + 3, channels), np.nan, np.float32)
        launch(insert_zeros, 2, THREADS, a, source, n, Source(h, w, channels), Inserted(2 * h + 3, 2 * w + 3, 2, 2, 2))
        matrix, window, grid = flipped_taps(kernel)[0], square(4), Grid(2 * h, 2 * w, 0, 0)
    else:
        expected = convolution(a, kernel)
        source, matrix, window, grid = a, plain_taps(kernel)[0], window_of(CONVOLUTION), Grid(h // 2, w // 2, 0, 0)
    rows = expected.size // filters
    columns = np.full((rows, 16 * channels), np.nan, np.float32)
    for begin in (0, rows // 3):
        part = columns[begin:] if begin else columns[: rows // 3]
        launch(im2col, 2, THREADS, source, part, begin, len(part), Source(*source.shape[1:]), window, grid)
    np.testing.assert_allclose(columns @ matrix, expected.reshape(rows, filters), rtol=0, atol=1e-4)


@pytest.mark.parametrize("stride, padding", [(2, (1, 1, 1, 1)), (1, (0, 2, 2, 1))])
def test_averages_leave_the_padding_out(stride, padding):
    n, h, w, columns, taps = 2, 5, 7, 8, np.float32([0.5, 1, 0.25])
    kernel = np.outer(taps, taps)[..., None, None].astype(float)
    sums = np.stack([conv2d(pad(image, padding), kernel, stride) for image in noise(n, h, w, columns).astype(float)])
    expected = sums / conv2d(pad(np.ones((h, w, 1)), padding), kernel, stride) * kernel.sum()
    partial = np.stack([0.25 * sums, 0.75 * sums]).astype(np.float32)
    grid = Grid(*sums.shape[1:3], sums.size // columns, 1)
    gemm = Gemm(Source(h, w, columns), window_of(Sampling(3, stride, padding, "uncounted")), grid, columns, 1, 2)
    launch(average_kernel(), 2, THREADS, partial, taps / taps.sum(), gemm)
    np.testing.assert_allclose(partial.sum(0), expected, rtol=0, atol=2e-6 * np.abs(expected).max())


# -- norms ------------------------------------------------------------------------------------------------------------


def normalised(x, affine):
    """The norm of (n, pixels, channels) by each image's own statistics, in float64."""
    mean, variance = x.mean(1, keepdims=True), x.var(1, keepdims=True)
    return (x - mean) / np.sqrt(variance + 1e-5) * affine[1] + affine[2]


def far_from_zero(n, pixels, channels, offset):
    a = noise(n, pixels, channels) * 2 + np.float32(offset)
    a[:, 0] += 50  # an outlier where sums begin
    return a


@pytest.mark.parametrize("tile", TILES, ids=lambda tile: f"{tile.bm}x{tile.bn}")
@pytest.mark.parametrize("pixels, channels, offset", [(6, 16, 3), (40, 24, 1000), (1030, 8, -100)])
def test_norms_by_statistics_of_tiles_are_exact_even_far_from_zero(pixels, channels, offset, tile):
    """The product copies a map (W is the identity) and writes its tiles' statistics; then the map is normalised."""
    n, affine = 2, affine_of(channels, seed=1)
    affine[0] = 0
    a = far_from_zero(n, pixels, channels, offset)
    expected = normalised(a.astype(float), affine)
    out, out2 = (np.full((n, pixels, channels + 8), 7, np.float32) for _ in range(2))
    first, second = Target(channels + 8, 8, ONE), Target(channels + 8, 0, QUARTER)
    gemm = Gemm(Source(1, pixels, channels), ONE_PIXEL, Grid(1, pixels, pixels, 0), channels, 1, 1)
    statistics = np.full((n, 64, 2, channels), np.nan, np.float32)
    identity, targets = np.eye(channels, dtype=np.float32)[None], Targets(first, NO_TARGET)
    multiply(tile, STATISTICS, (a, identity, affine), gemm, (out, None, statistics), n, targets)
    np.testing.assert_array_equal(out[..., 8:], a)
    statistics = statistics.reshape(n * 64, 2, channels)[: n * -(-pixels // tile.bm)].reshape(n, -1, 2, channels)
    np.testing.assert_allclose(statistics[:, 0, 0], a[:, : tile.bm].astype(float).mean(1), rtol=1e-6, atol=2e-6)
    tiling = Norm(pixels, 1, statistics.shape[1], tile.bm, channels, np.float32(1e-5))
    blocks = (-(-channels // (8 * LANES)), 2, n)
    arguments = statistics, affine, out, out2, tiling, Targets(first, second)
    launch(kernels(FLOAT32).normalise_map, blocks, LANES * ROWS, *arguments)
    tolerance = 3e-6 + 2e-7 * abs(offset)
    assert np.abs(out[..., 8:] - expected).max() < tolerance
    assert np.abs(out2[..., :channels] - relu(expected, 0.25)).max() < tolerance
    assert (out[..., :8] == 7).all() and (out2[..., channels:] == 7).all()


SUMS_CASES = [(2, 3, 16, 3), (5, 8, 24, 1000), (10, 103, 8, -100)]


@pytest.mark.parametrize(
    "epilogue, h, w, channels, offset",
    [(NORMALISED, 1, 1, 8, 0), *((epilogue, *case) for epilogue in (NORMALISED, STATISTICS) for case in SUMS_CASES)],
)
def test_norms_of_partial_sums_are_exact_even_far_from_zero(h, w, channels, offset, epilogue):
    n, affine, pixels, share = 2, affine_of(channels, seed=1), h * w, 32
    a = far_from_zero(n, pixels, channels, offset)
    first = a * np.float32(0.5)  # whose other half is the second split, without the bias
    partial = np.stack([first, a - first - affine[0]])
    x = (partial.sum(0, dtype=float) + affine[0]).astype(float)
    expected = normalised(x, affine)
    out, out2 = (np.full((n, pixels, channels), 7, np.float32) for _ in range(2))
    targets = Targets(Target(channels, 0, ONE), Target(channels, 0, QUARTER))
    eps, grid = np.float32(1e-5), -(-channels // (8 * FINISH_LANES))
    parts = -(-pixels // share)
    statistics = np.full((n, parts, 2, channels), np.nan, np.float32)
    sums = Sums(h, w, 1, 2, channels, pixels if epilogue == NORMALISED else share, eps, ONE)
    blocks = (grid, 1 if epilogue == NORMALISED else parts, n)
    to = targets if epilogue == NORMALISED else targets._replace(out2=NO_TARGET)
    launch(finish_kernel(FLOAT32, epilogue), blocks, LANES * ROWS, partial, affine, out, out2, statistics, sums, to)
    if epilogue == STATISTICS:
        tiling = Norm(pixels, 1, parts, share, channels, eps)
        blocks = (-(-channels // (8 * LANES)), 2, n)
        arguments = statistics, affine, out, out2, tiling, targets
        launch(kernels(FLOAT32).normalise_map, blocks, LANES * ROWS, *arguments)
    elif pixels == 1:
        np.testing.assert_array_equal(out[:, 0], np.broadcast_to(affine[2], (n, channels)))
    assert np.abs(out - expected).max() < 4e-6 + 3e-7 * abs(offset)
    assert np.abs(out2 - relu(expected, 0.25)).max() < 4e-6 + 3e-7 * abs(offset)


# -- maps and images --------------------------------------------------------------------------------------------------


def test_images_become_maps_exactly():
    b = np.arange(256, dtype=np.uint8).reshape(1, 8, 8, 4)
    out = np.full((8, 8, 8), np.nan, np.float32)
    write_map = kernels(FLOAT32).write_map[True]
    launch(write_map, 2, THREADS, b, out, Values(1, 1, 4), Frame(8, 8, 1, 0, ZEROS), 8, Target(8, 0, ONE))
    np.testing.assert_array_equal(out[..., :4], to_float(b[0]))
    assert not out[..., 4:].any()


def test_values_are_written_between_others_and_read_back():
    """One image stands for all; channels are padded with zeros."""
    value, out = noise(1, 2, 3, 5), np.full((2, 2, 3, 24), 7, np.float32)
    target = Target(24, 8, QUARTER)
    launch(
        kernels(FLOAT32).write_map[False], 2, THREADS, value, out, Values(2, 1, 5), Frame(2, 3, 1, 0, ZEROS), 8, target
    )
    np.testing.assert_array_equal(out[..., 8:13], np.broadcast_to(relu(value, QUARTER), (2, 2, 3, 5)))
    assert not out[..., 13:16].any() and (out[..., :8] == 7).all() and (out[..., 16:] == 7).all()
    back = np.zeros((12, 5), np.float32)
    launch(kernels(FLOAT32).read_map, 2, THREADS, out, back, 12, 5, 24, 8)
    np.testing.assert_array_equal(back, out[..., 8:13].reshape(12, 5))
    copies = np.zeros((3, 2, 3, 5), np.float32)
    launch(kernels(FLOAT32).copy_values, 2, THREADS, value, copies, copies.size, value.size)
    np.testing.assert_array_equal(copies, np.broadcast_to(value, copies.shape))


@pytest.mark.parametrize("as_bytes", [False, True])
@pytest.mark.parametrize("splits", [1, 3])
@pytest.mark.parametrize("taps", [False, True])
def test_the_last_layer_becomes_an_image_by_the_rule(taps, splits, as_bytes):
    n, h, w, channels, depth = 2, 4, 6, 3, 8
    kernel, bias = noise(4, 4, depth, channels), noise(8)
    if taps:
        x = noise(n, h // 2, w // 2, depth)
        sums = (x.reshape(-1, depth) @ all_taps(kernel)[0]).reshape(n, h // 2, w // 2, 48)
        total = transposed_convolution(x, kernel) + bias[:channels]
    else:
        sums = noise(n, h, w, 8)
        total = sums[..., :channels].astype(float) + bias[:channels]
    partial = noise(splits, *sums.shape, seed=1)
    partial[-1] = sums - partial[:-1].sum(0)
    out = np.zeros((n, h, w, channels), np.float32)
    shape = Images(n, h, w, channels, 0, 1, 1), sums.shape[3], splits, np.float32(255.5)
    launch(kernels(FLOAT32).to_image[taps, False], 2, THREADS, partial, bias, out, *shape)
    np.testing.assert_allclose(out, np.tanh(total), rtol=0, atol=2e-6 if splits == 1 else 4e-6)
    if as_bytes:
        b = np.zeros(out.shape, np.uint8)
        launch(kernels(FLOAT32).to_image[taps, True], 2, THREADS, partial, bias, b, *shape)
        np.testing.assert_array_equal(b, to_uint8(out, 255.5))
        assert len(np.unique(b)) > 50


# -- what only the simulator shows ------------------------------------------------------------------------------------

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
