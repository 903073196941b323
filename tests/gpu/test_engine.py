"""The GPU engine beyond the protocol of engines: on a GPU, or in Numba's simulator."""

from __future__ import annotations

import itertools
import threading
from pathlib import Path

import numpy as np
import pytest

import pix2pix
from pix2pix import checkpoints
from pix2pix.engines.reference import ReferenceEngine, to_float
from pix2pix.model.lowering import lower
from pix2pix.model.unet import unet
from pix2pix.model.weights import random_weights
from pix2pix.plans.algorithms import algorithms
from pix2pix.plans.heuristics import choose
from pix2pix.plans.plan import Plan
from tests.gpu.gpus import EDGE, MISSING, SIMULATED
from tests.models import TOLERANCE, VARIANTS, check_layer, check_output, pictures, weights_of

if MISSING:
    pytest.skip(MISSING, allow_module_level=True)

from numba import cuda

from pix2pix.gpu import engine as gpu
from pix2pix.gpu.engine import GpuEngine
from pix2pix.gpu.forward import GpuBackend

pytestmark = pytest.mark.gpu


@pytest.fixture
def engine():
    with GpuEngine(VARIANTS["tensorflow"], weights_of("tensorflow")) as engine:
        yield engine


@pytest.mark.parametrize("tune", ["latency", "throughput"])
def test_the_published_network_has_plans_that_fit_it(tune):
    g = unet(ngf=64, depth=8)
    plan = choose(g, tune, hardware="cuda")
    plan.check(g)
    assert all(algorithm.kind == "implicit" for algorithm in plan.layers.values())
    splits = [algorithm.splits for algorithm in plan.layers.values()]
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


def test_weights_that_float16_cannot_hold_are_refused():
    g, weights = VARIANTS["tensorflow"], dict(weights_of("tensorflow"))
    weights["encoder_1.kernel"] = weights["encoder_1.kernel"] * np.float32(1e6)
    with pytest.raises(ValueError, match="encoder_1 has a weight of .* too large for float16: use bfloat16 or tf32"):
        GpuEngine(g, weights, precision="float16")


def test_engines_share_weights_and_outlive_each_other():
    g, weights = VARIANTS["tensorflow"], weights_of("tensorflow")
    b = pictures(2, 32, 32)
    first = GpuEngine(g, weights)
    expected = first.translate(b)
    with first.share() as second:
        assert second.weights is first.weights
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
    limit = GpuBackend(engine.weights, engine.device, None, None).size(2, 32, 32)
    engine.do(engine.forget)
    allocate = engine.device.empty

    def empty(size, dtype=np.float32):
        if size > limit:
            raise MemoryError(f"cuda:0 has no {size} bytes of memory left")
        return allocate(size, dtype)

    monkeypatch.setattr(engine.device, "empty", empty)
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
        engine.do(engine.forward_pass.memory.copy_to_device, np.full(engine.forward_pass.memory.size, 7, np.float32))
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
    for h in range(32 * (gpu.CONTEXTS_KEPT + 3), 0, -32):
        engine.do(engine.forward_pass.context, 1, h, 32)
    assert len(engine.forward_pass.contexts) == gpu.CONTEXTS_KEPT
    held = engine.forward_pass.memory.size
    engine.translate(pictures(1, 32, 32))
    assert engine.forward_pass.memory.size == held


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
        assert engine.device.has_graphs and "CUDA graphs" in engine.info.description

    def test_memory_is_freed():
        g = unet(ngf=64, depth=8)
        weights = random_weights(g)
        free, free_memory = [], lambda: cuda.current_context().get_memory_info().free
        for _ in range(3):
            with GpuEngine(g, weights) as engine:
                engine.translate(pictures(8, 256, 256))
                free.append(engine.do(free_memory))
        assert free[2] >= free[0] - (1 << 26)

    def test_the_demo_model_agrees_with_the_oracle():
        generator, weights = checkpoints.read(Path(pix2pix.__file__).parent / "demo" / "facades.safetensors")
        x = to_float(pictures(2, generator.size, generator.size))
        expected = ReferenceEngine(generator, weights).run(x)
        for plan in (None, "im2col"):
            with GpuEngine(generator, weights, plan=plan) as engine:
                assert np.abs(engine.run(x) - expected).max() < TOLERANCE["float32"][1]
