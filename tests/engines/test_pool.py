"""The pool beyond the protocol: threads, order of results, back-pressure, load balance, failures, interrupts."""

from __future__ import annotations

import itertools
import random
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import replace
from functools import partial

import numpy as np
import pytest
from PIL import Image

import pix2pix
from pix2pix import cli, devices
from pix2pix.cpu.engine import CpuEngine
from pix2pix.cpu.topology import available_cores
from pix2pix.devices import Device, count_gpus, share_workers
from pix2pix.engines.pool import UNFINISHED, PoolEngine, WorkerGroup
from pix2pix.engines.reference import ReferenceEngine
from pix2pix.factory import EngineOptions, make_engine
from pix2pix.files import translate
from pix2pix.model.weights import random_weights
from tests.engines.fakes import SMALL, FakeDevice, FakeEngine, SlowReference
from tests.fresh import run_code
from tests.gpu.gpus import EDGE, MISSING, NUMBER, needs_gpu
from tests.models import VARIANTS, pictures, weights_of


def usable_gpus() -> int:
    """How many GPUs tests can have; 0 without any."""
    return 0 if MISSING else count_gpus()


def pool_on(*fakes: FakeDevice, workers: int = 2, images: int = 2) -> PoolEngine:
    return PoolEngine(SMALL, [fake.group(f"fake:{i}", workers, images) for i, fake in enumerate(fakes)])


def batches(count: int, images: int = 1) -> list[np.ndarray]:
    """``count`` batches of images of 4 x 4, all different, all of which a fake engine can do."""
    total = count * images
    numbers = np.arange(total, dtype="<u4").view(np.uint8).reshape(total, 4)
    b = np.repeat(numbers, 12, axis=1).reshape(total, 4, 4, 3)
    b[:, 0, 0, 0] = 0
    return list(b.reshape(count, images, 4, 4, 3))


def test_every_worker_has_an_engine_of_its_own_thread_and_closes_it_there():
    fakes = FakeDevice(), FakeDevice()
    with pool_on(*fakes, workers=3) as pool:
        engines = fakes[0].engines + fakes[1].engines
        assert len({engine.thread for engine in engines}) == len(engines) == pool.workers == 6
        for batch, result in zip(batches(50), pool.stream(batches(50)), strict=True):
            np.testing.assert_array_equal(result, 255 - batch)
    assert [engine.closed_by for engine in engines] == [engine.thread for engine in engines]


def test_results_come_in_order_from_devices_of_all_speeds():
    with pool_on(FakeDevice(0.0), FakeDevice(0.001), FakeDevice(0.007)) as pool:
        given = batches(200)
        for batch, result in zip(given, pool.stream(given), strict=True):
            np.testing.assert_array_equal(result, 255 - batch)
        whole = np.concatenate(given)
        np.testing.assert_array_equal(pool.translate(whole), 255 - whole)


def test_chunks_suit_the_device_that_takes_them():
    small, large = FakeDevice(0.001), FakeDevice(0.001)
    with PoolEngine(SMALL, [small.group("small", 1, images=2), large.group("large", 1, images=16)]) as pool:
        pool.translate(np.zeros((200, 4, 4, 3), np.uint8))
        list(pool.stream([np.zeros((200, 4, 4, 3), np.uint8)]))
    assert max(small.batches) == 2 and max(large.batches) == 16
    assert sum(small.batches) + sum(large.batches) == 400


def test_workers_share_what_their_device_does_at_once():
    sizes = {}
    for workers in (1, 4, 16):
        fake = FakeDevice()

        def make(fake: FakeDevice = fake) -> FakeEngine:
            engine = FakeEngine(fake)
            engine.chunks.pixels = 64 * 256 * 256
            return engine

        with PoolEngine(SMALL, [WorkerGroup("fake", make, workers)]) as pool:
            sizes[workers] = pool.chunks.pixels / (256 * 256)
    assert sizes == {1: 64, 4: 16, 16: 8}


def test_few_images_are_spread_over_all_devices():
    fakes = [FakeDevice(0.02) for _ in range(4)]
    with pool_on(*fakes, workers=1, images=100) as pool:
        pool.translate(np.zeros((8, 4, 4, 3), np.uint8))
    assert [fake.batches for fake in fakes] == [[2]] * 4


