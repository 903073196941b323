"""One run at a time writes into a folder."""

from __future__ import annotations

import errno
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

import pix2pix
from pix2pix.errors import RecordError
from pix2pix.files import lock
from pix2pix.files.lock import SECONDS_WITHOUT_A_SIGN, Lock

HOLD = """
import sys, time
from pathlib import Path
from pix2pix.files import lock
if sys.argv[2] == "no locks":
    lock.fcntl = None
with lock.Lock(Path(sys.argv[1])):
    print("held", flush=True)
    time.sleep(60)
"""


@pytest.fixture(params=["locks", "no locks"])
def locks(request, monkeypatch) -> str:
    """Both kinds of file systems."""
    if request.param == "no locks":
        monkeypatch.setattr(lock, "fcntl", None)
    return request.param


def holder(path: Path, locks: str) -> subprocess.Popen:
    environment = os.environ | {"PYTHONPATH": str(Path(pix2pix.__file__).parents[1])}
    process = subprocess.Popen([sys.executable, "-c", HOLD, path, locks], env=environment, stdout=subprocess.PIPE)
    assert process.stdout.readline() == b"held\n"
    return process


def test_the_second_is_refused_and_told_who_holds_it(tmp_path, locks):
    path = tmp_path / "new" / ".lock"
    with holder(path, locks) as process:
        with pytest.raises(RecordError, match=f"another run writes into .*: process {process.pid} on "):
            Lock(path).__enter__()
        process.kill()
    assert path.exists()
    with Lock(path):  # what a killed process left is taken over
        assert f"process {os.getpid()} " in path.read_text()
    assert not path.exists()


def test_one_process_cannot_hold_it_twice(tmp_path):
    with Lock(tmp_path / ".lock"):
        with pytest.raises(RecordError, match=f"process {os.getpid()}"):
            Lock(tmp_path / ".lock").__enter__()


def test_other_hosts_are_believed_while_they_give_signs(tmp_path, monkeypatch):
    monkeypatch.setattr(lock, "fcntl", None)
    path = tmp_path / ".lock"
    path.write_text("1@elsewhere\nprocess 1 on elsewhere\n")
    with pytest.raises(RecordError, match="process 1 on elsewhere"):
        Lock(path).__enter__()
    then = time.time() - SECONDS_WITHOUT_A_SIGN - 1
    os.utime(path, (then, then))
    with Lock(path) as held:
        os.utime(path, (then, then))
        held.give_sign()
        assert path.stat().st_mtime > then + 1


def test_file_systems_without_locks(tmp_path, monkeypatch):
    class Unsupported:
        LOCK_EX = LOCK_NB = 0

        @staticmethod
        def flock(descriptor, how):
            raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(lock, "fcntl", Unsupported)
    with Lock(tmp_path / ".lock"):
        assert (tmp_path / ".lock").exists()
    assert not (tmp_path / ".lock").exists()
