"""The engine's kernels as PTX: every specialisation launched, every layer against the oracle, copies early and late."""

from __future__ import annotations

import importlib
import itertools
import pkgutil

import pytest

from .needs import MISSING

if MISSING:
    pytest.skip(MISSING, allow_module_level=True)

from ci import gpu_case
from ci.cuda_compile import declared
from pix2pix.gpu import kernels as kernels_package
from tests.gpu.networks import MORE, QUICK, REST, Case, Network, Sample, launching_all

from .device import Session
from .networks import ADVERSE, check, launches_of

pytestmark = pytest.mark.ptx
ARCHITECTURES = ("sm_80", "sm_90a")
TENSOR_FORMATS = {"float16": "f16", "bfloat16": "bf16", "tf32": "tf32"}
# What must have been executed of a kernel: beginnings of opcodes.
OPCODES = {
    "simt_gemm": ("fma.rn.f32", "ld.shared.v4", "st.shared.v4", "ld.global.v4", "st.global.v4", "bar.sync"),
    "mma_gemm": ("mma.sync", "ldmatrix", "cp.async.cg", "cp.async.commit_group", "cp.async.wait_group", "bar.sync"),
    "hopper_gemm": (
        "wgmma.mma_async",
        "wgmma.fence",
        "wgmma.commit_group",
        "wgmma.wait_group",
        "cp.async.bulk.tensor.5d",
        "mbarrier.init",
        "mbarrier.try_wait",
        "mbarrier.arrive.shared",
        "mbarrier.arrive.expect_tx",
        "fence.proxy.tensormap",
        "fence.mbarrier_init",
        "fence.proxy.async",
    ),
    "normalise_map": ("ld.global.v4", "st.global.v4", "ld.shared", "st.shared", "bar.sync"),
    "group_statistics": ("ld.global", "st.global"),
    "pad_map": ("ld.global.v4", "st.global.v4"),
    "resize_map": ("ld.global.v4", "st.global.v4"),
    "finish_map": ("ld.global.v4", "st.global.v4"),
    "write_map": ("ld.global", "st.global"),
    "read_map": ("ld.global", "st.global"),
    "copy_values": ("ld.global", "st.global"),
    "to_image": ("ld.global", "st.global", "ex2.approx"),
    "average_sums": ("ld.global.v4", "st.global.v4"),
    "insert_zeros": ("ld.global.v4", "st.global.v4"),
    "im2col": ("ld.global.v4", "st.global.v4"),
}


def run(case: Case, session: Session) -> None:
    """Check a network, that it launched what it is to launch, and that this executed what it is made for."""
    check(case, session)
    assert set(session.launches) == launches_of(case, session.architecture)
    for name, executed in session.executed.items():
        family, *_, last = name.split()[0], name.split()[-1]
        for start in OPCODES[family]:
            if start == "mbarrier.arrive.shared" and ("split" in case.algorithm or "sums" in name.split()):
                continue  # a block whose sum has one step frees no stage
            assert any(opcode.startswith(start) for opcode in executed), f"{name} executed no {start}"
        if family in ("mma_gemm", "hopper_gemm"):
            products = {opcode for opcode in executed if opcode.startswith(("mma.sync", "wgmma.mma_async"))}
            assert products and all(f".{TENSOR_FORMATS[last]}" in opcode for opcode in products)


def architectures_of(case: Case) -> tuple[str, ...]:
    """On sm_80 all kernels run that there are for it, but not every kind of layer: these have kernels in common."""
    is_kind = isinstance(case, Sample) and case.name in REST
    return ("sm_90a",) if is_kind or case.algorithm.startswith("hopper") else ARCHITECTURES


@pytest.mark.parametrize("case", QUICK, ids=str)
def test_layers_agree_with_the_oracle(case):
    run(case, Session("sm_90a"))


@pytest.mark.full
@pytest.mark.parametrize(
    "case, architecture",
    [
        (case, a)
        for case in dict.fromkeys((*QUICK, *MORE))
        for a in architectures_of(case)
        if case not in QUICK or a != "sm_90a"
    ],
    ids=str,
)
def test_more_layers_agree_with_the_oracle(case, architecture):
    run(case, Session(architecture))


ADVERSE_CASES = [
    Network("implicit-128x64", 1, 24, 40, True, 5, 3),
    Network("implicit-32x128-split4", 2, 16, 16, True, 5, 3),
    Network("tensor-64x64", 1, 40, 32, True, 5, 3, "float16"),
    Network("tensor-128x128", 1, 48, 48, True, 4, 3, "tf32"),
    Network("tensor-128x64-split2", 1, 24, 40, True, 4, 3, "bfloat16"),
    Network("hopper-128x64", 1, 32, 64, True, (32, 64, 64), 3, "float16"),
    Network("hopper-128x128", 3, 16, 32, True, (32, 64), 2, "bfloat16"),
    Network("hopper-128x256-split2", 1, 32, 32, True, (64, 264), 2, "tf32"),
    Sample("tensor-64x64", 1, 24, 32, "resnet", "float16"),
]

ADVERSE_QUICK = [(ADVERSE_CASES[i], "random order, early copies") for i in (1, 2, 5)]


@pytest.mark.parametrize(
    "case, order",
    [
        pytest.param(case, order, marks=[] if (case, order) in ADVERSE_QUICK else [pytest.mark.full])
        for case, order in itertools.product(ADVERSE_CASES, ADVERSE)
    ],
    ids=str,
)
def test_results_do_not_depend_on_order_or_on_when_copies_land(case, order):
    run(case, Session("sm_90a", ADVERSE[order]))


def test_every_specialisation_is_launched():
    """The networks launch all that ci/cuda_compile.py declares, and nothing else; those of `make test` nearly all.

    So do those that also run on sm_80, but for what is Hopper's.
    """
    launches = {case: launches_of(case, "sm_90a") for case in (*QUICK, *MORE)}
    quick, more, on_gpu = (set().union(*map(launches.get, cases)) for cases in (QUICK, MORE, launching_all()))
    assert quick | more == on_gpu == set(declared())
    rest = {name for name in declared() if "bfloat16" in name or ("tf32" in name and "hopper_gemm" in name)}
    assert set(declared()) - rest <= quick
    families = {(name.split()[0], name.split()[-1]) for name in rest}
    assert families <= {(name.split()[0], name.split()[-1]) for name in quick}
    on_sm_80 = [launches_of(case, "sm_80") for case in launches if "sm_80" in architectures_of(case)]
    assert set().union(*on_sm_80) == {name for name, kernel in declared().items() if "sm_80" in kernel.architectures}


def test_kernels_on_a_gpu_are_told_apart_by_their_names():
    assert len({gpu_case.name_of(kernel.kernel) for kernel in declared().values()}) == len(declared())


def test_every_kernel_of_the_engine_is_declared():
    """The test above knows every factory in pix2pix/gpu/kernels."""
    factories = set()
    for module in pkgutil.iter_modules(kernels_package.__path__):
        found = vars(importlib.import_module(f"{kernels_package.__name__}.{module.name}"))
        factories |= {
            name.removeprefix("make_")
            for name, value in found.items()
            if name.startswith("make_") and value.__module__ == f"{kernels_package.__name__}.{module.name}"
        }
    assert factories == {name.split()[0] for name in declared()} == set(OPCODES)
