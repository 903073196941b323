"""Whether a process is one of several ranks, by the environment."""

from __future__ import annotations

from pix2pix.mpi.launch import launched


def test_launchers_are_known_by_the_environment():
    assert launched({}) == (0, 1)
    assert launched({"PMI_RANK": "2", "PMI_SIZE": "4"}) == (2, 4)
    assert launched({"OMPI_COMM_WORLD_RANK": "1", "OMPI_COMM_WORLD_SIZE": "3", "PMI_SIZE": "x"}) == (1, 3)
    assert launched({"SLURM_PROCID": "0", "SLURM_NTASKS": "16"}) == (0, 1), "a batch script, not a job step"
    assert launched({"SLURM_PROCID": "5", "SLURM_STEP_NUM_TASKS": "16"}) == (5, 16)
