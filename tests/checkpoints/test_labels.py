"""Generators of pix2pixHD that take label maps: they read 0 and 1, and engines give them -1 and 1.

The expected images are those of tests/checkpoints/data/make_resnets.py, computed by PyTorch.
"""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save_file

from pix2pix.checkpoints import CheckpointError, read, write
from pix2pix.checkpoints.pytorch.labels import with_labels
from pix2pix.checkpoints.tensors import StoredTensor
from pix2pix.cli.info import describe
from pix2pix.engines.reference import ReferenceEngine, to_float
from pix2pix.model.generator import Generator
from pix2pix.model.resnet import ResnetVariant, resnet
from tests.checkpoints.seeded import input_image, state_dict

EXPECTED = np.load(Path(__file__).parent / "data" / "resnets.npz")
LABELLED = ["hd_global", "hd_local_2"]


def saved(folder: Path, case: str) -> Path:
    """The state dict of a case in a safetensors file."""
    save_file(state_dict(json.loads(str(EXPECTED[f"shapes/{case}"]))), folder / "x")
    return folder / "x"


@pytest.mark.parametrize("case", LABELLED)
def test_labels_are_read_as_0_and_1(case, tmp_path):
    generator, weights = read(saved(tmp_path, case))
    assert generator.takes == "labels" and "36 of label maps -> 3" in describe(generator)
    keys = [key for key in EXPECTED.files if key.startswith(f"{case}/")]
    assert keys
    for key in keys:
        _, size, statistics = key.split("/")
        read_there = to_float(input_image(*map(int, size.split("x")), 36))
        given_here = 2 * read_there - 1
        y = ReferenceEngine(generator.with_statistics(statistics), weights).run(given_here)
        assert np.abs(y[::3, ::3] - EXPECTED[key]).max() < 2e-5


@pytest.mark.parametrize("case", ["hd_batch", "hd_local", "cyclegan"])
def test_images_are_read_as_ever(case, tmp_path):
    generator, _ = read(saved(tmp_path, case))
    assert generator.takes == "image" and "takes" not in generator.to_dict()


def test_a_converted_model_takes_labels_too(tmp_path):
    generator, weights = read(saved(tmp_path, "hd_global"))
    write(tmp_path / "y.safetensors", generator, weights)
    again, same = read(tmp_path / "y.safetensors")
    assert again.takes == "labels" and again.layers == generator.layers
    assert all(np.array_equal(same[name], array) for name, array in weights.items())


def test_what_a_generator_takes_is_checked_and_told():
    generator = resnet(2, 1)
    assert "3 -> 3" in describe(generator)
    assert "3 of label maps -> 3" in describe(dataclasses.replace(generator, takes="labels"))
    with pytest.raises(ValueError, match="takes an 'image' or 'labels', got 'sounds'"):
        Generator.from_dict(generator.to_dict() | {"takes": "sounds"})
    assert generator != dataclasses.replace(generator, takes="labels")


@pytest.mark.parametrize("variant", [ResnetVariant(edge_padding="zeros"), ResnetVariant(bias="last")])
def test_a_network_that_cannot_be_given_signed_labels_is_refused(variant):
    generator = resnet(2, 1, 5, variant=variant)
    weights = {name: StoredTensor(shape, "float32", lambda: np.zeros(1)) for name, shape in generator.tensors().items()}
    with pytest.raises(CheckpointError, match="reads label maps by first, which should pad by reflection"):
        with_labels(generator, weights)
