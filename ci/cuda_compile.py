"""Compile every CUDA kernel as the engine would, but without a GPU, and check its machine code.

    python ci/cuda_compile.py [--all]

Prints each kernel's registers, stack, shared memory, resident blocks and number of some instructions. The exit status
is 1 if a kernel uses the stack or spills registers, computes in float64, lets fewer blocks reside on a multiprocessor
than it was written for, or lacks an instruction. By default one specialisation of each kernel for sm_90a; with --all
every one, for every architecture. Needs numba-cuda and a disassembler: ci/requirements/cuda.txt.
"""

from __future__ import annotations

import argparse
import functools
import multiprocessing
import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple

from numba import cuda, float32, int64, uint8, uint64
from numba.cuda import types
from numba.cuda.compiler import compile_cuda, kernel_fixup
from numba.cuda.cudadrv import nvvm
from numba.cuda.typing.typeof import typeof

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from pix2pix.gpu.kernels import (  # noqa: E402
    averages,
    hopper_gemm,
    im2col,
    maps,
    mma_gemm,
    normalise,
    padding,
    simt_gemm,
)
from pix2pix.gpu.kernels.epilogue import LEAKY_STATISTICS, MAPS, NORMALISED, PARTIAL_SUMS, STATISTICS  # noqa: E402
from pix2pix.gpu.kernels.parameters import (  # noqa: E402
    NO_TARGET,
    Axis,
    BoxGrid,
    Frame,
    Gemm,
    Grid,
    Images,
    Inserted,
    Norm,
    Padding,
    Residual,
    Resizing,
    Source,
    Sums,
    Targets,
    Values,
    Window,
)
from pix2pix.gpu.ptx.packed_words import KINDS  # noqa: E402

ARCHITECTURES = {"sm_80": (8, 0), "sm_90a": (9, 0, "a"), "sm_100": (10, 0)}
REGISTERS = 65536  # of a multiprocessor, given to warps in units of 256
FLOATS, BYTES, TENSOR_MAP, REAL, WHOLE = float32[::1], uint8[::1], uint64[::1], float32, int64
WAITS_FOR_ALL = "WARPGROUP.DEPBAR.LE gsb0, 0x0"  # at the end of a product; after each wgmma where they can't overlap
TENSOR_CORES = ("float16", "bfloat16", "tf32")
FORBIDDEN = ("LDL", "STL", "DADD", "DMUL", "DFMA")  # spills, and arithmetic in float64

EPS = NO_TARGET.slope
AXIS = Axis(1, 1, 1, 1, 1)
OPERANDS = Source(1, 1, 1), Window(AXIS, AXIS, 1)
GEMM = typeof(Gemm(*OPERANDS, Grid(1, 1, 1, 1), 1, 1, 1))
BOX_GEMM = typeof(Gemm(*OPERANDS, BoxGrid(1, 1, 1, 1, 1, 1), 1, 1, 1))
TARGET, TARGETS = typeof(NO_TARGET), typeof(Targets(NO_TARGET, NO_TARGET))
IMAGES, VALUES = typeof(Images(1, 1, 1, 1, 1, 1, 1)), typeof(Values(1, 1, 1))
FRAME, INSERTED = Frame(1, 1, 1, 1, 1), typeof(Inserted(1, 1, 1, 1, 1))
RESIZING = typeof(Resizing(FRAME, NO_TARGET, 1, EPS, EPS, EPS))
PADDING = typeof(Padding(FRAME, NO_TARGET, Residual(1, 1, 1)))
NORM, SUMS = typeof(Norm(1, 1, 1, 1, 1, EPS)), typeof(Sums(1, 1, 1, 1, 1, 1, EPS, EPS))


class Kernel(NamedTuple):
    """A specialisation, the types of its arguments, and the least number of some instructions."""

    kernel: Any
    signature: tuple[Any, ...]
    opcodes: Mapping[str, int]
    usual: bool = True  # whether `make test` compiles it
    architectures: tuple[str, ...] = tuple(ARCHITECTURES)
    most: Mapping[str, int] = MappingProxyType({})  # the greatest number of others, given with operands


@functools.cache
def declared() -> dict[str, Kernel]:
    """Every specialisation that the engine launches on a GPU."""
    return products() | finishing() | maps_and_images()


