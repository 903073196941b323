"""Who has no GPU, or no numba: what is said then, and that it costs nothing. And what GPUs' kernels need of caches."""

from __future__ import annotations

import importlib.util

import pytest

from tests.fresh import run_code

needs_numba = pytest.mark.skipif(not importlib.util.find_spec("numba_cuda"), reason="needs numba-cuda")


def test_importing_the_package_and_running_on_the_cpu_imports_no_numba():
    code = """
        import sys, numpy, pix2pix, pix2pix.cli
        from pix2pix.factory import EngineOptions, make_engine
        from pix2pix.model.unet import unet
        from pix2pix.model.weights import random_weights
        generator = unet(ngf=4, depth=2)
        engine = make_engine(generator, random_weights(generator), EngineOptions("cpu", threads=1))
        engine.translate(numpy.zeros((1, 4, 4, 3), numpy.uint8))
        print([name for name in sys.modules if name.split(".")[0] in ("numba", "llvmlite", "cuda")])
    """
    assert run_code(code).strip() == "[]"


def test_without_numba_the_error_names_the_package():
    code = """
        import sys
        sys.modules["numba"] = None
        from pix2pix.factory import EngineOptions
        try:
            EngineOptions("cuda").check()
        except RuntimeError as error:
            print(error)
        EngineOptions("auto").check()
    """
    assert "pip install 'pix2pix[cuda]'" in run_code(code)


def test_nobody_waits_for_numba_where_there_is_no_driver():
    code = """
        import sys
        import pix2pix.devices
        pix2pix.devices.DRIVERS = {}
        print(pix2pix.devices.parse("auto", pix2pix.devices.count_gpus)[0], "numba" in sys.modules)
        try:
            pix2pix.devices.count_gpus()
        except RuntimeError as error:
            print(error)
    """
    found, told = run_code(code).splitlines()
    assert found == "cpu False" and "the library of NVIDIA's driver is not there" in told


@needs_numba
def test_without_a_driver_the_error_names_it():
    code = """
        import pix2pix.devices
        try:
            print(pix2pix.devices.count_gpus(), "usable")
        except RuntimeError as error:
            print(error)
    """
    hidden = run_code(code, CUDA_VISIBLE_DEVICES="-1")
    assert "driver" in hidden and "usable" not in hidden


@needs_numba
def test_kernels_are_found_in_the_cache_by_the_next_process():
    code = """
        import hashlib
        from numba.cuda.core.caching import dumps
        from pix2pix.gpu.kernels import maps, normalise, simt_gemm
        for kernel in (simt_gemm.make_simt_gemm(simt_gemm.SIMT_TILES[128, 64], 1), maps.make_to_image(256, True, True),
                       normalise.make_normalise_map(8, 32, 0)):
            constants = tuple(cell.cell_contents for cell in kernel.py_func.__closure__)
            print(kernel.py_func.__name__, hashlib.sha256(dumps(constants)).hexdigest())
    """
    first, second = run_code(code), run_code(code)
    assert first == second and first.count("\n") == 3
