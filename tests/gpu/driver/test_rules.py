"""Rules of contexts, lifetimes and order, broken on purpose."""

from __future__ import annotations

import numpy as np
import pytest

from tests.gpu.ptx.needs import MISSING

if MISSING:
    pytest.skip(MISSING, allow_module_level=True)

from numba import cuda

from .calls import Calls
from .contexts import LAUNCH_FAILED
from .driver import LEGACY, FakeDriver
from .faults import DriverError, Fault
from .graphs import CoreStream
from .install import on_driver


@pytest.fixture
def calls() -> Calls:
    return Calls()


# -- without a fault ------------------------------------------------------------------------------------------------


def test_the_right_order_is_no_fault_and_has_its_effect(calls):
    """As the engine does it: copy in, graph, copy out, on three streams, twice."""
    graph, core, back = calls.graph(), CoreStream(calls.driver, calls.stream), calls.make("cuStreamCreate", 0)
    result = calls.pinned(64)
    for number in (3, 9):
        calls.host[...] = number
        calls.upload(calls.other)
        calls.make("cuStreamWaitEvent", calls.stream, calls.event(calls.other), 0)
        graph.launch(core)
        calls.make("cuStreamWaitEvent", back, calls.event(calls.stream), 0)
        calls.make("cuMemcpyDtoHAsync", result, calls.memory, 64, back)
        done = calls.event(back)
        assert (result == 0xFF).all()
        calls.make("cuEventSynchronize", done)
        assert (result == number + 1).all()
    calls.make("cuMemFree", calls.memory)
    for host in (calls.host, result):
        calls.make("cuMemFreeHost", host.ctypes.data)
    assert not calls.driver.faults and not calls.driver.memory.alive() and graph.launches == 2


# -- contexts and lifetimes -----------------------------------------------------------------------------------------


def test_a_thread_without_a_context(calls):
    driver = FakeDriver()
    with pytest.raises(Fault, match="cuMemAlloc in a thread that has no context current"):
        driver.call("cuMemAlloc", 64)
    with pytest.raises(Fault, match="a thread that has chosen no device gets the context of device 0"):
        driver.call("cuCtxPushCurrent", 0)
    assert len(driver.faults) == 2


def test_numba_chooses_no_device_for_a_thread():
    with pytest.raises(Fault, match="has chosen no device"), on_driver(FakeDriver()):
        with pytest.raises(Fault, match="has chosen no device"):
            cuda.stream()


def test_another_devices_objects():
    calls = Calls(devices=2)
    event = calls.make("cuEventCreate", 0)
    calls.choose(1)
    with pytest.raises(Fault, match="stream .* of device 0 is used in a context of device 1"):
        calls.make("cuStreamSynchronize", calls.stream)
    with pytest.raises(Fault, match="an event of device 0 is recorded in stream .* of device 1"):
        calls.make("cuEventRecord", event, calls.make("cuStreamCreate", 0))
    with pytest.raises(Fault, match="memory of device 0 in a context of device 1"):
        calls.upload(calls.make("cuStreamCreate", 0))
    with pytest.raises(Fault, match="memory of device 0 are freed in a thread whose context is of device 1"):
        calls.make("cuMemFree", calls.memory)
    assert len(calls.driver.faults) == 4


def test_a_stream_that_was_destroyed(calls):
    graph = calls.graph()
    calls.make("cuStreamDestroy", calls.stream)
    for call in (lambda: calls.launch(calls.stream), lambda: graph.launch(CoreStream(calls.driver, calls.stream))):
        with pytest.raises(Fault, match="is used after it was destroyed"):
            call()


def test_an_event_that_was_destroyed(calls):
    event = calls.event(calls.stream)
    calls.make("cuEventDestroy", event)
    with pytest.raises(Fault, match="an event is used after it was destroyed"):
        calls.make("cuStreamWaitEvent", calls.other, event, 0)


def test_memory_outside_of_what_was_allocated(calls):
    with pytest.raises(Fault, match="65 bytes at .* are not within 64 bytes"):
        calls.make("cuMemcpyHtoD", calls.memory, np.zeros(65, np.uint8), 65)
    with pytest.raises(Fault, match="is freed, which no allocation returned"):
        calls.make("cuMemFree", calls.memory + 8)


def test_memory_that_was_freed(calls):
    graph = calls.graph()
    calls.make("cuMemFree", calls.memory)
    for call in (
        lambda: calls.launch(calls.stream),
        lambda: calls.upload(calls.stream),
        lambda: graph.launch(CoreStream(calls.driver, calls.stream)),
        lambda: calls.make("cuMemFree", calls.memory),
    ):
        with pytest.raises(Fault, match="64 bytes of device memory of device 0, which was freed"):
            call()


