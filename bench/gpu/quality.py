"""PSNR of all precisions on a GPU against the float64 oracle, on real weights.

    python -m bench.gpu.quality [--device cuda:0] [--shared DIR]

The models are the embedded demo model over its label images and, if its folder is there, edges2cats; ``--shared`` is
the folder of real models, by default beside the checkout. Writes gpu-quality.json and gpu.md. Exit status 1 if a
precision is outside its tolerance. Without a GPU, nothing is measured, and the program says so.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from pix2pix import checkpoints
from pix2pix.engines.reference import ReferenceEngine
from pix2pix.factory import EngineOptions, make_engine
from pix2pix.model.generator import Generator, Weights

from .. import common
from ..checks import required_psnr
from ..demo_model import demo_model, difference
from . import tables
from .contenders import PRECISIONS

SHARED = Path(__file__).resolve().parents[3] / "shared"


def cases(shared: Path) -> Iterator[tuple[str, Generator, Weights, np.ndarray]]:
    """Names of models, the models, and images for them."""
    yield "demo", *demo_model()
    folder, image = shared / "models" / "edges2cats", shared / "images" / "edges2cats-input.png"
    if folder.is_dir():
        yield "edges2cats", *checkpoints.read(folder), np.asarray(Image.open(image).convert("RGB"))[None]
    else:
        print(f"edges2cats: left out, {folder} is not there")


def measure(device: str, shared: Path) -> dict[str, Any]:
    """:func:`.difference` by model and precision, and the list of those that are ``wrong``; the record to be saved."""
    record: dict[str, Any] = {"gpu": common.gpu(), "engine": "", "models": {}, "wrong": []}
    for name, generator, weights, b in cases(shared):
        with ReferenceEngine(generator, weights) as oracle:
            expected = oracle.translate(b)
        entries = record["models"][name] = {}
        for precision in PRECISIONS:
            with make_engine(generator, weights, EngineOptions(device, precision)) as engine:
                record["engine"] = str(engine.info)
                found = entries[precision] = difference(engine.translate(b), expected)
            print(f"{name}, {precision}: {found}", flush=True)
            if found["least_psnr_db"] < required_psnr(precision) or (
                precision == "float32" and found["largest_difference"] > 1
            ):
                record["wrong"].append(f"{name}, {precision}: {found}")
    return record


def main(argv: list[str] | None = None) -> int:
    """Run the measurement."""
    parser = common.argument_parser("bench.gpu.quality", __doc__)
    parser.add_argument("--device", default="cuda:0", help="(%(default)s)")
    parser.add_argument("--shared", type=Path, default=SHARED, help="the folder of real models (beside the checkout)")
    arguments = parser.parse_args(argv)
    if missing := common.missing_device(arguments.device):
        print(f"not measured: no CUDA device ({missing})")
        return 0
    record = measure(arguments.device, arguments.shared)
    common.save("gpu-quality", record)
    tables.write()
    for line in record["wrong"]:
        print(f"WRONG: {line}")
    return 1 if record["wrong"] else 0


if __name__ == "__main__":
    raise SystemExit(main())
