"""Hopper's asynchronous instructions: mbarrier, TMA loads of tensor maps, wgmma.

Each intrinsic has a counterpart of the same name in :mod:`pix2pix.gpu.simulator.hopper`. Indices are in words, layouts
are in :mod:`.fragments`: a TMA load writes rows of 128 bytes with the 128-byte swizzle, and wgmma reads them so.

An mbarrier is 8 bytes in shared memory and goes through phases. A phase ends when as many threads have arrived as the
mbarrier was made for, and all words have been written that these threads expected. Threads wait by the parity of the
phase's number.

Source: NVIDIA's PTX ISA 8.7, "Asynchronous warpgroup level matrix instructions" (matrix descriptors, fragments),
"Parallel synchronization and communication instructions: mbarrier" and "cp.async.bulk.tensor".
"""

from __future__ import annotations

from typing import Any

from ..jit import SIMULATED
from .fragments import SWIZZLE_ATOM, SWIZZLE_ROW, accumulator_index

if SIMULATED:
    from ..simulator.hopper import (  # noqa: F401
        atom_offset,
        fence_mbarrier_init,
        fence_tensor_map,
        mbarrier_arrive,
        mbarrier_expect_tx,
        mbarrier_init,
        mbarrier_wait,
        tma_load,
        wgmma,
        wgmma_wait,
    )
