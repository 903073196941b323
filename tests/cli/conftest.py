"""What tests of the command line share."""

from __future__ import annotations

from pathlib import Path

import pytest

from pix2pix import checkpoints
from pix2pix.model.weights import random_weights
from tests.cli.commands import GENERATOR, save


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch) -> Path:
    """A current folder with a model and five images in ``in``."""
    monkeypatch.chdir(tmp_path)
    checkpoints.write("model.safetensors", GENERATOR, random_weights(GENERATOR))
    for i in range(5):
        save(f"in/x{i}.png", 32, 32, i)
    return tmp_path
