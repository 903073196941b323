"""Fixtures of the tests of GPU benchmarks."""

from __future__ import annotations

import pytest

from bench import checks, common
from bench.gpu import layers, peers, timing, tune
from pix2pix.engines.reference import ReferenceEngine, to_float
from pix2pix.plans import tables as measured_tables
from tests.models import pictures

from .tiny import TINY, WEIGHTS


@pytest.fixture
def results(tmp_path, monkeypatch):
    """A folder in place of bench/results; networks are tiny and blocks short, and no table of a GPU is overwritten."""
    monkeypatch.setattr(common, "RESULTS", tmp_path)
    monkeypatch.setattr(measured_tables, "FOLDER", tmp_path / "plans")
    monkeypatch.setattr(common, "images", lambda n: pictures(n, 16, 16))
    for module in (peers, layers, tune):
        monkeypatch.setattr(module, "model", lambda network="unet": (TINY, WEIGHTS))
    monkeypatch.setattr(peers, "BLOCK_SECONDS", 0.0)
    monkeypatch.setattr(timing, "BLOCKS", 1)
    monkeypatch.setattr(timing, "GRAPH_SECONDS", 0.0)
    return tmp_path


@pytest.fixture(scope="module")
def case():
    """Images, an oracle, and the reference engine's outputs."""
    b, oracle = pictures(3, 16, 16), checks.Oracle(TINY, WEIGHTS)
    return b, oracle, ReferenceEngine(TINY, WEIGHTS).run(to_float(b))
