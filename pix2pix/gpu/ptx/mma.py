"""Tensor cores of a warp and what feeds them: cp.async, ldmatrix, mma.sync.

Each intrinsic has a counterpart of the same name in :mod:`pix2pix.gpu.simulator.mma`. Matrices of lower precision lie
in arrays of float32 that hold packed words (:mod:`.packed_words`); all indices are in words. Copies and ldmatrix move
words whatever they hold, so kernels are the same for all precisions except for mma.sync and conversions.
Layouts: :mod:`.fragments`.

Source: NVIDIA's PTX ISA 8.7, "Warp-level matrix instructions" and "Data movement and conversion instructions:
cp.async".
"""

from __future__ import annotations

from ..jit import SIMULATED
from .fragments import VECTOR, accumulator_index

if SIMULATED:
    from ..simulator.mma import (  # noqa: F401
        cp_async,
        cp_async_commit_group,
        cp_async_wait_group,
        ldmatrix,
        mma_sync,
        select8,
    )
else:
    from llvmlite import ir
    from numba.cuda import types
    from numba.cuda.extending import intrinsic

    from .codegen import (
        FLOAT,
        FORMATS,
        GLOBAL_SPACE,
        I32,
        VOID,
        assembly,
        elements,
        literals,
        pointer,
        registers,
        shared_address,
        statement,
        warp_assembly,
    )
    from .vectors import VECTOR_TYPE

    @intrinsic
    def cp_async(typing, shared, to, array, at, is_there):
        """Begin to copy a chunk from array[at] to shared[to], both at multiples of a chunk; zeros unless `is_there`."""

        def generate(context, builder, signature, arguments):
            shared, to, array, at, is_there = arguments
            target = shared_address(context, builder, signature.args[0], shared, to)
            source = pointer(context, builder, signature.args[2], array, at)
            source = builder.addrspacecast(source, ir.PointerType(source.type.pointee, GLOBAL_SPACE))
            size = builder.select(is_there, I32(16), I32(0))
            text = "cp.async.cg.shared.global [$0],[$1],16,$2;"
            assembly(builder, VOID, [target, source, size], text, "r,l,r,~{memory}")
            return context.get_dummy_value()

        return types.void(shared, types.int32, array, types.int64, types.boolean), generate

    @intrinsic
    def cp_async_commit_group(typing):
        """Make one group of the copies that this thread has begun since its last group."""
        return types.void(), statement("cp.async.commit_group;")

    @intrinsic
    def cp_async_wait_group(typing, groups):
        """Wait until at most the latest `groups` (a constant) of this thread's groups are in flight."""
        if (constants := literals(groups)) is None:
            return None
        return types.void(groups), statement(f"cp.async.wait_group {constants[0]};")

    @intrinsic
    def ldmatrix(typing, shared, at, fragments, to):
        """fragments[to : to + 4] = this lane's words of four 8 x 8 matrices (ldmatrix.x4).

        Lane l's `at` is where row l % 8 of matrix l // 8 begins. The lane receives word l % 4 of row l // 4 of each.
        """

        def generate(context, builder, signature, arguments):
            shared, at, fragments, to = arguments
            address = shared_address(context, builder, signature.args[0], shared, at)
            text = f"ldmatrix.sync.aligned.m8n8.x4.shared.b16 {registers(0, 4)},[$4];"
            found = warp_assembly(builder, ir.LiteralStructType([I32] * 4), [address], text, "=r,=r,=r,=r,r,~{memory}")
            for i, word in enumerate(elements(builder, found, 4)):
                index = builder.add(to, ir.Constant(to.type, i))
                builder.store(word, pointer(context, builder, signature.args[2], fragments, index))
            return context.get_dummy_value()

        return types.void(shared, types.int32, fragments, types.int64), generate

    @intrinsic
    def mma_sync(typing, acc, a, b, mf, nf, kind):
        """acc += A @ B for a warp's 16 * mf rows and 8 * nf columns, over two chunks of each row.

        a (mf * 4) and b (nf * 2) are words as :func:`ldmatrix` leaves them; acc (mf * nf * 4) is float32, in the order
        of :func:`.fragments.accumulator_index`. mf, nf and kind are compile-time constants. All products are written
        out, so that the three arrays stay in registers even where the compiler would not unroll a loop.
        """
        if (constants := literals(mf, nf, kind)) is None:
            return None
        rows, columns, form = constants[0], constants[1], FORMATS[constants[2]]
        depth = 8 if form == "tf32" else 16
        text = (
            f"mma.sync.aligned.m16n8k{depth}.row.col.f32.{form}.{form}.f32 "
            f"{registers(0, 4)},{registers(4, 4)},{registers(8, 2)},{registers(10, 4)};"
        )
        constraints = ",".join(["=f"] * 4 + ["r"] * 6 + ["f"] * 4)

        def generate(context, builder, signature, arguments):
            def words(which, count):
                places = (pointer(context, builder, signature.args[which], arguments[which], i) for i in range(count))
                return [builder.load(place) for place in places]

            left, right = words(1, 4 * rows), words(2, 2 * columns)
            for i in range(rows):
                for j in range(columns):
                    places = [accumulator_index(columns, i, j, register) for register in range(4)]
                    pointers = [pointer(context, builder, signature.args[0], arguments[0], at) for at in places]
                    sums = [builder.load(place) for place in pointers]
                    operands = [*left[4 * i : 4 * i + 4], *right[2 * j : 2 * j + 2], *sums]
                    found = warp_assembly(
                        builder, ir.LiteralStructType([FLOAT] * 4), operands, text, constraints, False
                    )
                    for value, place in zip(elements(builder, found, 4), pointers, strict=True):
                        builder.store(value, place)
            return context.get_dummy_value()

        return types.void(acc, a, b, mf, nf, kind), generate

    @intrinsic
    def select8(typing, acc, vector, vectors):
        """acc[8 * vector : 8 * vector + 8] for a `vector` known at run time only: a jump, as registers have no index.

        `vectors`, a compile-time constant, is how many there are.
        """
        if (constants := literals(vectors)) is None:
            return None

        def generate(context, builder, signature, arguments):
            acc, vector, _ = arguments
            end = builder.append_basic_block("selected")
            start = builder.append_basic_block("vector0")
            switch = builder.switch(vector, start)
            values = []
            for index in range(constants[0]):
                block = start if index == 0 else builder.append_basic_block(f"vector{index}")
                if index:
                    switch.add_case(ir.Constant(vector.type, index), block)
                builder.position_at_end(block)
                pointers = [
                    pointer(context, builder, signature.args[0], acc, VECTOR * index + i) for i in range(VECTOR)
                ]
                values.append((block, [builder.load(place) for place in pointers]))
                builder.branch(end)
            builder.position_at_end(end)
            found = []
            for i in range(VECTOR):
                merged = builder.phi(FLOAT)
                for block, loaded in values:
                    merged.add_incoming(loaded[i], block)
                found.append(merged)
            return context.make_tuple(builder, VECTOR_TYPE, found)

        return VECTOR_TYPE(acc, types.int32, vectors), generate