def test_memory_that_is_freed_while_it_is_used(calls):
    calls.launch(calls.stream)
    with pytest.raises(Fault, match="freed while kernel may use them"):
        calls.make("cuMemFree", calls.memory)
    calls.make("cuStreamSynchronize", calls.stream)
    calls.upload(calls.stream)
    with pytest.raises(Fault, match="pinned memory of device 0 are freed while a copy to the device .* may use them"):
        calls.make("cuMemFreeHost", calls.host.ctypes.data)
    calls.make("cuStreamSynchronize", calls.stream)
    calls.make("cuMemFreeHost", calls.host.ctypes.data)


def test_host_memory_that_ends_before_its_copy(calls):
    array = np.zeros(64, np.uint8)
    calls.make("cuMemcpyHtoDAsync", calls.memory, array, 64, calls.stream)
    del array
    with pytest.raises(Fault, match="host memory was freed before its copy was complete"):
        calls.make("cuStreamSynchronize", calls.stream)


@pytest.mark.parametrize("pageable", [False, True])
def test_host_memory_that_changes_before_its_copy(calls, pageable):
    if pageable:
        calls.host = np.zeros(64, np.uint8)
    calls.upload(calls.stream)
    calls.host[0] = 1
    with pytest.raises(Fault, match="host memory that is read changed before its copy"):
        calls.make("cuStreamSynchronize", calls.stream)


def test_host_memory_that_is_filled_before_its_copy(calls):
    calls.download(calls.stream)
    calls.host[0] = 1
    with pytest.raises(Fault, match="host memory that is written changed before its copy"):
        calls.make("cuStreamSynchronize", calls.stream)


def test_a_lost_device_stays_lost(calls):
    calls.driver.fail = lambda name, device: LAUNCH_FAILED * (name == "cuStreamSynchronize")
    for call in (
        lambda: calls.make("cuStreamSynchronize", calls.stream),
        lambda: calls.make("cuMemFree", calls.memory),
        lambda: calls.launch(calls.stream),
    ):
        with pytest.raises(DriverError, match="719"):
            call()


def test_memory_that_is_never_freed():
    driver, kept = FakeDriver(), []
    with pytest.raises(Fault, match="never freed: 1 allocations, the first of 32 bytes"), on_driver(driver):
        cuda.select_device(0)
        kept.append(cuda.device_array(8, np.float32))
    driver.faults.clear()
    with on_driver(driver):  # Numba frees by a finalizer, which needs a driver
        kept.clear()


# -- order ----------------------------------------------------------------------------------------------------------


def test_streams_that_do_not_wait_for_each_other(calls):
    calls.upload(calls.stream)
    with pytest.raises(Fault, match="kernel does not wait for a copy to the device .*: both use 64 bytes"):
        calls.launch(calls.other)


def test_streams_that_wait_for_an_earlier_event(calls):
    event = calls.event(calls.stream)
    calls.upload(calls.stream)
    calls.make("cuStreamWaitEvent", calls.other, event, 0)
    with pytest.raises(Fault, match="does not wait for"):
        calls.launch(calls.other)


def test_streams_that_only_read_need_no_order(calls):
    calls.download(calls.stream)
    host = calls.pinned(64)
    calls.make("cuMemcpyDtoHAsync", host, calls.memory, 64, calls.other)
    with pytest.raises(Fault, match="does not wait for"):
        calls.launch(calls.other)


def test_the_legacy_stream_waits_and_is_waited_for(calls):
    calls.upload(calls.stream)
    calls.download(LEGACY)
    calls.launch(calls.other)
    assert not calls.driver.faults


def test_graphs_that_use_the_same_memory(calls):
    graph = calls.graph()
    graph.launch(CoreStream(calls.driver, calls.stream))
    graph.launch(CoreStream(calls.driver, calls.other))  # ordered behind its other launch
    with pytest.raises(Fault, match="does not wait for"):
        calls.download(calls.stream)


def test_an_event_that_was_never_recorded(calls):
    event = calls.make("cuEventCreate", 0)
    with pytest.raises(Fault, match="the host waits for an event that was never recorded"):
        calls.make("cuEventSynchronize", event)
    with pytest.raises(Fault, match="waits for an event that was never recorded"):
        calls.make("cuStreamWaitEvent", calls.stream, event, 0)
