"""Descriptions in model files, and safe words about them: JSON, lists of problems, names that may be hostile."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from typing import Any

from ..errors import CheckpointError

_MAX_JSON = 2 << 20  # bytes; the graph of a U-Net of 8 levels takes some 60,000
_MAX_NAME = 1000
_MAX_LISTED = 60


def shown(value: object) -> str:
    """A short, printable form of a value from a file; never the repr of a structure, which could be endless."""
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
    """All problems, one per line; of more than 60 the rest is only counted."""
    lines = [f"\n  {problem}" for problem in problems[:_MAX_LISTED]]
    more = len(problems) - _MAX_LISTED
    return "".join(lines) + (f"\n  ... and {more} more" if more > 0 else "")


def read_json(text: bytes, what: str) -> Any:
    """Parse JSON from an untrusted file. Raises CheckpointError for damage, a name twice, and too much of it."""
    if len(text) > _MAX_JSON:
        raise CheckpointError(f"{what} has {len(text)} bytes, too many for the description of a model")

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


def entry(config: Any, name: str, kind: type, owner: str) -> Any:
    """``config[name]`` if it exists, has that type and, as a string, an end. Raises CheckpointError if not.

    ``owner`` is what the message calls ``config``.
    """
    value = config.get(name) if isinstance(config, dict) else None
    if not isinstance(value, kind) or (isinstance(value, str) and len(value) > _MAX_NAME):
        raise CheckpointError(f"{owner} has no {kind.__name__} {name!r}: the file is damaged or of another kind")
    return value


def one_generator(key: str | None) -> None:
    """Raise CheckpointError if a key is given for a format that holds one generator."""
    if key is not None:
        raise CheckpointError(f"got key {shown(key)}, but this format holds one generator: leave the key out")
