"""The run record: which model and options made the outputs in a folder.

It lies in the output folder as JSON. A run with the same model and options goes on where the last one stopped:
outputs not older than the record are its own and whole. A run with others must not mix its outputs with those.

A model file is known by the SHA-256 of its content (and of the shards that it names), which takes 0.1 s for the usual
218 MB and is computed while the model is being loaded; a model folder, which can hold many large checkpoints, by its
files' names, sizes and times.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ..atomic import remove_abandoned, write_atomically
from ..errors import RecordError
from .codecs import READABLE

RECORD_NAME = ".pix2pix-run.json"


def model_identity(path: str | os.PathLike[str]) -> str:
    """What tells one model from another: a hex digest. Raises OSError if it cannot be read."""
    path = Path(path)
    digest = hashlib.sha256()
    if path.is_dir():
        for file in sorted(p for p in path.rglob("*") if p.is_file() and not _is_result(p)):
            stat = file.stat()
            digest.update(f"{file.relative_to(path).as_posix()}\0{stat.st_size}\0{stat.st_mtime_ns}\0".encode())
        return digest.hexdigest()
    if not path.is_file():
        raise FileNotFoundError(f"there is no model file {str(path)!r}")
    for part in [path, *_shards(path)]:
        with open(part, "rb") as content:
            digest.update(hashlib.file_digest(content, "sha256").digest())
    return digest.hexdigest()


def _is_result(file: Path) -> bool:
    """Whether a file lies in a model's folder because images are translated into it."""
    return file.name.startswith(".") or file.suffix.lower() in (*READABLE, ".html", ".partial")


def _shards(path: Path) -> list[Path]:
    """The files beside a model's JSON description that it names: TensorFlow.js keeps weights apart."""
    if path.suffix != ".json":
        return []
    text = path.read_text(encoding="utf-8", errors="replace")
    return sorted(p for p in path.parent.iterdir() if p.is_file() and p != path and f'"{p.name}"' in text)


def begin(record: Path, made_by: Mapping[str, Any], outputs: Sequence[Path], overwrite: bool) -> set[Path]:
    """Begin or continue the run whose record is the file ``record``: the set of ``outputs`` that are done already.

    ``made_by`` is the model and the options that pixels depend on, as flat JSON. With ``overwrite``, nothing counts as
    done. What killed processes left of unfinished ones is removed. Raises RecordError if ``record`` says otherwise, or
    if there is no record but some of the outputs exist;
    OSError if the record cannot be written.
    """
    if not overwrite:
        before = _read(record)
        if before is not None:
            _check_same(record, before, made_by)
            since = record.stat().st_mtime_ns
            done = {path for path in outputs if path.exists() and path.stat().st_mtime_ns >= since}
            remove_abandoned([record, *(path for path in outputs if path not in done)])
            return done
        check_free(outputs)
    write_atomically(record, (json.dumps(made_by, indent=2) + "\n").encode())
    remove_abandoned([record, *outputs])
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
