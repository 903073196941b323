"""How many threads the CPU engine has, on which cores, and in which processes: whatever the environment says."""

from __future__ import annotations

import ctypes.util
import os

import pytest

from pix2pix import cgroups
from pix2pix.cpu.engine import CpuEngine
from pix2pix.cpu.openmp import loading_environment
from pix2pix.cpu.topology import allowed_cpus, available_cores, cgroup_quota, default_threads
from tests.fresh import run_code
from tests.models import VARIANTS, weights_of

needs_affinity = pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="needs Linux's affinity")
needs_cores = pytest.mark.skipif(available_cores() < 2, reason="needs two cores")

# How many threads the engine has, whether this thread may use what it might before, and how many processors all threads
# of the process may use together.
THREADS = """
    import os
    before = os.sched_getaffinity(0)
    {first}
    import pix2pix, numpy as np
    from pix2pix.cpu.engine import CpuEngine
    from pix2pix.model.unet import unet
    from pix2pix.model.weights import random_weights
    with CpuEngine(unet(ngf=8, depth=5), random_weights(unet(ngf=8, depth=5))) as engine:
        engine.translate(np.zeros((2, 64, 64, 3), np.uint8))
        everywhere = set().union(*(os.sched_getaffinity(int(thread)) for thread in os.listdir("/proc/self/task")))
        print(engine.threads, os.sched_getaffinity(0) == before, len(everywhere))
    print(sorted(name for name in os.environ if "OMP_" in name))
"""
BINDINGS = [{"OMP_PROC_BIND": "true"}, {"OMP_PLACES": "cores"}, {"GOMP_CPU_AFFINITY": "0-1023"}]


def test_threads_default_to_the_cores_that_the_process_may_use(monkeypatch):
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    assert 1 <= available_cores() <= os.cpu_count() and default_threads() == available_cores()
    assert default_threads(reserved=10_000) == 1
    if hasattr(os, "sched_setaffinity"):
        code = """
            import os
            os.sched_setaffinity(0, [min(os.sched_getaffinity(0))])
            from pix2pix.cpu.topology import available_cores
            print(available_cores())
        """
        assert run_code(code).strip() == "1"


@pytest.mark.parametrize(("value", "threads"), [("3", 3), (" 2,1 ", 2), ("0", None), ("-1", None), ("many", None)])
def test_openmps_number_of_threads_is_the_default_and_is_said(value, threads, monkeypatch):
    monkeypatch.setenv("OMP_NUM_THREADS", value)
    with CpuEngine(VARIANTS["tensorflow"], weights_of("tensorflow")) as engine:
        assert engine.threads == (threads or available_cores())
        assert ("(OMP_NUM_THREADS)" in str(engine.info)) == bool(threads)
    with CpuEngine(VARIANTS["tensorflow"], weights_of("tensorflow"), threads=1) as engine:
        assert "cpu, 1 thread, " in str(engine.info)


def test_more_threads_than_the_engine_takes_are_refused_from_the_environment_too(monkeypatch):
    monkeypatch.setenv("OMP_NUM_THREADS", "100000")
    with pytest.raises(ValueError, match="got 100000 threads, expected a whole number from 1 to 1024"):
        CpuEngine(VARIANTS["tensorflow"], weights_of("tensorflow"))


@needs_affinity
@needs_cores
@pytest.mark.parametrize("binding", BINDINGS, ids=lambda binding: next(iter(binding)))
def test_openmps_binding_ties_no_thread_to_one_core(binding):
    threads, names = run_code(THREADS.format(first=""), **binding).splitlines()
    assert threads.split() == [str(available_cores()), "True", str(len(allowed_cpus()))]
    assert names == str(sorted(name for name in {**os.environ, **binding} if "OMP_" in name))


@needs_affinity
@needs_cores
def test_all_cores_are_used_where_another_library_had_openmp_bind_the_thread():
    runtime = ctypes.util.find_library("gomp")
    if not runtime:
        pytest.skip("needs GNU's OpenMP runtime")
    code = THREADS.format(first=f"import ctypes; ctypes.CDLL('{runtime}')")
    threads, unchanged, processors = run_code(code, OMP_PROC_BIND="true").splitlines()[0].split()
    assert unchanged == "False", "the runtime has bound nothing, so that nothing is tested"
    assert (int(threads), int(processors)) == (available_cores(), len(allowed_cpus()))


