"""From the GPU engine's kernels to programs of the machine: the PTX that Numba hands to ptxas."""

from __future__ import annotations

import functools
from typing import Any

from numba.cuda import types
from numba.cuda.compiler import compile_cuda, kernel_fixup
from numba.cuda.cudadrv import nvvm

from ci.cuda_compile import declared

from .machine import Program
from .parse import parse

ARCHITECTURES = {"sm_80": (8, 0), "sm_90a": (9, 0, "a"), "sm_100": (10, 0)}


@functools.cache
def ptx_of(kernel: Any, signature: tuple[Any, ...], architecture: str) -> str:
    """A kernel's PTX for arguments of these types, made by the same steps as in ci/cuda_compile.py."""
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
