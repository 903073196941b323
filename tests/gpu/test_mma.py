"""Tensor cores: packed words, intrinsics and the simulator, single layers, and the engine."""

from __future__ import annotations

import weakref

import numpy as np
import pytest

from pix2pix.engines.reference import ReferenceEngine, to_float
from pix2pix.gpu.ptx.packed_words import ELEMENTS, KINDS, words_of
from pix2pix.model.lowering import lower
from pix2pix.model.unet import unet
from pix2pix.model.weights import random_weights
from pix2pix.plans.algorithms import algorithms
from pix2pix.plans.heuristics import choose
from pix2pix.plans.plan import Plan
from tests.gpu.gpus import EDGE, MISSING, SIMULATED, needs_gpu
from tests.gpu.layers import EPS, PRECISIONS, check_layers, rounded
from tests.models import VARIANTS, check_output, pictures, weights_of


@pytest.mark.parametrize("precision", PRECISIONS)
def test_words_are_the_nearest_numbers(precision):
    rng = np.random.default_rng(0)
    values = (rng.standard_normal(4096) * 10.0 ** rng.integers(-3, 4, 4096)).astype(np.float32)
    found = rounded(values, precision)
    assert (np.abs(found - values) <= EPS[precision] * np.abs(values) + 2.0**-25).all()
    np.testing.assert_array_equal(rounded(found.astype(np.float32), precision), found)
    assert len(np.unique(found)) > 400
    kind = KINDS[precision]
    assert (
        words_of(np.array([1.0, -2.0], np.float32), kind).tolist()
        == {
            "float16": [0xC0003C00],
            "bfloat16": [0xC0003F80],
            "tf32": [0x3F800000, 0xC0000000],
        }[precision]
    )
    ties = np.array([1 + EPS[precision], 1 + 3 * EPS[precision]], np.float32)
    even = [1, 1 + 4 * EPS[precision]] if precision != "tf32" else [1 + 2 * EPS[precision], 1 + 4 * EPS[precision]]
    assert rounded(ties, precision).tolist() == even


if not MISSING:
    from numba import cuda, float32

    from pix2pix.gpu import forward, products
    from pix2pix.gpu.engine import GpuEngine
    from pix2pix.gpu.jit import ALIGNMENT, kernel
    from pix2pix.gpu.kernels.mma_gemm import MmaTile
    from pix2pix.gpu.ptx.fragments import column_order
    from pix2pix.gpu.ptx.mma import cp_async, cp_async_commit_group, cp_async_wait_group, select8
    from pix2pix.gpu.ptx.vectors import load8, load_word, pack, pack8, store8, store_word, unpack, unpack8

# -- intrinsics -------------------------------------------------------------------------------------------------------


