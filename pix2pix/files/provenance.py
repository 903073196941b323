"""What an output was made from and what it is; what tells one model from another."""

from __future__ import annotations

import hashlib
import os
from io import BufferedReader
from pathlib import Path
from typing import NamedTuple

from .. import checkpoints
from .codecs import READABLE


class Source(NamedTuple):
    """An input file: its absolute path, size in bytes, time of change, and the SHA-256 of its content if known.

    An input of two files, a label map and the instances in it, has the path of the first, the sums of their sizes and
    times, and the SHA-256 of both digests.
    """

    path: str
    size: int
    changed_ns: int
    digest: str | None

    @classmethod
    def of(cls, *files: Path) -> Source:
        """What an input's files are now. Raises OSError."""
        size, changed_ns, digests = 0, 0, []
        for path in files:
            with open(path, "rb") as file:
                stat = os.fstat(file.fileno())  # before the content: what changes later shows
                size, changed_ns = size + stat.st_size, changed_ns + stat.st_mtime_ns
                digests.append(digest_of(file))
        whole = digests[0] if len(files) == 1 else hashlib.sha256("".join(digests).encode()).hexdigest()
        return cls(absolute(files[0]), size, changed_ns, whole)

    def found_at(self, *files: Path, verify: bool) -> Source | None:
        """What ``files`` are now if they are this input or have its content; None otherwise. ``verify`` reads them
        always."""
        try:
            size, changed_ns = size_and_time(*files)
            if size != self.size:
                return None
            if (absolute(files[0]), changed_ns) == (self.path, self.changed_ns) and not verify:
                return self
            found = Source.of(*files)
        except OSError:
            return None
        return found if found.digest == self.digest else None


class Made(NamedTuple):
    """An output file: what it was made from, its size in bytes, and the SHA-256 of its content if known."""

    source: Source
    size: int
    digest: str | None

    @classmethod
    def of(cls, source: Source, content: bytes) -> Made:
        """The output whose file has this content."""
        return cls(source, len(content), hashlib.sha256(content).hexdigest())

    def is_whole(self, output: Path, verify: bool) -> bool:
        """Whether the file ``output`` is what was made, by its size or, with ``verify``, by its content."""
        try:
            if not output.is_file() or output.stat().st_size != self.size:
                return False
            if not verify:
                return True
            with open(output, "rb") as file:
                return digest_of(file) == self.digest
        except OSError:
            return False


def size_and_time(*files: Path) -> tuple[int, int]:
    """The sums of the sizes of files, in bytes, and of their times of change, in ns. Raises OSError."""
    stats = [path.stat() for path in files]
    return sum(stat.st_size for stat in stats), sum(stat.st_mtime_ns for stat in stats)


def digest_of(file: BufferedReader) -> str:
    """The SHA-256 of what is in an open file, in hex."""
    return hashlib.file_digest(file, "sha256").hexdigest()


def absolute(path: Path) -> str:
    """The absolute path of a file, without links in its folder's."""
    return os.path.join(os.path.realpath(path.parent), path.name)


def model_identity(path: str | os.PathLike[str]) -> str:
    """What tells one model from another: a hex digest. Raises CheckpointError or OSError if it cannot be read.

    A model file is known by the SHA-256 of its content, and of the other files that are read with it: 0.1 s for the
    usual 218 MB. A model folder, which can hold many large checkpoints, is known by its files' names, sizes and times.
    """
    path, digest = Path(path), hashlib.sha256()
    if path.is_dir():
        for file in sorted(p for p in path.rglob("*") if p.is_file() and not _is_result(p)):
            stat = file.stat()
            digest.update(f"{file.relative_to(path).as_posix()}\0{stat.st_size}\0{stat.st_mtime_ns}\0".encode())
        return digest.hexdigest()
    main, *others = checkpoints.files_of(path)
    for part in [main, *sorted(others)]:
        with open(part, "rb") as content:
            digest.update(hashlib.file_digest(content, "sha256").digest())
    return digest.hexdigest()


def _is_result(file: Path) -> bool:
    """Whether a file lies in a model's folder because images are translated into it."""
    return file.name.startswith(".") or file.suffix.lower() in (*READABLE, ".html", ".partial")
