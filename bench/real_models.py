"""Models with real weights, on which the quality of lower precisions is measured, and how far images are apart."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from pix2pix import checkpoints, demo
from pix2pix.demo.facades import facade
from pix2pix.files import metrics
from pix2pix.model.generator import Generator, Weights

NAMES = ("demo", "edges2cats", "resnet")
SHARED = Path(__file__).resolve().parents[2] / "shared"  # the folder of real models, beside the checkout
DEMO = Path(demo.__file__).parent
CALIBRATION_SEEDS = range(100, 108)  # of facades that are in no other input; they give int8 of peers its ranges
EQUAL = 99.0  # stands for the infinite PSNR (dB) of equal images, which JSON cannot hold
COLUMNS = {  # of tables of :func:`difference`
    "mean_psnr_db": "PSNR (dB), mean",
    "least_psnr_db": "PSNR (dB), least",
    "mean_ssim": "SSIM, mean",
    "largest_difference": "largest difference (of 255)",
}


@dataclass(frozen=True, slots=True, eq=False)
class RealModel:
    """A model, the ``images`` on which it is measured, and others of the same kind from which engines may take ranges
    (``calibration``), both uint8 (N,H,W,3). ``name`` is of NAMES."""

    name: str
    generator: Generator
    weights: Weights
    images: np.ndarray
    calibration: np.ndarray


def models(names: Iterable[str], shared: Path, resnet: Path | None = None) -> Iterator[RealModel]:
    """The models of these names. Says which are left out because there is no file of theirs.

    ``shared`` is the folder of real models, ``resnet`` a file that ``python -m bench.peers.train_resnet`` wrote.
    """
    for name in names:
        if name == "demo":
            yield demo_model()
        elif name == "edges2cats" and (shared / "models" / name).is_dir():
            yield edges2cats(shared)
        elif name == "resnet" and resnet is not None:
            yield RealModel(name, *checkpoints.read(resnet), demo_labels(), calibration_labels())
        else:
            why = f"{shared / 'models' / name} is not there" if name == "edges2cats" else "--resnet FILE is not given"
            print(f"{name}: left out, {why}")


def demo_model() -> RealModel:
    """The embedded model on its label images. Calibration images are labels of other drawn facades."""
    return RealModel("demo", *checkpoints.read(DEMO / "facades.safetensors"), demo_labels(), calibration_labels())


def edges2cats(shared: Path) -> RealModel:
    """edges2cats on the drawing of a cat, its mirror image, and the edges of two label maps, which are no cats.

    Calibration images are edges of other label maps.
    """
    drawing = np.asarray(Image.open(shared / "images" / "edges2cats-input.png").convert("RGB"))
    images = np.stack([drawing, drawing[:, ::-1], *map(edges, demo_labels()[:2])])
    calibration = np.stack(list(map(edges, calibration_labels())))
    return RealModel("edges2cats", *checkpoints.read(shared / "models" / "edges2cats"), images, calibration)


def demo_labels() -> np.ndarray:
    """The demo model's label images, uint8 (8,256,256,3)."""
    return np.stack([np.asarray(Image.open(path)) for path in sorted(DEMO.glob("labels-*.png"))])


def calibration_labels() -> np.ndarray:
    """Label images of drawn facades that are measured nowhere, uint8 (8,256,256,3)."""
    return np.stack([facade(seed)[0] for seed in CALIBRATION_SEEDS])


def edges(labels: np.ndarray) -> np.ndarray:
    """Edges of a label map, both uint8 (H,W,3), drawn as edges2cats takes them: lines of one pixel, black on white.

    A pixel is black if its label differs from that of the pixel to its right or of the one below.
    """
    line = np.zeros(labels.shape[:2], bool)
    line[:, :-1] |= (labels[:, :-1] != labels[:, 1:]).any(axis=2)
    line[:-1] |= (labels[:-1] != labels[1:]).any(axis=2)
    return np.repeat(np.where(line, 0, 255).astype(np.uint8)[..., None], 3, axis=2)


def difference(result: np.ndarray, expected: np.ndarray) -> dict[str, float]:
    """Mean and least PSNR (dB), mean SSIM, and the largest difference of uint8 images (N,H,W,C)."""
    pairs = list(zip(result, expected, strict=True))
    psnr = [min(EQUAL, metrics.psnr(a, b)) for a, b in pairs]
    return {
        "mean_psnr_db": round(sum(psnr) / len(psnr), 2),
        "least_psnr_db": round(min(psnr), 2),
        "mean_ssim": round(sum(metrics.ssim(a, b) for a, b in pairs) / len(pairs), 4),
        "largest_difference": int(np.abs(result.astype(np.int16) - expected).max()),
    }


def table_row(name: str, entry: Mapping[str, float]) -> list[Any]:
    """A row under COLUMNS of what :func:`difference` returned; a record of an earlier version may lack a column."""
    return [name, *(entry.get(column) for column in COLUMNS)]
