"""Rules of captures and graphs, broken on purpose."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import nullcontext, suppress

import numpy as np
import pytest

from tests.gpu.ptx.needs import MISSING

if MISSING:
    pytest.skip(MISSING, allow_module_level=True)

from numba import cuda

from .calls import Calls
from .driver import LEGACY, FakeDriver
from .faults import Fault
from .graphs import CoreStream
from .install import on_driver


@pytest.fixture
def calls() -> Calls:
    return Calls()


# -- capture --------------------------------------------------------------------------------------------------------


def test_the_legacy_stream_cannot_be_captured(calls):
    with pytest.raises(Fault, match="the legacy default stream cannot be captured"):
        CoreStream(calls.driver, LEGACY).create_graph_builder().begin_building("thread_local")


def test_a_capture_begins_and_ends_once(calls):
    with pytest.raises(Fault, match="is not captured"):
        calls.make("cuStreamEndCapture", calls.stream)
    calls.begin()
    with pytest.raises(Fault, match="is captured already"):
        calls.make("cuStreamBeginCapture", calls.stream, "thread_local")
    with pytest.raises(Fault, match="is not captured"):
        calls.make("cuStreamEndCapture", calls.other)
    with pytest.raises(Fault, match="got capture mode 'local', expected one of global, thread_local, relaxed"):
        calls.make("cuStreamBeginCapture", calls.other, "local")


def test_a_capture_is_ended_by_its_thread(calls):
    builder = calls.begin()
    with pytest.raises(Fault, match="is ended by another thread"):
        calls.elsewhere(builder.end_building)
    relaxed = Calls()
    relaxed.elsewhere(relaxed.begin("relaxed").end_building)


UNSAFE: dict[str, Callable[[Calls], object]] = {
    "cuMemAlloc": lambda calls: calls.make("cuMemAlloc", 8),
    "cuMemHostAlloc": lambda calls: calls.make("cuMemHostAlloc", 8, 0),
    "cuMemFree": lambda calls: calls.make("cuMemFree", calls.memory),
    "cuMemFreeHost": lambda calls: calls.make("cuMemFreeHost", calls.host.ctypes.data),
    "cuModuleLoad": lambda calls: calls.launch(calls.other, kernel="another"),
}


@pytest.mark.parametrize("name", list(UNSAFE))
def test_what_a_thread_may_not_do_while_it_captures(name):
    message = f"{name} while stream .* is captured"
    calls = Calls()
    calls.begin()
    with pytest.raises(Fault, match=message):
        UNSAFE[name](calls)
    for mode, is_prohibited in (("relaxed", False), ("thread_local", False), ("global", True)):
        calls = Calls()
        calls.begin(mode)
        with pytest.raises(Fault, match=message) if is_prohibited else nullcontext():
            calls.elsewhere(lambda calls=calls: UNSAFE[name](calls))


def test_nobody_waits_for_a_stream_that_is_captured(calls):
    calls.begin()
    for call in (
        lambda: calls.make("cuStreamSynchronize", calls.stream),
        lambda: calls.elsewhere(lambda: calls.make("cuStreamSynchronize", calls.stream)),
    ):
        with pytest.raises(Fault, match="is waited for while it is captured"):
            call()
    with pytest.raises(Fault, match="cuCtxSynchronize while stream .* is captured"):
        calls.elsewhere(lambda: calls.make("cuCtxSynchronize"))
    with pytest.raises(Fault, match="is destroyed while it is captured"):
        calls.make("cuStreamDestroy", calls.stream)


def test_nobody_uses_the_legacy_stream_while_another_is_captured(calls):
    calls.begin()
    array = np.zeros(64, np.uint8)
    for call in (
        lambda: calls.launch(LEGACY),
        lambda: calls.elsewhere(lambda: calls.make("cuMemcpyHtoD", calls.memory, array, 64)),
    ):
        with pytest.raises(Fault, match="the legacy default stream is used while stream .* is captured"):
            call()


def test_events_do_not_cross_the_border_of_a_capture(calls):
    before = calls.event(calls.other)
    builder = calls.begin()
    with pytest.raises(Fault, match="waits for an event across the border of a capture"):
        calls.make("cuStreamWaitEvent", calls.stream, before, 0)
    inside = calls.event(calls.stream)
    with pytest.raises(Fault, match="the host waits for an event that was recorded in a capture"):
        calls.make("cuEventSynchronize", inside)
    builder.end_building()
    with pytest.raises(Fault, match="waits for an event across the border of a capture"):
        calls.make("cuStreamWaitEvent", calls.other, inside, 0)


# -- launches -------------------------------------------------------------------------------------------------------


def test_a_graph_that_is_not_complete_or_was_destroyed(calls):
    builder = calls.begin()
    with pytest.raises(Fault, match="a graph is completed before its building has ended"):
        builder.complete()
    graph = builder.end_building().complete()
    graph.close()
    with pytest.raises(Fault, match="a graph is launched after it was destroyed"):
        graph.launch(CoreStream(calls.driver, calls.stream))


def test_a_graph_of_another_device():
    calls = Calls(devices=2)
    graph = calls.graph()
    calls.choose(1)
    with pytest.raises(Fault, match="a graph of device 0 is launched in stream .* of device 1"):
        graph.launch(CoreStream(calls.driver, calls.make("cuStreamCreate", 0)))


def test_shared_memory_that_was_not_asked_for(calls):
    with pytest.raises(Fault, match="kernel: 65536 bytes of shared memory were not asked for"):
        calls.launch(calls.stream, shared=1 << 16)
    calls.make("cuKernelSetAttribute", 8, 1 << 16, "kernel", 0)
    calls.launch(calls.stream, shared=1 << 16)


def test_faults_are_remembered_where_they_are_swallowed():
    with pytest.raises(Fault, match="the legacy default stream cannot be captured"), on_driver(FakeDriver()) as driver:
        cuda.select_device(0)
        with suppress(Fault):
            CoreStream(driver, LEGACY).create_graph_builder().begin_building("thread_local")
