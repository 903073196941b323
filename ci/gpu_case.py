"""One case of ci/gpu.sh: a process that raises if the GPU engine is wrong.

    python -m ci.gpu_case found                        # prints the GPU and versions, as JSON
    python -m ci.gpu_case network NAME                 # of tests/gpu/networks.py
    python -m ci.gpu_case demo|resnet PRECISION        # a whole network: accuracy, batches, streams, CUDA graphs
    python -m ci.gpu_case ready PRECISION TUNE [PLAN]  # compiles what benchmarks run, into Numba's cache on disk

The kernel that was launched last is written to the file that case_runner.JOURNAL names. With CUDA_LAUNCH_BLOCKING=1 it
is the one that failed, or hangs.
"""

from __future__ import annotations

import faulthandler
import json
import os
import platform
import signal
import sys
from collections.abc import Callable
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np

from bench.real_models import demo_model, difference
from pix2pix.engines.reference import ReferenceEngine
from pix2pix.gpu.device import Device
from pix2pix.gpu.engine import GpuEngine
from pix2pix.gpu.jit import SIMULATED
from pix2pix.gpu.kernels.maps import make_copy_values
from pix2pix.gpu.ptx.packed_words import KINDS
from pix2pix.model.generator import Generator, Weights
from pix2pix.model.resnet import resnet
from pix2pix.model.unet import unet
from pix2pix.model.weights import random_weights
from pix2pix.plans.precisions import PRECISIONS
from tests.gpu.networks import MORE, QUICK
from tests.models import pictures

from .case_runner import JOURNAL

PACKAGES = ("numba", "numba-cuda", "cuda-core", "cuda-bindings", "llvmlite", "numpy", "torch")
IMAGES = {"latency": 1, "throughput": 64}  # of the batches for which benchmarks need kernels


def name_of(kernel: Any) -> str:
    """A kernel's function, tile, properties and precision, from the constants that its factory gave it."""
    function = kernel.fn if SIMULATED else kernel.py_func
    cells = zip(function.__code__.co_freevars, function.__closure__ or (), strict=True)
    constants = {name.lower(): cell.cell_contents for name, cell in cells}
    words = [function.__name__]
    if "bm" in constants:
        words.append(f"{constants['bm']}x{constants['bn']}")
    words += [name for name, value in constants.items() if value is True]
    words += [precision for precision, kind in KINDS.items() if kind == constants.get("kind")]
    return " ".join(words)


def write_launches(path: Path) -> None:
    """Write the name of each kernel to ``path`` before it is compiled or launched."""
    kernels = type(make_copy_values(1))
    configure: Callable[..., Any] = kernels.__getitem__
    file = open(path, "w", encoding="utf-8")  # noqa: SIM115  (until the process ends)

    def recorded(kernel: Any, configuration: Any) -> Any:
        file.seek(0)
        file.truncate()
        file.write(name_of(kernel))
        file.flush()
        return configure(kernel, configuration)

    kernels.__getitem__ = recorded


def found() -> None:
    """Print what runs the cases. RuntimeError if there is no GPU that can be used."""
    versions = {"python": platform.python_version()}
    for name in PACKAGES:
        try:
            versions[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            versions[name] = "not installed"
    device = Device(0)
    capability = ".".join(map(str, device.capability))
    print(json.dumps({"gpu": device.name, "capability": capability, "graphs": device.has_graphs, "versions": versions}))


def network(name: str) -> None:
    """Compare all layers of a network, at the real tiles, with the oracle."""
    next(case for case in (*QUICK, *MORE) if str(case) == name).check()


def check(generator: Generator, weights: Weights, b: np.ndarray, precision: str) -> None:
    """Compare images with the oracle's, then the ways to get them with each other, as users run them: as graphs."""
    expected = ReferenceEngine(generator, weights).translate(b)
    engine = GpuEngine(generator, weights, precision=precision)
    with engine:
        had_graphs = engine.device.has_graphs
        result = engine.translate(b)
        off = difference(result, expected)
        print(precision, off)
        least = PRECISIONS[precision].psnr
        assert off["largest_difference"] <= 1 if least is None else off["least_psnr_db"] >= least, off
        np.testing.assert_array_equal(engine.translate(b), result, "the second time")
        np.testing.assert_array_equal(engine.translate(b[-1:])[0], result[-1], "the last image alone")
        for streamed, part in zip(engine.stream([b, b[:1], b]), (result, result[:1], result), strict=True):
            np.testing.assert_array_equal(streamed, part, "as a stream")
        assert engine.device.has_graphs == had_graphs, "kernels could not be recorded as a CUDA graph"


def demo(precision: str) -> None:
    """The embedded model, on two of its images."""
    model = demo_model()
    check(model.generator, model.weights, model.images[:2], precision)


def small_resnet(precision: str) -> None:
    """A small ResNet with random weights that make its outputs vary."""
    edge, widest = (16, 4) if SIMULATED else (64, 32)
    generator = resnet(widest, 2, size=edge)
    weights = {name: 3 * w if name.endswith("kernel") else w for name, w in random_weights(generator).items()}
    check(generator, weights, pictures(3, edge, edge), precision)


def ready(precision: str, tune: str, plan: str | None = None) -> None:
    """Compile the kernels of the network of all benchmarks, under the default plan or that of one algorithm."""
    generator = unet(ngf=64, depth=8)
    with GpuEngine(generator, random_weights(generator), precision=precision, tune=tune, plan=plan) as engine:
        b = engine.empty(IMAGES[tune], generator.size, generator.size)
        b[...] = 0
        engine.translate(b)
        engine.run(np.zeros((1, *b.shape[1:]), np.float32))


KINDS_OF_CASE: dict[str, Callable[..., None]] = {
    "found": found,
    "network": network,
    "demo": demo,
    "resnet": small_resnet,
    "ready": ready,
}


def main(kind: str, *arguments: str) -> int:
    """Run a case."""
    if path := os.environ.get(JOURNAL):
        write_launches(Path(path))
    KINDS_OF_CASE[kind](*arguments)
    return 0


if __name__ == "__main__":
    faulthandler.enable()  # a crash, and SIGTERM, print where Python was
    faulthandler.register(signal.SIGTERM, chain=True)
    raise SystemExit(main(*sys.argv[1:]))
