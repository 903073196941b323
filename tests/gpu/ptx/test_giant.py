"""Maps of more than 2**31 words, where 32-bit indices overflow: their last blocks, in virtual memory.

Memory is zeros, except for what is put where the chosen blocks read.
"""

from __future__ import annotations

import numpy as np
import pytest

from .needs import MISSING

if MISSING:
    pytest.skip(MISSING, allow_module_level=True)

from pix2pix.gpu.filters import phase_taps, plain_taps, reorder_columns
from pix2pix.gpu.kernels.epilogue import MAPS, PARTIAL_SUMS
from pix2pix.gpu.kernels.hopper_gemm import HOPPER_TILES
from pix2pix.gpu.kernels.mma_gemm import MMA_TILES
from pix2pix.gpu.kernels.parameters import (
    NO_TARGET,
    ZEROS,
    BoxGrid,
    Frame,
    Gemm,
    Grid,
    Norm,
    Source,
    Sums,
    Target,
    Targets,
    Values,
)
from pix2pix.gpu.kernels.simt_gemm import SIMT_TILES
from pix2pix.gpu.map_writer import FINISH_LANES, LANES, ROWS, finish_kernel, kernels
from pix2pix.gpu.products import gemm_kernel
from pix2pix.gpu.ptx.fragments import CHUNK, column_order
from pix2pix.gpu.ptx.packed_words import ELEMENTS, FLOAT16, FLOAT32, VECTOR_WORDS, floats_of, words_of
from pix2pix.gpu.tensor_maps import encode, source_map, weight_map
from pix2pix.gpu.windows import window_of
from pix2pix.plans.algorithms import CONVOLUTION, TRANSPOSED

from .device import Session, on_machine

pytestmark = pytest.mark.ptx
H, W, WORDS = 8192, 8256, 40  # of the source; half of W is no power of two
EDGE_H, EDGE_W = 8, 600  # of the source's last corner, where it is not zero
COLUMNS, STRIDE, FIRST = 64, 136, 8  # of the result
LIMIT = 1 << 31
WINDOW = window_of(CONVOLUTION)
ONE = np.float32(1)
KINDS = [pytest.param(FLOAT32, marks=pytest.mark.full, id="float32"), pytest.param(FLOAT16, id="float16")]
TOLERANCE = {FLOAT32: 1e-4, FLOAT16: 2e-3}  # relative to max(1, |expected|)


def ends(grid):
    """Numbers of the first block and of the last, for each place of the grid's last dimension."""
    x, y, z = grid
    return sorted({at for k in range(z) for at in (k * x * y, k * x * y + x * y - 1)})


@pytest.fixture
def device():
    with on_machine(Session("sm_90a", only=ends)) as device:
        yield device


def exact(rng, *shape):
    """Numbers that float16 holds exactly."""
    return rng.integers(-8, 9, shape).astype(np.float32) / 8


def giant_source(device, kind, h, w, words):
    """A map (h, w, words) whose last corner holds numbers, and the corner's values with zeros behind it."""
    a, corner = device.empty(h * w * words), np.zeros((EDGE_H + 2, EDGE_W + 2, words * ELEMENTS[kind]), np.float32)
    corner[:EDGE_H, :EDGE_W] = exact(np.random.default_rng(3), EDGE_H, EDGE_W, corner.shape[2])
    view = a.host().view(np.uint32).reshape(h, w, words)
    view[-EDGE_H:, -EDGE_W:] = words_of(corner[:EDGE_H, :EDGE_W], kind)
    return a, corner


def kernel_and_weights(device, kind, taps):
    """A product's tile, and its weights as its kernel reads them, of taps (phases, depth, columns)."""
    if kind == FLOAT32:
        tile = SIMT_TILES[128, 64]
        matrix = reorder_columns(taps, column_order(COLUMNS, tile.lx, CHUNK))
    else:
        tile = MMA_TILES[128, 64]
        matrix = reorder_columns(taps, column_order(COLUMNS)).transpose(0, 2, 1)
    return tile, device.upload(words_of(matrix, kind).view(np.float32))


def check(got, expected, kind):
    assert got.shape == expected.shape and np.abs(expected).max() > 1
    assert (np.abs(got - expected) / np.maximum(1, np.abs(expected))).max() < TOLERANCE[kind]


