"""Ranks that die or hang while a job runs."""

from __future__ import annotations

import json
import os
import random
import re
import shutil
import signal
import subprocess
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import pytest

from tests.mpi.jobs import (
    IMAGES,
    OPENMPI_SETTINGS,
    REMEMBER,
    SLOW,
    ULFM,
    argv,
    command,
    files,
    needs_mpi,
    needs_ulfm,
    settings,
)

# -- ranks that die -------------------------------------------------------------------------------------------


def kill_one(
    folder: Path, start: list[str], rank: int, when: Callable[[], bool], **environment: str
) -> tuple[int, str, str]:
    """Start a job, kill a rank as soon as ``when()``; (exit status, stdout, stderr). The rank may have ended before."""
    for old in folder.glob("pid-*"):
        old.unlink()
    job = subprocess.Popen(start, **settings(folder, **environment))
    while job.poll() is None and not when():
        time.sleep(0.001)
    with suppress(FileNotFoundError, ValueError, ProcessLookupError):  # not started yet, or ended
        os.kill(int((folder / f"pid-{rank}").read_text()), signal.SIGKILL)
    out, err = job.communicate(timeout=100)
    return job.returncode, out, err


@pytest.fixture(scope="module")
def slow(folder) -> float:
    """Seconds that three ranks take for larger images; ``slow`` holds what they make of them."""
    start = time.monotonic()
    assert command(folder, "-o", "slow", *SLOW, ranks=3).returncode == 0
    return time.monotonic() - start


@needs_mpi
@pytest.mark.parametrize("attempt", [0, *(pytest.param(i, marks=pytest.mark.full) for i in range(1, 20))])
def test_the_same_command_finishes_what_a_killed_rank_left(folder, slow, attempt):
    chance = random.Random(attempt)
    shutil.rmtree(folder / "killed", ignore_errors=True)
    rank, moment = chance.randrange(3), time.monotonic() + slow * chance.uniform(0.2, 1)

    def now() -> bool:
        return time.monotonic() > moment if attempt else len(list((folder / "killed").rglob("x*"))) > IMAGES // 3

    status, _, _ = kill_one(folder, argv("-o", "killed", *SLOW, ranks=3, shell=REMEMBER), rank, now)
    there = files(folder / "killed")
    expected = files(folder / "slow")
    half = {name: data for name, data in there.items() if expected.get(name) != data}
    assert all(name.endswith(".partial") for name in half), "what has its final name is whole"
    if not attempt:
        assert status != 0 and 1 < len(there) < len(expected), "killed midway"
    done = command(folder, "-o", "killed", *SLOW, ranks=chance.randrange(1, 4))
    assert done.returncode == 0, done.stderr
    assert files(folder / "killed") == expected


@needs_mpi
@needs_ulfm
@pytest.mark.full
@pytest.mark.parametrize("attempt", range(10))
def test_survivors_finish_where_the_mpi_lets_them(folder, slow, attempt):
    chance = random.Random(attempt)
    rank, after = chance.randrange(1, 4), chance.randrange(1, IMAGES - 10)
    output = folder / f"ulfm{attempt}"
    options = ["-o", output.name, *SLOW, "--json", "ulfm.json"]
    start = [*ULFM, "-n", "4", *argv(*options, shell=REMEMBER)]

    def now() -> bool:
        return len(list(output.rglob("*.png"))) >= after

    status, out, err = kill_one(folder, start, rank, now, **OPENMPI_SETTINGS)
    assert status == 0, err
    assert re.search(rf"60 done, 0 skipped, 0 failed.*\nwithout rank {rank} on .*: lost\n", out)
    assert files(output) == files(folder / "slow")
    summary = json.loads((folder / "ulfm.json").read_text())
    assert len(summary["lost"]) == 1 and sum(r["pictures"] for r in summary["ranks"]) == IMAGES


# -- ranks that hang ------------------------------------------------------------------------------------------


