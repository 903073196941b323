"""The only way this package writes files: under a temporary name beside the file, which is then renamed.

Readers therefore see the old file, the new one or none, never a part. The temporary name is
``.<name>.<pid>@<host>.partial``: it is hidden, it differs between processes that write into one folder, and it tells
whether the process that began the file is still alive.
"""

from __future__ import annotations

import os
import platform
import re
import time
from collections.abc import Callable, Collection, Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import BinaryIO

SECONDS_OF_A_WRITE = 60.0  # a partial file of another host that has not changed for so long is abandoned
_PARTIAL = re.compile(r"\.(.+)\.((\d+)@([^@]+))\.partial")


def write_atomically(path: Path, data: bytes | Callable[[BinaryIO], object]) -> None:
    """Write ``data``, or what the function ``data`` writes into the file that it is given, to ``path``.

    Makes the folder if need be. Raises OSError if the file cannot be written, and what the function raises.
    """
    with open_atomically(path) as file:
        if callable(data):
            data(file)
        else:
            file.write(data)


@contextmanager
def open_atomically(path: Path) -> Iterator[BinaryIO]:
    """A binary file that becomes ``path`` at the end of the block, or is removed if the block raises.

    Makes the folder if need be. Raises OSError if the file cannot be written.
    """
    partial = path.with_name(f".{path.name}.{process_name()}.partial")
    path.parent.mkdir(parents=True, exist_ok=True)
    try:
        with open(partial, "wb") as file:
            yield file
        os.replace(partial, path)
    except BaseException:
        partial.unlink(missing_ok=True)
        raise


def process_name() -> str:
    """What tells this process from others in temporary names: ``<pid>@<host>``."""
    return f"{os.getpid()}@{platform.node()}"


def remove_abandoned(paths: Iterable[Path], dead: Collection[str] = ()) -> None:
    """Remove the partial files of ``paths`` that killed processes left.

    ``dead`` are names of processes (:func:`process_name`) that are known to have ended. Whether a process of another
    host is alive is unknown: its files are abandoned if they have not changed for SECONDS_OF_A_WRITE.
    """
    paths = list(paths)
    names = {path.name for path in paths}
    for folder in {path.parent for path in paths}:
        for partial in folder.glob(".*.partial"):
            found = _PARTIAL.fullmatch(partial.name)
            if found is None or found[1] not in names:
                continue
            with suppress(FileNotFoundError):  # the process has just renamed it, so it is alive
                if found[2] in dead or not _may_be_alive(int(found[3]), found[4], partial):
                    partial.unlink()


def _may_be_alive(pid: int, host: str, partial: Path) -> bool:
    """Whether the process that began the file ``partial`` may still be writing it."""
    if host != platform.node():
        return time.time() - partial.stat().st_mtime < SECONDS_OF_A_WRITE
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:  # the process belongs to another user
        pass
    return True
