"""What Hopper's tensor cores work with: boxes copied by hardware, barriers that count bytes, products of a warpgroup.

Small intrinsics, each with a simulator twin of the same name; words and places as in :mod:`pix2pix.gpu.ptx.mma`. A *row*
is 128 bytes of a tile in shared memory, and eight of them, from a multiple of 1024 bytes on, are one *pattern*: chunks
of row r are in an order of their own, chunk c at place c ^ r % 8. Copies write that pattern, products read it.

A *barrier* is 8 bytes in shared memory. It goes through phases: one ends when as many threads have arrived as the
barrier was made for, and as many words have come as those threads have said. Of a phase, the parity is known: that of
its number.

Sources: NVIDIA's PTX ISA 8.7, chapters "Asynchronous warpgroup level matrix instructions" (descriptors, layouts of
fragments), "Parallel synchronization and communication instructions: mbarrier" and "cp.async.bulk.tensor".
"""

from __future__ import annotations

from typing import Any

from ..kernels.common import SIMULATED

ROW, PATTERN = 32, 256  # words of a row, and of the eight that make up a pattern
GROUP = 128  # threads of a warpgroup
GROUP_ROWS = 64  # of its part of a product

if SIMULATED:
    from ..simulator.hopper import (
        acquire_boxes,
        aligned_place,
        arrive,
        arrive_with_words,
        copy_box,
        finish_products,
        make_barrier,
        multiply_rows,
        publish_barriers,
        wait_for_phase,
    )
