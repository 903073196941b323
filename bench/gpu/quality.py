"""PSNR of all precisions on a GPU against the float64 oracle, on real weights.

    python -m bench.gpu.quality [--device cuda:0] [--shared DIR]

The models are the embedded demo model and, if its folder is there, edges2cats, over the images of
:mod:`bench.real_models`; ``--shared`` is the folder of real models, by default beside the checkout. Writes
gpu-quality.json and gpu.md. Exit status 1 if a precision is outside its tolerance. Without a GPU, nothing is measured,
and the program says so.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from pix2pix.engines.reference import ReferenceEngine
from pix2pix.factory import EngineOptions, make_engine

from .. import common, real_models
from ..checks import required_psnr
from . import tables
from .contenders import PRECISIONS

MODELS = ("demo", "edges2cats")


def measure(device: str, shared: Path) -> dict[str, Any]:
    """How far all precisions are off by model, and the list of those that are ``wrong``; the record to be saved."""
    record: dict[str, Any] = {"gpu": common.gpu(), "engine": "", "models": {}, "wrong": []}
    for model in real_models.models(MODELS, shared):
        with ReferenceEngine(model.generator, model.weights) as oracle:
            expected = oracle.translate(model.images)
        entries = record["models"][model.name] = {}
        for precision in PRECISIONS:
            with make_engine(model.generator, model.weights, EngineOptions(device, precision)) as engine:
                record["engine"] = str(engine.info)
                found = entries[precision] = real_models.difference(engine.translate(model.images), expected)
            print(f"{model.name}, {precision}: {found}", flush=True)
            if found["least_psnr_db"] < required_psnr(precision) or (
                precision == "float32" and found["largest_difference"] > 1
            ):
                record["wrong"].append(f"{model.name}, {precision}: {found}")
    return record


def main(argv: list[str] | None = None) -> int:
    """Run the measurement."""
    parser = common.argument_parser("bench.gpu.quality", __doc__)
    parser.add_argument("--device", default="cuda:0", help="(%(default)s)")
    parser.add_argument("--shared", type=Path, default=real_models.SHARED, help="real models (beside the checkout)")
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
