"""What lower precision costs on real weights, as PSNR of 8-bit pictures against the float64 oracle.

    python -m bench.quality [--device cuda:0] [--shared DIR]

:mod:`.peers` has the CPU's engines run the embedded demo model over its own label pictures; int8 gets its ranges from
labels that are not among those. As a program this does the same on a GPU, in all precisions, and over edges2cats too,
where the folder of real models is, which by default lies beside the checkout. It writes gpu-quality.json and gpu.md,
and ends with status 1 if a precision is not within its tolerance; without a GPU, it says that nothing was measured.
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from pix2pix import checkpoints, demo
from pix2pix.demo.facades import facade
from pix2pix.engines.reference import ReferenceEngine
from pix2pix.factory import EngineOptions, make_engine
from pix2pix.files import metrics
from pix2pix.model.generator import Generator, Weights
from tests.models import PSNR

from . import common, files
from .contenders import CALIBRATION_PICTURES, CALIBRATION_SEED, Contender
from .engines import ENGINES, Task
from .gpu_contenders import PRECISIONS

DEMO = Path(demo.__file__).parent
SHARED = Path(__file__).resolve().parents[2] / "shared"
SAME = 99.0  # dB of pictures that are the same, for which JSON has no infinity
LOWER_PRECISION = ("pix2pix-bfloat16", "torch-eager-bfloat16", "openvino-bfloat16", "openvino-int8")


def difference(result: np.ndarray, expected: np.ndarray) -> dict[str, float]:
    """Mean and least PSNR (dB) of 8-bit pictures (N,H,W,C), and the largest difference."""
    psnr = [min(SAME, metrics.psnr(a, b)) for a, b in zip(result, expected, strict=True)]
    return {
        "mean_psnr_db": round(sum(psnr) / len(psnr), 2),
        "least_psnr_db": round(min(psnr), 2),
        "largest_difference": int(np.abs(result.astype(np.int16) - expected).max()),
    }


def demo_case() -> tuple[Generator, Weights, np.ndarray]:
    """The embedded model, and its label pictures."""
    labels = np.stack([np.asarray(Image.open(path)) for path in sorted(DEMO.glob("labels-*.png"))])
    return *checkpoints.read(DEMO / "facades.safetensors"), labels


def measure(engines: list[str], threads: int, plan: str | None) -> dict[str, dict[str, float]]:
    """:func:`difference` on the demo model, for those of the engines that compute in less than float32 (inductor's
    bfloat16 is PyTorch's, and would take its time to compile)."""
    names = [name for name in engines if name in LOWER_PRECISION]
    generator, weights, labels = demo_case()
    x = common.to_float(labels)
    seeds = range(CALIBRATION_SEED, CALIBRATION_SEED + CALIBRATION_PICTURES)
    calibration = common.to_float(np.stack([facade(seed)[0] for seed in seeds]))
    with ReferenceEngine(generator, weights) as oracle:
        expected = common.to_bytes(oracle.run(x))
    report = {}
    with tempfile.TemporaryDirectory() as folder:
        files.export(Path(folder), generator, weights, len(x), {ENGINES[name].file for name in names}, calibration)
        for name in names:
            contender = Contender(name, Task(Path(folder), x, threads, plan))
            contender.close()
            report[name] = difference(common.to_bytes(contender.output), expected)
    return report


def gpu_cases(shared: Path) -> Iterator[tuple[str, Generator, Weights, np.ndarray]]:
    """Names of models, the models, and pictures for them."""
    yield "demo", *demo_case()
    folder, picture = shared / "models" / "edges2cats", shared / "images" / "edges2cats-input.png"
    if folder.is_dir():
        yield "edges2cats", *checkpoints.read(folder), np.asarray(Image.open(picture).convert("RGB"))[None]
    else:
        print(f"edges2cats: left out, {folder} is not there")


def measure_gpu(device: str, shared: Path) -> dict[str, Any]:
    """:func:`difference` by model and precision, and what is ``wrong``; what is saved."""
    record: dict[str, Any] = {"gpu": common.gpu(), "engine": "", "models": {}, "wrong": []}
    for name, generator, weights, b in gpu_cases(shared):
        with ReferenceEngine(generator, weights) as oracle:
            expected = oracle.translate(b)
        entries = record["models"][name] = {}
        for precision in PRECISIONS:
            with make_engine(generator, weights, EngineOptions(device, precision)) as engine:
                record["engine"] = str(engine.info)
                found = entries[precision] = difference(engine.translate(b), expected)
            print(f"{name}, {precision}: {found}", flush=True)
            if found["least_psnr_db"] < PSNR.get(precision, 0) or (
                precision == "float32" and found["largest_difference"] > 1
            ):
                record["wrong"].append(f"{name}, {precision}: {found}")
    return record


def main(argv: list[str] | None = None) -> int:
    """Run the measurement on a GPU."""
    from . import gpu_tables

    parser = argparse.ArgumentParser(prog="python -m bench.quality", description=__doc__.split("\n\n")[0])
    parser.add_argument("--device", default="cuda:0", help="(%(default)s)")
    parser.add_argument("--shared", type=Path, default=SHARED, help="the folder of real models (beside the checkout)")
    arguments = parser.parse_args(argv)
    try:
        EngineOptions(arguments.device).check()
    except RuntimeError as error:
        print(f"not measured: no CUDA device ({error})")
        return 0
    record = measure_gpu(arguments.device, arguments.shared)
    common.save("gpu-quality", record)
    print(f"wrote {gpu_tables.write(common.RESULTS).name}")
    for line in record["wrong"]:
        print(f"WRONG: {line}")
    return 1 if record["wrong"] else 0


if __name__ == "__main__":
    raise SystemExit(main())
