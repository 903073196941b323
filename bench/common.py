"""Shared by all benchmarks: network and images, machine, timing, child processes, the record that is saved."""

from __future__ import annotations

import argparse
import importlib.metadata
import json
import math
import os
import platform
import subprocess
import sys
import time
from collections.abc import Iterable, Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np

from pix2pix.atomic import write_atomically
from pix2pix.cpu import peaks
from pix2pix.cpu.instruction_sets import build_info
from pix2pix.demo.facades import facade
from pix2pix.engines.reference import to_float
from pix2pix.factory import EngineOptions
from pix2pix.model.generator import Generator, Weights
from pix2pix.model.lowering import lower
from pix2pix.model.resnet import resnet
from pix2pix.model.unet import unet
from pix2pix.model.weights import random_weights
from pix2pix.plans.precisions import PRECISIONS

from .sources import fingerprint

RESULTS = Path(__file__).parent / "results"
PACKAGES = "pix2pix numpy pillow av mpi4py mpich numba numba-cuda torch onnx onnxruntime openvino nncf".split()
FLAGS = ("avx", "avx2", "fma", "avx512f", "avx512_bf16", "amx_tile", "asimd", "sve")
GRAIN = 4.0  # standard deviation of the noise in varied_images: that of a camera in moderate light
MODEL_SEED = 0


# -- what is run --------------------------------------------------------------------------------------------------


@cache
def model(network: str = "unet") -> tuple[Generator, Weights]:
    """The network of all comparisons: U-Net for 256x256, ngf=64, random weights, per-image statistics.

    ``network`` may be "resnet" where a benchmark takes that, too: CycleGAN's of 9 blocks, ngf=64.
    """
    generator = resnet(ngf=64, blocks=9) if network == "resnet" else unet(ngf=64, depth=8)
    return generator, random_weights(generator, MODEL_SEED)


def images(n: int, first_seed: int = 0) -> np.ndarray:
    """``n`` different images, uint8 (n,256,256,3): drawn facades."""
    return np.stack([facade(seed)[1] for seed in range(first_seed, first_seed + n)])


def inputs(n: int, first_seed: int = 0) -> np.ndarray:
    """:func:`images` as float32 (n,256,256,3) in [-1,1]."""
    return to_float(images(n, first_seed))


def varied_images(n: int) -> np.ndarray:
    """``n`` different images that compress like photographs, uint8 (n,256,256,3): facades, shifted, with grain."""
    rng = np.random.default_rng(0)
    drawn = images(min(n, 64))
    result = np.empty((n, *drawn.shape[1:]), np.uint8)
    for index in range(n):
        image = np.roll(drawn[index % len(drawn)], rng.integers(0, 256), axis=1)
        grain = rng.normal(0, GRAIN, image.shape)
        result[index] = np.clip(image + grain, 0, 255)
    return result


def tune_for(n: int) -> str:
    """The ``tune`` option with which batches of ``n`` images are measured."""
    return "latency" if n == 1 else "throughput"


def element_bytes(precision: str) -> int:
    """Bytes of one number of a map or a weight; of 8-bit integers, where the processor has VNNI."""
    return 4 // PRECISIONS[precision].elements


def traffic(generator: Generator, n: int, h: int, w: int, precision: str) -> dict[str, int]:
    """Bytes that each layer must move for ``n`` images of h x w: its weights and the maps it reads and writes, once."""
    program = lower(generator)
    maps = {name: n * math.prod(shape) for name, shape in program.shapes(h, w).items()}
    moved = {}
    for op in program.ops:
        weights = 0 if op.depthwise else op.sampling.kernel**2 * op.in_channels * op.filters
        moved[op.name] = element_bytes(precision) * (weights + sum(maps[name] for name in (*op.reads, op.name)))
    return moved


# -- the machine --------------------------------------------------------------------------------------------------


def hardware() -> dict[str, Any]:
    """The processor and the memory (GiB) of this machine."""
    lines = Path("/proc/cpuinfo").read_text().splitlines() if Path("/proc/cpuinfo").exists() else []
    info = {key.strip(): value.strip() for key, _, value in (line.partition(":") for line in lines)}
    flags = (info.get("flags") or info.get("Features", "")).split()
    return {
        "processor": info.get("model name", platform.machine()),
        "flags": [flag for flag in FLAGS if flag in flags],
        "usable_cpus": len(os.sched_getaffinity(0)),
        "memory_gib": round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30, 1),
        "system": f"{platform.system()} {platform.release().partition('-')[0]}",
    }


def gpu() -> dict[str, str]:
    """Name, driver, memory, maximum clock and power limit of the first GPU, as nvidia-smi reports them."""
    fields = {
        "name": "name",
        "driver": "driver_version",
        "memory": "memory.total",
        "most_clock": "clocks.max.sm",
        "power_limit": "power.limit",
    }
    query = ["nvidia-smi", f"--query-gpu={','.join(fields.values())}", "--format=csv,noheader"]
    try:
        reported = subprocess.run(query, capture_output=True, text=True, check=True).stdout.splitlines()[0]
    except (OSError, subprocess.CalledProcessError, IndexError):
        return dict.fromkeys(fields, "unknown")
    return dict(zip(fields, (value.strip() for value in reported.split(",")), strict=True))


