"""Plans: which algorithm each layer uses. A value, made from the generator and the kind of hardware alone."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from .generator import INPUT, Generator, Layer

# What the engine of each kind of hardware can do. winogradM is Winograd's F(M x M, 2 x 2); in the shared form, all
# parities of a transposed convolution use one transformed input.
ALGORITHMS = {
    "cpu": (
        "direct",
        *(f"winograd{m}" for m in (2, 3, 4)),
        *(f"winograd-shared{m}" for m in (2, 3, 4)),
    )
}
PRECISIONS = ("float32", "bfloat16", "float16", "tf32")
TUNES = ("latency", "throughput")


@dataclass(frozen=True, slots=True)
class Plan:
    """One algorithm per layer, for one kind of hardware, precision and aim.

    With one plan and one instruction set, an image's bytes don't depend on batch, threads or what ran before.
    """

    layers: Mapping[str, str]
    hardware: str = "cpu"
    precision: str = "float32"
    tune: str = "throughput"

    def __post_init__(self) -> None:
        if self.tune not in TUNES:
            raise ValueError(f"got tune {self.tune!r}, expected {' or '.join(TUNES)}")
        if self.hardware not in ALGORITHMS:
            raise ValueError(f"got a plan for {self.hardware!r}, expected one for {', '.join(ALGORITHMS)}")
        takes = ALGORITHMS[self.hardware]
        for name, algorithm in self.layers.items():
            if algorithm not in takes:
                raise ValueError(f"the plan has {algorithm!r} for {name}, expected one of {', '.join(takes)}")
        if self.precision not in PRECISIONS:
            raise ValueError(f"got a plan for precision {self.precision!r}, expected one of {', '.join(PRECISIONS)}")
        object.__setattr__(self, "layers", dict(self.layers))

    def __hash__(self) -> int:
        return hash((self.hardware, self.precision, self.tune, tuple(sorted(self.layers.items()))))

    def check(self, generator: Generator) -> None:
        """Raise ValueError unless this plan is for the layers of ``generator``."""
        have, needed = set(self.layers), {layer.name for layer in generator.layers}
        if have != needed:
            missing, surplus = sorted(needed - have), sorted(have - needed)
            raise ValueError(f"the plan is for another generator: missing {missing}, surplus {surplus}")
        for layer in generator.layers:
            if self.layers[layer.name] not in algorithms(layer):
                found, takes = self.layers[layer.name], ", ".join(algorithms(layer))
                raise ValueError(f"the plan has {found!r} for {layer.name}, which takes {takes}")

    def to_dict(self) -> dict[str, Any]:
        """The plan as JSON can hold it; ``Plan(**d)`` is the inverse."""
        return {"hardware": self.hardware, "precision": self.precision, "tune": self.tune, "layers": dict(self.layers)}

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the plan as a JSON file, which :func:`choose` reads back."""
        Path(path).write_text(json.dumps(self.to_dict(), indent=2) + "\n", encoding="utf-8")


def choose(
    generator: Generator,
    tune: str,
    plan: Plan | str | os.PathLike[str] | None = None,
    precision: str = "float32",
) -> Plan:
    """The plan for ``generator`` on a CPU, in ``precision`` (float32 or bfloat16).

    ``plan`` may be a Plan, the name of an algorithm to use for every layer that it can (``direct``), or a JSON file;
    None chooses by ``tune``, which a given plan overrides. Raises ValueError for a plan that doesn't fit the generator.
    """
    if plan is None or plan in ALGORITHMS["cpu"]:
        shapes = generator.shapes(generator.size, generator.size)
        layers = {}
        for layer in generator.layers:
            source_h, _, _ = shapes[layer.inputs[0].layer]
            grid = source_h if layer.transposed else source_h // layer.stride
            chosen = str(plan) if plan else _algorithm(layer, grid, tune, precision)
            layers[layer.name] = chosen if chosen in algorithms(layer) else "direct"
        return Plan(layers, precision=precision, tune=tune)
    if not isinstance(plan, Plan):
        try:
            plan = Plan(**json.loads(Path(plan).read_text(encoding="utf-8")))
        except (OSError, TypeError, AttributeError, ValueError, RecursionError) as error:
            raise ValueError(f"cannot read a plan from {str(plan)!r}: {error}") from None
    plan.check(generator)
    if plan.precision != precision:
        raise ValueError(
            f"the plan is for {plan.precision}, got precision {precision!r}: give the one that goes with it"
        )
    return plan


def algorithms(layer: Layer) -> tuple[str, ...]:
    """What the CPU engine can do for a layer: pictures have too few channels to have a choice."""
    if layer.inputs[0].layer == INPUT or layer.activation == "tanh":
        return ("direct",)
    return tuple(name for name in ALGORITHMS["cpu"] if layer.transposed or "shared" not in name)


def _algorithm(layer: Layer, grid: int, tune: str, precision: str) -> str:
    """What was fastest for a layer whose base grid is grid x grid; see bench/README.md.

    Larger tiles multiply less, but have more weights to read: on small maps, and for one picture at a time, reading
    them is what costs. bfloat16 has no digits left for the coefficients of tiles of 4.
    """
    if layer.transposed and grid >= 32:
        return "winograd-shared3"
    if precision == "bfloat16":
        if grid >= 16:
            return "winograd-shared3" if layer.transposed else "winograd3"
    elif grid >= 16 or (grid >= 8 and tune == "throughput"):
        return "winograd4"
    return "winograd2" if grid >= 8 or (grid >= 4 and tune == "throughput") else "direct"
