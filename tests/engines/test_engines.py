"""One suite for every engine: what the Engine protocol promises, against the float64 oracle."""

from __future__ import annotations

import contextlib
import functools
import multiprocessing
import os
import threading

import numpy as np
import pytest

from pix2pix.cpu.engine import CpuEngine
from pix2pix.engines.base import BaseEngine, Engine
from pix2pix.engines.hybrid import HybridEngine
from pix2pix.engines.pool import PoolEngine, WorkerGroup
from pix2pix.engines.reference import ReferenceEngine, to_float, to_uint8
from pix2pix.factory import EngineFactory
from pix2pix.model.lowering import lower
from pix2pix.model.unet import unet
from pix2pix.model.weights import random_weights
from pix2pix.plans.heuristics import choose
from pix2pix.plans.placements import decide, parse_placement
from pix2pix.plans.plan import place
from tests.cpu.isas import BFLOAT16, EXTENSIONS, INT8
from tests.engines.fakes import FakeDevice, SlowReference
from tests.gpu.gpus import EDGE, MISSING, NUMBER, SIMULATED
from tests.models import VARIANTS, check_layer, check_output, pictures, weights_of


def on_cpu(isa: str, plan: str | None = None, precision: str = "float32"):
    return lambda g, w: CpuEngine(g, w, threads=2, isa=isa, plan=plan, precision=precision), precision


def on_gpu(plan: str | None = None, precision: str = "float32"):
    def build(g, w):
        from pix2pix.gpu.engine import GpuEngine

        return GpuEngine(g, w, plan=plan, precision=precision)

    return build, precision


def on_cpu_and_reference(placement: str):
    """A hybrid engine whose GPU is played by the reference engine."""

    def build(g, w):
        plans = choose(g, "throughput"), choose(g, "throughput", hardware="cuda")
        plan = place(*plans, parse_placement(placement, g))
        cpu = CpuEngine(g, w, threads=2, plan=plan)
        return HybridEngine(cpu, ReferenceEngine(g, w, np.float32), plan)

    return build


def on_cpu_and_gpu(placement: str, algorithm: str | None):
    def build(g, w):
        return EngineFactory(g, w, decide(g, placement, algorithm, "float32", "throughput"), threads=2).make(0)

    return build


def pool_of_cpu_engines(g, w):
    return PoolEngine(
        g, [WorkerGroup(f"cpu-{i}", lambda: CpuEngine(g, w, threads=1), pixels=2 * 64 * 64) for i in range(2)]
    )


def pool_on_fake_devices(g, w):
    def group(name: str, device: FakeDevice) -> WorkerGroup:
        return WorkerGroup(name, lambda: SlowReference(device, g, w), workers=2, pixels=2 * 64 * 64)

    return PoolEngine(g, [group("fast", FakeDevice()), group("slow", FakeDevice(0.002))])


# name -> (a function (generator, weights) -> engine, precision)
ENGINES = {"reference-float32": (lambda g, w: ReferenceEngine(g, w, np.float32), "float32")}
ENGINES |= {f"cpu-{isa}-{plan or 'default'}": on_cpu(isa, plan) for isa in EXTENSIONS for plan in ("direct", None)}
ENGINES |= {f"cpu-winograd{s}{m}": on_cpu(EXTENSIONS[0], f"winograd{s}{m}") for m in (2, 3, 4) for s in ("", "-shared")}
PLANS = ("direct", None, "winograd2", "winograd-shared3")
ENGINES |= {f"cpu-{i}-bfloat16-{plan or 'default'}": on_cpu(i, plan, "bfloat16") for i in BFLOAT16 for plan in PLANS}
for PLAN in (None, "int8-winograd3"):
    ENGINES[f"cpu-{INT8[0]}-{PLAN or 'int8'}"] = on_cpu(INT8[0], PLAN, "int8")
for PLACEMENT in ("encoder_2-4,decoder_4-2", "seed-c", "encoder_1,encoder_5,decoder_3-1"):
    ENGINES[f"hybrid-cpu-reference-{PLACEMENT}"] = on_cpu_and_reference(PLACEMENT), "float32"
