"""The CPU engine: threads, instruction sets, plans, memory, interrupts."""

from __future__ import annotations

import os
import pickle
import sys
import threading

import numpy as np
import pytest

from pix2pix.cpu import instruction_sets as isa_module
from pix2pix.cpu import peaks
from pix2pix.cpu.engine import CpuEngine
from pix2pix.cpu.instruction_sets import build_info, extension, instruction_sets
from pix2pix.model.unet import unet
from pix2pix.model.weights import random_weights
from pix2pix.plans.algorithms import parse
from pix2pix.plans.heuristics import choose
from pix2pix.plans.plan import Plan
from tests.cpu.isas import BFLOAT16
from tests.fresh import run_code
from tests.models import VARIANTS, pictures, weights_of


def test_results_do_not_depend_on_threads():
    g = unet(ngf=16, depth=6)
    weights = random_weights(g)
    b = pictures(3, 64, 192)
    results = []
    for threads in (1, 2, 3, 8):
        with CpuEngine(g, weights, threads=threads) as engine:
            results.append(engine.translate(b))
    assert results[0].std() > 5
    for other in results[1:]:
        np.testing.assert_array_equal(other, results[0])


def count_threads() -> int:
    return len(os.listdir("/proc/self/task"))


@pytest.mark.skipif(not os.path.isdir("/proc/self/task"), reason="counts threads through /proc")
def test_callers_in_many_threads_do_not_multiply_the_engines_threads():
    b = pictures(1, 32, 32)
    with CpuEngine(VARIANTS["tensorflow"], weights_of("tensorflow"), threads=3) as engine:
        engine.translate(b)
        before, seen = count_threads(), []

        def work():
            for _ in range(10):
                engine.translate(b)
                seen.append(count_threads())

        callers = [threading.Thread(target=work) for _ in range(5)]
        for caller in callers:
            caller.start()
        for caller in callers:
            caller.join()
        assert max(seen) <= before + len(callers)


@pytest.mark.parametrize("isa", instruction_sets())
def test_the_environment_forces_an_instruction_set(isa, monkeypatch):
    monkeypatch.setenv("PIX2PIX_ISA", isa)
    with CpuEngine(VARIANTS["tensorflow"], weights_of("tensorflow")) as engine:
        assert engine.info.instruction_set == ("avx512" if isa == "amx" else isa)
    if isa in BFLOAT16:
        with CpuEngine(VARIANTS["tensorflow"], weights_of("tensorflow"), precision="bfloat16") as engine:
            assert engine.info.instruction_set == isa
    assert isa in build_info()["instruction set"]


def test_unknown_instruction_sets_are_refused(monkeypatch):
    monkeypatch.setenv("PIX2PIX_ISA", "sse9")
    with pytest.raises(RuntimeError, match="sse9.*expected one of"):
        CpuEngine(VARIANTS["tensorflow"], weights_of("tensorflow"))


def test_an_instruction_set_that_the_processor_lacks_is_refused(monkeypatch):
    monkeypatch.setattr(isa_module, "instruction_sets", lambda: ["portable"])
    with pytest.raises(RuntimeError, match="avx512.*this machine and this build have portable"):
        extension("avx512")


def test_bfloat16_needs_a_processor_that_has_it():
    g, weights = VARIANTS["tensorflow"], weights_of("tensorflow")
    with pytest.raises(RuntimeError, match="AVX512_BF16.*portable.*use float32"):
        CpuEngine(g, weights, precision="bfloat16", isa="portable")
    with pytest.raises(RuntimeError, match="tf32.*float32 or bfloat16"):
        CpuEngine(g, weights, precision="tf32")
    with pytest.raises(ValueError, match="plan is for bfloat16"):
        CpuEngine(g, weights, plan=choose(g, "latency", None, "bfloat16"))


@pytest.mark.parametrize("threads", [0, -1, 1.5, True, "2", 10**6])
def test_threads_must_be_positive(threads):
    with pytest.raises(ValueError, match="threads"):
        CpuEngine(VARIANTS["tensorflow"], weights_of("tensorflow"), threads=threads)


def test_plans(tmp_path):
    g, weights = VARIANTS["tensorflow"], weights_of("tensorflow")
    b = pictures(1, 32, 32)
    plan = Plan({layer.name: "direct" for layer in g.layers}, tune="latency")
    plan.save(tmp_path / "plan.json")
    results = []
    for given in ("direct", plan, tmp_path / "plan.json"):
        with CpuEngine(g, weights, plan=given) as engine:
            assert dict(engine.plan.layers) == dict(plan.layers)
            results.append(engine.translate(b))
    assert all(np.array_equal(r, results[0]) for r in results)
    shared = Plan({**plan.layers, "encoder_2": "winograd-shared3"})
    picture = Plan({**plan.layers, "encoder_1": "winograd3"})
    for bad in ("winograd", Plan({"encoder_1": "direct"}), tmp_path / "absent.json", shared, picture):
        with pytest.raises(ValueError, match="plan"):
            CpuEngine(g, weights, plan=bad)
    with pytest.raises(ValueError, match="expected one of direct"):
        Plan({"encoder_1": "magic"})
    with pytest.raises(ValueError, match="tune"):
        CpuEngine(g, weights, tune="fast")
    with pytest.raises(ValueError, match="precision"):
        Plan(plan.layers, precision="int4")
    assert pickle.loads(pickle.dumps(plan)) == plan and hash(plan) == hash(Plan(plan.layers, tune="latency"))


