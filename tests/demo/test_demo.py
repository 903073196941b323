"""The embedded demo: the model, its pictures, and the program that drew them."""

from __future__ import annotations

import subprocess
import sys
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import pix2pix
from pix2pix.demo.facades import facade
from pix2pix.engines.reference import ReferenceEngine

DEMO = Path(pix2pix.__file__).parent / "demo"
SHARED = Path(__file__).parents[3] / "shared" / "models" / "facades"
LABELS = sorted(DEMO.glob("labels-*.png"), key=lambda path: int(path.stem.partition("-")[2]))

# CRC-32 of the labels' bytes. The embedded model only fits labels that are drawn exactly like this.
LABELS_CRC = {0: 0x51073017, 1: 0xB9441E58, 7: 0x60874C0C, 29: 0x2522FC2E, 1000: 0x58A5EF7C, 3999: 0x5F300442}

# Mean brightness in a 4x4 grid of the picture of seed 1. Resampling may differ a little between Pillow versions.
PICTURE_GRID = [
    [184.2, 177.3, 181.5, 176.3],
    [176.6, 175.3, 176.6, 186.6],
    [171.8, 169.7, 169.5, 186.6],
    [131.3, 135.2, 147.0, 160.8],
]

# Measured: 1.8e-3 and 2.6e-3 with the embedded float16 kernels, 2.8e-5 with the float32 ones they were made from.
FLOAT16_TOLERANCE = {"image": 4e-3, "running": 5e-3}


def read_labels(path: Path) -> np.ndarray:
    """uint8 (256,256,3)."""
    with Image.open(path) as picture:
        assert picture.mode == "RGB"
        return np.asarray(picture)


@pytest.fixture(scope="module")
def model():
    """The embedded (generator, weights)."""
    return pix2pix.checkpoints.read(DEMO / "facades.safetensors")


def test_the_model_is_what_was_trained(model):
    generator, weights = model
    assert (generator.ngf, generator.depth, generator.channels, generator.size) == (24, 8, (3, 3), 256)
    assert (generator.eps, generator.statistics, generator.output_scale) == (1e-5, "image", 255.0)
    assert generator["encoder_8"].norm is None and not generator["decoder_2"].bias and generator["decoder_1"].bias
    assert not generator.problems(weights)
    assert not generator.with_statistics("running").problems(weights)


@pytest.mark.parametrize("statistics", ["image", "running"])
def test_the_model_gives_what_pytorch_gave(model, statistics):
    """Against PyTorch's float32 output of the model before its kernels were rounded to float16."""
    if not SHARED.is_dir():
        pytest.skip("the model as it was trained is not part of the repository: ../shared is absent")
    generator, weights = model
    labels = read_labels(DEMO / "labels-1.png")
    assert (labels == read_labels(SHARED / "labels-1.png")).all()
    with np.load(SHARED / "expected_output.npz") as file:
        expected = file[f"{statistics}_statistics"]
    with ReferenceEngine(generator.with_statistics(statistics), weights, np.float32) as engine:
        result = engine.run(labels.astype(np.float32) / np.float32(127.5) - np.float32(1))
    assert expected.std() > 0.1
    assert np.abs(result - expected).max() < FLOAT16_TOLERANCE[statistics]
    assert 10 * np.log10(4 / np.square(result - expected).mean()) > 80  # dB; measured 85.8 and 84.6


def test_the_pictures_are_drawn_from_their_seeds():
    assert 6 <= len(LABELS) <= 10
    for path in LABELS:
        seed = int(path.stem.partition("-")[2])
        assert seed < 1000, "the model was trained on the seeds from 1000"
        assert (read_labels(path) == facade(seed)[0]).all()
        assert path.stat().st_size < 5000


@pytest.mark.parametrize("seed", LABELS_CRC)
def test_drawing_is_pinned(seed):
    labels, picture = facade(seed)
    assert labels.shape == picture.shape == (256, 256, 3) and labels.dtype == picture.dtype == np.uint8
    assert zlib.crc32(labels.tobytes()) == LABELS_CRC[seed]


def test_the_picture_is_pinned():
    grid = facade(1)[1].reshape(4, 64, 4, 64, 3).mean((1, 3, 4))
    np.testing.assert_allclose(grid, PICTURE_GRID, atol=0.5)


def test_drawing_depends_on_the_seed_alone():
    first, again, other = facade(3), facade(3), facade(4)
    assert all((a == b).all() for a, b in zip(first, again, strict=True))
    assert all((a != b).any() for a, b in zip(first, other, strict=True))


def test_training_goes_all_the_way(tmp_path):
    """A few steps of a tiny model, resumed once: the file that comes out is a model that can be run."""
    pytest.importorskip("torch", reason="training needs PyTorch: pip install pix2pix[train]")
    command = [sys.executable, "-m", "pix2pix.demo.train", "--ngf", "2", "--ndf", "2", "--pairs", "3", "--threads", "1"]
    output = tmp_path / "latest_net_G.pth"
    subprocess.run([*command, "--steps", "2", "--output", output], check=True, capture_output=True)
    first, weights = pix2pix.checkpoints.read(output)
    resume = ["--resume", output.with_suffix(".state"), "--steps", "4", "--bf16"]
    subprocess.run([*command, *resume, "--output", output], check=True, capture_output=True)
    second, trained = pix2pix.checkpoints.read(output)
    assert first == second and (first.ngf, first.depth, first.statistics) == (2, 8, "image")
    assert not first.with_statistics("running").problems(trained)
    assert any((weights[name] != trained[name]).any() for name in weights)
    with ReferenceEngine(second, trained, np.float32) as engine:
        assert engine.translate(facade(5)[0]).std() > 0