ENGINES["pool-of-2-cpu"] = pool_of_cpu_engines, "float32"
ENGINES["pool-of-2x2-fake"] = pool_on_fake_devices, "float32"
if not MISSING:
    ENGINES |= {"cuda-default": on_gpu(), "cuda-float16": on_gpu(None, "float16")}
if not MISSING and not SIMULATED:  # in the simulator, tests/gpu and test_hybrid.py have what differs in these
    ENGINES |= {"cuda-im2col": on_gpu("im2col")} | {f"cuda-{p}": on_gpu(None, p) for p in ("bfloat16", "tf32")}
    for PLACEMENT, ALGORITHM in (("encoder_2-4,decoder_4-2", "im2col"), ("encoder_1,encoder_5,decoder_3-1", None)):
        ENGINES[f"hybrid-cpu-cuda-{PLACEMENT}"] = on_cpu_and_gpu(PLACEMENT, ALGORITHM), "float32"
SIZES = {5: (64, 96), 6: (64, 128), 7: (128, 128)}
NUMBERS_AND_SIZES = [(n, h, w) for n in (1, 2, 5) for h, w in ((32, 32), (32, 64), (96, 32), (160, 224), (32, 1056))]
if SIMULATED:
    SIZES[5] = (64, 64)
    NUMBERS_AND_SIZES = [(1, 96, 32), (2, 32, 32), (3, 64, 32)]


def marks(name: str) -> list[pytest.MarkDecorator]:
    """Of a kind of engine: in the simulator, the whole suite takes each of them minutes."""
    if "cuda" not in name:
        return []
    return [pytest.mark.gpu, pytest.mark.full] if SIMULATED and name != "cuda-default" else [pytest.mark.gpu]


@pytest.fixture(params=[pytest.param(name, marks=marks(name)) for name in ENGINES])
def kind(request):
    """The name of each kind of engine."""
    return request.param


@pytest.fixture
def precision(kind):
    return ENGINES[kind][1]


@pytest.fixture
def make(kind):
    """A function (generator, weights) -> engine of that kind; what it makes is closed after the test."""
    made = []

    def build(g, w):
        made.append(ENGINES[kind][0](g, w))
        return made[-1]

    yield build
    for engine in made:
        engine.close()


@pytest.fixture
def engine(make) -> BaseEngine:
    return make(VARIANTS["tensorflow"], weights_of("tensorflow"))


def oracle(variant: str, x: np.ndarray, outputs=None):
    return ReferenceEngine(VARIANTS[variant], weights_of(variant)).run(x, outputs=outputs)


@pytest.mark.parametrize("variant", VARIANTS)
def test_every_layer_of_every_variant_agrees_with_the_oracle(make, precision, variant):
    g = VARIANTS[variant]
    n = 1 if SIMULATED else 3
    x = to_float(pictures(n, *SIZES[g.depth], g.in_channels))
    assert x.std((1, 2, 3)).min() > 0.1
    names = [layer.name for layer in g.layers]
    expected = oracle(variant, x, names)
    got = make(g, weights_of(variant)).run(x, outputs=names)
    for name in names:
        assert expected[name].std() > 1e-3
        check_layer(got[name], expected[name], precision, name)
    check_output(got["decoder_1"], expected["decoder_1"], precision)


@pytest.mark.parametrize("n, h, w", NUMBERS_AND_SIZES)
def test_sizes_and_odd_numbers_of_images(engine, precision, n, h, w):
    x = to_float(pictures(n, h, w))
    expected = oracle("tensorflow", x, ["encoder_4", "encoder_5", "decoder_1"])
    got = engine.run(x, outputs=["encoder_4", "encoder_5", "decoder_1"])
    y = engine.run(x)
    assert y.shape == (n, h, w, 3) and y.dtype == np.float32 and y.flags.c_contiguous
    np.testing.assert_array_equal(y, got["decoder_1"])
    check_layer(got["encoder_4"], expected["encoder_4"], precision, "encoder_4")
    if h * w == 2 * 32 * 32:
        # The norm of two pixels is their sign, but where they are almost equal: there it amplifies every rounding.
        y = engine.run(x, inputs={"encoder_5": expected["encoder_5"]})
    check_output(y, expected["decoder_1"], precision)


