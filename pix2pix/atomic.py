"""The only way this package writes files: under a temporary name beside the file, which is then renamed.

Readers therefore see the old file, the new one or none, never a part. The temporary name is
``.<name>.<pid>@<where>.partial``: it is hidden, it differs between processes that write into one folder, and it tells
whether the process that began the file is still alive.
"""

from __future__ import annotations

import os
import platform
import re
import time
import zlib
from collections.abc import Callable, Collection, Iterable, Iterator
from contextlib import contextmanager, suppress
from functools import cache
from pathlib import Path
from typing import BinaryIO

SECONDS_OF_A_WRITE = 60.0  # a partial file of another host that has not changed for so long is abandoned
MAX_NAME = 255  # bytes in a file's name
_PARTIAL = re.compile(r"\.(.+)\.(\d+@[^@]+)\.partial", re.DOTALL)


def write_atomically(path: Path, data: bytes | Callable[[BinaryIO], object], *, sync: bool = True) -> None:
    """Write ``data``, or what the function ``data`` writes into the file that it is given, to ``path``.

    Makes the folder if need be. Raises OSError if the file cannot be written, and what the function raises. See
    :func:`open_atomically` for ``sync``.
    """
    with open_atomically(path, sync=sync) as file:
        if callable(data):
            data(file)
        else:
            file.write(data)


@contextmanager
def open_atomically(path: Path, *, sync: bool = True) -> Iterator[BinaryIO]:
    """A binary file that becomes ``path`` at the end of the block, or is removed if the block raises.

    With ``sync`` the content is on the disk before the file gets its name, so that a power cut cannot leave an empty
    file of that name. Makes the folder if need be. Raises OSError if the file cannot be written.
    """
    partial = hidden_beside(path, f".{process_name()}.partial")
    path.parent.mkdir(parents=True, exist_ok=True)
    try:
        with open(partial, "wb") as file:
            yield file
            if sync:
                file.flush()
                os.fsync(file.fileno())
        os.replace(partial, path)
    except BaseException:
        partial.unlink(missing_ok=True)
        raise


def hidden_beside(path: Path, ending: str) -> Path:
    """The file ``.<name><ending>`` beside ``path``; its name is shortened if file systems would not take it."""
    name, room = os.fsencode(path.name), MAX_NAME - 1 - len(os.fsencode(ending))
    if len(name) > room:
        name = name[: room - 9] + b"-" + _checksum(name).encode()
    return path.with_name(f".{os.fsdecode(name)}{ending}")


def _is_shortened(hidden: Path, names: Iterable[str], ending: str) -> bool:
    """Whether ``hidden`` is :func:`hidden_beside` a file with one of ``names`` that is too long."""
    is_full = len(os.fsencode(hidden.name)) == MAX_NAME
    return is_full and any(hidden_beside(hidden.with_name(name), ending) == hidden for name in names)


def process_name() -> str:
    """What tells this process from others in temporary names: ``<pid>@<where>``."""
    return f"{os.getpid()}@{_where()}"


@cache
def _where() -> str:
    """What tells hosts, their boots and containers apart, in which process numbers mean different processes."""
    facts = [platform.node()]
    with suppress(OSError):
        facts += [Path("/proc/sys/kernel/random/boot_id").read_text(), os.readlink("/proc/self/ns/pid")]
    return _checksum("\0".join(facts).encode())


def _checksum(content: bytes) -> str:
    """Eight hexadecimal digits. hashlib would do, but takes 3 MiB of memory for OpenSSL in every process."""
    return f"{zlib.crc32(content):08x}"


def is_alive(process: str, was_active: bool) -> bool:
    """Whether a process, by its :func:`process_name`, may be alive; ``was_active`` decides for one of another host."""
    pid, _, where = process.partition("@")
    if where not in (_where(), platform.node()) or not pid.isdecimal():  # version 0.1.0 wrote the host's name
        return was_active
    try:
        os.kill(int(pid), 0)
    except (ProcessLookupError, OverflowError):
        return False
    except PermissionError:  # the process belongs to another user
        pass
    return True


def remove_abandoned(paths: Iterable[Path], dead: Collection[str] = ()) -> None:
    """Remove the partial files of ``paths`` that killed processes left.

    ``dead`` are names of processes (:func:`process_name`) that are known to have ended. Whether a process of another
    host is alive is unknown: its files are abandoned if they have not changed for SECONDS_OF_A_WRITE.
    """
    by_folder: dict[Path, set[str]] = {}
    for path in paths:
        by_folder.setdefault(path.parent, set()).add(path.name)
    for folder, names in by_folder.items():
        for partial in folder.glob(".*.partial"):
            found = _PARTIAL.fullmatch(partial.name)
            if found is None:
                continue
            if found[1] not in names and not _is_shortened(partial, names, f".{found[2]}.partial"):
                continue
            with suppress(FileNotFoundError):  # the process has just renamed it, so it is alive
                is_recent = time.time() - partial.stat().st_mtime < SECONDS_OF_A_WRITE
                if found[2] in dead or not is_alive(found[2], is_recent):
                    partial.unlink()
