"""Plans: which algorithm each layer uses, on which hardware. A value: of the generator and the hardware, or of a file.

A plan for ``cuda`` may place some layers on the CPU. Where layers are placed by measuring
(:mod:`pix2pix.engines.measured_placement`), the plan is written to a file, and the file is what pixels depend on.
"""

from __future__ import annotations

import json
import os
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ..atomic import write_atomically
from ..model.generator import Generator
from ..model.lowering import lower
from ..model.weights import folded
from .algorithms import ALGORITHMS, Algorithm, algorithms, unsupported
from .precisions import PRECISIONS

TUNES = ("latency", "throughput")


@dataclass(frozen=True, slots=True)
class Plan:
    """One algorithm per layer, for one kind of hardware, precision and aim.

    ``layers`` may be given by the names of algorithms, as files have them. ``placement`` names the hardware of those
    layers that don't run on ``hardware`` itself. With one plan, and one instruction set or GPU model, an image's bytes
    don't depend on batch, threads or what ran before.
    """

    layers: Mapping[str, Algorithm]
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
        layers = {}
        for name, algorithm in self.layers.items():
            takes = ALGORITHMS[self.hardware_of(name)]
            if str(algorithm) not in takes:
                raise ValueError(f"the plan has {str(algorithm)!r} for {name}, expected one of {', '.join(takes)}")
            layers[name] = takes[str(algorithm)]
        if self.precision not in PRECISIONS:
            raise ValueError(f"got a plan for precision {self.precision!r}, expected one of {', '.join(PRECISIONS)}")
        object.__setattr__(self, "layers", layers)
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
        for op in lower(folded(generator)).ops:
            known = algorithms(op, self.hardware_of(op.name), self.precision)
            if not known:
                raise ValueError(unsupported(op, self.hardware_of(op.name)))
            if self.layers[op.name] not in known:
                found, takes = str(self.layers[op.name]), ", ".join(map(str, known))
                raise ValueError(f"the plan has {found!r} for {op.name}, which takes {takes}")
        check_integers(self.layers, self.precision)

    def to_dict(self) -> dict[str, Any]:
        """The plan as JSON can hold it; ``Plan(**d)`` is the inverse."""
        aim = {"hardware": self.hardware, "precision": self.precision, "tune": self.tune}
        layers = {name: str(algorithm) for name, algorithm in self.layers.items()}
        return {**aim, "layers": layers, "placement": dict(self.placement)}

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the plan as a JSON file, which :func:`read` reads. Makes the folder if need be."""
        write_atomically(Path(path), (json.dumps(self.to_dict(), indent=2) + "\n").encode())


def check_integers(layers: Mapping[str, Algorithm], precision: str) -> None:
    """Raise ValueError for a plan in int8 under which no layer would be computed in it."""
    if precision == "int8" and not any(algorithm.integers for algorithm in layers.values()):
        raise ValueError(
            "precision 'int8': no layer would be computed in it, for the layers that read and make images, and fixed "
            "filters, stay in floating point: use bfloat16 or float32, or a plan that has int8 for some layers"
        )


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
