"""Every layer of the GPU engine beside the roof, and every kernel's time, in all precisions.

    python -m bench.gpu.layers [--batches 64,1] [--precisions float16,tf32,bfloat16,float32] [--device cuda:0]

The roof of a layer is the least of what cuBLAS does of a large product in that precision, and of what memory can feed
if the layer's weights and maps pass once (Williams, Waterman and Patterson, "Roofline", CACM 52, 2009). A layer's time
is that of all its launches in one CUDA graph, norm included. Writes gpu-layers.json and gpu.md. Without a GPU, it says
that nothing was measured.
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from typing import Any

import numpy as np

from pix2pix.engines.base import BaseEngine
from pix2pix.engines.reference import to_float
from pix2pix.factory import EngineOptions, make_engine
from pix2pix.model.generator import INPUT, Generator
from pix2pix.model.lowering import lower

from .. import common
from ..checks import Oracle, verify
from ..common import model
from . import kernels, tables
from .contenders import PRECISIONS

BYTES = {"float32": 4, "tf32": 4, "float16": 2, "bfloat16": 2}  # of a number in the GPU's memory


def traffic(generator: Generator, n: int, h: int, w: int, precision: str) -> dict[str, int]:
    """Bytes that each layer must read and write for ``n`` pictures of h x w: its weights and maps, once."""
    numbers = {name: n * int(np.prod(shape)) for name, shape in generator.shapes(h, w).items()}
    needed = {}
    for layer in generator.layers:
        weights = layer.kernel**2 * layer.in_channels * layer.filters
        read = sum(numbers[source.layer] for source in layer.inputs)
        needed[layer.name] = BYTES[precision] * (weights + read + numbers[layer.name])
    return needed


def roofline(engine: BaseEngine, b: np.ndarray, peak: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Time and rates of every layer, and the time of what is done to the pictures before the first."""
    gpu: Any = engine
    n, h, w, _ = b.shape
    macs, needed = engine.generator.macs(h, w), traffic(engine.generator, n, h, w, gpu.info.precision)
    most = peak["cublas_gflops"][gpu.info.precision]
    rows = []
    for layer, seconds in kernels.layer_seconds(engine, b).items():
        row: dict[str, Any] = {"layer": layer, "us": round(1e6 * seconds, 2), "gflops": None}
        if layer != INPUT and layer not in lower(engine.generator).constants(h, w):
            flops = 2 * n * macs[layer]
            gflops, intensity = flops / seconds / 1e9, flops / needed[layer]
            roof = min(most, intensity * peak["bandwidth_gbs"])
            row |= {"gflops": round(gflops, 6), "of_cublas": round(gflops / most, 4), "roof_gflops": round(roof, 6)}
            row |= {"of_roof": round(gflops / roof, 4), "flops_per_byte": round(intensity, 2)}
            row |= {"gbs": round(needed[layer] / seconds / 1e9, 3), "algorithm": str(gpu.plan.layers[layer])}
        rows.append(row)
    return rows


def measure(arguments: argparse.Namespace) -> dict[str, Any]:
    """All precisions and numbers of pictures; what is saved."""
    from . import peak as gpu_peak

    generator, weights = model()
    oracle = Oracle(generator, weights)
    record: dict[str, Any] = {"gpu": common.gpu(), "engine": "", "peak": {}, "runs": []}
    for n in arguments.batches:
        b, tune = common.images(n), "latency" if n == 1 else "throughput"
        for precision in arguments.precisions:
            with make_engine(generator, weights, EngineOptions(arguments.device, precision, tune)) as engine:
                if not record["peak"]:
                    record |= {"engine": engine.info.description, "peak": gpu_peak.all_of(engine, PRECISIONS)}
                off = verify(precision, precision, engine.run(to_float(b)), oracle(b))
                entry = {"n": n, "precision": precision, **off, "layers": roofline(engine, b, record["peak"])}
                record["runs"].append(entry | {"kernels": kernels.measure(engine, b)})
            print(f"N={n}, {precision}\n{tables.layer_table(record['runs'][-1]['layers'])}\n", flush=True)
    return record


def main(argv: list[str] | None = None) -> int:
    """Run the benchmark."""
    parser = common.argument_parser("bench.gpu.layers", __doc__)
    parser.add_argument("--batches", default="64,1", help="pictures per call (%(default)s)")
    parser.add_argument("--precisions", default="float16,tf32,bfloat16,float32", help="(%(default)s)")
    parser.add_argument("--device", default="cuda:0", help="(%(default)s)")
    arguments = parser.parse_args(argv)
    arguments.batches = [int(n) for n in arguments.batches.split(",")]
    arguments.precisions = arguments.precisions.split(",")
    if missing := common.missing_device(arguments.device):
        print(f"not measured: no CUDA device ({missing})")
        return 0
    common.save("gpu-layers", measure(arguments))
    print(f"wrote {tables.write(common.RESULTS).name}")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
