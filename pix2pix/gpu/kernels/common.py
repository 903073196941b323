"""What all CUDA kernels are written with: the jit wrapper, and 128-bit loads and stores with their simulator twins.

A kernel is made by a factory whose arguments are compile-time constants, so that the simulator (NUMBA_ENABLE_CUDASIM=1)
runs small tiles of the same source. Arrays are one-dimensional and contiguous: an element's place is arithmetic in the
kernel, in 64 bits, so no map is too large. numba is imported here and in the modules that import this one, and nowhere
else, so that who has no GPU needs no numba.
"""

from __future__ import annotations

import functools
import threading
from collections.abc import Callable
from typing import Any

import numpy as np
from numba import config, cuda
from numba import int32 as numba_int32

SIMULATED = bool(config.ENABLE_CUDASIM)
int32: Any = int if SIMULATED else numba_int32  # nothing overflows in Python, and numba's own conversion is slow there
ALIGNMENT = None if SIMULATED else 16  # bytes, of shared arrays; the simulator refuses to be asked


def kernel(threads: int, blocks: int = 1) -> Callable[[Callable[..., None]], Any]:
    """Decorator: a kernel for blocks of `threads`, of which `blocks` must fit a multiprocessor together.

    Compiled when first launched, and kept on disk beside the source (or in NUMBA_CACHE_DIR): numba notices changes of
    the kernel's own file and of its compile-time constants, which therefore are numbers only, but not changes of
    intrinsics, here and in _tensor.py, and of what is imported: after those, delete them (``ci/gpu.sh build`` does).
    """

    def compile_lazily(function: Callable[..., None]) -> Any:
        if SIMULATED:
            return cuda.jit(function)
        return cuda.jit(launch_bounds=(threads, blocks), cache=True)(function)

    return compile_lazily


def inlined(function: Callable[..., Any]) -> Any:
    """Decorator: a part of kernels, which becomes part of their source, with the caller's compile-time constants."""
    return function if SIMULATED else cuda.jit(device=True, inline="always")(function)


if SIMULATED:
    from numba.cuda.simulator.cudadrv.devicearray import FakeWithinKernelCUDAArray

    def plain(array):
        return array._item._ary if isinstance(array, FakeWithinKernelCUDAArray) else array

    def load4(array, index):
        """Four float32 from array[index], which lies at a multiple of 16 bytes."""
        return tuple(plain(array)[index : index + 4])

    def store4(array, index, values):
        """Four float32 to array[index], which lies at a multiple of 16 bytes."""
        plain(array)[index : index + 4] = values

    def quotient(a, b):
        """a // b of int32 that are not negative."""
        return a // b

    def synchronise():
        """Wait for all threads of the block; of a name that means the same in all modules."""
        threading.current_thread().syncthreads()

    @functools.cache
    def _places(count, runs, depth, pitch):
        return np.arange(depth)[:, None] * pitch + np.arange(count) // 4 * runs + np.arange(count) % 4

    def multiply(acc, a, a_at, b, b_at, tm, tn, depth, a_pitch, b_pitch, a_runs, b_runs):
        """See below. As one product of matrices: one multiplication at a time would take the simulator minutes."""
        left = a[a_at + _places(tm, a_runs, depth, a_pitch)]
        acc += (left.T @ b[b_at + _places(tn, b_runs, depth, b_pitch)]).ravel()

else:
    from llvmlite import ir
    from numba.cuda import dispatcher, types
    from numba.cuda.extending import intrinsic

    dispatcher.config.CUDA_LOW_OCCUPANCY_WARNINGS = 0  # small layers have small grids, as they should

    VECTOR = ir.VectorType(ir.FloatType(), 4)
    TUPLE = types.UniTuple(types.float32, 4)
    synchronise = cuda.syncthreads

    def _vector_pointer(context, builder, array_type, array, index):
        data = context.make_array(array_type)(context, builder, array).data
        return builder.bitcast(builder.gep(data, [index]), VECTOR.as_pointer(data.type.addrspace))

    def _load4(context, builder, array_type, array, index):
        vector = builder.load(_vector_pointer(context, builder, array_type, array, index), align=16)
        return [builder.extract_element(vector, ir.Constant(ir.IntType(32), i)) for i in range(4)]

    @intrinsic
    def load4(typing, array, index):
        """Four float32 from array[index], which lies at a multiple of 16 bytes: one 128-bit load."""

        def generate(context, builder, signature, arguments):
            elements = _load4(context, builder, signature.args[0], *arguments)
            return context.make_tuple(builder, TUPLE, elements)

        return TUPLE(array, types.int64), generate

    @intrinsic
    def store4(typing, array, index, values):
        """Four float32 to array[index], which lies at a multiple of 16 bytes: one 128-bit store."""

        def generate(context, builder, signature, arguments):
            array, index, values = arguments
            pointer = _vector_pointer(context, builder, signature.args[0], array, index)
            vector = ir.Constant(VECTOR, ir.Undefined)
            for i in range(4):
                element = builder.extract_value(values, i)
                vector = builder.insert_element(vector, element, ir.Constant(ir.IntType(32), i))
            builder.store(vector, pointer, align=16)
            return context.get_dummy_value()

        return types.void(array, types.int64, TUPLE), generate

    @intrinsic
    def quotient(typing, a, b):
        """a // b of int32 that are not negative: numba's own division is of 64 bits, which GPUs do in software."""

        def generate(context, builder, signature, arguments):
            return builder.udiv(*arguments)

        return types.int32(types.int32, types.int32), generate

    @intrinsic
    def multiply(typing, acc, a, a_at, b, b_at, tm, tn, depth, a_pitch, b_pitch, a_runs, b_runs):
        """acc[i * tn + j] += sum over k < depth of a[k, i] * b[k, j], for i < tm, j < tn.

        acc is a local array, a and b are tiles in shared memory: row k begins at a_at + k * a_pitch, and holds the
        elements of i in runs of 4 that begin every a_runs; likewise b. All sizes are compile-time constants, and the
        sum is written out in full, so that acc stays in registers and elements are loaded ahead of their use, whatever
        the compiler thinks of unrolling.
        """
        literals = (tm, tn, depth, a_pitch, b_pitch, a_runs, b_runs)
        if not all(isinstance(size, types.IntegerLiteral) for size in literals):
            return None  # numba asks again, with constants as what they are
        sizes = tuple(size.literal_value for size in literals)

        def generate(context, builder, signature, arguments):
            rows, columns, steps, *layout = sizes

            def elements(which, offset, count, runs):
                array, at = arguments[which : which + 2]
                found = []
                for run in range(count // 4):
                    index = builder.add(at, ir.Constant(at.type, offset + run * runs))
                    found += _load4(context, builder, signature.args[which], array, index)
                return found

            data = context.make_array(signature.args[0])(context, builder, arguments[0]).data
            places = [builder.gep(data, [ir.Constant(ir.IntType(64), i)]) for i in range(rows * columns)]
            sums = [builder.load(place) for place in places]
            for k in range(steps):
                left = elements(1, k * layout[0], rows, layout[2])
                right = elements(3, k * layout[1], columns, layout[3])
                for i in range(rows * columns):
                    sums[i] = builder.fma(left[i // columns], right[i % columns], sums[i])
            for total, place in zip(sums, places, strict=True):
                builder.store(total, place)
            return context.get_dummy_value()

        return types.void(acc, a, types.int64, b, types.int64, *literals), generate