def test_a_device_that_hangs_gets_no_more_than_its_workers_hold():
    sound, hanging = FakeDevice(), FakeDevice()
    hanging.going.clear()
    with pool_on(sound, hanging, workers=2, images=2) as pool:
        whole = np.concatenate(batches(100))
        threading.Timer(0.3, hanging.going.set).start()
        np.testing.assert_array_equal(pool.translate(whole), 255 - whole)
    assert sum(hanging.batches) <= 4 and sum(sound.batches) >= 96


class Counting:
    """An endless iterable of batches that counts how many were read."""

    def __init__(self) -> None:
        self.read = 0

    def __iter__(self):
        for batch in itertools.cycle(batches(7)):
            self.read += 1
            yield batch


def comes_to_stay(value: Callable[[], int], expected: int) -> bool:
    """Whether ``value()`` becomes ``expected`` within 10 s and still is it 0.1 s later."""
    deadline = time.monotonic() + 10
    while value() != expected and time.monotonic() < deadline:
        time.sleep(0.01)
    time.sleep(0.1)
    return value() == expected


def test_a_stream_reads_no_more_than_the_workers_can_take():
    fake = FakeDevice()
    fake.going.clear()
    with pool_on(fake, workers=3) as pool:
        source = Counting()
        results = pool.stream(source)
        waiting = threading.Thread(target=lambda: [next(results) for _ in range(10)])
        waiting.start()
        assert comes_to_stay(lambda: source.read, UNFINISHED * 3)
        fake.going.set()
        waiting.join()
        assert source.read <= 10 + pool.read_ahead
        results.close()


def test_a_stream_whose_oldest_batch_is_late_reads_a_bounded_number_ahead():
    sound, hanging = FakeDevice(), FakeDevice()
    hanging.going.clear()
    with pool_on(sound, hanging, workers=1) as pool:
        source, taken = Counting(), []

        def take() -> None:
            for result in itertools.islice(pool.stream(source), 1000):
                taken.append(result)

        waiting = threading.Thread(target=take)
        waiting.start()
        assert comes_to_stay(lambda: source.read - len(taken), pool.read_ahead)
        assert comes_to_stay(lambda: source.read - len(sound.batches), 1), "all but one of them are done"
        hanging.going.set()
        waiting.join()
        assert len(taken) == 1000


def test_an_error_names_its_image_and_leaves_the_worker_at_work():
    fake = FakeDevice()
    with pool_on(fake, workers=2, images=8) as pool:
        whole = np.concatenate(batches(40))
        whole[29, 0, 0, 0] = 13
        with pytest.raises(ValueError, match="unlucky") as caught:
            pool.translate(whole)
        assert "image 29 (from 0)" in caught.value.__notes__[0]
        results = pool.stream(np.split(whole, 10))
        good = [next(results) for _ in range(7)]
        np.testing.assert_array_equal(np.concatenate(good), 255 - whole[:28])
        with pytest.raises(ValueError, match="unlucky") as caught:
            next(results)
        assert "image 29 (from 0)" in caught.value.__notes__[0]
        np.testing.assert_array_equal(pool.translate(whole[:8]), 255 - whole[:8])


def test_work_of_a_failed_device_is_done_by_others_with_a_message(caplog):
    failing, sound = FakeDevice(0.001), FakeDevice(0.001)
    given = batches(300)
    with pool_on(failing, sound) as pool:
        for number, result in enumerate(pool.stream(given)):
            np.testing.assert_array_equal(result, 255 - given[number])
            if number == 50:
                failing.error = RuntimeError("an illegal memory access was encountered")
        np.testing.assert_array_equal(pool.translate(given[0]), 255 - given[0])
    messages = [record.getMessage() for record in caplog.records]
    assert len(messages) == 2 and len(sound.batches) > len(failing.batches) > 0
    assert messages[0] == "fake:0 failed, a worker is retired and 3 are left: an illegal memory access was encountered"


def test_when_no_worker_is_left_the_error_says_why():
    fakes = FakeDevice(), FakeDevice()
    with pool_on(*fakes) as pool:
        for fake in fakes:
            fake.error = OSError("unplugged")
        with pytest.raises(RuntimeError, match="no worker is left: fake:. was the last, and failed: unplugged"):
            list(pool.stream(batches(100)))
        for _ in range(2):
            with pytest.raises(RuntimeError, match="no worker is left"):
                pool.translate(batches(1)[0])
    assert all(engine.closed_by for fake in fakes for engine in fake.engines)


