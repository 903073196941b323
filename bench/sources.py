"""A name for the state of the package's sources, by which a run knows what it may go on from.

A checkout without its history has no commit to be named by.
"""

from __future__ import annotations

import hashlib
from pathlib import Path

import pix2pix

PACKAGE = Path(pix2pix.__file__).parent
ENDINGS = (".py", ".pyx", ".pxi", ".h")


def fingerprint(*endings: str) -> str:
    """12 hexadecimal digits that depend on the content of all sources, and of the package's files of other endings."""
    digest = hashlib.sha256()
    for path in sorted(path for path in PACKAGE.rglob("*") if path.suffix in (*ENDINGS, *endings)):
        digest.update(f"{path.relative_to(PACKAGE).as_posix()} {path.stat().st_size}\n".encode())
        digest.update(path.read_bytes())
    return digest.hexdigest()[:12]
