"""Communicators between threads of one process, in the place of MPI's."""

from __future__ import annotations

import queue
import time
from typing import Any

import numpy as np

from pix2pix.mpi.messages import POLL_SECONDS


class FakeCommunicator:
    """As :class:`pix2pix.mpi.communicator.Communicator`, for ranks that are never lost. Made by :meth:`connected`."""

    def __init__(self, rank: int, inboxes: list[queue.SimpleQueue]) -> None:
        self.rank, self.members = rank, list(range(len(inboxes)))
        self.sent: list[tuple[int, Any]] = []
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