def test_translate_is_run_and_the_rule_of_the_generator(make):
    variant, n, edge = ("no-norm", 1, 32) if SIMULATED else ("pytorch", 2, 64)
    for scale in (255.0, 255.5):
        g = VARIANTS[variant].with_overrides({"output_scale": scale})
        engine = make(g, weights_of(variant))
        b = pictures(n, edge, edge)
        np.testing.assert_array_equal(engine.translate(b), to_uint8(engine.run(to_float(b)), scale))


def test_single_pictures_keep_their_rank(engine):
    b = pictures(1, 32, 64)
    np.testing.assert_array_equal(engine.translate(b[0]), engine.translate(b)[0])
    x = to_float(b)
    np.testing.assert_array_equal(engine.run(x[0]), engine.run(x)[0])
    assert engine.run(x[0], outputs=["encoder_2"])["encoder_2"].shape == (8, 16, 8)


def test_results_do_not_depend_on_the_batch(engine):
    b = pictures(NUMBER, EDGE, EDGE)
    whole = engine.translate(b)
    x = to_float(b)
    floats = engine.run(x)
    for i in range(len(b)):
        np.testing.assert_array_equal(whole[i], engine.translate(b[i : i + 1])[0])
    np.testing.assert_array_equal(floats[1:3], engine.run(x[1:3]))


def test_results_do_not_depend_on_what_ran_before(engine):
    b = pictures(2, EDGE, EDGE)
    first = engine.translate(b)
    for h, w in ((32, 32), (EDGE + 32, 64), (2 * EDGE, 32), (32, 32), (EDGE, 32), (32, EDGE)):
        engine.translate(pictures(1 if SIMULATED else 3, h, w))
    np.testing.assert_array_equal(first, engine.translate(b))


def test_inputs_are_never_changed_and_results_are_fresh(engine):
    b = pictures(2, 32, 32)
    x = to_float(b)
    copies = b.copy(), x.copy()
    b.flags.writeable = x.flags.writeable = False
    y, z = engine.run(x), engine.translate(b)
    np.testing.assert_array_equal(b, copies[0])
    np.testing.assert_array_equal(x, copies[1])
    assert not np.shares_memory(y, engine.run(x)) and not np.shares_memory(z, engine.translate(b))


def test_non_contiguous_inputs(engine):
    b = pictures(2 if SIMULATED else 4, EDGE, EDGE)
    views = b[::2, :, ::-1], b.transpose(0, 2, 1, 3)
    for view in views:
        assert not view.flags.c_contiguous
        np.testing.assert_array_equal(engine.translate(view), engine.translate(view.copy()))
        x = to_float(b).transpose(0, 2, 1, 3)
        np.testing.assert_array_equal(engine.run(x), engine.run(np.ascontiguousarray(x)))


def test_out_is_filled_and_returned(engine):
    b = pictures(2, 32, 32)
    out = np.zeros_like(b)
    assert engine.translate(b, out) is out
    np.testing.assert_array_equal(out, engine.translate(b))
    for bad in (b, np.zeros((2, 32, 32, 1), np.uint8), out[:, ::-1]):
        with pytest.raises(ValueError):
            engine.translate(b, bad)
    with pytest.raises(TypeError):
        engine.translate(b, out.astype(np.float32))


def test_layers_can_be_given_and_asked_for(engine, precision):
    x = to_float(pictures(2, 64, 32))
    known = engine.run(x, outputs=["encoder_1", "encoder_2", "decoder_3", "decoder_1"])
    given = {name: known[name] for name in ("encoder_1", "encoder_2", "decoder_3")}
    check_output(engine.run(inputs=given), known["decoder_1"], precision)
    deeper = engine.run(x, inputs={"decoder_3": known["decoder_3"] * 0}, outputs=["decoder_2", "decoder_3"])
    assert not deeper["decoder_3"].any()
    assert np.abs(deeper["decoder_2"] - engine.run(x, outputs=["decoder_2"])["decoder_2"]).max() > 0.01


