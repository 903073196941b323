"""What tests of files share."""

from __future__ import annotations

import pytest

from pix2pix.engines.reference import ReferenceEngine
from pix2pix.model.unet import unet
from tests.files.samples import engine_of


@pytest.fixture(scope="session")
def engine() -> ReferenceEngine:
    return engine_of(unet(ngf=2, depth=5))