def test_plans_are_made_for_the_models_own_size():
    g = unet()
    latency, throughput = (choose(g, tune).to_dict()["layers"] for tune in ("latency", "throughput"))
    assert {latency[f"encoder_{i}"] for i in (2, 3, 4)} == {"winograd4"}
    assert latency["encoder_1"] == latency["decoder_1"] == latency["encoder_8"] == "direct"
    assert latency["encoder_5"] == "winograd2" and throughput["encoder_5"] == "winograd4"
    assert choose(g, "latency", precision="bfloat16").to_dict()["layers"] == latency
    assert choose(g, "latency", "winograd-shared3").layers["encoder_3"] == parse("direct")
    assert choose(g.with_overrides({"size": 512}), "latency").layers["encoder_5"] == parse("winograd4")


@pytest.mark.skipif(not os.access("/proc/self/clear_refs", os.W_OK), reason="resets the peak of memory by /proc")
def test_memory_is_bounded_by_the_largest_of_200_sizes():
    """Each time in a fresh process: what another test has freed would be used again."""
    code = """
        from pathlib import Path
        import numpy as np
        from pix2pix.cpu.engine import CpuEngine
        from pix2pix.model.unet import unet
        from pix2pix.model.weights import random_weights

        def held(what):
            return int(Path("/proc/self/status").read_text().partition(what + ":")[2].split()[0])

        g = unet(ngf=16, depth=5)
        b = np.random.default_rng(0).integers(0, 256, (1, 512, 512, 3), np.uint8)
        with CpuEngine(g, random_weights(g), threads=2) as engine:
            Path("/proc/self/clear_refs").write_text("5")  # the peak is what is held now, not that of loading
            before = held("VmRSS")
            for h, w in SIZES:
                engine.translate(b[:, :h, :w])
            print(held("VmHWM") - before)
    """
    sizes = [(32 * i, 32 * j) for i in range(1, 17) for j in range(1, 14)][:200]
    largest, all_sizes = (
        int(run_code(code.replace("SIZES", repr(each)))) for each in ([(512, 512)], [(512, 512), *sizes])
    )
    assert largest > 8 << 10  # kB: the outputs of encoder_1 and decoder_2, both of which decoder_1 reads
    assert all_sizes < 1.25 * largest


@pytest.mark.skipif(sys.platform == "win32", reason="sends SIGINT")
def test_ctrl_c_interrupts_a_long_call_and_the_engine_goes_on():
    code = """
        import os, signal, sys, threading, time
        import numpy as np
        from pix2pix.cpu.engine import CpuEngine
        from pix2pix.model.unet import UnetVariant, unet
        from pix2pix.model.weights import random_weights

        g = unet(ngf=16, depth=8)
        with CpuEngine(g, random_weights(g)) as engine:
            b = np.zeros((20, 256, 256, 3), np.uint8)
            engine.translate(b)
            start = time.monotonic()
            engine.translate(b)
            whole = 100 * (time.monotonic() - start)  # what the call would take, on a machine as busy as this one is
            many = np.zeros((2000, 256, 256, 3), np.uint8)
            threading.Timer(1, os.kill, (os.getpid(), signal.SIGINT)).start()
            start = time.monotonic()
            try:
                engine.translate(many)
                print("not interrupted")
            except KeyboardInterrupt:
                print("interrupted", time.monotonic() - start < 1 + whole / 2)
            engine.translate(b)
            print("goes on")
    """
    assert run_code(code).split() == ["interrupted", "True", "goes", "on"]


@pytest.mark.skipif(sys.platform == "win32", reason="sends SIGINT")
def test_ctrl_c_gives_up_what_a_stream_computes():
    code = """
        import os, signal, threading, time
        import numpy as np
        from pix2pix.cpu.engine import CpuEngine
        from pix2pix.model.unet import UnetVariant, unet
        from pix2pix.model.weights import random_weights

        g = unet(ngf=16, depth=8)
        with CpuEngine(g, random_weights(g)) as engine:
            engine.translate(np.zeros((20, 256, 256, 3), np.uint8))
            start = time.monotonic()
            engine.translate(np.zeros((20, 256, 256, 3), np.uint8))
            whole = 100 * (time.monotonic() - start)
            many = np.zeros((2000, 256, 256, 3), np.uint8)
            threading.Timer(1, os.kill, (os.getpid(), signal.SIGINT)).start()
            start = time.monotonic()
            try:
                for _ in engine.stream([many]):
                    print("not interrupted")
            except KeyboardInterrupt:
                print("interrupted", time.monotonic() - start < 1 + whole / 2)
    """
    assert run_code(code).split() == ["interrupted", "True"]


def test_measured_peaks_are_plausible():
    rates = peaks.measure(threads=1, seconds=0.05)
    assert 1 < rates["fma_gflops"] < 1000 and 0.5 < rates["bandwidth_gbs"] < 1000
    if extension().build_facts()["bfloat16"] == "yes":
        assert 1 < peaks.measure(1, 0.05, "bfloat16")["fma_gflops"] < 5000
    assert 1 < peaks.measure(1, 0.05, "int8")["fma_gflops"] < 10000
    with pytest.raises(RuntimeError, match="AVX512_BF16"):
        extension("portable").run_multiply_adds(128, 1, "bfloat16")
    with pytest.raises(RuntimeError, match="no AMX"):
        extension("portable").run_multiply_adds(128, 1, "int8", True)
    with pytest.raises(ValueError, match="got 100 rounds"):
        extension("portable").run_multiply_adds(100, 1)
