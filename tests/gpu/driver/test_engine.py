"""The GPU engine on a fake driver: graphs, streams, lifetimes, threads, memory that ends, devices that are lost."""

from __future__ import annotations

import gc
import itertools
import threading
from collections.abc import Callable, Iterator
from contextlib import closing, suppress
from typing import Any

import numpy as np
import pytest

from tests.fresh import run_code
from tests.gpu.layers import network, sample
from tests.gpu.ptx.needs import MISSING
from tests.models import VARIANTS, pictures, weights_of

if MISSING:
    pytest.skip(MISSING, allow_module_level=True)

from numba.cuda.cudadrv.driver import Event

from pix2pix.factory import EngineOptions, make_engine
from pix2pix.gpu import engine as gpu
from pix2pix.gpu.device import Device
from pix2pix.gpu.engine import GpuEngine
from pix2pix.gpu.forward import GpuBackend
from pix2pix.gpu.staging import Pipeline

from .contexts import LAUNCH_FAILED, OUT_OF_MEMORY
from .driver import FakeDriver
from .faults import Fault
from .install import on_driver

GENERATOR, WEIGHTS = VARIANTS["tensorflow"], weights_of("tensorflow")


@pytest.fixture
def driver() -> Iterator[FakeDriver]:
    with on_driver(FakeDriver()) as driver:
        yield driver


@pytest.fixture
def engine(driver: FakeDriver) -> Iterator[GpuEngine]:
    with GpuEngine(GENERATOR, WEIGHTS) as engine:
        yield engine


def test_graphs_are_recorded_once_for_each_size_and_replayed(driver, engine):
    sizes = [(2, 32, 64), (2, 32, 32), (1, 32, 32)]  # a larger one would need more memory, and all anew
    expected = [engine.translate(pictures(*size)) for size in sizes]
    assert engine.device.has_graphs and "CUDA graphs" in engine.info.description
    assert len(driver.graphs) == len(sizes)
    kernels = driver.kernels.total()
    for size, result in zip(sizes, expected, strict=True):
        np.testing.assert_array_equal(engine.translate(pictures(*size)), result)
        assert not np.array_equal(engine.translate(pictures(*size, seed=1)), result)
    assert [graph.launches for graph in driver.graphs] == [3] * len(sizes)
    assert all(graph.works[-1].what == "to_image" for graph in driver.graphs)
    assert driver.kernels.total() == kernels


def test_layers_are_given_and_asked_for(driver, engine):
    x = np.random.default_rng(0).uniform(-1, 1, (2, 32, 32, 3)).astype(np.float32)
    names = ["encoder_1", "encoder_5", "decoder_2", "decoder_1"]
    first = engine.run(x, outputs=names)
    for name, value in engine.run(x, outputs=names).items():
        np.testing.assert_array_equal(value, first[name])
    assert [graph.launches for graph in driver.graphs] == [2]
    engine.run(inputs={"encoder_1": first["encoder_1"], "decoder_2": first["decoder_2"]})
    assert len(driver.graphs) == 2


@pytest.mark.parametrize(
    "precision, plan", [("float32", "im2col"), ("float16", None), ("float16", "tensor-64x64-split2")]
)
def test_other_kernels(driver, precision, plan):
    others = [] if plan == "im2col" else [sample("resnet"), sample("bilinear")]  # im2col's scratch is large
    for g, weights in ((GENERATOR, WEIGHTS), *others):
        with GpuEngine(g, weights, precision=precision, plan=plan) as engine:
            b = pictures(2, 32, 32)
            engine.run(np.zeros(b.shape, np.float32), outputs=[layer.name for layer in g.layers])
            if g.shapes(32, 32)[g.layers[-1].name][:2] == (32, 32):
                np.testing.assert_array_equal(engine.translate(b), engine.translate(b))
            assert driver.graphs and engine.device.has_graphs


def test_hoppers_kernels(driver):
    """With tensor maps, and shared memory that is asked for before a launch is captured."""
    g, weights = network("float16", True, 32, 3)
    with GpuEngine(g, weights, precision="float16", plan="hopper-128x64") as engine:
        b = pictures(1, 64, 64)
        np.testing.assert_array_equal(engine.translate(b), engine.translate(b))
        assert not np.array_equal(engine.translate(b), engine.translate(pictures(1, 64, 64, seed=1)))
    assert "hopper_gemm" in driver.kernels and driver.calls["cuKernelSetAttribute"] and driver.graphs