def test_a_layer_that_is_a_constant_may_be_given_another_value(engine, precision):
    x = to_float(pictures(1, 32, 32))
    names = ["encoder_1", "encoder_2", "encoder_3", "encoder_4", "encoder_5"]
    assert "encoder_5" in lower(engine.generator).constants(32, 32)
    given = engine.run(x, outputs=names)
    given["encoder_5"] = given["encoder_5"] * 2 + 1
    expected = ReferenceEngine(VARIANTS["tensorflow"], weights_of("tensorflow")).run(inputs=given)
    check_output(engine.run(inputs=given), expected, precision)
    check_output(engine.run(x), oracle("tensorflow", x), precision)  # and is forgotten


def test_stream_keeps_order_and_equals_translate(engine):
    batches = [pictures(n, 32, 32, seed=n) for n in (3, 1, 2, 3)]
    results = list(engine.stream(iter(batches)))
    assert [len(r) for r in results] == [3, 1, 2, 3]
    for batch, result in zip(batches, results, strict=True):
        np.testing.assert_array_equal(result, engine.translate(batch))
    assert list(engine.stream([])) == []


def test_a_stream_may_come_in_one_array_that_is_filled_again(engine):
    frames = pictures(4, 32, 32)

    def refilled():
        batch = engine.empty(1, 32, 32)
        for frame in frames:
            batch[0] = frame
            yield batch

    for result, frame in zip(engine.stream(refilled()), frames, strict=True):
        np.testing.assert_array_equal(result[0], engine.translate(frame))


def test_errors_in_a_stream_reach_the_caller(engine):
    results = engine.stream([pictures(1, 32, 32), np.zeros((1, 31, 32, 3), np.uint8)])
    next(results)
    with pytest.raises(ValueError, match="multiples of 32"):
        next(results)


def test_empty_makes_an_input(engine):
    b = engine.empty(2, 32, 64)
    assert b.shape == (2, 32, 64, 3) and b.dtype == np.uint8
    with pytest.raises(ValueError):
        engine.empty(1, 31, 32)


@pytest.mark.parametrize(
    "call, error, text",
    [
        (lambda e: e.translate(np.zeros((1, 32, 32, 3), np.float32)), TypeError, "takes uint8"),
        (lambda e: e.run(np.zeros((1, 32, 32, 3), np.uint8)), TypeError, "takes float32"),
        (lambda e: e.run(np.zeros((1, 32, 32, 3))), TypeError, "float64"),
        (lambda e: e.translate(np.zeros((32, 32), np.uint8)), ValueError, "expected"),
        (lambda e: e.translate(np.zeros((1, 32, 32, 4), np.uint8)), ValueError, "expected"),
        (lambda e: e.translate(np.zeros((1, 33, 32, 3), np.uint8)), ValueError, "multiples of 32"),
        (lambda e: e.run(np.zeros((0, 33, 32, 3), np.float32)), ValueError, "multiples of 32"),
        (lambda e: e.run(), ValueError, "neither"),
        (
            lambda e: e.run(outputs=["decoder_1"], inputs={"nowhere": np.zeros((1, 2, 2, 4), np.float32)}),
            ValueError,
            "no layer",
        ),
        (lambda e: e.run(np.zeros((1, 32, 32, 3), np.float32), outputs=["nowhere"]), ValueError, "no layer"),
        (lambda e: e.run(np.zeros((1, 32, 32, 3), np.float32), outputs="encoder_1"), TypeError, "sequence"),
        (lambda e: e.run(inputs={"decoder_2": np.zeros((1, 16, 16, 4), np.float32)}), ValueError, "without"),
        (
            lambda e: e.run(np.zeros((1, 32, 32, 3), np.float32), inputs={"encoder_2": np.zeros((1, 4, 4, 8), "f4")}),
            ValueError,
            "different",
        ),
    ],
)
def test_mistakes_are_explained(engine, call, error, text):
    with pytest.raises(error, match=text):
        call(engine)