def products() -> dict[str, Kernel]:
    """The matrix products."""
    kernels, operands = {}, (*[FLOATS] * 6, GEMM, TARGETS)
    for epilogue, name in ((PARTIAL_SUMS, "sums"), (MAPS, "maps"), (STATISTICS, "statistics")):
        for simt in simt_gemm.SIMT_TILES.values():
            fma, loads = simt.tm * simt.tn * simt.unrolled, simt.unrolled * 4
            kernels[f"simt_gemm {simt.bm}x{simt.bn} {name}"] = Kernel(
                simt_gemm.make_simt_gemm(simt, epilogue),
                operands,
                {"LDG.E.128": 1, "STG.E.128": 1, "FFMA": fma, "LDS.128": loads, "STS.128": 1},
                simt.bn == 64 and name == "statistics",
            )
        for precision in TENSOR_CORES:
            for mma in mma_gemm.MMA_TILES.values():
                mmas = mma.wm // 16 * (mma.wn // 8)  # of half a row of the tiles; some compilers write out both
                kernels[f"mma_gemm {mma.bm}x{mma.bn} {name} {precision}"] = Kernel(
                    mma_gemm.make_mma_gemm(mma, KINDS[precision], epilogue),
                    operands,
                    {"HMMA": mmas, "LDSM": mma.wm // 16 + mma.wn // 16, "LDGSTS": 2, "STG.E.128": 1},
                    mma.bn == 128 and name == "statistics" and precision == "float16",
                )
            for hopper in hopper_gemm.HOPPER_TILES.values():
                kernels[f"hopper_gemm {hopper.bm}x{hopper.bn} {name} {precision}"] = Kernel(
                    hopper_gemm.make_hopper_gemm(hopper, KINDS[precision], epilogue),
                    (TENSOR_MAP, TENSOR_MAP, *[FLOATS] * 4, BOX_GEMM, TARGETS),
                    {"HGMMA": 4, "UTMALDG": 2, "SYNCS": 4, "STG.E.128": 1},
                    hopper.bn == 256 and name == "statistics" and precision == "float16",
                    ("sm_90a",),
                    {WAITS_FOR_ALL: 1},
                )
    return kernels


def finishing() -> dict[str, Kernel]:
    """What follows products: norms, and maps of partial sums."""
    wide = {"LDG.E.128": 1, "STG.E.128": 1}
    kernels = {"group_statistics": Kernel(normalise.make_group_statistics(256), (FLOATS, NORM, *[WHOLE] * 3), {})}
    for precision, kind in KINDS.items():
        kernels[f"normalise_map {precision}"] = Kernel(
            normalise.make_normalise_map(8, 32, kind), (*[FLOATS] * 4, NORM, TARGETS), wide, precision == "float16"
        )
        kernels[f"resize_map {precision}"] = Kernel(
            padding.make_resize_map(8, 32, kind), (FLOATS, FLOATS, RESIZING), wide, precision == "float16"
        )
        for normalises, name in ((True, "statistics"), (False, "maps")):
            kernels[f"pad_map {name} {precision}"] = Kernel(
                padding.make_pad_map(8, 32, kind, normalises),
                (*[FLOATS] * 5, NORM, PADDING),
                wide,
                normalises and precision == "float16",
            )
        for epilogue, name in (
            (MAPS, "maps"),
            (NORMALISED, "normalised"),
            (STATISTICS, "statistics"),
            (LEAKY_STATISTICS, "leaky statistics"),
        ):
            kernels[f"finish_map {name} {precision}"] = Kernel(
                normalise.make_finish_map(4, 64, kind, epilogue),
                (*[FLOATS] * 5, SUMS, TARGETS),
                wide,
                name == "normalised" and precision == "float16",
            )
    return kernels


def maps_and_images() -> dict[str, Kernel]:
    """Maps and values, images, averages, and the readable route."""
    source, window, grid = (typeof(part) for part in (*OPERANDS, Grid(1, 1, 1, 1)))
    wide = {"LDG.E.128": 1, "STG.E.128": 1}
    kernels = {
        "copy_values": Kernel(maps.make_copy_values(256), (FLOATS, FLOATS, WHOLE, WHOLE), {}),
        "average_sums": Kernel(averages.make_average_sums(256), (FLOATS, FLOATS, GEMM), wide),
        "insert_zeros": Kernel(im2col.make_insert_zeros(256), (FLOATS, FLOATS, WHOLE, source, INSERTED), wide),
        "im2col": Kernel(im2col.make_im2col(256), (FLOATS, FLOATS, WHOLE, WHOLE, source, window, grid), wide),
    }
    for as_bytes in (False, True):
        pixels, suffix = BYTES if as_bytes else FLOATS, " bytes" * as_bytes
        for taps in (False, True):
            kernels[f"to_image{' of taps' * taps}{suffix}"] = Kernel(
                maps.make_to_image(256, taps, as_bytes),
                (FLOATS, FLOATS, pixels, IMAGES, WHOLE, WHOLE, REAL),
                {"MUFU": 1},
                taps and as_bytes,
            )
        for precision, kind in KINDS.items():
            kernels[f"write_map{suffix} {precision}"] = Kernel(
                maps.make_write_map(256, kind, as_bytes),
                (pixels, FLOATS, VALUES, typeof(FRAME), WHOLE, TARGET),
                {},
                as_bytes and precision == "float16",
            )
    for precision, kind in KINDS.items():
        signature = FLOATS, FLOATS, *[WHOLE] * 4
        kernels[f"read_map {precision}"] = Kernel(maps.make_read_map(256, kind), signature, {}, precision == "float16")
    return kernels


def tool(name: str) -> str:
    """The path of a program of the CUDA toolkit, which pip installs where no shell looks."""
    import nvidia

    for folder in nvidia.__path__:
        for path in Path(folder).glob(f"**/bin/{name}"):
            return str(path)
    return name


def cubin(kernel: Any, signature: tuple[Any, ...], architecture: tuple[Any, ...]) -> bytes:
    """Machine code, made by the same steps as when numba first launches a kernel."""
    result = compile_cuda(
        kernel.py_func,
        types.void,
        signature,
        nvvm_options={"fastmath": False, "opt": 3},
        cc=architecture,
        lto=True,
    )
    library = result.library
    function = library.get_function(result.fndesc.llvm_func_name)
    library._entry_name = function.name
    kernel_fixup(function, False)
    nvvm.set_launch_bounds(function, kernel.targetoptions["launch_bounds"])
    return library.get_cubin(cc=architecture).code


def examine(code: bytes) -> tuple[dict[str, int], str]:
    """What `cuobjdump` says of machine code: (resources, instructions)."""
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder, "kernel.cubin")
        file.write_bytes(code)

        def dump(option: str) -> str:
            return subprocess.run([tool("cuobjdump"), option, file], capture_output=True, text=True, check=True).stdout

        resources = dict(re.findall(r"\b(REG|STACK|SHARED|LOCAL):(\d+)", dump("-res-usage")))
        return {name: int(value) for name, value in resources.items()}, dump("-sass")