def test_a_stream_of_several_sizes(engine):
    batches = [pictures(n, h, 32, seed=i) for i, (n, h) in enumerate([(2, 32), (1, 64), (2, 32), (3, 32), (2, 32)])]
    expected = [engine.translate(b) for b in batches]
    for _ in range(2):
        results = list(engine.stream(iter(batches)))
        for result, wanted in zip(results, expected, strict=True):
            np.testing.assert_array_equal(result, wanted)


def test_a_batch_in_parts(driver, engine):
    engine.chunks.pixels = 2 * 32 * 32
    b = pictures(9, 32, 32)
    expected = np.concatenate([engine.translate(b[i : i + 2]) for i in range(0, 9, 2)])
    np.testing.assert_array_equal(engine.translate(b), expected)
    np.testing.assert_array_equal(next(engine.stream([b])), expected)


def test_a_stream_that_is_left_and_calls_between(engine):
    batches = [pictures(n, 32, 32, seed=n) for n in (1, 2, 1, 2)]
    expected = [engine.translate(b) for b in batches]
    results = engine.stream(iter(batches))
    np.testing.assert_array_equal(next(results), expected[0])
    np.testing.assert_array_equal(engine.translate(batches[2]), expected[2])
    np.testing.assert_array_equal(next(results), expected[1])
    results.close()
    np.testing.assert_array_equal(engine.translate(batches[1]), expected[1])


def test_a_stream_whose_source_fails(engine):
    def batches():
        yield pictures(2, 32, 32)
        yield pictures(1, 32, 32)
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        list(engine.stream(batches()))
    engine.translate(pictures(2, 32, 32))


def test_a_stream_that_outlives_the_engine(driver):
    engine = GpuEngine(GENERATOR, WEIGHTS)
    results = engine.stream(pictures(n, 32, 32) for n in (1, 2, 1))
    next(results)
    engine.close()
    assert not driver.memory.alive()
    with pytest.raises(RuntimeError, match="closed"):
        next(results)


def test_more_sizes_than_are_kept(driver, engine):
    for _ in range(2):
        for h in range(32 * (gpu.CONTEXTS_KEPT + 2), 0, -32):
            b = pictures(1, h, 32)
            np.testing.assert_array_equal(engine.translate(b), engine.translate(b))
    b = [pictures(1, h, 32) for h in range(32, 32 * (gpu.CONTEXTS_KEPT + 3), 32)]
    for result, wanted in zip(engine.stream(b), map(engine.translate, b), strict=False):
        assert result.shape == wanted.shape