def test_no_images_give_no_images(engine):
    assert engine.translate(np.zeros((0, 32, 32, 3), np.uint8)).shape == (0, 32, 32, 3)
    x = to_float(pictures(2, 64, 32))
    result = engine.run(x[:0])
    assert result.shape == (0, 64, 32, 3) and result.dtype == np.float32
    wanted = ["encoder_1", "encoder_2", "decoder_3", "decoder_1"]
    some, none = engine.run(x, outputs=wanted), engine.run(x[:0], outputs=wanted)
    assert {name: (0, *value.shape[1:]) for name, value in some.items()} == {n: v.shape for n, v in none.items()}
    given = {name: none[name] for name in wanted[:3]}
    assert engine.run(inputs=given).shape == (0, 64, 32, 3)
    assert engine.run(inputs=given, outputs=["encoder_2"])["encoder_2"].shape == none["encoder_2"].shape


def test_threads_of_the_caller_get_their_own_results(engine):
    batches = [pictures(1 if SIMULATED else 2, 32, 32, seed=i) for i in range(3 if SIMULATED else 6)]
    expected = [engine.translate(b) for b in batches]
    failures = []

    def work(i):
        for _ in range(1 if SIMULATED else 5):
            if not np.array_equal(engine.translate(batches[i]), expected[i]):
                failures.append(i)

    threads = [threading.Thread(target=work, args=(i,)) for i in range(len(batches))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failures


def test_a_closed_engine_says_so(make):
    engine = make(VARIANTS["tensorflow"], weights_of("tensorflow"))
    assert isinstance(engine, Engine)
    with engine:
        engine.translate(pictures(1, 32, 32))
    engine.close()
    with pytest.raises(RuntimeError, match="closed"):
        engine.translate(pictures(1, 32, 32))
    with pytest.raises(RuntimeError, match="closed"):
        engine.run(to_float(pictures(1, 32, 32)))
    with pytest.raises(RuntimeError, match="closed"):
        engine.translate(np.zeros((0, 32, 32, 3), np.uint8))


def _use_in_child(engine, queue):
    try:
        engine.translate(pictures(1, 32, 32))
        queue.put("no error")
    except RuntimeError as error:
        queue.put(str(error))
    engine.close()


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork on this system")
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.parametrize("busy", [False, True])
def test_use_after_a_fork_is_an_error_and_no_hang(engine, busy):
    engine.translate(pictures(1, 32, 32))
    context = multiprocessing.get_context("fork")
    queue = context.Queue()
    child = context.Process(target=_use_in_child, args=(engine, queue))
    with engine._lock if busy else contextlib.nullcontext():  # as if another thread were computing just then
        child.start()
    assert "forked" in queue.get(timeout=30)
    child.join(30)
    assert child.exitcode == 0


def test_weights_that_do_not_fit_are_refused(make):
    weights = dict(weights_of("tensorflow"))
    del weights["decoder_2.kernel"]
    with pytest.raises(ValueError, match="missing decoder_2.kernel"):
        make(VARIANTS["tensorflow"], weights)


@functools.cache
def full_network():
    """The published network with random weights, a picture, and what the oracle makes of it."""
    g = unet(ngf=64, depth=8)
    weights = random_weights(g)
    x = to_float(pictures(1, 256, 256))
    return g, weights, x, ReferenceEngine(g, weights).run(x)


@pytest.mark.skipif(SIMULATED, reason="takes the simulator hours")
def test_full_network_of_random_weights(make, precision):
    g, weights, x, expected = full_network()
    assert expected.std() > 0.05
    check_output(make(g, weights).run(x), expected, precision)


@pytest.mark.filterwarnings("ignore:invalid value", "ignore:overflow")
def test_what_is_not_finite_is_not_hidden(make, precision):
    """NaN stays NaN in run. Damaged weights give images of one byte in translate, which callers can look for."""
    g, b = VARIANTS["tensorflow"], pictures(2, EDGE, EDGE)
    x = to_float(b, np.float32)
    x[1, 5, 5, 0] = np.nan
    y = make(g, weights_of("tensorflow")).run(x)
    assert np.isfinite(y[0]).all() and np.isnan(y[1]).all()
    # larger ones a GPU refuses for float16
    damage = np.float32(1e30 if precision != "float16" else 5e4)
    engine = make(g, {name: value * damage for name, value in weights_of("tensorflow").items()})
    assert np.isnan(engine.run(to_float(b, np.float32))).all()
    assert len(np.unique(engine.translate(b))) == 1
