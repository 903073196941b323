"""The command ``convert``: writes a model as .safetensors."""

from __future__ import annotations

import argparse
import dataclasses
from pathlib import Path

from .. import checkpoints
from ..checkpoints.text import read_json
from ..loading import read_model
from ..model.palette import Palette, palette_of
from .info import provisos


def run(args: argparse.Namespace) -> int:
    """Convert ``args.source`` into ``args.target``. Returns the exit status."""
    if args.target.suffix != ".safetensors":
        raise ValueError(f"got the target {str(args.target)!r}, expected a name ending in .safetensors")
    if args.target.exists() and args.target.samefile(args.source):
        raise ValueError(f"the target {str(args.target)!r} is the source: give another name")
    generator, weights = read_model(args.source, args.statistics, args.key, dict(args.set))
    if args.palette is not None:
        generator = dataclasses.replace(generator, palette=_palette(args.palette))
    checkpoints.write(args.target, generator, weights, dtype=args.dtype)
    if words := provisos(generator):
        print(words)
    print(f"{args.target}: {args.target.stat().st_size:,} bytes, {args.dtype}")
    return 0


def _palette(path: Path) -> Palette:
    """The palette in a JSON file. Raises ValueError, with the file's name, for anything else, OSError without it."""
    try:
        return palette_of(read_json(path.read_bytes(), "the palette"))
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from None