def test_engines_share_weights_and_outlive_each_other(driver):
    first = GpuEngine(GENERATOR, WEIGHTS)
    b = pictures(2, 32, 32)
    expected = first.translate(b)
    with first.share() as second:
        results: list[np.ndarray] = []
        threads = [threading.Thread(target=lambda e=e: results.append(e.translate(b))) for e in (first, second)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        first.close()
        del first
        results.append(second.translate(pictures(2, 32, 32)))
        for result in results:
            np.testing.assert_array_equal(result, expected)
    assert len(results) == 3 and len(driver.threads[0]) >= 2


def test_sessions(driver, engine):
    x = np.random.default_rng(1).uniform(-1, 1, (2, 32, 64, 3)).astype(np.float32)
    for _ in range(2):
        with engine.session() as session:
            first = session.run({"input": x}, ["encoder_3"], ["encoder_1", "encoder_2"])
            session.run({"encoder_3": first["encoder_3"]}, ["decoder_2"], ["encoder_1", "decoder_2"])
            assert session.run({}, ["decoder_1"])["decoder_1"].shape == x.shape
    with engine.session() as session:  # nothing is asked for: the work goes on after the call
        session.run({"input": x.copy()}, [], ["encoder_1"])
    for h in range(32, 32 * (gpu.CONTEXTS_KEPT + 2), 32):
        engine.do(engine.forward_pass.context, 1, h, 32)
    gc.collect()


@pytest.mark.parametrize("pending", [0, 1000])
def test_forgetting_gives_all_but_weights_back(pending):
    with on_driver(FakeDriver(), pending) as driver, GpuEngine(GENERATOR, WEIGHTS) as engine:
        kept = driver.memory.used(0)
        for _ in range(2):
            engine.translate(pictures(2, 32, 32))
            assert driver.memory.used(0) > kept
            engine.forget()
            assert driver.memory.used(0) == kept
            assert {allocation.kind for allocation in driver.memory.alive()} == {"device"}
        engine.close()
        assert not driver.memory.alive()
        assert sum(stream.alive for stream in driver.streams.values()) <= 1  # of the first device of the process
        assert not any(event.alive for event in driver.events.values())


def test_pinned_arrays_are_dropped_where_the_caller_likes(driver, engine):
    expected = engine.translate(pictures(2, 32, 32))
    held = len(driver.memory.alive())
    for _ in range(20):
        b = engine.empty(2, 32, 32)
        b[...] = pictures(2, 32, 32)
        np.testing.assert_array_equal(engine.translate(b), expected)
        assert len(driver.memory.alive()) == held + 1
        part = b[1:]
        del b
        assert part.sum() == pictures(2, 32, 32)[1:].sum()
        del part


def test_pinned_arrays_outlive_the_engine(driver):
    with GpuEngine(GENERATOR, WEIGHTS) as engine:
        b = engine.empty(2, 32, 32)
    b[...] = 7
    del engine, b
    assert not driver.memory.alive()


def test_an_engine_that_is_dropped_is_closed(driver):
    engine = GpuEngine(GENERATOR, WEIGHTS)
    engine.translate(pictures(1, 32, 32))
    del engine
    gc.collect()


def test_an_engine_that_is_open_when_the_process_ends():
    """Nothing is freed then by threads that cannot."""
    faults = run_code("""
        import atexit

        atexit.register(lambda: print(driver.faults))  # the last to be called
        from tests.gpu.driver.driver import FakeDriver
        from tests.gpu.driver.install import on_driver
        from tests.gpu.driver.test_engine import GENERATOR, WEIGHTS, GpuEngine, pictures

        driver = FakeDriver()
        fake = on_driver(driver)
        fake.__enter__()
        engine = GpuEngine(GENERATOR, WEIGHTS)
        results = engine.stream([pictures(1, 32, 32), engine.empty(2, 32, 32)])
        next(results)
    """)
    assert faults == "[]\n"


def halved(driver: FakeDriver, b: np.ndarray) -> np.ndarray:
    """What an engine gives that can hold two images."""
    with GpuEngine(GENERATOR, WEIGHTS) as engine:
        engine.chunks.pixels = 2 * b.shape[1] * b.shape[2]
        return engine.translate(b)


def failing(name: str, first: int, times: int, code: int) -> Callable[[str, int], int]:
    """Errors of a call, from its first-th time on, some times; of device 0."""
    numbers = itertools.count()
    return lambda called, device: code * (called == name and device == 0 and first <= next(numbers) < first + times)


def test_a_batch_is_halved_until_it_fits(driver, engine, caplog):
    b = pictures(5, 32, 32)
    expected = halved(driver, b)
    three = engine.do(lambda: GpuBackend(engine.weights, engine.device, None, None).size(3, 32, 32))
    driver.gpus[0].memory = driver.memory.used(0) + 4 * three
    np.testing.assert_array_equal(engine.translate(b), expected)
    assert "memory left: going on with 2 images at a time" in caplog.text
    np.testing.assert_array_equal(next(engine.stream([b])), expected)
    driver.gpus[0].memory = driver.memory.used(0)
    with pytest.raises(MemoryError, match="no .* memory left"):
        engine.translate(pictures(1, 64, 96))
    np.testing.assert_array_equal(engine.translate(b[:1])[0], engine.translate(b[:1])[0])


@pytest.mark.parametrize("name, tries", [("cuMemAlloc", 2), ("cuMemHostAlloc", 1)])  # as Numba does
def test_any_allocation_may_fail(driver, engine, name, tries):
    """Those of contexts, constants and staging buffers: then half as many images are tried."""
    b = pictures(5, 32, 32)
    expected = halved(driver, b)
    before = driver.calls[name]
    engine.translate(b)
    allocations = driver.calls[name] - before
    assert allocations >= 2
    for first in range(allocations):
        engine.chunks.pixels = gpu.PIXELS_AT_ONCE
        engine.forget()
        driver.fail = failing(name, first, tries, OUT_OF_MEMORY)
        np.testing.assert_array_equal(engine.translate(b), expected)
        assert engine.chunks.pixels == 2 * 32 * 32
    driver.fail = failing(name, 0, 1000, OUT_OF_MEMORY)
    engine.forget()
    with pytest.raises(MemoryError, match="has no .* bytes of memory left"):
        engine.translate(b)
    driver.fail = lambda name, device: 0
    np.testing.assert_array_equal(engine.translate(b)[4:], expected[4:])


LOSSES = (
    *[("cuLaunchKernel", first) for first in (0, 3, 40)],
    *[("cuStreamSynchronize", first) for first in (0, 1)],
    *[(name, 0) for name in ("cuMemAlloc", "cuMemHostAlloc", "cuMemcpyHtoDAsync", "cuMemcpyDtoHAsync")],
    *[(name, 0) for name in ("cuEventCreate", "cuEventRecord", "cuStreamWaitEvent", "cuEventSynchronize")],
    *[(name, 0) for name in ("cuStreamBeginCapture", "cuStreamEndCapture", "cuGraphInstantiate", "cuGraphLaunch")],
)


@pytest.mark.parametrize("name, first", LOSSES)
def test_the_loss_of_a_device_reaches_the_caller(driver, name, first):
    engine = GpuEngine(GENERATOR, WEIGHTS)
    driver.fail = failing(name, first, 1, LAUNCH_FAILED)
    with pytest.raises(RuntimeError, match="cuda:0 failed: .*CUDA_ERROR_LAUNCH_FAILED"):
        for result in engine.stream([pictures(2, 32, 32), pictures(3, 32, 32)]):
            assert result.shape
    for call in (engine.translate, lambda b: next(engine.stream([b]))):
        with pytest.raises(RuntimeError, match="cuda:0 failed: .*CUDA_ERROR_LAUNCH_FAILED"):
            call(pictures(1, 32, 32))
    with pytest.raises(RuntimeError, match="cuda:0 failed: .*CUDA_ERROR_LAUNCH_FAILED"):
        engine.run(np.zeros((1, 32, 32, 3), np.float32))
    engine.close()
    with pytest.raises(RuntimeError, match="closed"):
        engine.translate(pictures(1, 32, 32))


def test_an_engine_cannot_be_made_on_a_lost_device(driver):
    driver.gpus[0].error = LAUNCH_FAILED
    with pytest.raises(RuntimeError, match="cuda:0 failed"):
        GpuEngine(GENERATOR, WEIGHTS)


def test_two_devices_each_with_threads_of_its_own():
    b = pictures(32, 32, 32)
    with on_driver(FakeDriver(devices=2)) as driver:
        options = EngineOptions(device="cuda", workers=4)
        with closing(make_engine(GENERATOR, WEIGHTS, options)) as pool:
            for _ in range(2):
                assert pool.translate(b).shape == b.shape
                assert [y.shape for y in pool.stream(iter([b, b[:3], b]))] == [b.shape, b[:3].shape, b.shape]
            first, second = driver.threads.values()
            assert len(first) == len(second) == 2 and not first & second
    assert {graph.device for graph in driver.graphs} == {0, 1}


def test_a_pool_goes_on_without_a_lost_device(caplog):
    b = pictures(8, 32, 32)
    with on_driver(FakeDriver(devices=2)) as driver:
        with closing(make_engine(GENERATOR, WEIGHTS, EngineOptions(device="cuda", workers=2))) as pool:
            pool.translate(b)
            driver.gpus[0].error = LAUNCH_FAILED
            batches = [b] * 64  # of a few, a device that was slow at first may leave all to the other
            assert [y.shape for y in pool.stream(iter(batches))] == [b.shape] * len(batches)
    assert "cuda:0 failed, a worker is retired" in caplog.text


# -- the engine, broken on purpose --------------------------------------------------------------------------------


def no_wait(event: Event, stream: Any) -> None:
    """An event's wait that is left out."""


def no_warm_up(device: Device, work: Callable[[], None], stream: Any) -> Callable[[], None]:
    """Device.graph without the first run."""
    return device._capture(work, stream)


@pytest.mark.parametrize(
    "target, name, replacement, match",
    [
        (Event, "wait", no_wait, "does not wait for"),
        (Event, "record", no_wait, "was never recorded"),
        (Device, "graph", no_warm_up, "cuModuleLoad while stream .* is captured"),
        (GpuBackend, "synchronize", lambda backend: None, "freed while .* may use them"),
        (Pipeline, "_fetch", staticmethod(lambda part: part.context.buffers.append(part.buffer)), "does not wait for"),
    ],
)
def test_what_is_left_out_is_noticed(monkeypatch, target, name, replacement, match):
    monkeypatch.setattr("sys.unraisablehook", lambda unraisable: None)  # finalizers have faults, too
    monkeypatch.setattr(target, name, replacement)
    with pytest.raises(Fault, match=match), on_driver(FakeDriver()), suppress(Fault, RuntimeError):
        with GpuEngine(GENERATOR, WEIGHTS) as engine:
            for seed in range(3):
                engine.translate(pictures(1, 64, 64, seed=seed))
            with engine.session() as session:
                session.run({"input": np.zeros((1, 64, 64, 3), np.float32)}, [], ["encoder_1"])
    gc.collect()
