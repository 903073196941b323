"""The lock of an output: one run at a time writes into a folder."""

from __future__ import annotations

import errno
import os
import platform
import time
from contextlib import suppress
from datetime import datetime
from pathlib import Path

from ..atomic import is_alive, process_name
from ..errors import RecordError

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None  # type: ignore[assignment]

SECONDS_WITHOUT_A_SIGN = 900.0  # after which a process of another host is taken for dead, where files cannot be locked
_UNSUPPORTED = (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP, errno.EINVAL)


class Lock:
    """A file that one process at a time holds, which removes it at the end. Use it as a context manager.

    The system's lock on the file (flock, also over NFS) ends with the process, however that ends, so what a killed
    process left is taken over. Where the file system has no locks, the file's existence is the lock, and it is taken
    over if its process has ended, or gave no sign for SECONDS_WITHOUT_A_SIGN on another host.

    Raises RecordError that names the process that holds it, OSError if the file cannot be written.
    """

    def __init__(self, path: Path) -> None:
        self.path = path

    def __enter__(self) -> Lock:
        self.path.parent.mkdir(parents=True, exist_ok=True)
        while True:
            self._descriptor = os.open(self.path, os.O_RDWR | os.O_CREAT, 0o666)
            try:
                if self._take() and self._is_in_place():
                    since = datetime.now().isoformat(" ", "seconds")
                    text = f"{process_name()}\nprocess {os.getpid()} on {platform.node()}, since {since}\n"
                    os.ftruncate(self._descriptor, 0)
                    os.pwrite(self._descriptor, text.encode(), 0)
                    return self
            except BaseException:
                os.close(self._descriptor)
                raise
            os.close(self._descriptor)  # another process has removed the file meanwhile

    def __exit__(self, *exc_info: object) -> None:
        with suppress(OSError):
            if self._is_in_place():
                self.path.unlink()
        os.close(self._descriptor)

    def give_sign(self) -> None:
        """Show other hosts that this process is alive. Raises RuntimeError if the folder was moved or removed."""
        if not self._is_in_place():
            raise RuntimeError(f"the output folder {str(self.path.parent)!r} was moved or removed during the run")
        os.utime(self._descriptor)

    def _take(self) -> bool:
        """Whether the file is this process's now; False if it has to be opened again."""
        if fcntl is not None:
            try:
                fcntl.flock(self._descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                return True
            except OSError as error:
                if error.errno not in _UNSUPPORTED:
                    self._refuse()
        owner = self._owner()[0]
        if not owner or owner == process_name():
            return True
        age = time.time() - os.fstat(self._descriptor).st_mtime
        if is_alive(owner, age < SECONDS_WITHOUT_A_SIGN):
            self._refuse()
        self.path.unlink(missing_ok=True)
        return False

    def _refuse(self) -> None:
        raise RecordError(
            f"another run writes into {str(self.path.parent)!r}: {self._owner()[1] or 'a process'}; wait until it has "
            f"ended, or give another output folder"
        )

    def _owner(self) -> tuple[str, str]:
        """The name of the process that wrote the file, and what people call it."""
        name, _, told = os.pread(self._descriptor, 1000, 0).decode(errors="replace").partition("\n")
        return name, told.strip()

    def _is_in_place(self) -> bool:
        try:
            there, held = self.path.stat(), os.fstat(self._descriptor)
        except OSError:
            return False
        return (there.st_dev, there.st_ino) == (held.st_dev, held.st_ino)
