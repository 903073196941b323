"""Plans: which algorithm each layer uses, on which hardware. A value: of the generator and the hardware, or of a file.

A plan for ``cuda`` may place some layers on the CPU. Where layers are placed by measuring (:mod:`.placements`), the plan
is written to a file, and the file is what pixels depend on.
"""

from __future__ import annotations

import json
import os
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ..atomic import write_atomically
from ..model.generator import INPUT, Generator, Layer
from . import tables as tuned

SPLITS = (1, 2, 4, 8, 16, 32)


def _tiled(kind: str, tiles: Iterable[str]) -> tuple[str, ...]:
    """Names of a tiled algorithm: kind-128x64-split4 computes tiles of 128 rows and 64 columns (of a product of
    matrices), each in 4 blocks that add up a part of its depth."""
    return tuple(f"{kind}-{tile}" + (f"-split{n}" if n > 1 else "") for n in SPLITS for tile in tiles)


# What the engine of each kind of hardware can do. winogradM is Winograd's F(M x M, 2 x 2); in the shared form, all
# parities of a transposed convolution use one transformed input. On a GPU, what computes in float32, and what tensor
# cores compute in the other precisions: of all GPUs that have them, and of those of compute capability 9.0 alone.
ALGORITHMS = {
    "cpu": (
        "direct",
        *(f"winograd{m}" for m in (2, 3, 4)),
        *(f"winograd-shared{m}" for m in (2, 3, 4)),
    ),
    "cuda": (
        "im2col",
        *_tiled("implicit", ("128x128", "128x64", "32x128")),
        *_tiled("tensor", ("128x128", "128x64", "64x64")),
        *_tiled("hopper", ("128x256", "128x128", "128x64")),
    ),
}
PRECISIONS = ("float32", "bfloat16", "float16", "tf32")
TUNES = ("latency", "throughput")
ROW_CHANNELS = {"float16": 64, "bfloat16": 64, "tf32": 32}  # in 128 bytes, of which hopper's tiles are made
MULTIPROCESSORS, IMAGES = 132, 32  # of an H200; of a batch that plans for throughput are made for