def missing_device(device: str, workers: int | None = None) -> str:
    """Why ``device`` cannot be used on this machine; an empty string if it can."""
    try:
        EngineOptions(device, workers=workers).check()
    except RuntimeError as error:
        return str(error)
    return ""


def versions() -> dict[str, str]:
    """Versions of Python and of those packages that are installed."""
    found = {"python": platform.python_version()}
    for name in PACKAGES:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found


def commit() -> str:
    """The commit that is checked out, with ``+`` if source files differ from it; ``unknown`` outside a repository."""

    def git(*arguments: str) -> str:
        here = Path(__file__).parent.parent
        return subprocess.run(["git", *arguments], cwd=here, capture_output=True, text=True, check=True).stdout.strip()

    try:
        changed = git("status", "--porcelain", "--untracked-files=no", "--", "pix2pix", "bench/*.py")
        return git("rev-parse", "--short=12", "HEAD") + ("+" if changed else "")
    except (OSError, subprocess.CalledProcessError):
        return "unknown"


# -- timing -------------------------------------------------------------------------------------------------------


def peak(thread_count: int, precision: str = "float32") -> dict[str, float]:
    """Measured peaks of ``thread_count`` threads: ``fma_gflops`` in a precision, and memory ``bandwidth_gbs``."""
    return peaks.measure(thread_count, 0.1, precision)


def median_peak(peaks: Sequence[Mapping[str, float]]) -> dict[str, float]:
    """Medians of peaks measured between blocks. Clocks vary, and the rates beside them are medians too."""
    return {name: round(float(np.median([peak[name] for peak in peaks])), 1) for name in peaks[0]}


def rates(seconds: Sequence[float], n: int, flops: int, peak_gflops: float) -> dict[str, float]:
    """Rates by the minimum and the median of ``seconds``, of calls over ``n`` images of ``flops`` each."""
    report = {}
    for name, value in (("min", min(seconds)), ("median", float(np.median(seconds)))):
        gflops = n * flops / value / 1e9
        report[f"{name}_ms_per_image"] = round(1e3 * value / n, 4)
        report[f"{name}_images_per_s"] = round(n / value, 3)
        report[f"{name}_gflops"] = round(gflops, 2)
        report[f"{name}_fraction_of_peak"] = round(gflops / peak_gflops, 4)
    return report


# -- processes ----------------------------------------------------------------------------------------------------


def argument_parser(module: str, docstring: str | None) -> argparse.ArgumentParser:
    """The parser of ``python -m MODULE``, described by the first paragraph of the module's docstring."""
    return argparse.ArgumentParser(prog=f"python -m {module}", description=(docstring or "").split("\n\n")[0])


def numbers(text: str) -> list[int]:
    """The value of an option that is a list of numbers."""
    return [int(number) for number in text.split(",")]


def run_process(*command: str | os.PathLike[str]) -> float:
    """Run a command in a process of its own; seconds from its start to its end. RuntimeError if it fails."""
    words = [str(word) for word in command]
    start = time.perf_counter()
    done = subprocess.run(words, capture_output=True, text=True, check=False)
    elapsed = time.perf_counter() - start
    if done.returncode:
        raise RuntimeError(f"{' '.join(words)} ended with {done.returncode}: {done.stderr}")
    return elapsed


def command_line(*arguments: str | os.PathLike[str]) -> float:
    """Seconds that ``python -m pix2pix ...`` takes in a process of its own. RuntimeError if it fails."""
    return run_process(sys.executable, "-m", "pix2pix", *arguments)


def mpiexec(ranks: int, *program: str | os.PathLike[str]) -> float:
    """Seconds that ``ranks`` MPI ranks of a Python module take. RuntimeError if they fail."""
    launcher = Path(sys.executable).with_name("mpiexec")
    return run_process(launcher if launcher.exists() else "mpiexec", "-n", str(ranks), sys.executable, "-m", *program)


# -- results ------------------------------------------------------------------------------------------------------


def markdown(head: Sequence[str], rows: Iterable[Sequence[Any]]) -> str:
    """A Markdown table. The first column is text, the others are numbers; None is an empty cell."""
    lines = [head, ["---", *["---:"] * (len(head) - 1)], *rows]
    return "\n".join("| " + " | ".join("" if cell is None else str(cell) for cell in line) + " |" for line in lines)


def save(name: str, record: Mapping[str, Any]) -> Path:
    """Write ``record`` and what it was measured on to bench/results/NAME.json."""
    path = RESULTS / f"{name}.json"
    head = {
        "commit": commit(),
        "sources": fingerprint(),
        "hardware": hardware(),
        "versions": versions(),
        "build": build_info(),
    }
    write_atomically(path, (json.dumps(head | dict(record), indent=2) + "\n").encode())
    print(f"wrote {path.relative_to(Path.cwd()) if path.is_relative_to(Path.cwd()) else path}")
    return path


def read(name: str) -> dict[str, Any]:
    """The content of bench/results/NAME.json."""
    return json.loads((RESULTS / f"{name}.json").read_text(encoding="utf-8"))
