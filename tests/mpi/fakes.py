"""Communicators between threads of one process, in the place of MPI's."""

from __future__ import annotations

import queue
import threading
import time
from typing import Any

import numpy as np

from pix2pix.mpi.heartbeat import Heartbeat
from pix2pix.mpi.messages import POLL_SECONDS


class FakeMpi:
    """What :class:`pix2pix.mpi.heartbeat.Heartbeat` asks of MPI's communicator. Made by :meth:`connected`."""

    def __init__(self, rank: int, signs: list[list[queue.SimpleQueue]]) -> None:
        self.rank, self.size = rank, len(signs)
        self.aborted = threading.Event()
        self._signs = signs  # by receiver and sender

    @classmethod
    def connected(cls, size: int) -> list[FakeMpi]:
        """The communicators of so many ranks."""
        signs: list[list[queue.SimpleQueue]] = [[queue.SimpleQueue() for _ in range(size)] for _ in range(size)]
        return [cls(rank, signs) for rank in range(size)]

    def isend(self, sign: Any, rank: int) -> FakeMpi:
        self._signs[rank][self.rank].put(sign)
        return self

    def test(self) -> tuple[bool, None]:
        return True, None

    def iprobe(self, source: int) -> bool:
        return not self._signs[self.rank][source].empty()

    def recv(self, source: int) -> Any:
        return self._signs[self.rank][source].get()

    def Abort(self, status: int) -> None:
        self.aborted.set()


class FakeCommunicator:
    """As :class:`pix2pix.mpi.communicator.Communicator`, for ranks that are never lost. Made by :meth:`connected`."""

    def __init__(self, rank: int, inboxes: list[queue.SimpleQueue]) -> None:
        self.rank, self.members = rank, list(range(len(inboxes)))
        self.sent: list[tuple[int, Any]] = []
        self.heartbeat = Heartbeat(FakeMpi.connected(len(inboxes))[rank])  # never started
        self._inboxes = inboxes
        self._arrays: dict[int, list[np.ndarray]] = {sender: [] for sender in self.members}

    @classmethod
    def connected(cls, size: int) -> list[FakeCommunicator]:
        """The communicators of so many ranks."""
        inboxes: list[queue.SimpleQueue] = [queue.SimpleQueue() for _ in range(size)]
        return [cls(rank, inboxes) for rank in range(size)]

    @property
    def others(self) -> list[int]:
        return [rank for rank in self.members if rank != self.rank]

    def send(self, message: Any, rank: int, array: np.ndarray | None = None) -> None:
        self.sent.append((rank, message))
        self._inboxes[rank].put((self.rank, message, None if array is None else array.copy()))

    def poll(self) -> tuple[int, Any] | None:
        try:
            sender, message, array = self._inboxes[self.rank].get_nowait()
        except queue.Empty:
            return None
        if array is not None:
            self._arrays[sender].append(array)
        return sender, message

    def receive(self) -> tuple[int, Any]:
        while (message := self.poll()) is None:
            time.sleep(POLL_SECONDS)
        return message

    def receive_array(self, array: np.ndarray, rank: int) -> None:
        array[...] = self._arrays[rank].pop(0)

    def flush(self) -> None:
        """Nothing waits to be sent."""

    def close(self) -> None:
        """There is no heartbeat to end."""