else:
    from llvmlite import ir
    from numba.cuda import types
    from numba.cuda.extending import intrinsic

    from .codegen import (
        FLOAT,
        FORMATS,
        I32,
        I64,
        VOID,
        Code,
        assembly,
        literals,
        pointer,
        registers,
        shared_address,
        warp_assembly,
    )

    MBARRIER_WORDS = 2
    ROW_BYTES, ATOM_BYTES = 4 * SWIZZLE_ROW, 4 * SWIZZLE_ATOM
    SWIZZLE_128B = 1  # the matrix descriptor's code of that layout
    # All of a matrix descriptor but the address: the distance of atoms, and 1 for a field that this layout ignores.
    DESCRIPTOR = SWIZZLE_128B << 62 | ATOM_BYTES >> 4 << 32 | 1 << 16

    # -- mbarriers --------------------------------------------------------------------------------------------

    def _mbarrier(text: str) -> Code:
        """The code of an instruction on mbarrier `at`: its address is $0 in `text`, another number is $1."""

        def generate(context, builder, signature, arguments):
            barriers, at, *numbers = arguments
            place = builder.mul(at, ir.Constant(at.type, MBARRIER_WORDS))
            address = shared_address(context, builder, signature.args[0], barriers, place)
            constraints = ",".join(["r"] * (1 + len(numbers)) + ["~{memory}"])
            assembly(builder, VOID, [address, *numbers], text, constraints)
            return context.get_dummy_value()

        return generate

    @intrinsic
    def mbarrier_init(typing, barriers, at, arrivals):
        """Make mbarrier number `at` of an array, for `arrivals` threads in a phase."""
        return types.void(barriers, types.int32, types.int32), _mbarrier("mbarrier.init.shared::cta.b64 [$0],$1;")

    @intrinsic
    def fence_mbarrier_init(typing):
        """Make this thread's new mbarriers visible to TMA. Other threads see them after the block's barrier."""

        def generate(context, builder, signature, arguments):
            assembly(builder, VOID, [], "fence.mbarrier_init.release.cluster;", "~{memory}")
            assembly(builder, VOID, [], "fence.proxy.async.shared::cta;", "~{memory}")
            return context.get_dummy_value()

        return types.void(), generate

    @intrinsic
    def mbarrier_arrive(typing, barriers, at):
        """Arrive at mbarrier number `at`."""
        return types.void(barriers, types.int32), _mbarrier("mbarrier.arrive.shared::cta.b64 _,[$0];")

    @intrinsic
    def mbarrier_expect_tx(typing, barriers, at, words):
        """Arrive at mbarrier number `at`, and let its phase expect `words` more words of TMA loads."""
        code = _mbarrier("mbarrier.arrive.expect_tx.shared::cta.b64 _,[$0],$1;")

        def generate(context, builder, signature, arguments):
            *where, words = arguments
            return code(context, builder, signature, (*where, builder.shl(words, I32(2))))

        return types.void(barriers, types.int32, types.int32), generate

    @intrinsic
    def mbarrier_wait(typing, barriers, at, parity):
        """Wait until the phase of that parity has ended at mbarrier number `at`. The one before the first has."""
        text = "{ .reg .pred ended; again: mbarrier.try_wait.parity.shared::cta.b64 ended,[$0],$1; @!ended bra again; }"
        return types.void(barriers, types.int32, types.int32), _mbarrier(text)

    # -- tensor maps ------------------------------------------------------------------------------------------

    @intrinsic
    def atom_offset(typing, shared):
        """The first index of an array in shared memory at which a swizzle atom may begin."""

        def generate(context, builder, signature, arguments):
            address = shared_address(context, builder, signature.args[0], arguments[0], I32(0))
            return builder.lshr(builder.and_(builder.neg(address), I32(ATOM_BYTES - 1)), I32(2))

        return types.int32(shared), generate

    def _map_address(context: Any, builder: Any, array_type: Any, array: Any) -> Any:
        return builder.ptrtoint(pointer(context, builder, array_type, array, 0), I64)

    @intrinsic
    def fence_tensor_map(typing, tensor_map):
        """Make a tensor map that the host has written visible to this thread's TMA loads."""

        def generate(context, builder, signature, arguments):
            address = _map_address(context, builder, signature.args[0], arguments[0])
            text = "fence.proxy.tensormap::generic.acquire.sys [$0],128;"
            assembly(builder, VOID, [address], text, "l,~{memory}")
            return context.get_dummy_value()

        return types.void(tensor_map), generate

    @intrinsic
    def tma_load(typing, shared, to, barriers, at, tensor_map, x0, x1, x2, x3, x4):
        """Begin to copy the tensor map's box at (x0, x1, x2, x3, x4), the innermost index x0 first, to shared[to:].

        What lies outside the tensor is zero. The words count for the current phase of mbarrier number `at`. For tensor
        maps, see :mod:`pix2pix.gpu.tensor_maps`.
        """

        def generate(context, builder, signature, arguments):
            shared, to, barriers, at, tensor_map, *start = arguments
            target = shared_address(context, builder, signature.args[0], shared, to)
            where = builder.mul(at, ir.Constant(at.type, MBARRIER_WORDS))
            barrier = shared_address(context, builder, signature.args[2], barriers, where)
            address = _map_address(context, builder, signature.args[4], tensor_map)
            text = (
                "cp.async.bulk.tensor.5d.shared::cluster.global.mbarrier::complete_tx::bytes "
                "[$0],[$2,{$3,$4,$5,$6,$7}],[$1];"
            )
            assembly(builder, VOID, [target, barrier, address, *start], text, "r,r,l,r,r,r,r,r,~{memory}")
            return context.get_dummy_value()

        start = [types.int32] * 5
        return types.void(shared, types.int32, barriers, types.int32, tensor_map, *start), generate

    # -- products ---------------------------------------------------------------------------------------------

    @intrinsic
    def wgmma(typing, acc, shared, a, b, columns, kind):
        """Begin acc += A @ B' for a warpgroup, and wait for the wgmma before this one.

        A is 64 swizzled rows at shared[a], B `columns` of them at shared[b]. acc (columns / 2) is as in
        :func:`pix2pix.gpu.ptx.mma.mma_sync` for 16 rows and `columns`, of which warp w has rows 16 * w to 16 * w + 15.
        `columns` and `kind` are compile-time constants.
        """
        if (constants := literals(columns, kind)) is None:
            return None
        width, form = constants[0], FORMATS[constants[1]]
        count = width // 2
        depth, last = (8, "yes,1,1") if form == "tf32" else (16, "yes,1,1,0,0")
        product = f"wgmma.mma_async.sync.aligned.m64n{width}k{depth}.f32.{form}.{form}"
        steps = ROW_BYTES // 32
        text = "{ .reg .pred yes; setp.eq.u32 yes,0,0; .reg .b64 a,b; "
        text += f"mov.b64 a,${count}; mov.b64 b,${count + 1}; wgmma.fence.sync.aligned; "
        for step in range(steps):
            text += f"{product} {registers(0, count)},a,b,{last}; "
            if step < steps - 1:
                text += "add.s64 a,a,2; add.s64 b,b,2; "  # 32 bytes further in each row, in units of 16
        text += "wgmma.commit_group.sync.aligned; wgmma.wait_group.sync.aligned 1; }"
        constraints = ",".join(["=f"] * count + ["l", "l"] + [str(i) for i in range(count)] + ["~{memory}"])

        def generate(context, builder, signature, arguments):
            acc, shared, a, b, *_ = arguments
            descriptors = [_descriptor(context, builder, signature.args[1], shared, at) for at in (a, b)]
            _update(context, builder, (signature.args[0], acc, width), descriptors, text, constraints)
            return context.get_dummy_value()

        return types.void(acc, shared, types.int32, types.int32, columns, kind), generate

    def _descriptor(context: Any, builder: Any, array_type: Any, array: Any, at: Any) -> Any:
        address = builder.zext(shared_address(context, builder, array_type, array, at), I64)
        return builder.or_(builder.lshr(address, I64(4)), I64(DESCRIPTOR))

    def _update(
        context: Any, builder: Any, accumulators: tuple[Any, Any, int], operands: Any, text: str, constraints: str
    ) -> None:
        """Assembly that reads and writes all of a thread's accumulators: (type, array, columns of B)."""
        acc_type, acc, columns = accumulators
        places = [accumulator_index(columns // 8, 0, j, r) for j in range(columns // 8) for r in range(4)]
        pointers = [pointer(context, builder, acc_type, acc, at) for at in places]
        sums = [builder.load(place) for place in pointers]
        result = ir.LiteralStructType([FLOAT] * len(sums))
        found = warp_assembly(builder, result, [*operands, *sums], text, constraints)
        for i, place in enumerate(pointers):
            builder.store(builder.extract_value(found, i), place)

    @intrinsic
    def wgmma_wait(typing, acc, columns):
        """Wait for every wgmma into acc, whose elements may be used from then on."""
        if (constants := literals(columns)) is None:
            return None
        count = constants[0] // 2
        constraints = ",".join(["=f"] * count + [str(i) for i in range(count)] + ["~{memory}"])

        def generate(context, builder, signature, arguments):
            text = "wgmma.wait_group.sync.aligned 0;"
            _update(context, builder, (signature.args[0], arguments[0], constants[0]), [], text, constraints)
            return context.get_dummy_value()

        return types.void(acc, columns), generate
