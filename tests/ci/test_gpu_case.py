"""What the cases of ci/gpu.sh run, in Numba's simulator: tiny networks, right and wrong ones."""

from __future__ import annotations

import json

import numpy as np
import pytest

from tests.gpu.gpus import MISSING
from tests.models import pictures

if MISSING:
    pytest.skip(MISSING, allow_module_level=True)

from ci import gpu_case
from ci.case_runner import JOURNAL
from pix2pix.gpu.kernels.epilogue import STATISTICS
from pix2pix.gpu.kernels.simt_gemm import SIMT_TILES, make_simt_gemm
from tests.bench.gpu.tiny import TINY, WEIGHTS
from tests.gpu import networks
from tests.gpu.networks import Sample

pytestmark = pytest.mark.gpu


@pytest.fixture
def journal(tmp_path, monkeypatch):
    """The file that names the latest launch; kernels are as before after the test."""
    kernels = type(gpu_case.make_copy_values(1))
    monkeypatch.setattr(kernels, "__getitem__", kernels.__getitem__)
    monkeypatch.setenv(JOURNAL, str(tmp_path / "journal"))
    return tmp_path / "journal"


@pytest.mark.parametrize("precision", ["float32", "float16"])
def test_a_whole_network_is_compared_with_the_oracle(precision):
    gpu_case.check(TINY, WEIGHTS, pictures(2, 16, 16), precision)


def test_a_wrong_network_is_noticed(monkeypatch):
    wrong = WEIGHTS | {"encoder_1.kernel": WEIGHTS["encoder_1.kernel"] * np.float32(1.2)}
    oracle = gpu_case.ReferenceEngine
    monkeypatch.setattr(gpu_case, "ReferenceEngine", lambda g, _: oracle(g, wrong))
    with pytest.raises(AssertionError, match="largest_difference"):
        gpu_case.check(TINY, WEIGHTS, pictures(2, 16, 16), "float32")


def test_a_network_is_found_by_its_name_and_the_last_launch_by_its_kernel(journal, monkeypatch):
    tiny = Sample("implicit-128x64", 1, 8, 8, "single taps")
    monkeypatch.setattr(gpu_case, "QUICK", [*networks.QUICK, tiny])
    assert gpu_case.main("network", str(tiny)) == 0
    assert journal.read_text().startswith("to_image")
    with pytest.raises(StopIteration):
        gpu_case.main("network", "nothing")


def test_a_kernels_name_has_what_its_factory_was_given():
    kernel = make_simt_gemm(SIMT_TILES[128, 64], STATISTICS)
    tile = SIMT_TILES[128, 64]
    assert gpu_case.name_of(kernel) == f"simt_gemm {tile.bm}x{tile.bn} has_statistics float32"


def test_what_was_found_is_json(journal, capsys):
    gpu_case.main("found")
    found = json.loads(capsys.readouterr().out)
    assert set(found) == {"gpu", "capability", "graphs", "versions"} and found["capability"] == "9.0"
