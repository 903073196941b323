"""The labels that a generator knows by colour: their names, and the colours that they are drawn in.

Written as JSON, {"sky": "#aadcff", ...}, in the order in which they are shown.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any, TypeAlias

Colour: TypeAlias = tuple[int, int, int]  # red, green and blue, 0 to 255
Palette: TypeAlias = tuple[tuple[str, Colour], ...]

MOST_LABELS = 256
LONGEST_NAME = 60  # characters


def palette_of(value: Any) -> Palette:
    """The palette that :func:`described` made. Raises ValueError for anything else, and for one colour given twice."""
    if not isinstance(value, Mapping) or not 0 < len(value) <= MOST_LABELS:
        raise ValueError(f'no palette: expected an object of 1 to {MOST_LABELS} labels, e.g. {{"sky": "#aadcff"}}')
    named: dict[Colour, str] = {}
    for name, colour in value.items():
        if not (0 < len(name) <= LONGEST_NAME and name.isprintable()):  # it is shown on terminals, too
            raise ValueError(f"got a label named {name[:LONGEST_NAME]!r}, expected 1 to {LONGEST_NAME} characters")
        if not isinstance(colour, str) or not re.fullmatch(r"#[0-9a-fA-F]{6}", colour):
            raise ValueError(f"the label {name!r} has no colour: expected #rrggbb, e.g. #aadcff")
        red, green, blue = bytes.fromhex(colour[1:])
        other = named.setdefault((red, green, blue), name)
        if other != name:
            raise ValueError(f"{other!r} and {name!r} have one colour, {colour}: give each label its own")
    return tuple((name, colour) for colour, name in named.items())


def described(palette: Palette) -> dict[str, str]:
    """A palette as JSON can hold it: "#rrggbb" by name."""
    return {name: "#" + bytes(colour).hex() for name, colour in palette}