def check(name: str, architecture: str) -> tuple[str, list[str]]:
    """(a line of the table, what is wrong) of a kernel for one architecture."""
    kernel = declared()[name]
    resources, instructions = examine(cubin(kernel.kernel, kernel.signature, ARCHITECTURES[architecture]))
    found = {op: len(re.findall(rf"\b{re.escape(op)}\b", instructions)) for op in (*kernel.opcodes, *FORBIDDEN)}
    threads, blocks = kernel.kernel.targetoptions["launch_bounds"]
    times = {text: instructions.count(text) for text in kernel.most}
    warps = REGISTERS // (-(-resources["REG"] * 32 // 256) * 256)
    resident = warps * 32 // threads
    wrong = [f"{resources[name]} bytes of {name}" for name in ("STACK", "LOCAL") if resources[name]]
    wrong += [f"{found[op]} {op}" for op in FORBIDDEN if found[op]]
    wrong += [f"{found[op]} {op}, expected {least}" for op, least in kernel.opcodes.items() if found[op] < least]
    wrong += [f"{times[text]} {text}, expected {most}" for text, most in kernel.most.items() if times[text] > most]
    wrong += [f"{resident} blocks to a multiprocessor, expected {blocks}"] if resident < blocks else []
    counts = ", ".join(f"{found[op]} {op}" for op in kernel.opcodes)
    line = f"{resources['REG']:4} {resources['STACK']:5} {resources['SHARED']:6} {resident:6}  {counts}"
    return line, wrong


def main() -> int:
    """Compile, print the table, and say what is wrong with how many kernels."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--all", action="store_true", help="every specialisation, for every architecture")
    everything = parser.parse_args().all
    failures = 0
    print(f"{'kernel':36}{'for':8}{'regs stack shared blocks  instructions'}")
    tasks = [
        (name, architecture)
        for architecture in (ARCHITECTURES if everything else ("sm_90a",))
        for name, kernel in declared().items()
        if (everything or kernel.usual) and architecture in kernel.architectures
    ]
    with ProcessPoolExecutor(len(os.sched_getaffinity(0)), multiprocessing.get_context("spawn")) as executor:
        for (name, architecture), (line, wrong) in zip(
            tasks, executor.map(check, *zip(*tasks, strict=True)), strict=True
        ):
            print(f"{name:36}{architecture:8}{line}", flush=True)
            for problem in wrong:
                print(f"{'':36}WRONG: {problem}")
            failures += bool(wrong)
    print(f"{failures} of the kernels are not as they should be" if failures else "all as they should be")
    return 1 if failures else 0


if __name__ == "__main__":
    if not hasattr(cuda, "compile"):
        sys.exit("numba-cuda is needed, and NUMBA_ENABLE_CUDASIM must not be set")
    sys.exit(main())
