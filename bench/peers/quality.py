"""PSNR and SSIM of the CPU engines of lower precisions against the float64 oracle, on models with real weights.

    python -m bench.peers.quality [--models demo,edges2cats,resnet] [--engines pix2pix-int8,openvino-nncf]
                                  [--resnet FILE] [--shared DIR] [--threads N]

Models and images are those of :mod:`bench.real_models`. ``--resnet`` is a file that
``python -m bench.peers.train_resnet`` wrote, ``--shared`` the folder of real models. Models without a file, and engines
whose library is not installed or that cannot run on this machine, are left out, and the program says so.

Peers in int8 take their ranges from images that are not measured, and, in rows of their own, from the measured ones.
Writes quality.json, and quality.md with a table for each model.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from pix2pix.cpu.topology import available_cores
from pix2pix.engines.reference import ReferenceEngine, to_float

from .. import common, real_models
from ..checks import to_bytes
from ..real_models import RealModel, difference
from . import model_files, tables
from .contenders import Contender
from .engines import ENGINES, Task, Unavailable

# torch-compile-bfloat16 computes as torch-eager-bfloat16 does, and would have to be compiled again.
LOWER_PRECISION = [
    name for name, spec in ENGINES.items() if spec.precision != "float32" and name != "torch-compile-bfloat16"
]
ON_THESE = ", calibrated on these images"

Differences = dict[str, dict[str, float]]  # by engine
LeftOut = dict[str, str]  # why, by engine


def expected_images(model: RealModel) -> np.ndarray:
    """The oracle's outputs for the model's images, uint8 (N,H,W,C)."""
    with ReferenceEngine(model.generator, model.weights) as oracle:
        return to_bytes(oracle.run(to_float(model.images)))


def measure(
    model: RealModel, expected: np.ndarray, engines: Iterable[str], threads: int, plan: str | None = None
) -> tuple[Differences, LeftOut]:
    """:func:`.difference` from the oracle for those engines that compute in a lower precision.

    ``expected`` is what :func:`expected_images` returned, ``plan`` is for this project's engine.
    """
    found: Differences = {}
    left_out: LeftOut = {}
    x, calibration = to_float(model.images), to_float(model.calibration)
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        for name in (name for name in engines if name in LOWER_PRECISION):
            try:
                model_files.export(folder, model.generator, model.weights, len(x), [ENGINES[name].file], calibration)
                contender = Contender(name, Task(folder, x, threads, plan))
            except (Unavailable, ModuleNotFoundError) as error:
                left_out[name] = str(error)
                print(f"{model.name}, {name}: left out: {error}", flush=True)
                continue
            contender.close()
            found[name] = difference(to_bytes(contender.output), expected)
            print(f"{model.name}, {name}: {found[name]}", flush=True)
    return found, left_out


def measure_models(models: Iterable[RealModel], engines: list[str], threads: int) -> dict[str, Any]:
    """All models; the record that is saved."""
    record: dict[str, Any] = {"models": {}, "unavailable": {}}
    quantised = [name for name in engines if ENGINES[name].file in model_files.QUANTISERS]
    for model in models:
        expected = expected_images(model)
        found, left_out = measure(model, expected, engines, threads)
        record["unavailable"] |= left_out
        present = [name for name in quantised if name in found]
        if present:
            print(f"{model.name}{ON_THESE}:")
        on_these, _ = measure(replace(model, calibration=model.images), expected, present, threads)
        found |= {f"{name}{ON_THESE}": entry for name, entry in on_these.items()}
        record["models"][model.name] = {"images": len(model.images), "engines": found}
    return record


def write_tables(record: dict[str, Any]) -> None:
    """Write quality.md."""
    parts = [
        "# Quality of lower precisions on real weights",
        "Against the float64 oracle, as 8-bit images. Made by `python -m bench.peers.quality`; bench/README.md has the "
        "models and the images, quality.json the machine and the versions.",
        *(f"{name} was left out: {why}" for name, why in record["unavailable"].items()),
    ]
    for name, entry in record["models"].items():
        parts.append(f"## {name}, {entry['images']} images\n\n{tables.quality_table(entry['engines'])}")
    (common.RESULTS / "quality.md").write_text("\n\n".join(parts) + "\n", encoding="utf-8")


def main(argv: list[str] | None = None) -> int:
    """Run the measurement."""
    parser = common.argument_parser("bench.peers.quality", __doc__)
    parser.add_argument("--models", default=",".join(real_models.NAMES), help="(%(default)s)")
    parser.add_argument("--engines", default=",".join(LOWER_PRECISION), help="(%(default)s)")
    parser.add_argument("--resnet", type=Path, metavar="FILE", help="what bench.peers.train_resnet wrote")
    parser.add_argument(
        "--shared", type=Path, default=real_models.SHARED, metavar="DIR", help="real models (beside the checkout)"
    )
    parser.add_argument("--threads", type=int, default=available_cores(), help="for every engine (%(default)s)")
    arguments = parser.parse_args(argv)
    names, engines = arguments.models.split(","), arguments.engines.split(",")
    for what, given, known in (("models", names, real_models.NAMES), ("engines", engines, LOWER_PRECISION)):
        if unknown := set(given) - set(known):
            parser.error(f"unknown {what} {sorted(unknown)}, expected some of {', '.join(known)}")
    models = real_models.models(names, arguments.shared, arguments.resnet)
    record = measure_models(models, engines, arguments.threads)
    common.save("quality", record)
    write_tables(record)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