else:
    from llvmlite import ir
    from numba.cuda import types
    from numba.cuda.extending import intrinsic

    from .mma import (
        FLOAT,
        FORMATS,
        I32,
        VOID,
        _assembly,
        _literals,
        _of_a_warp,
        _pointer,
        _registers,
        _shared_address,
        place,
    )

    I64 = ir.IntType(64)
    BARRIER_WORDS = 2
    ROW_BYTES, PATTERN_BYTES = 4 * ROW, 4 * PATTERN
    SWIZZLED = 1  # a descriptor's code for rows of 128 bytes in that pattern
    # All of a descriptor but the address: the distance of patterns, and, for this layout without a meaning, 1.
    DESCRIPTOR = SWIZZLED << 62 | PATTERN_BYTES >> 4 << 32 | 1 << 16

    # -- barriers ---------------------------------------------------------------------------------------------

    def _on_barrier(text: str) -> Any:
        """The code of what is done to barrier `at`; `text` knows its address as $0, and another number as $1."""

        def generate(context, builder, signature, arguments):
            barriers, at, *numbers = arguments
            place = builder.mul(at, ir.Constant(at.type, BARRIER_WORDS))
            address = _shared_address(context, builder, signature.args[0], barriers, place)
            constraints = ",".join(["r"] * (1 + len(numbers)) + ["~{memory}"])
            _assembly(builder, VOID, [address, *numbers], text, constraints)
            return context.get_dummy_value()

        return generate

    @intrinsic
    def make_barrier(typing, barriers, at, arrivals):
        """Make barrier number `at` of an array, for `arrivals` threads a phase."""
        return types.void(barriers, types.int32, types.int32), _on_barrier("mbarrier.init.shared::cta.b64 [$0],$1;")

    @intrinsic
    def publish_barriers(typing):
        """Let hardware that copies see the barriers which this thread has made; other threads see them at a barrier of
        the block."""

        def generate(context, builder, signature, arguments):
            _assembly(builder, VOID, [], "fence.mbarrier_init.release.cluster;", "~{memory}")
            _assembly(builder, VOID, [], "fence.proxy.async.shared::cta;", "~{memory}")
            return context.get_dummy_value()

        return types.void(), generate

    @intrinsic
    def arrive(typing, barriers, at):
        """Arrive at barrier number `at`."""
        return types.void(barriers, types.int32), _on_barrier("mbarrier.arrive.shared::cta.b64 _,[$0];")

    @intrinsic
    def arrive_with_words(typing, barriers, at, words):
        """Arrive at barrier number `at`, and have its phase wait for `words` more that are copied."""
        text = "mbarrier.arrive.expect_tx.shared::cta.b64 _,[$0],$1;"
        code = _on_barrier(text)

        def generate(context, builder, signature, arguments):
            *where, words = arguments
            return code(context, builder, signature, (*where, builder.shl(words, I32(2))))

        return types.void(barriers, types.int32, types.int32), generate

    @intrinsic
    def wait_for_phase(typing, barriers, at, parity):
        """Wait until the phase of that parity has ended at barrier number `at`; the one before the first has."""
        text = "{ .reg .pred ended; again: mbarrier.try_wait.parity.shared::cta.b64 ended,[$0],$1; @!ended bra again; }"
        return types.void(barriers, types.int32, types.int32), _on_barrier(text)

    # -- copies -----------------------------------------------------------------------------------------------

    @intrinsic
    def aligned_place(typing, shared):
        """The first place of an array in shared memory where a pattern may begin."""

        def generate(context, builder, signature, arguments):
            address = _shared_address(context, builder, signature.args[0], arguments[0], I32(0))
            return builder.lshr(builder.and_(builder.neg(address), I32(PATTERN_BYTES - 1)), I32(2))

        return types.int32(shared), generate

    @intrinsic
    def acquire_boxes(typing, boxes):
        """Let this thread's copies see a description of boxes that the host has written."""

        def generate(context, builder, signature, arguments):
            address = _boxes_address(context, builder, signature.args[0], arguments[0])
            text = "fence.proxy.tensormap::generic.acquire.sys [$0],128;"
            _assembly(builder, VOID, [address], text, "l,~{memory}")
            return context.get_dummy_value()

        return types.void(boxes), generate

    def _boxes_address(context: Any, builder: Any, array_type: Any, array: Any) -> Any:
        return builder.ptrtoint(_pointer(context, builder, array_type, array, I64(0)), I64)

    @intrinsic
    def copy_box(typing, shared, to, barriers, at, boxes, x0, x1, x2, x3, x4):
        """Begin to copy the box at (x0, x1, x2, x3, x4), x0 the place in a row of words, to shared[to:].

        What lies outside is zero. The box's words count for the phase that barrier number `at` is in. For boxes, see
        :func:`pix2pix.gpu.tensor_maps.describe`.
        """

        def generate(context, builder, signature, arguments):
            shared, to, barriers, at, boxes, *place = arguments
            target = _shared_address(context, builder, signature.args[0], shared, to)
            where = builder.mul(at, ir.Constant(at.type, BARRIER_WORDS))
            barrier = _shared_address(context, builder, signature.args[2], barriers, where)
            described = _boxes_address(context, builder, signature.args[4], boxes)
            text = (
                "cp.async.bulk.tensor.5d.shared::cluster.global.mbarrier::complete_tx::bytes "
                "[$0],[$2,{$3,$4,$5,$6,$7}],[$1];"
            )
            _assembly(builder, VOID, [target, barrier, described, *place], text, "r,r,l,r,r,r,r,r,~{memory}")
            return context.get_dummy_value()

        place = [types.int32] * 5
        return types.void(shared, types.int32, barriers, types.int32, boxes, *place), generate

    # -- products ---------------------------------------------------------------------------------------------

    @intrinsic
    def multiply_rows(typing, acc, shared, a, b, columns, kind):
        """Begin acc += A @ B' for a warpgroup, A 64 rows at shared[a] and B `columns` rows at shared[b]; wait for the
        product before it.

        Elements of acc (columns / 2) are those of :func:`pix2pix.gpu.ptx.mma.multiply_fragments` for 16 rows and `columns`,
        of which warp w has rows 16 * w to 16 * w + 15. `columns` and `kind` are compile-time constants.
        """
        if (constants := _literals(columns, kind)) is None:
            return None
        width, form = constants[0], FORMATS[constants[1]]
        count = width // 2
        depth, last = (8, "yes,1,1") if form == "tf32" else (16, "yes,1,1,0,0")
        product = f"wgmma.mma_async.sync.aligned.m64n{width}k{depth}.f32.{form}.{form}"
        steps = ROW_BYTES // 32
        text = "{ .reg .pred yes; setp.eq.u32 yes,0,0; .reg .b64 a,b; "
        text += f"mov.b64 a,${count}; mov.b64 b,${count + 1}; wgmma.fence.sync.aligned; "
        for step in range(steps):
            text += f"{product} {_registers(0, count)},a,b,{last}; "
            if step < steps - 1:
                text += "add.s64 a,a,2; add.s64 b,b,2; "  # 32 bytes further in each row, in units of 16
        text += "wgmma.commit_group.sync.aligned; wgmma.wait_group.sync.aligned 1; }"
        constraints = ",".join(["=f"] * count + ["l", "l"] + [str(i) for i in range(count)] + ["~{memory}"])

        def generate(context, builder, signature, arguments):
            acc, shared, a, b, *_ = arguments
            descriptors = [_descriptor(context, builder, signature.args[1], shared, at) for at in (a, b)]
            _on_sums(context, builder, signature.args[0], acc, width, descriptors, text, constraints)
            return context.get_dummy_value()

        return types.void(acc, shared, types.int32, types.int32, columns, kind), generate

    def _descriptor(context: Any, builder: Any, array_type: Any, array: Any, at: Any) -> Any:
        address = builder.zext(_shared_address(context, builder, array_type, array, at), I64)
        return builder.or_(builder.lshr(address, I64(4)), I64(DESCRIPTOR))

    def _on_sums(
        context: Any, builder: Any, acc_type: Any, acc: Any, columns: int, operands: Any, text: str, constraints: str
    ) -> None:
        """Assembly that reads and writes all of a thread's sums, in the order of the instruction."""
        places = [place(1, columns // 8, 0, j, e) for j in range(columns // 8) for e in range(4)]
        pointers = [_pointer(context, builder, acc_type, acc, I64(at)) for at in places]
        sums = [builder.load(pointer) for pointer in pointers]
        kind = ir.LiteralStructType([FLOAT] * len(sums))
        found = _of_a_warp(builder, kind, [*operands, *sums], text, constraints)
        for i, pointer in enumerate(pointers):
            builder.store(builder.extract_value(found, i), pointer)

    @intrinsic
    def finish_products(typing, acc, columns):
        """Wait for all products into acc, whose elements then may be used."""
        if (constants := _literals(columns)) is None:
            return None
        count = constants[0] // 2
        constraints = ",".join(["=f"] * count + [str(i) for i in range(count)] + ["~{memory}"])

        def generate(context, builder, signature, arguments):
            text = "wgmma.wait_group.sync.aligned 0;"
            _on_sums(context, builder, signature.args[0], arguments[0], constants[0], [], text, constraints)
            return context.get_dummy_value()

        return types.void(acc, columns), generate