@pytest.mark.parametrize("seed", range(10))
def test_devices_that_fail_at_any_moment_lose_nothing(seed):
    chance = random.Random(seed)
    fakes = [FakeDevice(chance.choice((0, 0.0005, 0.002))) for _ in range(4)]
    with pool_on(*fakes, workers=chance.randint(1, 4), images=chance.randint(1, 5)) as pool:
        fates = [
            threading.Timer(chance.uniform(0, 0.1), setattr, (fake, "error", RuntimeError("dead")))
            for fake in fakes[1:]
        ]
        for fate in fates:
            fate.start()
        given = batches(chance.randint(50, 300), chance.randint(1, 9))
        for batch, result in zip(given, pool.stream(given), strict=True):
            np.testing.assert_array_equal(result, 255 - batch)
        for fate in fates:
            fate.join()
        for batch in given[:20]:
            np.testing.assert_array_equal(pool.translate(batch), 255 - batch)


def test_many_callers_and_streams_at_once():
    with pool_on(FakeDevice(), FakeDevice(0.001), workers=3, images=3) as pool:
        wrong = []

        def call(seed: int) -> None:
            given = batches(40, seed)
            for batch, result in zip(given, pool.stream(given), strict=True):
                if not (np.array_equal(result, 255 - batch) and np.array_equal(pool.translate(batch), 255 - batch)):
                    wrong.append(seed)

        callers = [threading.Thread(target=call, args=(seed,)) for seed in range(1, 7)]
        for caller in callers:
            caller.start()
        for caller in callers:
            caller.join()
        assert not wrong


def test_closing_a_stream_gives_up_what_hangs():
    fake = FakeDevice()
    with pool_on(fake) as pool:
        results = pool.stream(Counting())
        for _ in range(5):
            next(results)
        fake.going.clear()
        start = time.monotonic()
        results.close()
        assert time.monotonic() - start < 1
        fake.going.set()
        np.testing.assert_array_equal(pool.translate(batches(1)[0]), 255 - batches(1)[0])


def test_a_translation_is_given_up_when_its_stop_is_set():
    fake, stop = FakeDevice(), threading.Event()
    fake.going.clear()
    with pool_on(fake) as pool:
        threading.Timer(0.1, stop.set).start()
        start = time.monotonic()
        pool.translate_until(stop, np.concatenate(batches(100)))
        assert time.monotonic() - start < 1 and not fake.batches
        fake.going.set()
        np.testing.assert_array_equal(pool.translate(batches(1)[0]), 255 - batches(1)[0])


def test_closing_the_pool_finishes_what_was_asked_for():
    fake = FakeDevice(0.002)
    pool = pool_on(fake)
    results = pool.stream(batches(4))
    first = next(results)
    pool.close()
    assert len(np.concatenate([first, *results])) == 4
    assert sum(fake.batches) == 4


def test_a_device_that_cannot_start_is_an_error_and_the_others_are_closed():
    fake = FakeDevice()

    def fail():
        raise RuntimeError("device cuda:3 is taken")

    before = threading.active_count()
    with pytest.raises(RuntimeError, match="cuda:3 is taken"):
        PoolEngine(SMALL, [fake.group(workers=2), WorkerGroup("cuda:3", fail)])
    assert [engine.closed_by for engine in fake.engines] == [engine.thread for engine in fake.engines]
    assert threading.active_count() == before


@pytest.mark.parametrize("groups", [[], [FakeDevice().group(workers=0)]])
def test_a_pool_has_workers(groups):
    with pytest.raises(ValueError, match="expected devices with 1 or more each"):
        PoolEngine(SMALL, groups)


