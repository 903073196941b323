"""Which algorithm, tile and split is fastest for each layer on this GPU, as a plan file for ``--plan``.

    python -m bench.tune [--tune throughput,latency] [--device cuda:0] [--output DIR]

Every candidate runs the whole network, is compared with the float64 oracle, and then each of its layers is timed by
itself. Writes plan-cuda-latency.json (one picture at a time) and plan-cuda-throughput.json (batches), and tune.json
with all times. Without a GPU, it says that nothing was measured.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np

from pix2pix.engine import check_device, make_engine
from pix2pix.generator import Generator, Weights
from pix2pix.plan import Plan, algorithms, choose

from . import common, gpu_kernels
from .contenders import model
from .gpu import Oracle
from .peers import verify

IMAGES = {"latency": 1, "throughput": 32}  # of the batches that are timed

Times = dict[str, dict[str, float]]  # seconds by layer, then by algorithm


def time_candidates(
    generator: Generator, weights: Weights, b: np.ndarray, device: str, candidates: Iterable[str]
) -> Times:
    """Seconds of every layer of batches like ``b`` under each candidate that the layer takes, all of them verified."""
    times: Times = {layer.name: {} for layer in generator.layers}
    expected = Oracle(generator, weights)(b)
    for candidate in candidates:
        with make_engine(generator, weights, device, plan=candidate) as engine:
            verify(candidate, "float32", engine.run(common.to_float(b)), expected)
            seconds = gpu_kernels.layer_seconds(engine, b)
            for name in times:
                if engine.plan.layers[name] == candidate and name in seconds:
                    times[name][candidate] = seconds[name]
        print(f"N={len(b)} {candidate:24s} {1e3 * sum(seconds.values()):8.3f} ms", flush=True)
    return times


def fastest(generator: Generator, times: Times, tune: str) -> Plan:
    """The plan that has for each layer what took the least; those that are constants keep what they have by default."""
    layers = dict(choose(generator, tune, hardware="cuda").layers)
    constant = generator.constant_layers(generator.size, generator.size)
    layers |= {name: min(taken, key=taken.__getitem__) for name, taken in times.items() if name not in constant}
    return Plan(layers, "cuda", "float32", tune)


def main(argv: list[str] | None = None) -> int:
    """Time the candidates and write the plans."""
    parser = argparse.ArgumentParser(prog="python -m bench.tune", description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument("--tune", default="throughput,latency", help="what for (%(default)s)")
    parser.add_argument("--device", default="cuda:0", help="(%(default)s)")
    parser.add_argument("--output", type=Path, default=common.RESULTS, help="where the files go (%(default)s)")
    arguments = parser.parse_args(argv)
    try:
        check_device(arguments.device, "float32", None, None)
    except RuntimeError as error:
        print(f"not measured: no CUDA device ({error})")
        return 0
    generator, weights = model()
    record: dict[str, Any] = {"gpu": common.gpu(), "times": {}}
    arguments.output.mkdir(parents=True, exist_ok=True)
    for tune in arguments.tune.split(","):
        b = common.pictures(IMAGES[tune])
        times = time_candidates(generator, weights, b, arguments.device, algorithms(generator.layers[0], "cuda"))
        plan = fastest(generator, times, tune)
        path = arguments.output / f"plan-cuda-{tune}.json"
        plan.save(path)
        record["times"][tune] = {name: {a: round(1e6 * s, 2) for a, s in t.items()} for name, t in times.items()}
        total = sum(times[name].get(algorithm, 0.0) for name, algorithm in plan.layers.items())
        print(f"{path}: {1e3 * total:.3f} ms for {len(b)} pictures, {len(b) / total:.0f} images/s in the layers")
    common.save("tune", record)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
