"""Time of every layer of the GPU engine beside its roof, and of every kernel, in all precisions.

    python -m bench.gpu.layers [--batches 64,1] [--precisions float16,tf32,bfloat16,float32] [--device cuda:0]
                               [--network unet|resnet]

The roof of a layer (Williams, Waterman and Patterson, "Roofline", CACM 52, 2009) is the lesser of cuBLAS's rate for a
large product in that precision, and of the rate that memory can feed if weights and maps pass once. A layer's time is
that of all its launches in one CUDA graph, norm included. Writes gpu-layers.json and gpu.md; for a ResNet
gpu-layers-resnet.json alone. Without a GPU, nothing is measured, and the program says so.
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from pix2pix.engines.reference import to_float
from pix2pix.factory import EngineOptions, make_engine
from pix2pix.model.generator import INPUT
from pix2pix.model.lowering import lower

from .. import common
from ..checks import Oracle, verify
from ..common import model
from . import kernels, tables
from .contenders import PRECISIONS

if TYPE_CHECKING:
    from pix2pix.gpu.engine import GpuEngine


def roofline(engine: GpuEngine, b: np.ndarray, peak: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Time and rates of every layer; the row ``input`` is the time spent on the images before the first layer."""
    n, h, w, _ = b.shape
    macs, needed = engine.generator.macs(h, w), common.traffic(engine.generator, n, h, w, engine.info.precision)
    most = peak["cublas_gflops"][engine.info.precision]
    rows = []
    for layer, seconds in kernels.layer_seconds(engine, b).items():
        row: dict[str, Any] = {"layer": layer, "us": round(1e6 * seconds, 2), "gflops": None}
        if layer != INPUT and layer not in lower(engine.generator).constants(h, w):
            flops = 2 * n * macs[layer]
            gflops, intensity = flops / seconds / 1e9, flops / needed[layer]
            roof = min(most, intensity * peak["bandwidth_gbs"])
            row |= {"gflops": round(gflops, 6), "of_cublas": round(gflops / most, 4), "roof_gflops": round(roof, 6)}
            row |= {"of_roof": round(gflops / roof, 4), "flops_per_byte": round(intensity, 2)}
            row |= {"gbs": round(needed[layer] / seconds / 1e9, 3), "algorithm": str(engine.info.plan.layers[layer])}
        rows.append(row)
    return rows


def measure(arguments: argparse.Namespace) -> dict[str, Any]:
    """All precisions and batch sizes; the record that is saved."""
    from . import peak as gpu_peak

    generator, weights = model(arguments.network)
    oracle = Oracle(generator, weights)
    record: dict[str, Any] = {"gpu": common.gpu(), "engine": "", "peak": {}, "runs": []}
    for n in arguments.batches:
        b, tune = common.images(n), common.tune_for(n)
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
    parser.add_argument("--batches", type=common.numbers, default="64,1", help="images per call (%(default)s)")
    parser.add_argument("--precisions", default="float16,tf32,bfloat16,float32", help="(%(default)s)")
    parser.add_argument("--device", default="cuda:0", help="(%(default)s)")
    parser.add_argument("--network", choices=("unet", "resnet"), default="unet", help="(%(default)s)")
    arguments = parser.parse_args(argv)
    arguments.precisions = arguments.precisions.split(",")
    if missing := common.missing_device(arguments.device):
        print(f"not measured: no CUDA device ({missing})")
        return 0
    if arguments.network == "unet":
        common.save("gpu-layers", measure(arguments))
        tables.write()
    else:
        common.save(f"gpu-layers-{arguments.network}", measure(arguments))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
