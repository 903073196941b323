"""The product for Hopper: single layers, mbarriers and TMA in the simulator, and plans that use it."""

from __future__ import annotations

import numpy as np
import pytest

from pix2pix.model.lowering import lower
from pix2pix.model.unet import unet
from pix2pix.plans.algorithms import algorithms
from pix2pix.plans.heuristics import choose
from tests.gpu.gpus import MISSING, SIMULATED, needs_gpu
from tests.gpu.layers import PRECISIONS, check_layers, network

if not MISSING:
    from numba import cuda, float32

    from pix2pix.gpu import products
    from pix2pix.gpu.device import HOPPER, Device, capability_of
    from pix2pix.gpu.engine import GpuEngine
    from pix2pix.gpu.jit import ALIGNMENT, kernel
    from pix2pix.gpu.kernels.hopper_gemm import HOPPER_TILES, Box, HopperTile
    from pix2pix.gpu.ptx.fragments import SWIZZLE_ATOM, SWIZZLE_ROW
    from pix2pix.gpu.ptx.hopper import (
        atom_offset,
        fence_mbarrier_init,
        fence_tensor_map,
        mbarrier_expect_tx,
        mbarrier_init,
        mbarrier_wait,
        tma_load,
    )
    from pix2pix.gpu.tensor_maps import TensorMap, encode

    IS_HOPPER = capability_of(0) == HOPPER
else:
    IS_HOPPER = False

needs_hopper = pytest.mark.skipif(not MISSING and not IS_HOPPER, reason="needs compute capability 9.0")

# -- layers -----------------------------------------------------------------------------------------------------------

ON_A_GPU = [
    ("hopper-128x256", 3, 128, 128, True),
    ("hopper-128x64-split4", 2, 256, 128, True),
    ("hopper-128x256", 3, 64, 64, False),
    ("hopper-128x128", 1, 128, 128, False),
    ("hopper-128x64", 2, 64, 128, False),
]
# Some whole images to a tile, one of which is missing; shared sums; parts of images; a grid that no box divides.
SMALL = [
    ("hopper-128x128", 3, 32, 32, True),
    ("hopper-128x64-split2", 1, 32, 32, True),
    ("hopper-128x256", 1, 32, 96, False),
    ("hopper-128x128", 1, 64, 64, True),
]


def cases():
    """On a GPU all; in the simulator two that show that its intrinsics are right: tests/gpu/ptx has all kinds."""
    if SIMULATED:
        return [("bfloat16", *SMALL[1]), pytest.param("float16", *SMALL[0], marks=pytest.mark.full)]
    return [(precision, *case) for precision in PRECISIONS for case in (*ON_A_GPU, *SMALL)]


@needs_gpu
@needs_hopper
@pytest.mark.parametrize("precision, algorithm, n, h, w, norm", cases())
def test_a_layer_is_the_convolution_of_rounded_numbers(precision, algorithm, n, h, w, norm):
    check_layers(precision, algorithm, n, h, w, norm, ngf=32, depth=3)


@needs_gpu
@needs_hopper
def test_which_layers_hopper_gemm_computes():
    """Those whose channels fill rows of shared memory, on grids that boxes divide; mma_gemm computes the others."""
    g, weights = network("float16", True, 32, 3)
    with GpuEngine(g, weights, precision="float16", plan="hopper-128x128") as engine:

        def by_hopper_gemm(h, w):
            maps = engine.do(engine.forward_pass.context, 1, h, w).tensor_maps
            return sorted(name for name, found in maps.items() if found)

        decoders = ["decoder_1", "decoder_2"]
        assert by_hopper_gemm(32, 32) == [*decoders, "decoder_3", "encoder_3"]
        assert by_hopper_gemm(32, 96) == decoders if SIMULATED else by_hopper_gemm(32, 96) == ["decoder_1"]
    with GpuEngine(*network("tf32", True, 32, 3), precision="tf32", plan="hopper-128x128") as engine:
        assert by_hopper_gemm(32, 32) == [*decoders, "decoder_3", "encoder_2", "encoder_3"]


@needs_gpu
@pytest.mark.parametrize(
    "h, w, box",
    [
        (64, 64, (1, 2, 64)),
        (8, 8, (2, 8, 8)),
        (4, 4, (8, 4, 4)),
        (24, 80, (1, 8, 16)),
        (128, 192, (1, 2, 64)),
        (24, 24, None),
        (5, 5, None),
    ],
)
def test_a_tile_is_a_box_of_pixels(h, w, box):
    assert HopperTile(128, 64, stages=2, blocks=1).box(h, w) == (box and Box(*box))


