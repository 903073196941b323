"""What all benchmarks share: what they ran on, how they time and report, and the pictures that they run over."""

from __future__ import annotations

import importlib.metadata
import json
import os
import platform
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from pix2pix.cpu import peaks
from pix2pix.cpu.instruction_sets import build_info
from pix2pix.demo.facades import facade
from pix2pix.files import metrics

RESULTS = Path(__file__).parent / "results"
PACKAGES = (
    "pix2pix",
    "numpy",
    "pillow",
    "mpi4py",
    "mpich",
    "numba",
    "numba-cuda",
    "torch",
    "onnx",
    "onnxruntime",
    "openvino",
)
FLAGS = ("avx", "avx2", "fma", "avx512f", "avx512_bf16", "amx_tile", "asimd", "sve")
GRAIN = 4.0  # standard deviation of the noise in varied_pictures: that of a camera in moderate light
TOLERANCE = 1e-4  # max abs after tanh against the float64 oracle; the wrong network is off by far more


def pictures(n: int, first_seed: int = 0) -> np.ndarray:
    """``n`` different pictures, uint8 (n,256,256,3): drawn facades."""
    return np.stack([facade(seed)[1] for seed in range(first_seed, first_seed + n)])


def varied_pictures(n: int) -> np.ndarray:
    """``n`` different pictures of photographic content, uint8 (n,256,256,3): drawn facades, shifted and with grain."""
    rng = np.random.default_rng(0)
    drawn = pictures(min(n, 64))
    result = np.empty((n, *drawn.shape[1:]), np.uint8)
    for index in range(n):
        picture = np.roll(drawn[index % len(drawn)], rng.integers(0, 256), axis=1)
        grain = rng.normal(0, GRAIN, picture.shape)
        result[index] = np.clip(picture + grain, 0, 255)
    return result


def to_float(b: np.ndarray) -> np.ndarray:
    """8-bit pictures as the network takes them: float32 in [-1,1]."""
    return b.astype(np.float32) / np.float32(127.5) - np.float32(1)


def to_bytes(y: np.ndarray) -> np.ndarray:
    """The network's output in [-1,1] as 8-bit pictures, by PyTorch's rule: what is behind the point is cut off."""
    return np.clip((y + 1) / 2 * 255, 0, 255).astype(np.uint8)


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
    """The first GPU of this machine, its driver, memory, clocks and power limit, as NVIDIA's tool tells them."""
    fields = {
        "name": "name",
        "driver": "driver_version",
        "memory": "memory.total",
        "most_clock": "clocks.max.sm",
        "power_limit": "power.limit",
    }
    query = ["nvidia-smi", f"--query-gpu={','.join(fields.values())}", "--format=csv,noheader"]
    try:
        told = subprocess.run(query, capture_output=True, text=True, check=True).stdout.splitlines()[0]
    except (OSError, subprocess.CalledProcessError, IndexError):
        return dict.fromkeys(fields, "unknown")
    return dict(zip(fields, (value.strip() for value in told.split(",")), strict=True))


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


def peak(thread_count: int, precision: str = "float32") -> dict[str, float]:
    """What this machine can do with so many threads now: FMA GFLOP/s in a precision, and memory GB/s."""
    return peaks.measure(thread_count, 0.1, precision)


def median_peak(peaks: Sequence[Mapping[str, float]]) -> dict[str, float]:
    """The medians of peaks that were measured between blocks: clocks vary, and rates are medians too."""
    return {name: round(float(np.median([peak[name] for peak in peaks])), 1) for name in peaks[0]}


def time_calls(call: Callable[[], Any], repetitions: int) -> list[float]:
    """Seconds of each of so many calls."""
    seconds = []
    for _ in range(repetitions):
        start = time.perf_counter()
        call()
        seconds.append(time.perf_counter() - start)
    return seconds


def rates(seconds: Sequence[float], images: int, flops: int, peak_gflops: float) -> dict[str, float]:
    """Minimum and median of calls that took ``seconds`` for ``images`` each, with ``flops`` per image."""
    report = {}
    for name, value in (("min", min(seconds)), ("median", float(np.median(seconds)))):
        gflops = images * flops / value / 1e9
        report[f"{name}_ms_per_image"] = round(1e3 * value / images, 4)
        report[f"{name}_images_per_s"] = round(images / value, 3)
        report[f"{name}_gflops"] = round(gflops, 2)
        report[f"{name}_fraction_of_peak"] = round(gflops / peak_gflops, 4)
    return report


def check_close(name: str, result: np.ndarray, expected: np.ndarray, tolerance: float = TOLERANCE) -> float:
    """The largest difference; RuntimeError if it is beyond ``tolerance``, or if the result doesn't vary."""
    if result.shape != expected.shape:
        raise RuntimeError(f"{name} gave {result.shape}, the oracle {expected.shape}: not the same network")
    error = float(np.abs(result.astype(np.float64) - expected).max())
    if not error <= tolerance or result.std() == 0:
        raise RuntimeError(f"{name} is {error:.2e} off the oracle (at most {tolerance:.0e}): not timed")
    return error


def check_psnr(name: str, result: np.ndarray, expected: np.ndarray, least: float) -> float:
    """PSNR (dB) of two outputs in [-1,1] as 8-bit pictures; RuntimeError if it is less than ``least``."""
    if result.shape != expected.shape:
        raise RuntimeError(f"{name} gave {result.shape}, the oracle {expected.shape}: not the same network")
    psnr = metrics.psnr(to_bytes(result), to_bytes(expected))
    if not psnr >= least or result.std() == 0:
        raise RuntimeError(f"{name} has {psnr:.1f} dB against the oracle (at least {least:.0f}): not timed")
    return psnr


def check_pictures(name: str, result: np.ndarray, expected: np.ndarray) -> None:
    """RuntimeError unless 8-bit pictures are the oracle's, but for what rounds the other way."""
    difference = np.abs(result.astype(np.int16) - expected)
    if result.std() == 0 or difference.max() > 1 or difference.mean() > 0.01:
        raise RuntimeError(
            f"{name} is up to {difference.max()} (mean {difference.mean():.3f}) off the oracle: not timed"
        )


def command_line(*arguments: str | os.PathLike[str]) -> float:
    """Run ``python -m pix2pix ...`` in a process of its own; seconds from start to end. RuntimeError if it fails."""
    start = time.perf_counter()
    done = subprocess.run([sys.executable, "-m", "pix2pix", *arguments], capture_output=True, text=True, check=False)
    elapsed = time.perf_counter() - start
    if done.returncode:
        raise RuntimeError(f"pix2pix {' '.join(map(str, arguments))} ended with {done.returncode}: {done.stderr}")
    return elapsed


def peak_memory() -> float:
    """The most memory (MiB) that this process has held so far."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return round(next(int(line.split()[1]) for line in lines if line.startswith("VmHWM:")) / 1024, 1)


def save(name: str, record: Mapping[str, Any]) -> Path:
    """Write bench/results/NAME.json: ``record``, and what it was measured on."""
    RESULTS.mkdir(exist_ok=True)
    path = RESULTS / f"{name}.json"
    head = {"commit": commit(), "hardware": hardware(), "versions": versions(), "build": build_info()}
    path.write_text(json.dumps(head | dict(record), indent=2) + "\n", encoding="utf-8")
    print(f"wrote {path.relative_to(Path.cwd()) if path.is_relative_to(Path.cwd()) else path}")
    return path
