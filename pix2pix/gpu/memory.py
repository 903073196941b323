"""The buffers of a context: how large they are, and where they lie in one piece of the GPU's memory.

Every operation has a map that it reads. All operations share the rest: `scratch` holds partial sums, `statistics` those
of tiles, and `output` the network's output as float32.
"""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np

from .jit import SIMULATED
from .packing import DeviceWeights
from .products import Product

SHARED = ("output", "scratch", "statistics")
ALIGNED = 64  # words: where buffers begin
PART_PIXELS = 32 if SIMULATED else 256  # that a block finishes of a map too large for one block


def products_of(weights: DeviceWeights, n: int, h: int, w: int) -> dict[str, Product]:
    """Every operation's product, for n images of h x w."""
    shapes = weights.program.shapes(h, w)
    return {
        name: Product.of(weights, packed, n, shapes[packed.op.sources[0].layer][:2])
        for name, packed in weights.ops.items()
    }


def buffer_sizes(weights: DeviceWeights, n: int, h: int, w: int) -> dict[str, int]:
    """Words of every map, by the name of what reads it, and of the SHARED buffers."""
    shapes = weights.program.shapes(h, w)
    sizes = dict.fromkeys(SHARED, 0)
    for name, at in weights.maps.items():
        source_h, source_w, _ = shapes[at.source]
        map_h, map_w = at.size(source_h, source_w)
        sizes[name] = n * map_h * map_w * at.words
        if at.interpolates:  # from a given value, by way of scratch
            sizes["scratch"] = max(sizes["scratch"], n * source_h * source_w * at.words)
    for name, product in products_of(weights, n, h, w).items():
        shape = product.shape
        tiles = shape.phases * -(-shape.rows // min(product.tile.bm, PART_PIXELS))
        sizes["statistics"] = max(sizes["statistics"], 2 * n * tiles * product.packed.columns)
        sizes["scratch"] = max(sizes["scratch"], product.scratch_size)
        if product.packed.op.makes_image:
            sizes["output"] = n * int(np.prod(shapes[name]))
    return {name: -(-max(size, 1) // ALIGNED) * ALIGNED for name, size in sizes.items()}


def cut(memory: Any, sizes: dict[str, int]) -> dict[str, Any]:
    """One piece of memory as buffers of these sizes."""
    ends = itertools.accumulate(sizes.values())
    return {name: memory[end - sizes[name] : end] for name, end in zip(sizes, ends, strict=True)}