@dataclass(frozen=True, slots=True)
class Plan:
    """One algorithm per layer, for one kind of hardware, precision and aim.

    ``placement`` names the hardware of those layers that don't run on ``hardware`` itself. With one plan, and one
    instruction set or GPU model, an image's bytes don't depend on batch, threads or what ran before.
    """

    layers: Mapping[str, str]
    hardware: str = "cpu"
    precision: str = "float32"
    tune: str = "throughput"
    placement: Mapping[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.tune not in TUNES:
            raise ValueError(f"got tune {self.tune!r}, expected {' or '.join(TUNES)}")
        for hardware in (self.hardware, *self.placement.values()):
            if hardware not in ALGORITHMS:
                raise ValueError(f"got a plan for {hardware!r}, expected one for {', '.join(ALGORITHMS)}")
        if surplus := sorted(set(self.placement) - set(self.layers)):
            raise ValueError(f"the plan places layers that it has no algorithm for: {', '.join(surplus)}")
        for name, algorithm in self.layers.items():
            takes = ALGORITHMS[self.hardware_of(name)]
            if algorithm not in takes:
                raise ValueError(f"the plan has {algorithm!r} for {name}, expected one of {', '.join(takes)}")
        if self.precision not in PRECISIONS:
            raise ValueError(f"got a plan for precision {self.precision!r}, expected one of {', '.join(PRECISIONS)}")
        object.__setattr__(self, "layers", dict(self.layers))
        elsewhere = {name: kind for name, kind in self.placement.items() if kind != self.hardware}
        object.__setattr__(self, "placement", elsewhere)

    def __hash__(self) -> int:
        return hash(json.dumps(self.to_dict(), sort_keys=True))

    def hardware_of(self, layer: str) -> str:
        """The kind of hardware that a layer runs on."""
        return self.placement.get(layer, self.hardware)

    def layers_on(self, hardware: str) -> tuple[str, ...]:
        """Names of the layers that run on one kind of hardware."""
        return tuple(name for name in self.layers if self.hardware_of(name) == hardware)

    def check(self, generator: Generator) -> None:
        """Raise ValueError unless this plan is for the layers of ``generator``."""
        have, needed = set(self.layers), {layer.name for layer in generator.layers}
        if have != needed:
            missing, surplus = sorted(needed - have), sorted(have - needed)
            raise ValueError(f"the plan is for another generator: missing {missing}, surplus {surplus}")
        for layer in generator.layers:
            known = algorithms(layer, self.hardware_of(layer.name), self.precision)
            if self.layers[layer.name] not in known:
                found, takes = self.layers[layer.name], ", ".join(known)
                raise ValueError(f"the plan has {found!r} for {layer.name}, which takes {takes}")

    def to_dict(self) -> dict[str, Any]:
        """The plan as JSON can hold it; ``Plan(**d)`` is the inverse."""
        aim = {"hardware": self.hardware, "precision": self.precision, "tune": self.tune}
        return {**aim, "layers": dict(self.layers), "placement": dict(self.placement)}

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the plan as a JSON file, which :func:`read` reads. Makes the folder if need be."""
        write_atomically(Path(path), (json.dumps(self.to_dict(), indent=2) + "\n").encode())


def choose(
    generator: Generator,
    tune: str,
    plan: Plan | str | os.PathLike[str] | None = None,
    precision: str = "float32",
    hardware: str = "cpu",
    gpu: str | None = None,
) -> Plan:
    """The plan for ``generator`` on one kind of hardware, in ``precision``.

    ``plan`` may be a Plan, the name of an algorithm to use for every layer that it can (``direct``), or a JSON file;
    None chooses by ``tune``, which a given plan overrides, and by what was measured on GPUs of the name ``gpu``, if
    anything was (:mod:`.tables`). Raises ValueError for a plan that doesn't fit the generator or the precision, or that
    has nothing to do for the hardware.
    """
    if plan is None or plan in ALGORITHMS[hardware]:
        shapes = generator.shapes(generator.size, generator.size)
        layers, measured = {}, tuned.table(gpu, precision, tune)
        for layer in generator.layers:
            source_h, _, _ = shapes[layer.inputs[0].layer]
            grid = source_h if layer.transposed else source_h // layer.stride
            takes = algorithms(layer, hardware, precision)
            best = _on_gpu(layer, grid, tune, precision) if hardware == "cuda" else _on_cpu(layer, grid, tune)
            best = measured.get(tuned.shape(generator, layer), best)
            chosen = str(plan) if plan else best
            layers[layer.name] = chosen if chosen in takes else takes[0]
        if plan and plan not in layers.values():
            raise ValueError(f"no layer can be computed by {plan!r} in precision {precision!r}")
        return Plan(layers, hardware, precision, tune)
    plan = read(plan, generator, precision)
    if not plan.layers_on(hardware):
        raise ValueError(f"the plan is for {plan.hardware!r} and has no layer for {hardware!r}")
    return plan


def read(plan: Plan | str | os.PathLike[str], generator: Generator, precision: str | None = None) -> Plan:
    """A plan, or that of a JSON file. Raises ValueError unless it is one for the generator and (if given) precision."""
    if not isinstance(plan, Plan):
        try:
            plan = Plan(**json.loads(Path(plan).read_text(encoding="utf-8")))
        except (OSError, TypeError, AttributeError, ValueError, RecursionError) as error:
            raise ValueError(f"cannot read a plan from {str(plan)!r}: {error}") from None
    plan.check(generator)
    if precision not in (None, plan.precision):
        raise ValueError(
            f"the plan is for {plan.precision}, got precision {precision!r}: give the one that goes with it"
        )
    return plan


def place(cpu: Plan, cuda: Plan, on_gpu: Collection[str]) -> Plan:
    """One plan of two for the same generator: what ``cuda`` says of the layers ``on_gpu``, and ``cpu`` of the rest.

    Raises ValueError if the two are for different precisions.
    """
    if cpu.precision != cuda.precision:
        raise ValueError(f"got plans for {cpu.precision} and for {cuda.precision}, expected one precision")
    layers = {name: (cuda if name in on_gpu else cpu).layers[name] for name in cpu.layers}
    placement = {name: cpu.hardware for name in layers if name not in on_gpu}
    return Plan(layers, cuda.hardware, cuda.precision, cuda.tune, placement)


def algorithms(layer: Layer, hardware: str = "cpu", precision: str = "float32") -> tuple[str, ...]:
    """What the engine of that hardware can do for a layer in a precision, the simplest first.

    On a CPU there is no choice where pictures are read or written: they have too few channels.
    """
    if hardware == "cuda":
        kinds = {"im2col", "implicit"} if precision == "float32" else {"tensor"}
        if precision in ROW_CHANNELS and layer.in_channels % ROW_CHANNELS[precision] == 0:
            kinds.add("hopper")
        names = tuple(name for name in ALGORITHMS["cuda"] if name.split("-")[0] in kinds)
        if precision != "float32" and layer.activation == "tanh":  # its sums are few, and short
            return tuple(name for name in names if "split" not in name)
        return names
    if layer.inputs[0].layer == INPUT or layer.activation == "tanh":
        return ("direct",)
    return tuple(name for name in ALGORITHMS["cpu"] if layer.transposed or "shared" not in name)


def _on_cpu(layer: Layer, grid: int, tune: str) -> str:
    """What was fastest for a layer whose base grid is grid x grid, in either precision; see bench/README.md.

    Larger tiles multiply less, but have more weights to read: on small maps, and for one picture at a time, reading
    them is what costs.
    """
    if layer.transposed and grid >= 32:
        return "winograd-shared3"
    if grid >= 16 or (grid >= 8 and tune == "throughput"):
        return "winograd4"
    return "winograd2" if grid >= 8 or (grid >= 4 and tune == "throughput") else "direct"


def _on_gpu(layer: Layer, grid: int, tune: str, precision: str) -> str:
    """What should be fastest on a GPU of an H200's size, for a layer whose base grid is grid x grid.

    Few rows leave most of a large tile empty. Blocks share sums as long as that fills the GPU with no more blocks than
    it runs at once, and each still adds up 64 products or more; tensor cores want more of them.
    """
    last = layer.activation == "tanh"
    rows = grid * grid * (1 if tune == "latency" else IMAGES)
    columns, depth = (16 * layer.filters, layer.in_channels) if last else (layer.filters, 16 * layer.in_channels)
    parities = 4 if layer.transposed and not last else 1
    if precision == "float32":
        kind, least = "implicit", 64
        bm, bn, at_once = (32, 128, 6) if rows <= 64 else (128, 64, 3)
    else:
        kind, least = "tensor", 256
        bm, bn, at_once = (64, 64, 4) if rows <= 64 else (128, 64, 3) if columns <= 64 else (128, 128, 2)
    blocks, splits = parities * -(-rows // bm) * -(-columns // bn), 1
    while splits < 32 and 2 * splits * blocks <= at_once * MULTIPROCESSORS and depth // parities >= 2 * least * splits:
        splits *= 2
    splits = 1 if last and kind == "tensor" else splits
    return f"{kind}-{bm}x{bn}" + (f"-split{splits}" if splits > 1 else "")
