"""Streams, events and operations: which happens before which, and what is complete.

A clock says, for each stream, how many of its operations are known to be complete: it is what an operation waits for,
or what an event has recorded. Operations take effect when the host waits for a clock that has them, in the order of
their submission, which respects all clocks.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from .faults import Fault
from .memory import Span

if TYPE_CHECKING:
    from .graphs import Capture

Clock = dict[int, int]  # by a stream's handle


def merge(clock: Clock, other: Clock) -> None:
    """Add what another clock knows."""
    for handle, count in other.items():
        clock[handle] = max(count, clock.get(handle, 0))


@dataclass(frozen=True)
class Work:
    """What an operation is to do: bytes that it reads and writes, and how it changes them."""

    what: str
    reads: tuple[Span, ...]
    writes: tuple[Span, ...]
    effect: Callable[[], None]

    def spans(self) -> Iterable[tuple[Span, bool]]:
        """All bytes, and whether they are written."""
        yield from ((span, False) for span in self.reads)
        yield from ((span, True) for span in self.writes)


@dataclass(eq=False)
class Stream:
    """A stream of a device's context; handle 0 stands for the legacy default stream of every context."""

    handle: int
    device: int
    clock: Clock = field(default_factory=dict)
    alive: bool = True
    capture: Capture | None = None

    @property
    def count(self) -> int:
        """Operations that were submitted."""
        return self.clock.get(self.handle, 0)

    def __str__(self) -> str:
        return f"stream {self.handle:#x} of device {self.device}"


@dataclass(eq=False)
class Event:
    """An event of a device's context. ``clock`` is what it has recorded, if it has; ``capture`` where."""

    handle: int
    device: int
    clock: Clock | None = None
    capture: Capture | None = None
    alive: bool = True


@dataclass(eq=False)
class Operation:
    """Work in a stream, its number there, and what is complete when it is."""

    work: Work
    stream: Stream
    number: int
    clock: Clock
    done: bool = False

    @property
    def what(self) -> str:
        """For messages."""
        return self.work.what


class Timeline:
    """All operations that are not done yet."""

    def __init__(self) -> None:
        self._pending: list[Operation] = []

    def submit(self, work: Work, stream: Stream) -> Operation:
        """Add work to a stream. Raises Fault if it conflicts with what other streams do."""
        stream.clock[stream.handle] = stream.count + 1
        operation = Operation(work, stream, stream.count, dict(stream.clock))
        for span, is_written in work.spans():
            span.allocation.check_alive(work.what)
            for earlier, other, was_written in span.allocation.uses:
                is_conflict = (is_written or was_written) and span.overlaps(other) and not earlier.done
                if is_conflict and operation.clock.get(earlier.stream.handle, 0) < earlier.number:
                    raise Fault(f"{work.what} does not wait for {earlier.what}: both use {span.allocation}")
        for span, is_written in work.spans():
            span.allocation.pending()
            span.allocation.uses.append((operation, span, is_written))
        self._pending.append(operation)
        return operation

    def complete(self, clock: Clock) -> None:
        """Do what a clock knows to be complete."""
        due = [operation for operation in self._pending if operation.number <= clock.get(operation.stream.handle, 0)]
        for operation in due:
            for span, _ in operation.work.spans():
                span.allocation.check_alive(operation.what)
            operation.work.effect()
            operation.done = True
        self._pending = [operation for operation in self._pending if not operation.done]

    def drop(self, device: int) -> None:
        """Forget what a lost device was to do."""
        for operation in self._pending:
            operation.done = operation.done or operation.stream.device == device
        self._pending = [operation for operation in self._pending if not operation.done]
