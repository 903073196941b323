"""The command ``convert``: writes a model as .safetensors."""

from __future__ import annotations

import argparse

from .. import checkpoints
from ..loading import read_model
from .info import provisos


def run(args: argparse.Namespace) -> int:
    """Convert ``args.source`` into ``args.target``. Returns the exit status."""
    if args.target.suffix != ".safetensors":
        raise ValueError(f"got the target {str(args.target)!r}, expected a name ending in .safetensors")
    if args.target.exists() and args.target.samefile(args.source):
        raise ValueError(f"the target {str(args.target)!r} is the source: give another name")
    generator, weights = read_model(args.source, args.statistics, args.key, dict(args.set))
    checkpoints.write(args.target, generator, weights, dtype=args.dtype)
    if words := provisos(generator):
        print(words)
    print(f"{args.target}: {args.target.stat().st_size:,} bytes, {args.dtype}")
    return 0
