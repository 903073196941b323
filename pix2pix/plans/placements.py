"""Which layers run on the GPU: said in words, or found out by measuring.

A placement in words is ``all``, ``seed-b``, ``seed-c``, or a list such as ``encoder_2-4,decoder_4-2``: names of layers,
and ranges of them in walking order.

``seed-b`` stands for the course's split, three convolutions and three transposed ones on the GPU. Which ones is not
recorded; these are those with the most multiplications, where a tie goes to the layer walked first. In the published
network (ngf=64, 8 levels) that is encoder_2-4 and decoder_4-2: three convolutions have 537 million multiplications each
and three transposed ones 1074 million, the next largest half of that, and the six together 80 % of all. ``seed-c`` is
all but the last layer. docs/placement.md says what speaks for these six and not for others.

``auto`` measures each layer on both engines, and what it takes for values to leave them and come back. The cheapest
placement is then the minimum cut of a small graph, with the CPU as its source and the GPU as its sink: exact, with no
need to try 2^16 placements. A layer on the source's side runs on the CPU, and cutting its edge to the sink costs what
it takes there; a value that is read on the other side costs one crossing, however many read it there.
"""

from __future__ import annotations

import math
import os
import re
import time
from collections import defaultdict, deque
from collections.abc import Callable, Collection, Hashable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ..engines.base import BaseEngine
from ..model.generator import INPUT, Generator
from .plan import ALGORITHMS, Plan, choose, place, read

RANGE = re.compile(r"(?P<prefix>.+_)(?P<first>\d+)-(?P<last>\d+)")
OUTSIDE = "(outside)"  # who reads the last layer, in the host's memory
PICTURES = {"latency": 1, "throughput": 8}  # that are measured at a time
REPETITIONS = 5  # of each measurement
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
    if plan is not None and not _is_name(plan):
        given = read(plan, generator, precision)
        if gpu_layers is not None and {*given.layers_on("cuda")} != {*parse_placement(gpu_layers, generator)}:
            raise ValueError(
                f"the plan places layers itself, and not as gpu_layers {gpu_layers!r}: leave one of them out"
            )
        return given
    placed = _joined(generator, precision, tune, gpu, parse_placement(gpu_layers or "all", generator), plan)
    if plan is not None and plan not in placed.layers.values():
        raise ValueError(f"none of the layers takes {plan!r} where it is placed")
    return placed


def find(
    generator: Generator,
    file: Plan | str | os.PathLike[str] | None,
    precision: str,
    tune: str,
    engines: Callable[[], tuple[BaseEngine, BaseEngine]],
    gpu: str | None = None,
) -> Plan:
    """The plan whose placement is the cheapest by what ``engines()`` take, one for the CPU and one for the GPU.

    It is written to ``file``, and the engines are closed. Where the file is already, or a Plan is given, that is what
    counts: a choice is not made again, and differently. Raises ValueError for anything else.
    """
    if file is None or _is_name(file):
        raise ValueError("gpu_layers 'auto' writes the plan that it chooses: give the name of a file as plan")
    if not isinstance(file, Plan) and not Path(file).exists():
        on_cpu, on_gpu = engines()
        with on_cpu, on_gpu:
            costs = measure(on_cpu, on_gpu, PICTURES[tune])
        _joined(generator, precision, tune, gpu, cheapest(generator, costs)).save(file)
    return read(file, generator, precision)


def _is_name(plan: object) -> bool:
    """Whether a plan is given as the name of an algorithm."""
    return any(plan in algorithms for algorithms in ALGORITHMS.values())


def _joined(
    generator: Generator,
    precision: str,
    tune: str,
    gpu: str | None,
    gpu_layers: Collection[str],
    algorithm: Any = None,
) -> Plan:
    """The plan that has ``gpu_layers`` on the GPU, and ``algorithm`` for every layer that takes it there."""
    known = {hardware: algorithm if algorithm in ALGORITHMS[hardware] else None for hardware in ("cpu", "cuda")}
    cpu = choose(generator, tune, known["cpu"], precision)
    cuda = choose(generator, tune, known["cuda"], precision, "cuda", gpu)
    return place(cpu, cuda, gpu_layers)


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


@dataclass(frozen=True, slots=True)
class Costs:
    """Seconds that one batch takes: each layer on the CPU and on the GPU; each value, also the picture, to cross."""

    cpu: Mapping[str, float]
    gpu: Mapping[str, float]
    crossing: Mapping[str, float]

    def total(self, generator: Generator, gpu_layers: Collection[str]) -> float:
        """Seconds of the whole walk, from a picture in the host's memory to a picture there."""
        seconds = sum((self.gpu if y.name in gpu_layers else self.cpu)[y.name] for y in generator.layers)
        for value, readers in _readers(generator).items():
            away = {reader in gpu_layers for reader in readers} - {value in gpu_layers}
            seconds += self.crossing[value] * len(away)
        return seconds