@needs_gpu
@pytest.mark.parametrize("precision", PRECISIONS)
def test_conversions_on_the_gpu_are_those_on_the_host(precision):
    KIND, PER_WORD = KINDS[precision], ELEMENTS[KINDS[precision]]

    @kernel(1)
    def convert(x, words, back, runs, acc_out):
        pack8(words, 0, load8(x, 0), KIND)
        store8(back, 0, unpack8(words, 0, KIND))
        for i in range(8 // PER_WORD):
            low, high = unpack(load_word(words, i), KIND)
            store_word(runs, i, pack(low, high, KIND))
        acc = cuda.local.array(16, float32)
        for i in range(16):
            acc[i] = x[i % 8] + float32(i)
        for i in range(2):
            store8(acc_out, 8 * (1 - i), select8(acc, i, 2))

    x = np.array([0.1, -3.3, 1e-4, 65000, 7, -0.0, 1 / 3, 1000.25], np.float32)
    device = [cuda.to_device(a) for a in (x, *(np.zeros(8, np.float32) for _ in range(3)), np.zeros(16, np.float32))]
    convert[1, 1](*device)
    _, words, back, runs, acc = (d.copy_to_host() for d in device)
    count = 8 // PER_WORD
    np.testing.assert_array_equal(words[:count].view(np.uint32), words_of(x, KIND))
    np.testing.assert_array_equal(back, rounded(x, precision))
    np.testing.assert_array_equal(runs[:count].view(np.uint32), words_of(x, KIND))
    np.testing.assert_array_equal(
        acc, np.concatenate([x + np.arange(8, 16, dtype=np.float32), x + np.arange(8, dtype=np.float32)])
    )


@needs_gpu
def test_every_column_has_its_place():
    order = column_order(72)
    assert sorted(order) == list(range(96))
    assert order[:10].tolist() == [0, 1, 8, 9, 16, 17, 24, 25, 2, 3]  # PTX: lane q has columns 2q and 2q + 1


# -- layers -----------------------------------------------------------------------------------------------------------


# The last tile of an image, or of all, is ragged; maps of more than one tile, of one, of less; shared sums. In the
# simulator, one case shows that its intrinsics are right, and one precision that the engine is: tests/gpu/ptx runs all
# kinds, of the compiled kernels.
ON_A_GPU = [
    ("tensor-128x128", 2, 64, 96, True),
    ("tensor-128x64-split4", 1, 128, 128, True),
    ("tensor-128x128", 2, 32, 32, True),
    ("tensor-128x64-split8", 1, 32, 64, True),
    ("tensor-128x64", 3, 32, 32, False),
]
CASES = [*([] if SIMULATED else ON_A_GPU), ("tensor-64x64-split2", 1, 32, 96, False)]
REST = [pytest.param(precision, marks=[pytest.mark.full] if SIMULATED else []) for precision in PRECISIONS[1:]]


@needs_gpu
@pytest.mark.parametrize("algorithm, n, h, w, norm", CASES)
@pytest.mark.parametrize("precision", [PRECISIONS[0], *REST])
def test_a_layer_is_the_convolution_of_rounded_numbers(precision, algorithm, n, h, w, norm):
    check_layers(precision, algorithm, n, h, w, norm)


# -- what only the simulator shows ------------------------------------------------------------------------------------

if SIMULATED and not MISSING:

    @needs_gpu
    @pytest.mark.parametrize("waits_for", [None, 1, 0])
    def test_copies_arrive_when_they_are_waited_for(waits_for):
        """Two groups of copies: what has not been waited for is not there, so forgetting to wait is noticed."""

        @kernel(1)
        def copy(x, out):
            shared = cuda.shared.array(8, float32, ALIGNMENT)
            for i in range(8):
                shared[i] = float32(-1)
            cp_async(shared, 0, x, 0, True)
            cp_async_commit_group()
            cp_async(shared, 4, x, 4, False)
            cp_async_commit_group()
            if waits_for is not None:
                cp_async_wait_group(waits_for)
            for i in range(8):
                out[i] = shared[i]

        out = np.zeros(8, np.float32)
        copy[1, 1](np.arange(1, 9, dtype=np.float32), out)
        assert out.tolist() == {None: [-1] * 8, 1: [1, 2, 3, 4] + [-1] * 4, 0: [1, 2, 3, 4] + [0] * 4}[waits_for]

    @needs_gpu
    def test_lanes_that_do_not_come_are_missed():
        from pix2pix.gpu.ptx.mma import mma_sync

        @kernel(32)
        def divided(out):
            acc = cuda.local.array(16, float32)
            words = cuda.local.array(8, np.uint32)
            if cuda.threadIdx.x != 3:
                mma_sync(acc, words, words, 1, 4, 0)

        with pytest.raises(RuntimeError, match="wait for others, which don't come"):
            divided[1, 32](np.zeros(1))

    @needs_gpu
    @pytest.mark.full
    def test_warps_share_a_tile(monkeypatch):
        """2 x 2 warps, and copies that land when they are begun."""
        from pix2pix.gpu.simulator import threads

        monkeypatch.setattr(threads, "COPIES_ARE_EARLY", True)
        monkeypatch.setattr(products, "SIMULATED_MMA_TILE", MmaTile(32, 64, 16, 32, stages=4, blocks=1))
        check_layers("float16", "tensor-128x128", 1, 32, 32, True, ngf=10)


# -- the engine -------------------------------------------------------------------------------------------------------


@needs_gpu
@pytest.mark.parametrize("precision", [PRECISIONS[0], *REST])
def test_images_do_not_depend_on_their_batch(precision):
    b = pictures(2 if SIMULATED else 3, EDGE, EDGE)
    g, weights = VARIANTS["tensorflow"], weights_of("tensorflow")
    with GpuEngine(g, weights, precision=precision) as engine:
        together = engine.translate(b)
        for image, result in zip(b, together, strict=True):
            np.testing.assert_array_equal(engine.translate(image), result)
        y = engine.run(to_float(b))
        check_output(y, ReferenceEngine(g, weights).run(to_float(b)), precision)
        with engine.share() as other:
            np.testing.assert_array_equal(other.translate(b), together)


@needs_gpu
def test_maps_are_normalised_some_images_at_a_time(monkeypatch):
    b = pictures(2, EDGE, EDGE)
    with GpuEngine(VARIANTS["tensorflow"], weights_of("tensorflow"), precision="float16") as engine:
        expected = engine.translate(b)
    launches = []
    multiply = forward.GpuContext._multiply

    def counted(self, packed, images, epilogue, outputs):
        launches.append((packed.op.name, images.start))
        multiply(self, packed, images, epilogue, outputs)

    monkeypatch.setattr(forward.GpuContext, "_multiply", counted)
    monkeypatch.setattr(products, "CACHED_WORDS", 1)
    with GpuEngine(VARIANTS["tensorflow"], weights_of("tensorflow"), precision="float16") as engine:
        np.testing.assert_array_equal(engine.translate(b), expected)
    assert {("encoder_2", first) for first in range(2)} <= set(launches)


@needs_gpu
def test_a_session_keeps_maps_and_values():
    x = to_float(pictures(1, 32, 32))
    names = ["encoder_2", "encoder_3", "decoder_2", "decoder_1"]
    with GpuEngine(VARIANTS["tensorflow"], weights_of("tensorflow"), precision="tf32") as engine:
        expected = engine.run(x, outputs=names)
        with engine.session() as session:
            first = session.run({"input": x}, ["encoder_3"], ["encoder_1", "encoder_2"])
            given = {"encoder_3": first["encoder_3"]}
            second = session.run(given, ["decoder_2", "encoder_2"], ["encoder_1", "decoder_2", "encoder_3"])
            third = session.run({}, ["decoder_1", "encoder_3"])
        np.testing.assert_array_equal(engine.run(x), expected["decoder_1"])
    for name, value in {**first, **second, **third}.items():
        np.testing.assert_array_equal(value, expected[name], err_msg=name)


@needs_gpu
def test_values_of_other_sizes_make_room(monkeypatch):
    """Values that were asked for lie beside the maps of their size: they go when another size needs the memory."""
    g = unet(ngf=4, depth=3)
    weights, names = random_weights(g), [layer.name for layer in g.layers]
    xs = [to_float(pictures(1, 8, w)) for w in (16, 24, 8)]
    with GpuEngine(g, weights, precision="float16") as engine:
        held = most = 0
        limit = None
        allocate = engine.device.empty

        def empty(size, dtype=np.float32):
            nonlocal held, most
            if limit is not None and held + size > limit:
                raise MemoryError(f"no {size} left")
            array = allocate(size, dtype)
            held, most = held + size, max(most, held + size)
            weakref.finalize(array, give_back, size)
            return array

        def give_back(size):
            nonlocal held
            held -= size

        monkeypatch.setattr(engine.device, "empty", empty)
        expected, needs = [], []
        for x in xs:
            engine.forget()
            most = held
            expected.append(engine.run(x, outputs=names))
            needs.append(most)
        engine.forget()
        limit = max(needs)
        for _ in range(2):
            for x, values in zip(xs, expected, strict=True):
                for name, value in engine.run(x, outputs=names).items():
                    np.testing.assert_array_equal(value, values[name], err_msg=name)
        limit = held // 2
        with pytest.raises(MemoryError, match="left"):
            engine.run(to_float(pictures(1, 16, 16)), outputs=names)


@needs_gpu
def test_weights_too_large_for_float16_are_named():
    g, weights = VARIANTS["tensorflow"], dict(weights_of("tensorflow"))
    weights["encoder_3.kernel"] = weights["encoder_3.kernel"] * 1e6
    with pytest.raises(ValueError, match="encoder_3 has a weight of .*bfloat16 or tf32"):
        GpuEngine(g, weights, precision="float16")
    GpuEngine(g, weights, precision="bfloat16").close()


def test_plans_name_what_tensor_cores_can_do():
    g = unet(ngf=64, depth=8)
    for precision in PRECISIONS:
        for tune in ("latency", "throughput"):
            plan = choose(g, tune, precision=precision, hardware="cuda")
            plan.check(g)
            assert all(algorithm.kind == "tensor" for algorithm in plan.layers.values())
            assert str(plan.layers["decoder_1"]) == "tensor-128x64"
    assert not any(a.kind == "tensor" for a in algorithms(lower(g).ops[0], "cuda"))
    with pytest.raises(ValueError, match="no layer can be computed by 'im2col'"):
        choose(g, "latency", "im2col", "float16", "cuda")
    with pytest.raises(ValueError, match="tensor-"):
        Plan({layer.name: "implicit-128x64" for layer in g.layers}, "cuda", "tf32").check(g)
