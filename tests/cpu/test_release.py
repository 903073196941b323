"""Weights that are packed are let go of, tensor by tensor; a caller's own stay."""

from __future__ import annotations

import subprocess
import sys

import numpy as np
import pytest

import pix2pix
from pix2pix.checkpoints import write
from pix2pix.cpu.engine import CpuEngine
from pix2pix.factory import EngineOptions, make_engine
from pix2pix.model.unet import unet
from pix2pix.model.weights import random_weights
from tests.models import VARIANTS, pictures, weights_of

# Prints kB: held before loading, held after it, and the most that was held meanwhile.
PEAK = """
import sys
import pix2pix
from pix2pix.cpu.instruction_sets import extension

def held(what):
    return int(open("/proc/self/status").read().partition(what + ":")[2].split()[0])

extension()
before = held("VmRSS")
engine = pix2pix.load(sys.argv[1], "cpu", plan=sys.argv[2])
print(before, held("VmRSS"), held("VmHWM"))
"""


@pytest.mark.parametrize("variant", ["tensorflow", "running"])
def test_only_weights_that_are_given_up_are_taken(variant):
    g, weights = VARIANTS[variant], weights_of(variant)
    own, given_up = dict(weights), dict(weights)
    b = pictures(1, 32, 32)
    with CpuEngine(g, own) as keeping, CpuEngine(g, given_up, release=True) as taking:
        assert own == weights and not given_up
        np.testing.assert_array_equal(taking.translate(b), keeping.translate(b))


def test_a_tensor_is_free_before_the_next_layer_is_packed(monkeypatch):
    g = VARIANTS["tensorflow"]
    weights = dict(weights_of("tensorflow"))
    pack, held = CpuEngine._pack, []

    def counted(self, name, remaining):
        held.append(sum(tensor.endswith(".kernel") for tensor in weights))
        return pack(self, name, remaining)

    monkeypatch.setattr(CpuEngine, "_pack", counted)
    CpuEngine(g, weights, release=True).close()
    assert held == list(range(len(g.layers), 0, -1))


@pytest.mark.parametrize("workers", [1, 3])
def test_engines_of_many_workers_are_made_of_weights_given_up(workers):
    g, weights = VARIANTS["tensorflow"], dict(weights_of("tensorflow"))
    b = pictures(2, 32, 32)
    with (
        make_engine(g, weights, EngineOptions("cpu", workers=workers), release=True) as engine,
        CpuEngine(g, weights_of("tensorflow")) as expected,
    ):
        assert not weights
        np.testing.assert_array_equal(engine.translate(b), expected.translate(b))


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads what is held from /proc")
@pytest.mark.parametrize("plan", ["direct", "winograd4"])
@pytest.mark.parametrize("statistics", ["image", "running"])
def test_loading_never_holds_raw_and_packed_weights_together(tmp_path, plan, statistics):
    g = unet(ngf=32, depth=8, statistics=statistics)
    weights = random_weights(g)
    raw = sum(array.nbytes for array in weights.values()) / 1024
    largest = max(array.nbytes for array in weights.values()) / 1024
    write(tmp_path / "model.safetensors", g, weights)
    arguments = [sys.executable, "-c", PEAK, tmp_path / "model.safetensors", plan]
    run = subprocess.run(arguments, capture_output=True, text=True, timeout=120)
    assert run.returncode == 0, run.stderr
    before, after, most = map(int, run.stdout.split())
    packed = after - before
    assert packed > 0.9 * raw  # so that the next line means something
    temporary = 4 * largest if statistics == "running" else largest  # folding is done in float64
    assert most - before < packed + temporary + 0.1 * raw
    assert temporary < 0.7 * raw


def test_mapped_weights_are_the_callers_own(tmp_path):
    """Changes don't reach the file, and writing another model under its name doesn't reach the arrays."""
    g, weights = VARIANTS["tensorflow"], weights_of("tensorflow")
    path = tmp_path / "model.safetensors"
    write(path, g, weights)
    _, first = pix2pix.checkpoints.read(path)
    write(path, g, {name: array + 1 for name, array in weights.items()})
    _, second = pix2pix.checkpoints.read(path)
    for name, array in weights.items():
        np.testing.assert_array_equal(first[name], array)
        np.testing.assert_array_equal(second[name], array + 1)
        second[name][...] = 0
    _, again = pix2pix.checkpoints.read(path)
    assert not any((array == 0).all() for array in again.values())