def cheapest(generator: Generator, costs: Costs) -> tuple[str, ...]:
    """The layers to put on the GPU so that :meth:`Costs.total` is least, in walking order."""
    graph: dict[Hashable, dict[Hashable, float]] = defaultdict(dict)
    graph["CPU"] |= {INPUT: math.inf, OUTSIDE: math.inf}
    for layer in generator.layers:
        graph["CPU"][layer.name] = costs.gpu[layer.name]
        graph[layer.name]["GPU"] = costs.cpu[layer.name]
    for value, readers in _readers(generator).items():
        to_gpu, to_cpu = (value, "to GPU"), (value, "to CPU")
        graph[value][to_gpu] = graph[to_cpu][value] = costs.crossing[value]
        for reader in readers:
            graph[to_gpu][reader] = graph[reader][to_cpu] = math.inf
    on_cpu = _source_side(graph, "CPU", "GPU")
    return tuple(layer.name for layer in generator.layers if layer.name not in on_cpu)


def _readers(generator: Generator) -> dict[str, list[str]]:
    """The layers that read each value."""
    readers: dict[str, list[str]] = {name: [] for name in (INPUT, *(layer.name for layer in generator.layers))}
    for layer in generator.layers:
        for source in layer.inputs:
            readers[source.layer].append(layer.name)
    readers[generator.layers[-1].name].append(OUTSIDE)
    return readers


def _source_side(graph: Mapping[Hashable, Mapping[Hashable, float]], source: Hashable, sink: Hashable) -> set[Hashable]:
    """The nodes on the source's side of a minimum cut; ``graph`` is {node: {next node: capacity}}.

    Edmonds and Karp, "Theoretical improvements in algorithmic efficiency for network flow problems", JACM 19 (1972):
    while there is a path with capacity left, send what fits along the shortest.
    """
    left: dict[Hashable, dict[Hashable, float]] = defaultdict(lambda: defaultdict(float))
    for node, edges in graph.items():
        for target, capacity in edges.items():
            left[node][target] += capacity
            left[target][node] += 0.0
    while True:
        came_from: dict[Hashable, Hashable] = {source: source}
        queue = deque([source])
        while queue and sink not in came_from:
            node = queue.popleft()
            for target, capacity in left[node].items():
                if capacity > 0 and target not in came_from:
                    came_from[target] = node
                    queue.append(target)
        if sink not in came_from:
            return set(came_from)
        path, node = [], sink
        while node != source:
            path.append((came_from[node], node))
            node = came_from[node]
        flow = min(left[a][b] for a, b in path)
        for a, b in path:
            left[a][b] -= flow
            left[b][a] += flow


def measure(cpu: BaseEngine, gpu: BaseEngine, n: int) -> Costs:
    """The costs of ``n`` pictures of the generator's own size, by medians; both engines must have all layers.

    For a value to leave an engine and come back costs it what two layers, one of which reads the other, take longer
    apart than together; that is linear in the value's bytes, by a fit to all layers. Half of it is the way out, half
    the way in: crossing is the way out of one engine and into the other, and a layer takes what it takes alone less the
    ways of what it reads and of its own value.
    """
    generator = cpu.generator
    shapes = generator.shapes(generator.size, generator.size)
    rng = np.random.default_rng(0)
    values = {name: rng.standard_normal((n, *shape), np.float32) for name, shape in shapes.items()}
    reads = {layer.name: [source.layer for source in layer.inputs] for layer in generator.layers}
    ways: list[dict[str, float]] = []
    layers: list[dict[str, float]] = []
    for engine in (cpu, gpu):

        def seconds(output: str, names: Iterable[str], engine: BaseEngine = engine) -> float:
            return _median_seconds(engine, {name: values[name] for name in names}, output)

        alone = {name: seconds(name, names) for name, names in reads.items()}
        sizes, apart = [], []
        for name, (first, *others) in reads.items():
            if first != INPUT:
                together = seconds(name, {*reads[first], *others})
                sizes.append(values[first].nbytes)
                apart.append(alone[first] + alone[name] - together)
        slope, start = np.polyfit(sizes, apart, 1)
        way = {name: max(0.0, float(slope * value.nbytes + start)) / 2 for name, value in values.items()}
        ways.append(way)
        layers.append({name: max(0.0, alone[name] - sum(way[v] for v in (name, *reads[name]))) for name in reads})
    crossing = {name: sum(way[name] for way in ways) for name in values}
    return Costs(cpu=layers[0], gpu=layers[1], crossing=crossing)


def _median_seconds(engine: BaseEngine, inputs: Mapping[str, np.ndarray], output: str) -> float:
    """The median time of a run, after one that counts for nothing."""
    seconds = []
    for _ in range(1 + REPETITIONS):
        start = time.perf_counter()
        engine.run(inputs=inputs, outputs=[output])
        seconds.append(time.perf_counter() - start)
    return float(np.median(seconds[1:]))
