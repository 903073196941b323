"""The run record: which model and options made the outputs in a folder.

It lies in the output folder as JSON. A run with the same model and options goes on where the last one stopped:
outputs not older than the record are its own and whole. A run with others must not mix its outputs with those.

A model file is known by the SHA-256 of its content, which takes 0.1 s for the usual 218 MB and is computed while the
model is being loaded; a model folder, which can hold many large checkpoints, by its files' names, sizes and times.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from .images import write

RECORD_NAME = ".pix2pix-run.json"


class RecordError(ValueError):
    """The output folder holds what this run must not mix with or replace."""


def model_identity(path: str | os.PathLike[str]) -> str:
    """What tells one model from another: a hex digest. Raises OSError if it cannot be read."""
    path = Path(path)
    if path.is_dir():
        digest = hashlib.sha256()
        for file in sorted(p for p in path.rglob("*") if p.is_file()):
            stat = file.stat()
            digest.update(f"{file.relative_to(path).as_posix()}\0{stat.st_size}\0{stat.st_mtime_ns}\0".encode())
        return digest.hexdigest()
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def begin(record: Path, made_by: Mapping[str, Any], outputs: Sequence[Path], overwrite: bool) -> set[Path]:
    """Begin or continue the run whose record is the file ``record``: the set of ``outputs`` that are done already.

    ``made_by`` is the model and the options that pixels depend on, as flat JSON. With ``overwrite``, nothing counts as
    done. Raises RecordError if ``record`` says otherwise, or if there is no record but some of the outputs exist;
    OSError if the record cannot be written.
    """
    if not overwrite:
        before = _read(record)
        if before is not None:
            _check_same(record, before, made_by)
            since = record.stat().st_mtime_ns
            return {path for path in outputs if path.exists() and path.stat().st_mtime_ns >= since}
        check_free(outputs)
    write(record, (json.dumps(made_by, indent=2) + "\n").encode())
    return set()


def _read(record: Path) -> dict[str, Any] | None:
    """The content of a record; None if there is none."""
    try:
        content = json.loads(record.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return None
    except ValueError:
        content = None
    if not isinstance(content, dict):
        raise RecordError(f"{str(record)!r} is damaged: give another output folder, or --overwrite")
    return content


def _check_same(record: Path, before: Mapping[str, Any], now: Mapping[str, Any]) -> None:
    changed = [name for name in sorted({*before, *now}) if before.get(name) != now.get(name)]
    if changed:
        lines = [f"  {name}: {before.get(name)} there, {now.get(name)} now" for name in changed]
        raise RecordError(
            f"the outputs in {str(record.parent)!r} were made with another model or other options:\n"
            + "\n".join(lines)
            + "\ngive another output folder, or --overwrite to make them again"
        )


def check_free(outputs: Sequence[Path]) -> None:
    """Raise RecordError if any of ``outputs`` exists."""
    existing = [path for path in outputs if path.exists()]
    if existing:
        raise RecordError(
            f"{str(existing[0])!r} exists already, and no record says that it was made with this model and these "
            f"options ({len(existing)} such files): give another output, or --overwrite to replace them"
        )
