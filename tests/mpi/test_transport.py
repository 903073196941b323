"""An engine of all ranks, whose ranks are threads of one process: what is sent, and what becomes of it."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager

import numpy as np
import pytest

from pix2pix.engines.base import BaseEngine
from pix2pix.mpi.messages import CancelRequest, EngineRequest, RankInfo
from pix2pix.mpi.root import Ranks
from pix2pix.mpi.worker import Worker
from tests.engines.fakes import SMALL, FakeDevice
from tests.mpi.fakes import FakeCommunicator


class Inverting(BaseEngine):
    """Inverts images on a fake device, for any thread."""

    def __init__(self, device: FakeDevice) -> None:
        super().__init__(SMALL)
        self._device = device

    def _translate(self, b: np.ndarray, out: np.ndarray, stop: threading.Event) -> None:
        self._device.compute(len(b), stop)
        if not stop.is_set():
            out[...] = 255 - b


@contextmanager
def all_ranks(*devices: FakeDevice) -> Iterator[tuple[BaseEngine, list[FakeCommunicator]]]:
    """The engine of ranks that have a fake device each, and their communicators."""
    comms = FakeCommunicator.connected(len(devices))
    ranks, threads = Ranks(comms[0]), []
    for rank, device in enumerate(devices):
        ranks.info[rank] = RankInfo(host="here")
        if rank:
            worker = Worker(comms[rank])
            worker.engine = Inverting(device)
            threads.append(threading.Thread(target=worker.serve))
            threads[-1].start()
    with closing(ranks.one_engine(Inverting(devices[0]))) as engine:
        yield engine, comms
    ranks.shut_down()
    for thread in threads:
        thread.join(10)
        assert not thread.is_alive()


def images(count: int) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (count, 4, 4, 3), dtype=np.uint8)


def test_ranks_share_a_batch():
    devices, b = [FakeDevice(0.01) for _ in range(3)], images(30)
    with all_ranks(*devices) as (engine, _):
        np.testing.assert_array_equal(engine.translate(b), 255 - b)
    done = [sum(device.batches) for device in devices]
    assert sum(done) == 30 and sum(done[1:]) > 0


def test_a_rank_is_told_to_stop_and_gives_up():
    devices, b, stop = [FakeDevice(), FakeDevice()], images(4), threading.Event()
    for device in devices:
        device.going.clear()
    with all_ranks(*devices) as (engine, comms):
        out = np.full_like(b, 7)
        threading.Timer(0.2, stop.set).start()
        start = time.monotonic()
        engine.translate_until(stop, b, out)
        assert time.monotonic() - start < 2
        sent = [type(message) for _, message in comms[0].sent]
        assert sent.count(CancelRequest) == sent.count(EngineRequest) > 0
        while len(comms[1].sent) < sent.count(EngineRequest):
            assert time.monotonic() - start < 10, "the rank has not given up"
            time.sleep(0.001)
        for device in devices:
            device.going.set()
        np.testing.assert_array_equal(engine.translate(b), 255 - b)
    assert sum(sum(device.batches) for device in devices) == 4, "what was cancelled was not computed"


def test_a_result_that_comes_too_late_is_not_written():
    """The rank has computed its images when the request is cancelled, but has not sent them yet."""
    devices, b, stop = [FakeDevice(), FakeDevice()], images(4), threading.Event()
    devices[0].going.clear()
    with all_ranks(*devices) as (engine, comms):
        send, hold = comms[1].send, threading.Event()

        def send_late(*arguments: object) -> None:
            hold.wait(10)
            send(*arguments)

        comms[1].send = send_late
        out = np.full_like(b, 7)
        threading.Timer(0.2, stop.set).start()
        engine.translate_until(stop, b, out)
        hold.set()
        devices[0].going.set()
        np.testing.assert_array_equal(engine.translate(b), 255 - b)
        assert (out == 7).all()


def test_an_engine_that_fails_on_a_rank_loses_the_rank():
    devices, b = [FakeDevice(), FakeDevice()], images(8)
    devices[1].error = OSError("fell off the bus")
    with all_ranks(*devices) as (engine, _):
        np.testing.assert_array_equal(engine.translate(b), 255 - b)
    assert sum(devices[0].batches) == 8


def test_what_a_remote_engine_refuses_is_raised():
    devices = [FakeDevice(), FakeDevice()]
    with all_ranks(*devices) as (engine, _):
        devices[1].error = ValueError("an unlucky image")
        devices[0].error = ValueError("an unlucky image")
        with pytest.raises(ValueError, match="unlucky"):
            engine.translate(images(8))