@needs_gpu
def test_tiles_fit_shared_memory():
    """Stages of as many blocks as are to fit a multiprocessor (228 KB, of which each block costs one more), with their
    barriers; and the sums and squares of a tile's columns where the stages were."""
    for tile in HOPPER_TILES.values():
        barriers = 16 * tile.stages
        assert tile.blocks * (tile.shared + barriers + 1024) <= 228 * 1024
        assert 2 * (tile.bm // 2) * tile.bn * 4 <= tile.shared


# -- tensor maps ------------------------------------------------------------------------------------------------------


@needs_gpu
@needs_hopper
@pytest.mark.parametrize("origin", [(0, 0, 0, 0, 0), (32, -1, 1, -1, 0), (96, 3, 0, 5, 1), (0, -4, 0, 0, 0)])
def test_tma_loads_a_box_in_the_order_of_the_swizzle(origin):
    sizes, box = (2, 6, 2, 4, 128), (2, 4, 1, 2, SWIZZLE_ROW)
    COUNT = int(np.prod(box))
    X0, X1, X2, X3, X4 = origin

    @kernel(32)
    def copy(tensor_map, out):
        shared = cuda.shared.array(0, float32, ALIGNMENT)
        barriers = cuda.shared.array(4, float32, ALIGNMENT)
        first = atom_offset(shared)
        if cuda.threadIdx.x == 0:
            mbarrier_init(barriers, 1, 1)
            fence_mbarrier_init()
        cuda.syncthreads()
        if cuda.threadIdx.x == 0:
            fence_tensor_map(tensor_map)
            mbarrier_expect_tx(barriers, 1, COUNT)
            tma_load(shared, first, barriers, 1, tensor_map, X0, X1, X2, X3, X4)
        mbarrier_wait(barriers, 1, 0)
        for i in range(cuda.threadIdx.x, COUNT, 32):
            out[i] = shared[first + i]

    x = np.arange(1, np.prod(sizes) + 1, dtype=np.float32)
    padded = np.zeros([3 * size for size in sizes], np.float32)
    padded[tuple(slice(size, 2 * size) for size in sizes)] = x.reshape(sizes)
    starts = [size + at for size, at in zip(sizes, reversed(origin), strict=True)]
    expected = padded[tuple(slice(at, at + size) for at, size in zip(starts, box, strict=True))].reshape(-1, 8, 4)
    for row, chunks in enumerate(expected):
        chunks[:] = chunks[np.arange(8) ^ row % 8]

    device = Device(0)
    strides = tuple(int(np.prod(sizes[i + 1 :])) for i in range(5))
    tensor_map = encode(device, TensorMap(device.upload(x), sizes, strides, box))
    out = device.upload(np.zeros(COUNT, np.float32))
    copy[1, 32, 0, 4 * (COUNT + SWIZZLE_ATOM)](tensor_map, out)
    np.testing.assert_array_equal(out.copy_to_host().reshape(-1, 8, 4), expected)


# -- what only the simulator shows ------------------------------------------------------------------------------------

if SIMULATED and not MISSING:

    @needs_gpu
    def test_tma_loads_land_when_they_are_waited_for():
        @kernel(1)
        def copy(tensor_map, out, waits):
            shared = cuda.shared.array(0, float32)
            barriers = cuda.shared.array(2, float32)
            first = atom_offset(shared)
            shared[first] = float32(-1)
            mbarrier_init(barriers, 0, 1)
            mbarrier_expect_tx(barriers, 0, SWIZZLE_ROW)
            tma_load(shared, first, barriers, 0, tensor_map, 0, 0, 0, 0, 0)
            if waits:
                mbarrier_wait(barriers, 0, 0)
            out[0] = shared[first]

        device = Device(0)
        tensor_map = TensorMap(
            device.upload(np.full(SWIZZLE_ROW, 7, np.float32)),
            (1, 1, 1, 1, SWIZZLE_ROW),
            (SWIZZLE_ROW,) * 4 + (1,),
            (1, 1, 1, 1, SWIZZLE_ROW),
        )
        for waits, expected in ((False, -1), (True, 7)):
            out = np.zeros(1, np.float32)
            copy[1, 1, 0, 4 * (SWIZZLE_ROW + SWIZZLE_ATOM)](encode(device, tensor_map), out, waits)
            assert out[0] == expected

    @needs_gpu
    def test_words_that_do_not_come_are_missed():
        @kernel(1)
        def wait():
            barriers = cuda.shared.array(2, float32)
            mbarrier_init(barriers, 0, 1)
            mbarrier_expect_tx(barriers, 0, SWIZZLE_ROW)
            mbarrier_wait(barriers, 0, 0)

        with pytest.raises(RuntimeError, match="wait for others, which don't come"):
            wait[1, 1]()

    @needs_gpu
    @pytest.mark.full
    def test_groups_of_warps_share_a_tile(monkeypatch):
        """Two consumer warpgroups, and TMA loads that land when they are begun."""
        from pix2pix.gpu.simulator import threads

        monkeypatch.setattr(threads, "COPIES_ARE_EARLY", True)
        monkeypatch.setattr(products, "SIMULATED_HOPPER_TILE", HopperTile(128, 64, stages=2, blocks=1))
        check_layers("float16", "hopper-128x128", 2, 32, 32, True, ngf=32, depth=3)


# -- the engine -------------------------------------------------------------------------------------------------------


def test_plans_take_it_when_they_are_told():
    g = unet(ngf=64, depth=8)
    for precision in PRECISIONS:
        plan = choose(g, "throughput", precision=precision, hardware="cuda")
        assert all(algorithm.kind == "tensor" for algorithm in plan.layers.values())
        plan = choose(g, "throughput", "hopper-128x256-split2", precision, "cuda")
        others = {name for name, algorithm in plan.layers.items() if str(algorithm) != "hopper-128x256-split2"}
        assert others == {"encoder_1", "decoder_1"}
    narrow = unet(ngf=32, depth=5)
    assert "hopper-128x64" not in map(str, algorithms(lower(narrow)["encoder_2"], "cuda", "float16"))
    assert "hopper-128x64" in map(str, algorithms(lower(narrow)["encoder_2"], "cuda", "tf32"))
    assert not any(a.kind == "hopper" for a in algorithms(lower(g)["encoder_3"], "cuda"))


@needs_gpu
@needs_hopper
def test_other_gpus_say_that_they_cannot(monkeypatch):
    monkeypatch.setattr("pix2pix.gpu.packing.HOPPER", (99, 0))
    with pytest.raises(RuntimeError, match="capability 9.0, and the plan's 'hopper-128x64' for .* is for 99.0"):
        GpuEngine(*network("float16", True, 32, 3), precision="float16", plan="hopper-128x64")
