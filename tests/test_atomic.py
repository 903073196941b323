"""The atomic writer: files are whole or not there, and what killed processes left is removed."""

from __future__ import annotations

import os
import time
from pathlib import Path

import pytest

from pix2pix import atomic
from pix2pix.atomic import hidden_beside, is_alive, open_atomically, process_name, remove_abandoned, write_atomically


def test_files_appear_whole_under_their_name(tmp_path: Path) -> None:
    path = tmp_path / "new" / "x.png"
    with open_atomically(path) as file:
        file.write(b"half")
        (partial,) = path.parent.iterdir()
        assert partial.name == f".x.png.{process_name()}.partial" and str(os.getpid()) in partial.name
    assert list(path.parent.iterdir()) == [path] and path.read_bytes() == b"half"
    write_atomically(path, b"data")
    assert path.read_bytes() == b"data"
    write_atomically(path, lambda file: file.writelines([b"a", b"b"]))
    assert path.read_bytes() == b"ab"


@pytest.mark.parametrize("error", [OSError("full"), KeyboardInterrupt(), ValueError("no")])
def test_what_is_interrupted_leaves_the_old_file(tmp_path: Path, error: BaseException) -> None:
    path = tmp_path / "x"
    write_atomically(path, b"old")
    with pytest.raises(type(error)), open_atomically(path) as file:
        file.write(b"new")
        raise error
    assert list(tmp_path.iterdir()) == [path] and path.read_bytes() == b"old"


def test_what_killed_processes_left_is_removed(tmp_path: Path) -> None:
    gone = f"99999999@{process_name().partition('@')[2]}"
    writers = [gone, process_name(), "1@elsewhere", "2@elsewhere", "3@elsewhere"]
    partials = [tmp_path / f".x.{writer}.partial" for writer in writers]
    others = [tmp_path / f".y.{gone}.partial", tmp_path / ".x.partial", tmp_path / "x"]
    for path in (*partials, *others):
        path.write_bytes(b"half")
    os.utime(partials[3], (time.time() - 90, time.time() - 90))
    remove_abandoned([tmp_path / "x"], dead=["3@elsewhere"])
    assert sorted(tmp_path.iterdir()) == sorted([*partials[1:3], *others])


def test_names_as_long_as_they_can_be_are_written(tmp_path: Path) -> None:
    for name in ("x" * 251 + ".png", "模" * 83 + ".png"):
        path = tmp_path / name
        with open_atomically(path) as file:
            file.write(b"data")
        assert path.read_bytes() == b"data"
        ending = f".1@elsewhere{'0' * 8}.partial"
        hidden_beside(path, ending).write_bytes(b"half")
        remove_abandoned([tmp_path / "another"], dead=[ending.split(".")[1]])
        assert hidden_beside(path, ending).exists()
        remove_abandoned([path], dead=[ending.split(".")[1]])
        assert not hidden_beside(path, ending).exists()


def test_processes_are_told_apart(monkeypatch: pytest.MonkeyPatch) -> None:
    assert is_alive(process_name(), False) and not is_alive(f"99999999@{process_name().partition('@')[2]}", True)
    assert is_alive("1@elsewhere", True) and not is_alive("1@elsewhere", False)
    before = process_name()
    atomic._where.cache_clear()
    monkeypatch.setattr(os, "readlink", lambda path: "pid:[1]")  # another container
    try:
        assert process_name() != before and process_name().partition("@")[0] == before.partition("@")[0]
    finally:
        atomic._where.cache_clear()
