"""How rank 0 directs a run over files. The files don't exist, so that every outcome is a failure and comes at once."""

from __future__ import annotations

from pathlib import Path

import pytest

from pix2pix.files.fitting import Fitting
from pix2pix.files.jobs import Job
from pix2pix.mpi.files import FileLeader
from pix2pix.mpi.messages import JobRequest, RankInfo, TranslateFiles
from pix2pix.mpi.root import Ranks
from tests.engines.fakes import SMALL, FakeDevice
from tests.mpi.fakes import FakeCommunicator
from tests.mpi.test_transport import Inverting


def leader_of(comm: FakeCommunicator, count: int) -> FileLeader:
    ranks, nowhere = Ranks(comm), Path("/nowhere")
    ranks.info = {rank: RankInfo(host="here") for rank in comm.members}
    jobs = [Job(nowhere / f"{i}.png", nowhere / f"{i}-out.png", str(i)) for i in range(count)]
    return FileLeader(ranks, TranslateFiles(Fitting.of(SMALL), 2, None, (nowhere, b""), nowhere), jobs)


def test_rank_0_does_all_jobs_that_no_other_rank_requests():
    comms = FakeCommunicator.connected(2)
    comms[1].send(JobRequest(failure="its engine failed"), 0)
    outcomes = list(leader_of(comms[0], 100).outcomes(Inverting(FakeDevice()), []))
    assert sorted(int(outcome.job.name) for outcome in outcomes) == list(range(100))


def test_a_fatal_error_of_another_rank_ends_the_run_while_rank_0_computes():
    comms = FakeCommunicator.connected(2)
    comms[1].send(JobRequest(failure="the disk is full", fatal=True), 0)
    with pytest.raises(RuntimeError, match="^rank 1 on here: the disk is full$"):
        list(leader_of(comms[0], 1000).outcomes(Inverting(FakeDevice()), []))
