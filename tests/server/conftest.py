"""What tests of the server share: a folder with small models, and a server of them that most tests use."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from pix2pix import checkpoints
from pix2pix.model.unet import unet
from pix2pix.model.weights import random_weights

if TYPE_CHECKING:
    from tests.server.process import Server

PALETTES = {"colour": (), "grey": (("ink", (0, 0, 0)),)}


@pytest.fixture(scope="session")
def models(tmp_path_factory) -> Path:
    """A folder with two models, of which ``grey.safetensors`` takes and makes greys."""
    folder = tmp_path_factory.mktemp("models")
    for name, channels in (("colour", 3), ("grey", 1)):
        generator = unet(ngf=2, depth=5, in_channels=channels, out_channels=channels, origin="a test")
        generator = replace(generator, palette=PALETTES[name])
        checkpoints.write(folder / f"{name}.safetensors", generator, random_weights(generator))
    return folder


@pytest.fixture(scope="module")
def server(models) -> Iterator[Server]:
    """A server of both models, with room for 200 images."""
    from tests.server.process import Server  # which skips all tests without the extra serve

    with Server(models, "-m", "grey=grey.safetensors", "--max-queue", "200") as running:
        yield running
