"""What all readers share: the error, safe words about hostile names, and the widening of numbers to float32."""

from __future__ import annotations

import json
import stat
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from ..errors import CheckpointError

FLOAT_TYPES = ("float64", "float32", "float16", "bfloat16")
MAX_CHANNELS = 65536
_MAX_LISTED = 60


def shown(value: object) -> str:
    """A short, printable form of a name out of a file; never the repr of a structure, which could be endless."""
    if isinstance(value, str):
        text = repr(value[:100])
        return text if len(value) <= 100 else f"{text}..."
    if value is None or isinstance(value, bool | float):
        return repr(value)
    if isinstance(value, int) and abs(value) < 10**20:
        return repr(value)
    if isinstance(value, list | tuple) and len(value) <= 8 and all(isinstance(n, int | float) for n in value):
        return f"({', '.join(shown(n) for n in value)}{',' * (len(value) == 1)})"
    return f"a {type(value).__name__}"


def listing(problems: Sequence[str]) -> str:
    """All problems, one to a line; beyond 60 of them only their number."""
    lines = [f"\n  {problem}" for problem in problems[:_MAX_LISTED]]
    more = len(problems) - _MAX_LISTED
    return "".join(lines) + (f"\n  ... and {more} more" if more > 0 else "")


def to_float32(numbers: np.ndarray, dtype: str) -> np.ndarray:
    """Widen or round ``numbers`` to C-contiguous float32, copying only if needed.

    ``dtype`` is one of FLOAT_TYPES. bfloat16, which NumPy lacks, comes as the uint16 of its bits: the upper half of
    a float32.
    """
    if dtype == "bfloat16":
        wide = np.ascontiguousarray(numbers).astype(np.uint32)
        wide <<= 16
        return wide.view(np.float32)
    with np.errstate(over="ignore"):
        return np.require(numbers, np.float32, ["C", "A"])


def check_finite(weights: dict[str, np.ndarray]) -> None:
    """Raise CheckpointError that lists all tensors with NaN or infinity, and variances below zero."""
    problems = []
    with np.errstate(over="ignore", invalid="ignore"):
        for name, array in weights.items():
            # A finite sum proves finite terms in one pass without a temporary; an infinite one may be overflow.
            if not (np.isfinite(array.sum()) or np.isfinite(array).all()):
                problems.append(f"{name} holds numbers that are not finite")
            elif name.endswith(".variance") and array.min() < 0:
                problems.append(f"{name} holds variances below zero")
    if problems:
        raise CheckpointError(
            f"the model is damaged, or its training diverged: take an earlier checkpoint{listing(problems)}"
        )


def read_json(text: bytes, what: str) -> Any:
    """Parse JSON out of an untrusted file. Raises CheckpointError for damage, duplicate names and bottomless nesting.

    The caller bounds the length of ``text``.
    """

    def unique(pairs: Iterable[tuple[str, Any]]) -> dict[str, Any]:
        pairs = list(pairs)
        result = dict(pairs)
        if len(result) < len(pairs):
            raise CheckpointError(f"{what} has a name twice: the file is damaged or was tampered with")
        return result

    try:
        return json.loads(text.decode("utf-8"), object_pairs_hook=unique)
    except CheckpointError:
        raise
    except (ValueError, RecursionError) as error:
        raise CheckpointError(f"{what} is not valid JSON ({type(error).__name__}): the file is damaged") from None


def read_bounded(path: Path, limit: int, what: str) -> bytes:
    """The bytes of a file of at most ``limit`` bytes. Raises CheckpointError for a longer one."""
    with path.open("rb") as file:
        data = file.read(limit + 1)
    if len(data) > limit:
        raise CheckpointError(f"{path.name} has more than {limit} bytes, too many for {what}")
    return data


class StoredTensor(Protocol):
    """A tensor in a file whose numbers have not been read."""

    @property
    def shape(self) -> tuple[int, ...]:
        """Its sizes, in the file's layout."""

    @property
    def dtype(self) -> str:
        """Name of the number type in the file, e.g. ``float16``."""

    def read(self) -> np.ndarray:
        """The numbers as a float32 array of that shape."""


def matched(
    wanted: Mapping[str, tuple[str, tuple[int, ...]]], found: Mapping[str, StoredTensor], surplus: Iterable[str]
) -> dict[str, np.ndarray]:
    """The tensors that a network needs, read: ``wanted`` says under which name the file has them, and their shapes.

    ``{stored name: (canonical name, shape)}``. Raises CheckpointError that lists all that are missing, misshapen,
    of another type than floating point, and those that the network has no place for.
    """
    problems = []
    for stored, (_, shape) in wanted.items():
        if stored not in found:
            problems.append(f"missing {shown(stored)} {shape}")
        elif found[stored].shape != shape:
            problems.append(f"{shown(stored)} has shape {shown(found[stored].shape)}, expected {shape}")
        elif found[stored].dtype not in FLOAT_TYPES:
            problems.append(f"{shown(stored)} has numbers of type {found[stored].dtype}, expected floating point")
    problems += [f"surplus {shown(name)} {shown(found[name].shape)}" for name in surplus]
    if problems:
        raise CheckpointError(
            f"the tensors are not those of a pix2pix U-Net ({len(problems)} problems; the file is damaged, or its "
            f"network was changed):{listing(problems)}"
        )
    return {canonical: found[stored].read() for stored, (canonical, _) in wanted.items()}


def inside(folder: Path, name: str) -> Path | None:
    """The regular file ``name`` of the model's folder, links followed; None if there is none that can be read.

    Raises CheckpointError if it lies elsewhere, whether it exists or not.
    """
    try:
        path = (folder / name).resolve()
        if path.is_relative_to(folder.resolve()):
            return path if stat.S_ISREG(path.stat().st_mode) else None
    except (OSError, RuntimeError, ValueError):
        return None
    raise CheckpointError(f"{shown(name)} leads elsewhere: only files inside the model's own folder are read")