@pytest.mark.skipif(sys.platform == "win32", reason="sends SIGINT")
@pytest.mark.parametrize(
    "call", ["list(pool.stream(many[i : i + 100] for i in range(0, 2000, 100)))", "pool.translate(many)"]
)
def test_ctrl_c_stops_within_a_second_and_the_pool_goes_on(call):
    code = f"""
        import os, signal, threading, time
        import numpy as np
        from pix2pix.cpu.engine import CpuEngine
        from pix2pix.engines.pool import PoolEngine, WorkerGroup
        from pix2pix.model.unet import unet
        from pix2pix.model.weights import random_weights

        g = unet(ngf=16, depth=8)
        w = random_weights(g)
        with PoolEngine(g, [WorkerGroup(name, lambda: CpuEngine(g, w, threads=1)) for name in "ab"]) as pool:
            many = np.zeros((2000, 256, 256, 3), np.uint8)
            pool.translate(many[:2])
            sent = []
            def interrupt():
                sent.append(time.monotonic())
                os.kill(os.getpid(), signal.SIGINT)
            threading.Timer(1, interrupt).start()
            try:
                {call}
                print("not interrupted")
            except KeyboardInterrupt:
                took = time.monotonic() - sent[0]
                print("interrupted", took < 1 or took)
            start = time.monotonic()
            pool.translate(many[:1])
            took = time.monotonic() - start
            print("goes on", took < 1 or took)
    """
    assert run_code(code).split() == ["interrupted", "True", "goes", "on", "True"]


def test_a_process_ends_though_its_pool_was_never_closed():
    code = """
        from tests.engines.test_pool import *
        failing = FakeDevice()
        pool = pool_on(FakeDevice(), failing)
        failing.error = RuntimeError("dead")
        print(sum(len(b) for b in pool.stream(batches(30))))
    """
    assert run_code(code).split() == ["30"]


# -- on the CPU -----------------------------------------------------------------------------------------------------


def test_workers_that_share_a_cpu_engine_make_the_same_bytes(tmp_path):
    model = tmp_path / "model.safetensors"
    g = VARIANTS["tensorflow"]
    pix2pix.checkpoints.write(model, g, weights_of("tensorflow"))
    b = pictures(7, 64, 64)
    with pix2pix.load(model, "cpu", threads=1) as one, pix2pix.load(model, "cpu", threads=1, workers=3) as pool:
        assert isinstance(one, CpuEngine) and isinstance(pool, PoolEngine)
        assert pool.info == replace(
            one.info, device="cpu (3 workers)", workers=3, pixels_at_once=pool.info.pixels_at_once
        )
        np.testing.assert_array_equal(pool.translate(b), one.translate(b))
        np.testing.assert_array_equal(np.concatenate(list(pool.stream([b[:3], b[3:]]))), one.translate(b))


def test_pools_of_any_number_of_workers_make_the_same_bytes():
    g, w, b = VARIANTS["pytorch"], weights_of("pytorch"), pictures(9, 64, 64)
    with CpuEngine(g, w, threads=1) as engine:
        expected = engine.translate(b)
    for workers in (1, 2, 5):
        with PoolEngine(g, [WorkerGroup("cpu", lambda: CpuEngine(g, w, threads=1), workers, 2 * 64 * 64)]) as pool:
            np.testing.assert_array_equal(pool.translate(b), expected)


def test_a_mixed_pool_is_within_the_tolerances_of_its_devices():
    g, w, b = VARIANTS["pytorch"], weights_of("pytorch"), pictures(40, 64, 64)
    fake = FakeDevice()
    groups = [
        WorkerGroup("cpu", lambda: CpuEngine(g, w, threads=1), pixels=64 * 64),
        WorkerGroup("fake", lambda: SlowReference(fake, g, w), workers=2, pixels=4 * 64 * 64),
    ]
    with PoolEngine(g, groups) as pool, ReferenceEngine(g, w) as oracle:
        for result in (pool.translate(b), np.concatenate(list(pool.stream(np.split(b, 20))))):
            assert np.abs(result.astype(int) - oracle.translate(b)).max() <= 1
    assert 0 < sum(fake.batches) < 2 * len(b), "both have worked"


def test_the_pool_lets_go_of_the_weights():
    import gc
    import weakref

    class Weights(dict):
        pass

    w = Weights(random_weights(VARIANTS["tensorflow"]))
    alive = weakref.ref(w)
    with PoolEngine(VARIANTS["tensorflow"], [WorkerGroup("cpu", lambda w=w: CpuEngine(VARIANTS["tensorflow"], w))]):
        del w
        gc.collect()
        assert alive() is None


# -- on a GPU ---------------------------------------------------------------------------------------------------------