def processes(folder: Path) -> list[int]:
    """Those ranks of the latest job that are still there."""
    numbers = [int(path.read_text()) for path in folder.glob("pid-*")]
    return [number for number in numbers if Path(f"/proc/{number}").exists()]


def hang_one(
    folder: Path, output: Path, options: tuple[str, ...], rank: int, interrupt: bool = False
) -> tuple[int, str, str]:
    """Start three ranks and stop one when a third of the images are done; (exit status, stdout, stderr).

    ``interrupt`` is whether the user presses Ctrl-C then.
    """
    for old in folder.glob("pid-*"):
        old.unlink()
    start = argv("-o", output.name, *SLOW, *options, ranks=3, shell=REMEMBER)
    job = subprocess.Popen(start, **settings(folder), start_new_session=True)
    try:
        while len(list(output.rglob("*.png"))) < IMAGES // 3:
            assert job.poll() is None, job.communicate()
            time.sleep(0.001)
        os.kill(int((folder / f"pid-{rank}").read_text()), signal.SIGSTOP)
        if interrupt:
            time.sleep(1)
            job.send_signal(signal.SIGINT)
        out, err = job.communicate(timeout=60)
        deadline = time.monotonic() + 10
        while processes(folder):
            assert time.monotonic() < deadline, "ranks were left behind"
            time.sleep(0.1)
        return job.returncode, out, err
    finally:
        job.kill()
        for number in processes(folder):
            os.kill(number, signal.SIGKILL)


@needs_mpi
@pytest.mark.skipif(not Path("/proc").exists(), reason="looks for processes in /proc")
@pytest.mark.parametrize("rank", [0, 2])
def test_a_rank_that_hangs_ends_the_job_and_is_named(folder, slow, rank):
    shutil.rmtree(folder / "hung", ignore_errors=True)
    json_file = ("--json", "hung.json") if rank else ()
    status, out, err = hang_one(folder, folder / "hung", ("--rank-timeout", "3", *json_file), rank)
    assert status != 0 and re.search(rf"rank {rank} on \S+ gave no sign of life for", err), err
    if rank:
        assert "sign of life" in json.loads((folder / "hung.json").read_text())["stopped"]
    assert command(folder, "-o", "hung", *SLOW, ranks=2).returncode == 0
    assert files(folder / "hung") == files(folder / "slow")


@needs_mpi
@pytest.mark.skipif(not Path("/proc").exists(), reason="looks for processes in /proc")
@pytest.mark.parametrize("rank", [1, pytest.param(0, marks=pytest.mark.full)])
def test_one_ctrl_c_ends_a_job_with_a_rank_that_hangs(folder, slow, rank):
    shutil.rmtree(folder / "hung", ignore_errors=True)
    start = time.monotonic()
    status, out, err = hang_one(folder, folder / "hung", (), rank, interrupt=True)
    assert status != 0 and time.monotonic() - start < slow + 40
    assert re.search(rf"rank {rank} on \S+ gave no sign of life for", err), err


@needs_mpi
@pytest.mark.skipif(not Path("/proc").exists(), reason="looks for processes in /proc")
def test_an_engine_that_hangs_ends_the_job(folder):
    (folder / "hanging").mkdir(exist_ok=True)
    (folder / "hanging" / "sitecustomize.py").write_text(
        "import time\nfrom pix2pix.cpu.engine import CpuEngine\nCpuEngine._translate = lambda *_: time.sleep(1000)\n"
    )
    hanging = f'[ "$PMI_RANK" != 1 ] || export PYTHONPATH="{folder / "hanging"}:$PYTHONPATH"'
    for io in ("ranks", "root"):
        done = command(folder, "-o", f"stuck-{io}", "--io", io, "--rank-timeout", "2", ranks=3, shell=hanging)
        assert done.returncode != 0 and re.search(r"stopped: rank 1 on \S+ gave no result", done.stderr)
