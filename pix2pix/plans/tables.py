"""What was measured to be fastest on kinds of GPUs: tables that are part of the package, one file for each kind.

A file has, for a precision and an aim, an algorithm for each shape of a layer, so that other networks with layers of
the same shape have something of it too. Layers, precisions and GPUs that are in no table go by the rules of
:mod:`.plan`. :mod:`bench.gpu.tune` writes these files.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from pathlib import Path

from ..atomic import write_atomically
from ..model.generator import Generator
from ..model.lowering import Op, lower
from .algorithms import Algorithm, parse

FOLDER = Path(__file__).parent / "measured"

Tables = dict[str, dict[str, dict[str, str]]]  # by precision, then tune, then shape: an algorithm


def shape(generator: Generator, op: Op) -> str:
    """What a table knows an operation by, for images of the generator's own size: ``conv 64x64 128-256``.

    64x64 is its base grid. A transposed convolution is a ``deconv``, and the one that makes the image, ``image``. Other
    kernels than 4x4 with stride 2 are named: ``conv 3x3/1 64x64 256-256``.
    """
    size = lower(generator).shapes(generator.size, generator.size)[op.sources[0].layer]
    h, w = op.sampling.base_grid(*size[:2])
    kind = "image" if op.makes_image else "deconv" if op.sampling.transposed else "conv"
    s = op.sampling
    kernel = "" if (s.kernel, s.stride) == (4, 2) else f" {s.kernel}x{s.kernel}/{s.stride}"
    return f"{kind}{kernel} {h}x{w} {op.in_channels}-{op.filters}"


def path(gpu: str) -> Path:
    """The file for a kind of GPU, by the name that CUDA gives it; "NVIDIA H200" has NVIDIA-H200.json."""
    return FOLDER / f"{re.sub(r'[^A-Za-z0-9]+', '-', gpu).strip('-')}.json"


def tables(gpu: str) -> Tables:
    """All tables for a kind of GPU, none if nothing was measured. Raises ValueError for a file that holds none."""
    file = path(gpu)
    if not file.exists():
        return {}
    try:
        return json.loads(file.read_text(encoding="utf-8"))["tables"]
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{file} should hold what was measured on {gpu}, and doesn't: {error!r}") from None


def table(gpu: str | None, precision: str, tune: str) -> Mapping[str, Algorithm]:
    """The algorithm of each shape that was measured; none for a GPU, or an aim, for which nothing was."""
    measured = tables(gpu).get(precision, {}).get(tune, {}) if gpu else {}
    return {shape: parse(name) for shape, name in measured.items()}


def save(gpu: str, facts: Mapping[str, str], found: Tables) -> Path:
    """Write what was found on a kind of GPU, over what is known for the same precisions and aims; returns the file.

    ``facts`` say where and with what it was measured, for those who read the file.
    """
    known = tables(gpu)
    for precision, aims in found.items():
        known[precision] = known.get(precision, {}) | aims
    content = {"gpu": gpu, **facts, "tables": known}
    write_atomically(path(gpu), (json.dumps(content, indent=2) + "\n").encode())
    return path(gpu)
