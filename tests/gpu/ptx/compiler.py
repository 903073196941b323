"""From the GPU engine's kernels to programs of the machine: the PTX that Numba hands to ptxas.

Compiling takes as long as running. So processes share the PTX of the engine's kernels, as files in build/ptx, in a
folder whose name is a hash of the sources and of the versions of everything installed.
"""

from __future__ import annotations

import functools
import hashlib
import shutil
from importlib.metadata import distributions
from pathlib import Path
from typing import Any

from numba.cuda import types
from numba.cuda.compiler import compile_cuda, kernel_fixup
from numba.cuda.cudadrv import nvvm

import pix2pix
from ci import cuda_compile
from ci.cuda_compile import declared
from pix2pix.atomic import write_atomically

from .machine import Program
from .parse import parse

ARCHITECTURES = {"sm_80": (8, 0), "sm_90a": (9, 0, "a"), "sm_100": (10, 0)}
PACKAGE = Path(pix2pix.__file__).resolve().parent
SHARED = PACKAGE.parent / "build" / "ptx"


@functools.cache
def ptx_of(kernel: Any, signature: tuple[Any, ...], architecture: str) -> str:
    """A kernel's PTX for arguments of these types: if it is the engine's, compiled once for all processes."""
    name = name_of(kernel)
    if name not in declared():
        return compile_ptx(kernel, signature, architecture)
    specialisation = hashlib.sha256(repr((name, signature, architecture)).encode()).hexdigest()
    path = shared_folder() / f"{specialisation}.ptx"
    if not path.exists():
        write_atomically(path, compile_ptx(kernel, signature, architecture).encode(), sync=False)
    return path.read_text(encoding="utf-8")


@functools.cache
def shared_folder() -> Path:
    """The folder for the package and the tools as they are; those for others are removed."""
    versions = sorted(f"{found.name} {found.version}" for found in distributions())
    digest = hashlib.sha256(repr(versions).encode())
    for path in (Path(__file__), Path(cuda_compile.__file__), *sorted(PACKAGE.rglob("*.py"))):
        digest.update(path.read_bytes())
    folder = SHARED / digest.hexdigest()[:16]
    for other in set(SHARED.glob("*")) - {folder}:
        shutil.rmtree(other, ignore_errors=True)
    return folder


def compile_ptx(kernel: Any, signature: tuple[Any, ...], architecture: str) -> str:
    """A kernel's PTX, made by the same steps as in ci/cuda_compile.py."""
    capability = ARCHITECTURES[architecture]
    options = {"fastmath": False, "opt": 3}
    result = compile_cuda(kernel.py_func, types.void, signature, nvvm_options=options, cc=capability, lto=True)
    library = result.library
    function = library.get_function(result.fndesc.llvm_func_name)
    library._entry_name = function.name
    kernel_fixup(function, False)
    nvvm.set_launch_bounds(function, kernel.targetoptions["launch_bounds"])
    return library.get_lto_ptx(cc=capability)


@functools.cache
def program_of(text: str) -> Program:
    """A module, ready to run."""
    return Program(parse(text))


@functools.cache
def name_of(kernel: Any) -> str:
    """The name that ci/cuda_compile.py gives a kernel of the engine; of another kernel, its function's name."""
    function = kernel.py_func
    return _declared_names().get(_identity(function), function.__name__)


@functools.cache
def _declared_names() -> dict[Any, str]:
    return {_identity(kernel.kernel.py_func): name for name, kernel in declared().items()}


def _identity(function: Any) -> tuple[str, str, tuple[str, ...]]:
    """What makes a kernel: its function, and the constants that its factory gave it."""
    cells = (repr(cell.cell_contents) for cell in function.__closure__ or ())
    return function.__module__, function.__qualname__, tuple(cells)