@needs_gpu
def test_workers_of_a_gpu_make_the_bytes_that_one_engine_makes():
    g, w, b = VARIANTS["tensorflow"], weights_of("tensorflow"), pictures(NUMBER, EDGE, EDGE)
    with (
        make_engine(g, w, EngineOptions("cuda:0")) as one,
        make_engine(g, w, EngineOptions("cuda:0", workers=3)) as pool,
    ):
        assert pool.info.device == "cuda:0 (3 workers)" and pool.info.plan == one.info.plan
        expected = one.translate(b)
        np.testing.assert_array_equal(pool.translate(b), expected)
        np.testing.assert_array_equal(np.concatenate(list(pool.stream(np.split(b, NUMBER)))), expected)


@needs_gpu
def test_the_cpu_helps_a_gpu():
    g, w, b = VARIANTS["tensorflow"], weights_of("tensorflow"), pictures(NUMBER, EDGE, EDGE)
    with make_engine(g, w, EngineOptions("cpu,cuda:0", workers=3)) as pool, ReferenceEngine(g, w) as oracle:
        assert pool.info.device == "cpu (1 worker), cuda:0 (2 workers)" and pool.info.plan is None
        assert pool.info.threads == max(1, available_cores() - 1)
        result = np.concatenate(list(pool.stream(np.split(b, NUMBER))))
        assert np.abs(result.astype(int) - oracle.translate(b)).max() <= 1


@pytest.mark.skipif(usable_gpus() < 2, reason="needs two GPUs")
def test_gpus_of_one_kind_make_the_same_bytes():
    g, w, b = VARIANTS["tensorflow"], weights_of("tensorflow"), pictures(40, 64, 64)
    with make_engine(g, w, EngineOptions("cuda:0")) as one, make_engine(g, w, EngineOptions("cuda:0,1")) as pool:
        assert pool.workers == 8
        np.testing.assert_array_equal(pool.translate(b), one.translate(b))


# -- how many ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "names, workers, counts",
    [
        (["cpu"], None, [1]),
        (["cpu"], 4, [4]),
        (["cuda:0"], None, [1]),
        (["cuda:2"], 16, [16]),
        (["cuda:0", "cuda:1", "cuda:2", "cuda:3"], None, [4, 4, 4, 4]),
        (["cuda:0", "cuda:1", "cuda:2"], 8, [3, 3, 2]),
        (["cpu", "cuda:0"], None, [1, 4]),
        (["cuda:0", "cpu", "cuda:1"], 4, [2, 1, 1]),
    ],
)
def test_how_devices_share_workers(names, workers, counts):
    named = devices.parse(",".join(names), lambda: 4)
    assert share_workers(named, workers) == dict(zip(named, counts, strict=True))


def test_every_device_needs_a_worker():
    with pytest.raises(ValueError, match="got 1 workers for cuda:0, cpu"):
        share_workers([Device("cuda", 0), Device("cpu")], 1)


def test_the_command_tells_of_a_lost_device(tmp_path, monkeypatch, capsys):
    g, model = VARIANTS["pytorch"], tmp_path / "model.safetensors"
    pix2pix.checkpoints.write(model, g, weights_of("pytorch"))
    for number in range(30):
        Image.fromarray(pictures(1, 64, 64, seed=number)[0]).save(tmp_path / f"{number:02}.png")
    lost, sound = FakeDevice(), FakeDevice()
    lost.error = RuntimeError("it has fallen off the bus")

    def make_engine(generator, weights, *args, **options):
        makers = [partial(SlowReference, device, generator, weights) for device in (lost, sound)]
        return PoolEngine(generator, [WorkerGroup(f"fake:{i}", make) for i, make in enumerate(makers)])

    monkeypatch.setattr(translate, "make_engine", make_engine)
    arguments = ["translate", str(tmp_path), "-o", str(tmp_path / "out"), "-m", str(model), "--batch-size", "2"]
    assert cli.main(arguments) == 0
    printed = capsys.readouterr()
    assert "device: fake:0 (1 worker), fake:1 (1 worker)\n" in printed.err
    assert "fake:0 failed, a worker is retired and 1 are left: it has fallen off the bus" in printed.err
    assert "30 done, 0 skipped, 0 failed" in printed.out
