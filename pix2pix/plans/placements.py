"""Which layers run on the GPU, in words.

A placement in words is ``all``, ``seed-b``, ``seed-c``, or a list such as ``encoder_2-4,decoder_4-2``: names of layers,
and ranges of them in the order of the layers.

``seed-b`` stands for the course's split: the three convolutions and the three transposed ones with the most
multiplications, where a tie goes to the earlier layer (encoder_2-4 and decoder_4-2 in the published network).
``seed-c`` is all but the last layer. docs/placement.md says why. ``auto`` is measured, see
:mod:`pix2pix.engines.measured_placement`.
"""

from __future__ import annotations

import os
import re
from collections.abc import Collection
from typing import Any

from ..model.generator import Generator
from .algorithms import ALGORITHMS
from .heuristics import choose
from .plan import Plan, place, read

RANGE = re.compile(r"(?P<prefix>.+_)(?P<first>\d+)-(?P<last>\d+)")
SEED_B = 3  # convolutions on the GPU, and as many transposed ones


def parse_placement(text: str, generator: Generator) -> tuple[str, ...]:
    """Names of the layers that the placement ``text`` puts on the GPU, in the order of the layers.

    Raises ValueError for a layer that the generator doesn't have or that is named twice, and for a range that doesn't
    go in the order of the layers.
    """
    names = [layer.name for layer in generator.layers]
    if text == "all":
        return tuple(names)
    if text == "seed-b":
        return _heaviest(generator)
    if text == "seed-c":
        return tuple(names[:-1])
    chosen: set[str] = set()
    for item in text.split(","):
        layers = _layers(item.strip(), names, text)
        if twice := chosen.intersection(layers):
            raise ValueError(f"the placement {text!r} names {', '.join(sorted(twice))} twice")
        chosen.update(layers)
    return tuple(name for name in names if name in chosen)


def decide(
    generator: Generator,
    gpu_layers: str | None,
    plan: Plan | str | os.PathLike[str] | None,
    precision: str,
    tune: str,
    gpu: str | None = None,
) -> Plan:
    """The plan for a GPU, with or without a CPU beside it, that ``gpu_layers`` and ``plan`` of a caller mean together.

    A Plan or a file says itself where layers run; the name of an algorithm is for the layers that can take it. ``gpu``
    is the GPU's name, see :func:`pix2pix.plans.plan.choose`. Raises ValueError for two that contradict each other.
    """
    if plan is not None and not is_algorithm(plan):
        given = read(plan, generator, precision)
        if gpu_layers is not None and {*given.layers_on("cuda")} != {*parse_placement(gpu_layers, generator)}:
            raise ValueError(
                f"the plan places layers itself, and not as gpu_layers {gpu_layers!r}: leave one of them out"
            )
        return given
    placed = joined(generator, precision, tune, gpu, parse_placement(gpu_layers or "all", generator), plan)
    if plan is not None and str(plan) not in map(str, placed.layers.values()):
        raise ValueError(f"none of the layers takes {plan!r} where it is placed")
    return placed


def is_algorithm(plan: object) -> bool:
    """Whether a plan is given as the name of an algorithm."""
    return any(plan in algorithms for algorithms in ALGORITHMS.values())


def joined(
    generator: Generator, precision: str, tune: str, gpu: str | None, gpu_layers: Collection[str], algorithm: Any = None
) -> Plan:
    """The plan that has ``gpu_layers`` on the GPU, and ``algorithm`` for every layer that takes it there."""
    known = {hardware: algorithm if algorithm in ALGORITHMS[hardware] else None for hardware in ("cpu", "cuda")}
    cuda = choose(generator, tune, known["cuda"], precision, "cuda", gpu)
    if len(gpu_layers) == len(generator.layers):
        return cuda
    return place(choose(generator, tune, known["cpu"], precision), cuda, gpu_layers)


def _heaviest(generator: Generator) -> tuple[str, ...]:
    """The layers of ``seed-b``."""
    macs = generator.macs(generator.size, generator.size)
    chosen: set[str] = set()
    for transposed in (False, True):
        kind = [layer.name for layer in generator.layers if layer.transposed == transposed]
        chosen.update(sorted(kind, key=lambda name: -macs[name])[:SEED_B])
    return tuple(layer.name for layer in generator.layers if layer.name in chosen)


def _layers(item: str, names: list[str], text: str) -> list[str]:
    """The layers that one item of a list means: a name, or a range."""
    match = RANGE.fullmatch(item)
    first, last = (match["prefix"] + match[end] for end in ("first", "last")) if match else (item, item)
    for name in (first, last):
        if name not in names:
            raise ValueError(
                f"the placement {text!r} names {name!r}, expected all, auto, seed-b, seed-c or a list of layers such "
                f"as encoder_2-4,decoder_4-2; this generator has {', '.join(names)}"
            )
    begin, end = names.index(first), names.index(last)
    if begin > end:
        raise ValueError(f"the placement {text!r} has {item!r}, but {last} comes before {first}: turn the range round")
    return names[begin : end + 1]