def test_a_policy_of_waiting_that_the_user_chose_is_kept(monkeypatch):
    for name in ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT"):
        monkeypatch.delenv(name, raising=False)
    with loading_environment():
        assert os.environ["GOMP_SPINCOUNT"] == "1000"
    assert "GOMP_SPINCOUNT" not in os.environ
    monkeypatch.setenv("OMP_WAIT_POLICY", "active")
    with loading_environment():
        assert "GOMP_SPINCOUNT" not in os.environ
    assert os.environ["OMP_WAIT_POLICY"] == "active"


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_a_model_is_loaded_and_run_in_a_forked_process():
    """As data loaders and web servers do: the parent has loaded and used an engine, and the child makes its own."""
    code = """
        import multiprocessing
        import numpy as np
        from pix2pix.cpu.engine import CpuEngine
        from pix2pix.model.unet import unet
        from pix2pix.model.weights import random_weights

        generator = unet(ngf=8, depth=5)
        weights = random_weights(generator)
        b = np.arange(64 * 64 * 3, dtype=np.uint8).reshape(1, 64, 64, 3)

        def translate():
            with CpuEngine(generator, weights, threads=2) as engine:
                return engine.translate(b)

        expected = translate()
        for _ in range(2):
            with multiprocessing.get_context("fork").Pool(2) as pool:
                results = [pool.apply_async(translate) for _ in range(2)]
                print(all(np.array_equal(result.get(timeout=30), expected) for result in results))
            parent = CpuEngine(generator, weights, threads=2)
    """
    assert run_code(code).split() == ["True", "True"]


VERSION_1 = "4:memory:/a\n2:cpu,cpuacct:/outer/inner\n"
VERSION_2 = "0::/outer/inner\n"


@pytest.mark.parametrize(
    ("membership", "files", "processors"),
    [
        (VERSION_2, {"outer/inner/cpu.max": "150000 100000\n"}, 2),
        (VERSION_2, {"outer/inner/cpu.max": "max 100000\n", "outer/cpu.max": "300000 100000\n"}, 3),
        (VERSION_2, {"outer/inner/cpu.max": "400000 100000\n", "outer/cpu.max": "100000 100000\n"}, 1),
        (VERSION_2, {"cpu.max": "200000 100000\n"}, 2),  # the path is the host's
        (VERSION_2, {"outer/inner/cpu.max": "max 100000\n"}, 1 << 20),
        (VERSION_2, {"outer/inner/cpu.max": "nonsense\n", "elsewhere/cpu.max": "100000 100000\n"}, 1 << 20),
        (VERSION_1, {"cpu/outer/inner/cpu.cfs_quota_us": "50000", "cpu/outer/inner/cpu.cfs_period_us": "100000"}, 1),
        (VERSION_1, {"cpu/outer/cpu.cfs_quota_us": "250000", "cpu/outer/cpu.cfs_period_us": "100000"}, 3),
        (VERSION_1, {"cpu/cpu.cfs_quota_us": "-1", "cpu/cpu.cfs_period_us": "100000"}, 1 << 20),
        (VERSION_1, {"memory/a/cpu.cfs_quota_us": "100000", "memory/a/cpu.cfs_period_us": "100000"}, 1 << 20),
        (None, {"cpu.max": "100000 100000\n"}, 1 << 20),
    ],
)
def test_the_least_quota_of_the_processs_cgroups_holds(membership, files, processors, tmp_path, monkeypatch):
    for name, text in files.items():
        path = tmp_path / "hierarchies" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    if membership:
        (tmp_path / "membership").write_text(membership)
    monkeypatch.setattr(cgroups, "HIERARCHIES", tmp_path / "hierarchies")
    monkeypatch.setattr(cgroups, "MEMBERSHIP", tmp_path / "membership")
    assert cgroup_quota() == processors
