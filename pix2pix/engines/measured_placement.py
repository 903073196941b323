"""Which layers run on the GPU, found by measuring: the placement ``auto``.

Each layer is measured on both engines, and what it costs values to leave one engine for the other. The cheapest
placement is the minimum cut of a small graph with the CPU as its source and the GPU as its sink: exact, without trying
2^16 placements. A layer on the source's side runs on the CPU, and cutting its edge to the sink costs what it takes
there; a value that is read on the other side costs one crossing, however many layers read it there.
"""

from __future__ import annotations

import math
import os
import time
from collections import defaultdict, deque
from collections.abc import Callable, Hashable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from ..model.generator import INPUT, Generator
from ..model.lowering import lower
from ..plans.placements import is_algorithm, joined
from ..plans.plan import Plan, read
from .base import BaseEngine

OUTSIDE = "(outside)"  # who reads the last layer, in the host's memory
IMAGES = {"latency": 1, "throughput": 8}  # that are measured at a time
REPETITIONS = 5  # of each measurement


def find(
    generator: Generator,
    file: Plan | str | os.PathLike[str] | None,
    precision: str,
    tune: str,
    engines: Callable[[], tuple[BaseEngine, BaseEngine]],
    gpu: str | None = None,
) -> Plan:
    """The plan with the cheapest placement, by measuring ``engines()``: one for the CPU and one for the GPU.

    The plan is written to ``file``, and the engines are closed. If the file exists, or a Plan is given, that plan is
    taken and nothing is measured: the choice is made once. Raises ValueError for anything else.
    """
    if file is None or is_algorithm(file):
        raise ValueError("gpu_layers 'auto' writes the plan that it chooses: give the name of a file as plan")
    if not isinstance(file, Plan) and not Path(file).exists():
        on_cpu, on_gpu = engines()
        with on_cpu, on_gpu:
            costs = measure(on_cpu, on_gpu, IMAGES[tune])
        joined(generator, precision, tune, gpu, cheapest(generator, costs)).save(file)
    return read(file, generator, precision)


@dataclass(frozen=True, slots=True)
class Costs:
    """Seconds for one batch: of each layer on the CPU and on the GPU, and for each value to cross between them."""

    cpu: Mapping[str, float]
    gpu: Mapping[str, float]
    crossing: Mapping[str, float]


def cheapest(generator: Generator, costs: Costs) -> tuple[str, ...]:
    """The layers to put on the GPU, in their order, so that the pass from and to the host's memory costs least."""
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
    program = lower(generator)
    for op in program.ops:
        for name in op.reads:
            readers[name].append(op.name)
    readers[program.output.name].append(OUTSIDE)
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
    """The costs of ``n`` images of the generator's own size, by medians; both engines must have all layers.

    Two layers, one of which reads the other, are timed apart and together. The difference is what it costs a value to
    leave an engine and come back, which is fitted as a linear function of its bytes. Half of that is the way out, half
    the way in. A crossing is the way out of one engine and into the other. A layer's own time is what it takes alone,
    less the ways of what it reads and of its result.
    """
    generator = cpu.generator
    shapes = generator.shapes(generator.size, generator.size)
    rng = np.random.default_rng(0)
    values = {name: rng.standard_normal((n, *shape), np.float32) for name, shape in shapes.items()}
    reads = {op.name: op.reads for op in lower(generator).ops}
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
