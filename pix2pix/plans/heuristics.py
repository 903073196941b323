"""Which algorithm each operation uses when nobody says so: what was measured, else rules.

On a CPU, the rules are measurements on a few processors (bench/README.md); those for 8-bit integers were made on one
with AMX and one without VNNI. On a GPU, tables of what was fastest on that kind of GPU come first (:mod:`.tables`),
then rules made for an H200's size, which are not measured.
"""

from __future__ import annotations

import os
from collections.abc import Collection

from ..model.generator import Generator
from ..model.lowering import Op, lower
from ..model.weights import folded
from . import tables
from .algorithms import (
    ALGORITHMS,
    Algorithm,
    algorithms,
    is_three_by_three,
    multiplies_all_taps,
    multiplies_columns,
    unsupported,
)
from .plan import Plan, check_integers, read
from .precisions import check_precision

WEIGHT_BYTES = 64 * 2**20  # of a 3x3 layer, transformed
MULTIPROCESSORS, IMAGES = 132, 32  # of an H200; of a batch that plans for throughput are made for


def choose(
    generator: Generator,
    tune: str,
    plan: Plan | str | os.PathLike[str] | None = None,
    precision: str = "float32",
    hardware: str = "cpu",
    processor: str | None = None,
    kept: Collection[str] = (),
) -> Plan:
    """The plan for ``generator`` on one kind of hardware, in ``precision``.

    ``processor`` is the name of the GPU, or the CPU's instruction set. ``kept`` names layers that stay in floating
    point where the precision is int8, whatever was measured: by them, a plan for int8 depends on the weights too.

    ``plan`` may be a Plan, the name of an algorithm to use for every layer that it can (``direct``), or a JSON file;
    None chooses by ``tune``, which a given plan overrides, and by what was measured on such a processor, if anything
    was. Raises ValueError for a plan that doesn't fit the generator or the precision, for one that has nothing
    to do for the hardware, and for layers that the hardware has no kernel for; RuntimeError for a precision that it
    doesn't compute in.
    """
    if plan is not None and plan not in ALGORITHMS[hardware]:
        plan = read(plan, generator, precision)
        if not plan.layers_on(hardware):
            raise ValueError(f"the plan is for {plan.hardware!r} and has no layer for {hardware!r}")
        return plan
    check_precision(precision, hardware)
    program, layers = lower(folded(generator)), {}
    shapes = program.shapes(generator.size, generator.size)
    measured = tables.table(processor, precision, tune)
    wanted = ALGORITHMS[hardware][str(plan)] if plan else None
    wide = 0
    for op in program.ops:
        takes = algorithms(op, hardware, precision)
        if not takes:
            raise ValueError(unsupported(op, hardware))
        grid, _ = op.sampling.base_grid(*shapes[op.sources[0].layer][:2])
        if hardware == "cuda":
            best = _on_gpu(op, grid, tune, precision)
        elif precision == "int8" and op.name not in kept:
            best = _in_integers(op, grid, processor)
        else:  # AMX multiplies so fast that the transforms would take longer than what they save
            best = Algorithm("direct") if processor == "amx" else _on_cpu(op, grid, tune, precision, wide)
            wide += is_three_by_three(op) and _transformed(op, 3) > WEIGHT_BYTES
        chosen = wanted or (best if op.name in kept else measured.get(tables.shape(generator, op), best))
        simplest = Algorithm("int8") if chosen.integers and Algorithm("int8") in takes else takes[0]
        layers[op.name] = chosen if chosen in takes else simplest
    if wanted and wanted not in layers.values():
        raise ValueError(f"no layer can be computed by {plan!r} in precision {precision!r}")
    check_integers(layers, precision)
    return Plan(layers, hardware, precision, tune)


def _on_cpu(op: Op, grid: int, tune: str, precision: str, wide: int) -> Algorithm:
    """What was fastest for an operation whose base grid is grid x grid; see bench/README.md.

    Larger tiles multiply less but have more weights to read. On small maps, and for one image at a time, reading
    weights is what costs. In bfloat16, F(4, 3) is too inaccurate. What is kept of a layer's weights is limited, for
    those of 1024 channels alone would take four times what the file does: of layers so wide, ``wide`` of which come
    before this one, every second has larger tiles.
    """
    large = grid >= 16 or (grid >= 8 and tune == "throughput")
    if op.sampling.kernel == 3:
        if not is_three_by_three(op):
            return Algorithm("direct")
        tiles = (4, 3) if precision == "float32" else (3,)
        fit = [m for m in tiles if _transformed(op, m) <= WEIGHT_BYTES]
        if not fit and wide % 2 == 0:
            fit = [3]
        return Algorithm("winograd", fit[0] if large and fit else 2)
    if op.sampling.transposed and grid >= 32:
        return Algorithm("winograd", 3, shared=True)
    if large:
        return Algorithm("winograd", 4)
    return Algorithm("winograd", 2) if grid >= 8 or (grid >= 4 and tune == "throughput") else Algorithm("direct")


def _in_integers(op: Op, grid: int, processor: str | None) -> Algorithm:
    """What is fast in 8-bit integers for an operation whose base grid is grid x grid.

    On smaller maps, tiles gain little, for four times the weights. AMX multiplies so fast that they gain nothing. With
    VNNI alone they have not been measured.
    """
    tiles = Algorithm("int8-winograd", 2 if op.sampling.kernel == 3 else 3)
    by_tiles = processor != "amx" and grid >= 16 and tiles in algorithms(op, precision="int8")
    return tiles if by_tiles else Algorithm("int8")


def _transformed(op: Op, m: int) -> int:
    """Bytes of a 3x3 layer's weights for F(m, 3)."""
    return 4 * (m + 2) ** 2 * op.in_channels * op.filters


def _on_gpu(op: Op, grid: int, tune: str, precision: str) -> Algorithm:
    """What should be fastest on a GPU of an H200's size, for an operation whose base grid is grid x grid.

    Few rows leave most of a large tile empty. Blocks share sums as long as that fills the GPU with no more blocks than
    it runs at once and each still sums enough products: 64, or 256 on tensor cores.
    """
    taps, channels = op.sampling.kernel**2, op.in_channels * (len(op.sources) if op.join == "add" else 1)
    rows = grid * grid * (1 if tune == "latency" else IMAGES)
    columns, depth, phases = op.filters, taps * channels, op.sampling.scale**2
    if multiplies_all_taps(op):
        columns, depth, phases = taps * op.filters, channels, 1
    elif multiplies_columns(op):
        columns, depth = op.sampling.kernel * op.filters, op.sampling.kernel * channels
    if precision == "float32":
        kind, least = "implicit", 64
        (bm, bn), at_once = ((32, 128), 6) if rows <= 64 else ((128, 64), 3)
    else:
        kind, least = "tensor", 256
        (bm, bn), at_once = ((64, 64), 4) if rows <= 64 else ((128, 64), 3) if columns <= 64 else ((128, 128), 2)
    blocks, splits = phases * -(-rows // bm) * -(-columns // bn), 1
    while splits < 32 and 2 * splits * blocks <= at_once * MULTIPROCESSORS and depth // phases >= 2 * least * splits:
        splits *= 2
    return Algorithm(kind, tile=(bm, bn), splits=1 if op.makes_image and kind == "tensor" else splits)