def written(out, kind, rows):
    """The last rows of the result, as values (rows, columns)."""
    words = out.host().view(np.uint32).reshape(-1, STRIDE)[-rows:, FIRST : FIRST + COLUMNS // ELEMENTS[kind]]
    return floats_of(words, kind)


def convolved(corner, kernel, rows, w=W):
    """The last rows of the convolution, in the order of the grid."""
    found = []
    for i in range(rows):
        y, x = EDGE_H - 3, EDGE_W - 2 * (rows - i) - 1
        found.append(np.tensordot(corner[y : y + 4, x : x + 4].astype(float), kernel, 3))
    return np.array(found)


def product(device, kind, tile, operands, gemm, out, epilogue=MAPS):
    """Launch a product of rows."""
    nothing, bias = device.empty(64), device.upload(np.zeros(COLUMNS, np.float32))
    target = Target(STRIDE, FIRST, ONE) if epilogue == MAPS else NO_TARGET
    arguments = (*operands, bias, out, nothing, nothing, gemm, Targets(target, NO_TARGET))
    blocks = gemm.grid.tiles, 1, gemm.phases * gemm.splits
    gemm_kernel(tile, kind, epilogue)[blocks, tile.threads](*arguments)


@pytest.mark.parametrize("kind", KINDS)
def test_convolutions_of_giant_maps(device, kind):
    a, corner = giant_source(device, kind, H, W, WORDS)
    kernel = exact(np.random.default_rng(1), 4, 4, corner.shape[2], COLUMNS)
    tile, weights = kernel_and_weights(device, kind, plain_taps(kernel))
    rows = H * W // 4
    out = device.empty(rows * STRIDE)
    assert min(a.size, out.size) > LIMIT
    grid = Grid(H // 2, W // 2, rows, -(-rows // tile.bm))
    product(device, kind, tile, (a, weights), Gemm(Source(H, W, WORDS), WINDOW, grid, COLUMNS, 1, 1), out)
    check(written(out, kind, 64), convolved(corner, kernel, 64), kind)


@pytest.mark.parametrize("kind", KINDS)
def test_shared_sums_of_giant_maps(device, kind):
    a, corner = giant_source(device, kind, H, W, WORDS)
    kernel = exact(np.random.default_rng(1), 4, 4, corner.shape[2], COLUMNS)
    tile, weights = kernel_and_weights(device, kind, plain_taps(kernel))
    rows, splits = H * W // 4, 2
    partial, out, nothing = device.empty(splits * rows * COLUMNS), device.empty(rows * STRIDE), device.empty(64)
    assert min(partial.size, out.size) > LIMIT
    grid = Grid(H // 2, W // 2, rows, -(-rows // tile.bm))
    gemm = Gemm(Source(H, W, WORDS), WINDOW, grid, COLUMNS, 1, splits)
    product(device, kind, tile, (a, weights), gemm, partial, PARTIAL_SUMS)
    affine, share = device.upload(np.zeros((3, COLUMNS), np.float32)), 512
    sums = Sums(H // 2, W // 2, 1, splits, COLUMNS, share, np.float32(0), ONE)
    targets = Targets(Target(STRIDE, FIRST, ONE), NO_TARGET)
    blocks, threads = (-(-COLUMNS // (8 * FINISH_LANES)), -(-rows // share), 1), LANES * ROWS
    finish_kernel(kind, MAPS)[blocks, threads](partial, affine, out, nothing, nothing, sums, targets)
    last = 8 * FINISH_LANES  # columns of the last block
    check(written(out, kind, 64)[:, -last:], convolved(corner, kernel, 64)[:, -last:], kind)


@pytest.mark.parametrize("kind", KINDS)
def test_transposed_convolutions_to_giant_maps(device, kind):
    h, w, words, count = H // 2, W // 2, 8, 20
    a, corner = giant_source(device, kind, h, w, words)
    kernel = exact(np.random.default_rng(2), 4, 4, corner.shape[2], COLUMNS)
    tile, weights = kernel_and_weights(device, kind, phase_taps(kernel, TRANSPOSED))
    rows = h * w
    out = device.empty(4 * rows * STRIDE)
    assert out.size > LIMIT
    grid = Grid(h, w, rows, -(-rows // tile.bm))
    product(
        device, kind, tile, (a, weights), Gemm(Source(h, w, words), window_of(TRANSPOSED), grid, COLUMNS, 4, 1), out
    )
    expected = np.zeros((count, COLUMNS))
    for i in range(4):  # of the last line, y = 2 * h - 1, only odd taps reach: (y + 1 - i) / 2 of the source
        for pixel in range(count):
            x = 2 * w - count + pixel
            source_y, source_x = (2 * h - i) / 2, None
            for j in range(4):
                source_x = (x + 1 - j) / 2
                if source_y % 1 or source_x % 1 or not source_y < h or not 0 <= source_x < w:
                    continue
                at = corner[int(source_y) - h + EDGE_H, int(source_x) - w + EDGE_W]
                expected[pixel] += at.astype(float) @ kernel[i, j]
    check(written(out, kind, count), expected, kind)


def test_boxes_of_giant_maps(device):
    """float16 on Hopper: the last tile."""
    kind, words, w = FLOAT16, 32, 8448
    a, corner = giant_source(device, kind, H, w, words)
    kernel = exact(np.random.default_rng(5), 4, 4, corner.shape[2], COLUMNS)
    tile = HOPPER_TILES[128, 64]
    matrix = reorder_columns(plain_taps(kernel), column_order(COLUMNS)).transpose(0, 2, 1)
    weights = device.upload(words_of(matrix, kind).view(np.float32))
    box, rows = tile.box(H // 2, w // 2), H * w // 4
    assert box is not None
    out, nothing = device.empty(rows * STRIDE), device.empty(64)
    assert min(a.size, out.size) > LIMIT
    operands = (
        encode(device, source_map(a, (1, H, w, words), 2, box)),
        encode(device, weight_map(weights, COLUMNS, 16 * words, tile.bn)),
    )
    grid = BoxGrid(H // 2, w // 2, 0, 1, box.h.bit_length() - 1, box.w.bit_length() - 1)
    gemm = Gemm(Source(H, w, words), WINDOW, grid, COLUMNS, 1, 1)
    bias, targets = device.upload(np.zeros(COLUMNS, np.float32)), Targets(Target(STRIDE, FIRST, ONE), NO_TARGET)
    arguments = (*operands, bias, out, nothing, nothing, gemm, targets)
    run = gemm_kernel(tile, kind, MAPS)
    device.allow_shared(run, arguments, tile.shared)
    run[(rows // tile.bm, 1, 1), tile.threads, None, tile.shared](*arguments)
    check(written(out, kind, 32), convolved(corner, kernel, 32), kind)


@pytest.mark.parametrize("kind", KINDS)
def test_norms_of_giant_maps(device, kind):
    images, pixels, stride, count = 2, 1 << 16, 16440, 32
    out = device.empty(images * pixels * stride)
    assert out.size > LIMIT
    values = exact(np.random.default_rng(4), count, COLUMNS)
    place = slice(-count, None), slice(FIRST, FIRST + COLUMNS // 8 * VECTOR_WORDS[kind])
    view = out.host().view(np.uint32).reshape(images * pixels, stride)
    view[place] = words_of(values, kind)
    statistics = np.zeros((images, 1, 2, COLUMNS), np.float32)
    statistics[:, :, 0], statistics[:, :, 1] = 0.5, 4 * pixels  # mean and variance 0.5 and 4
    affine = np.random.default_rng(4).standard_normal((3, COLUMNS), np.float32)
    shape, targets = Norm(pixels, 1, 1, pixels, COLUMNS, np.float32(0)), Targets(Target(stride, FIRST, ONE), NO_TARGET)
    blocks = COLUMNS // (8 * LANES), pixels // 512, images
    arguments = device.upload(statistics), device.upload(affine), out, out, shape, targets
    kernels(kind).normalise_map[blocks, LANES * ROWS](*arguments)
    check(floats_of(view[place], kind), (values - 0.5) / 2 * affine[1] + affine[2], kind)


def test_values_of_giant_maps(device):
    """The last elements of write_map, read_map and copy_values: more words than 32 bits count."""
    size, count = LIMIT + 2560, 8
    value, copy, out = device.empty(size), device.empty(size), device.empty(size)
    values = exact(np.random.default_rng(6), count)
    value.host()[-count:] = values
    blocks = -(-size // 256), 1, 1
    kernels(FLOAT32).copy_values[blocks, 256](value, copy, size, size)
    np.testing.assert_array_equal(copy.host()[-count:], values)
    pixels = size // 8
    shape, target = Values(1, 1, 8), Target(8, 0, ONE)
    kernels(FLOAT32).write_map[False][blocks, 256](value, out, shape, Frame(1, pixels, 1, 0, ZEROS), 8, target)
    np.testing.assert_array_equal(out.host()[-count:], values)
    back = device.empty(size)
    kernels(FLOAT32).read_map[blocks, 256](out, back, pixels, 8, 8, 0)
    np.testing.assert_array_equal(back.host()[-count:], values)
