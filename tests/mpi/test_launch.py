"""Whether a process is one of several ranks, by the environment; and the end of their job."""

from __future__ import annotations

from contextlib import suppress

import pytest

from pix2pix.mpi import launch
from pix2pix.mpi.launch import launched


def test_launchers_are_known_by_the_environment():
    assert launched({}) == (0, 1)
    assert launched({"PMI_RANK": "2", "PMI_SIZE": "4"}) == (2, 4)
    assert launched({"OMPI_COMM_WORLD_RANK": "1", "OMPI_COMM_WORLD_SIZE": "3", "PMI_SIZE": "x"}) == (1, 3)
    assert launched({"SLURM_PROCID": "0", "SLURM_NTASKS": "16"}) == (0, 1), "a batch script, not a job step"
    assert launched({"SLURM_PROCID": "5", "SLURM_STEP_NUM_TASKS": "16"}) == (5, 16)


@pytest.mark.parametrize("interrupt", [None, KeyboardInterrupt])
def test_a_job_ends_when_its_messages_have_been_forwarded(monkeypatch, interrupt):
    """A launcher that is told to end a job may drop what it has read from its ranks."""
    events = []

    class Comm:
        def Abort(self, status: int) -> None:
            events.append(status)

    def sleep(seconds: float) -> None:
        events.append(seconds)
        if interrupt:
            raise interrupt

    monkeypatch.setattr(launch.time, "sleep", sleep)
    with suppress(KeyboardInterrupt):
        launch.abort(Comm(), 2)
    assert events == [launch.SECONDS_TO_FORWARD, 2]
