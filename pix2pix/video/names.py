"""Which names are those of films and of numbered images."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Literal, NamedTuple

Kind = Literal["film", "images"]


class Container(NamedTuple):
    """FFmpeg's name of a format that films are written in, and of the encoder that suits it."""

    format: str
    codec: str


CONTAINERS = {
    ".mp4": Container("mp4", "libx264"),
    ".m4v": Container("mp4", "libx264"),
    ".mov": Container("mov", "libx264"),
    ".mkv": Container("matroska", "libx264"),
    ".webm": Container("webm", "libvpx-vp9"),
    ".gif": Container("gif", "gif"),
}
FILMS = (".avi", ".flv", ".m2ts", ".mpeg", ".mpg", ".mts", ".ogv", ".ts", ".wmv", ".3gp")  # which are only read
_NUMBER = re.compile(r"%(?:0(\d+))?d")  # not %20d, which names from the web have: my%20dog.mp4


def input_kind(path: Path) -> Kind | None:
    """What an input is by its name. A .gif is an image unless the output is a film."""
    if is_numbered(path):
        return "images"
    suffix = path.suffix.lower()
    return "film" if suffix != ".gif" and (suffix in CONTAINERS or suffix in FILMS) else None


def output_kind(path: Path) -> Kind | None:
    """What an output is by its name."""
    if is_numbered(path):
        return "images"
    return "film" if path.suffix.lower() in CONTAINERS else None


def is_numbered(path: Path) -> bool:
    """Whether a name stands for numbered files, as ``%05d.png`` does."""
    return _NUMBER.search(path.name) is not None


def numbered(pattern: Path) -> dict[int, Path]:
    """The files that a name such as ``%05d.png`` stands for, by their numbers, in order."""
    found = _NUMBER.search(pattern.name)
    if found is None or not pattern.parent.is_dir():
        return {}
    before, after = (re.escape(text) for text in (pattern.name[: found.start()], pattern.name[found.end() :]))
    name = re.compile(f"{before}(\\d+){after}")
    numbers = {int(match[1]): path for path in pattern.parent.iterdir() if (match := name.fullmatch(path.name))}
    return {number: path for number, path in sorted(numbers.items()) if path.name == name_of(pattern, number).name}


def name_of(pattern: Path, number: int) -> Path:
    """The file of a number."""
    return pattern.with_name(_NUMBER.sub(lambda found: f"{number:0{found[1] or 0}d}", pattern.name, count=1))
