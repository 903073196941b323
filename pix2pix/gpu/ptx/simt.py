"""What products on CUDA cores and memory-bound kernels use: 128-bit accesses, 32-bit division, register-tiled FMA.

Each intrinsic has a counterpart of the same name in :mod:`pix2pix.gpu.simulator.simt`.
"""

from __future__ import annotations

from ..jit import SIMULATED

if SIMULATED:
    from ..simulator.simt import fma_tile, load4, quotient, store4  # noqa: F401
else:
    from llvmlite import ir
    from numba.cuda import types
    from numba.cuda.extending import intrinsic

    from .codegen import FLOAT, elements, literals, load_vectors, pointer, store_vectors

    FLOAT4 = types.UniTuple(types.float32, 4)

    @intrinsic
    def load4(typing, array, index):
        """Four float32 from array[index], at a multiple of 16 bytes: one 128-bit load."""

        def generate(context, builder, signature, arguments):
            array, index = arguments
            found = load_vectors(context, builder, signature.args[0], array, index, FLOAT, 4)
            return context.make_tuple(builder, FLOAT4, found)

        return FLOAT4(array, types.int64), generate

    @intrinsic
    def store4(typing, array, index, values):
        """Four float32 to array[index], at a multiple of 16 bytes: one 128-bit store."""

        def generate(context, builder, signature, arguments):
            array, index, values = arguments
            store_vectors(context, builder, signature.args[0], array, index, elements(builder, values, 4))
            return context.get_dummy_value()

        return types.void(array, types.int64, FLOAT4), generate

    @intrinsic
    def quotient(typing, a, b):
        """a // b of non-negative int32. Numba's own division has 64 bits, which GPUs do in software."""

        def generate(context, builder, signature, arguments):
            return builder.udiv(*arguments)

        return types.int32(types.int32, types.int32), generate

    @intrinsic
    def fma_tile(typing, acc, a, a_at, b, b_at, tm, tn, depth, a_pitch, b_pitch, a_step, b_step):
        """acc[i * tn + j] += sum over k < depth of a[k, i] * b[k, j], for i < tm, j < tn.

        acc is a local array; a and b are tiles in shared memory. Row k of a begins at a_at + k * a_pitch and holds the
        elements i in groups of 4, which begin every a_step; likewise b. All sizes are compile-time constants. The sum
        is written out, so that acc stays in registers and operands are loaded ahead of their use, even where the
        compiler would not unroll a loop.
        """
        if (sizes := literals(tm, tn, depth, a_pitch, b_pitch, a_step, b_step)) is None:
            return None
        rows, columns, steps, *layout = sizes

        def generate(context, builder, signature, arguments):
            def operand(which, offset, count, step):
                array, at = arguments[which : which + 2]
                found = []
                for group in range(count // 4):
                    index = builder.add(at, ir.Constant(at.type, offset + group * step))
                    found += load_vectors(context, builder, signature.args[which], array, index, FLOAT, 4)
                return found

            places = [pointer(context, builder, signature.args[0], arguments[0], i) for i in range(rows * columns)]
            sums = [builder.load(place) for place in places]
            for k in range(steps):
                left = operand(1, k * layout[0], rows, layout[2])
                right = operand(3, k * layout[1], columns, layout[3])
                for i in range(rows * columns):
                    sums[i] = builder.fma(left[i // columns], right[i % columns], sums[i])
            for total, place in zip(sums, places, strict=True):
                builder.store(total, place)
            return context.get_dummy_value()

        literal = (tm, tn, depth, a_pitch, b_pitch, a_step, b_step)
        return types.void(acc, a, types.int64, b, types.int64, *literal), generate
