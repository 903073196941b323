"""Which layers run on the GPU: the names that people give to placements, as sets of layers.

A placement in words is ``all``, ``seed-b``, ``seed-c``, or a list such as ``encoder_2-4,decoder_4-2``: names of layers,
and ranges of them in walking order.

``seed-b`` stands for the course's split, three convolutions and three transposed ones on the GPU. Which ones is not
recorded; these are those with the most multiplications, where a tie goes to the layer walked first. In the published
network (ngf=64, 8 levels) that is encoder_2-4 and decoder_4-2: three convolutions have 537 million multiplications each
and three transposed ones 1074 million, the next largest half of that, and the six together 80 % of all. They take the
most from the CPU: the layers around the bottleneck would send less over the bus for each multiplication, but
encoder_4-6 and decoder_6-4 hold only 43 %, and a CPU that keeps the other 57 % cannot become 12.4/5.5 times as fast, as
the course's did. ``seed-c`` is all but the last layer.
"""

from __future__ import annotations

import re

from .generator import Generator

RANGE = re.compile(r"(?P<prefix>.+_)(?P<first>\d+)-(?P<last>\d+)")
SEED_B = 3  # convolutions on the GPU, and as many transposed ones


def parse_placement(text: str, generator: Generator) -> tuple[str, ...]:
    """Names of the layers that the placement ``text`` puts on the GPU, in walking order.

    Raises ValueError for a layer that the generator doesn't have or that is named twice, and for a range that doesn't
    go in walking order.
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
