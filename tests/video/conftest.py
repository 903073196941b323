"""What tests of films share."""

from __future__ import annotations

from pathlib import Path

import pytest

import pix2pix
from pix2pix import checkpoints
from pix2pix.engines.base import Engine
from pix2pix.model.weights import random_weights
from tests.cli.commands import GENERATOR


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch) -> Path:
    """A current folder with a model."""
    monkeypatch.chdir(tmp_path)
    checkpoints.write("model.safetensors", GENERATOR, random_weights(GENERATOR))
    return tmp_path


@pytest.fixture
def engine(folder) -> Engine:
    return pix2pix.load("model.safetensors", device="cpu")
