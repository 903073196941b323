"""Tensor cores and what feeds them: small intrinsics, each with a simulator twin of the same name.

Maps and weights of lower precision are kept in arrays of float32, of which only the bits count: *words* of two float16
or bfloat16, or of one tf32. All sizes and places are in words. Sixteen bytes of a row of either matrix are a *chunk*:
8 elements of 16 bits, or 4 of tf32. Loads of matrices move chunks, whatever is in them, so that kernels are the same
for all precisions but for the instruction that multiplies and the conversion of results.

A *run* is 8 neighbouring channels of a pixel in float32, which one thread has of every row of its results.

Sources: NVIDIA's PTX ISA 8.7, chapters "Warp-level matrix instructions" (which lane has which element) and
"Data movement and conversion instructions: cp.async".
"""

from __future__ import annotations

from typing import Any

from ..kernels.common import SIMULATED
from .packed_words import ELEMENTS, RUN, RUN_WORDS, TF32


def place(mf: int, nf: int, i: int, j: int, element: int) -> int:
    """Where a thread keeps an element of its fragment (i, j) of mf x nf; see :func:`multiply_fragments`.

    In the order of runs: 8 columns of a row of results are neighbours.
    """
    return ((2 * i + element // 2) * (nf // 4) + j // 4) * RUN + j % 4 * 2 + element % 2


if SIMULATED:
    from ..simulator.mma import (
        add8,
        commit_copies,
        copy_async,
        fill8,
        leaky8,
        load8,
        load_matrices,
        load_word,
        multiply8,
        multiply_fragments,
        pack,
        put8,
        round8,
        store8,
        store_word,
        subtract8,
        take8,
        unpack,
        unpack8,
        wait_for_copies,
    )
else:
    import operator

    from llvmlite import ir
    from numba.cuda import types
    from numba.cuda.extending import intrinsic

    I16, I32, FLOAT, VOID = ir.IntType(16), ir.IntType(32), ir.FloatType(), ir.VoidType()
    RUN_TYPE = types.UniTuple(types.float32, RUN)
    WORDS = types.UniTuple(types.uint32, 4)
    FORMATS = ("f16", "bf16", "tf32")  # as PTX calls them, by kind

    # -- building blocks --------------------------------------------------------------------------------------

    def _literals(*values: Any) -> tuple[int, ...] | None:
        """Compile-time constants, once numba has found them to be constant."""
        if all(isinstance(value, types.IntegerLiteral) for value in values):
            return tuple(value.literal_value for value in values)
        return None

    def _pointer(context: Any, builder: Any, array_type: Any, array: Any, index: Any, element: Any = None) -> Any:
        """A pointer to array[index], as one to another type of element if given."""
        data = context.make_array(array_type)(context, builder, array).data
        pointer = builder.gep(data, [index])
        return builder.bitcast(pointer, element.as_pointer(pointer.type.addrspace)) if element else pointer

    def _shared_address(context: Any, builder: Any, array_type: Any, array: Any, index: Any) -> Any:
        """The 32-bit address of array[index], of 32 bits too, in shared memory."""
        data = context.make_array(array_type)(context, builder, array).data
        base = builder.ptrtoint(builder.addrspacecast(data, ir.PointerType(data.type.pointee, 3)), I32)
        return builder.add(base, builder.shl(index, I32(2)))

    def _assembly(builder: Any, result: Any, arguments: Any, text: str, constraints: str, effect: bool = True) -> Any:
        function = ir.FunctionType(result, [argument.type for argument in arguments])
        return builder.call(ir.InlineAsm(function, text, constraints, side_effect=effect), arguments)

    def _of_a_warp(builder: Any, result: Any, arguments: Any, text: str, constraints: str, effect: bool = True) -> Any:
        """The same for what all lanes do together, which therefore may not be moved to where some are missing."""
        call = _assembly(builder, result, arguments, text, constraints, effect)
        call.attributes.add("convergent")
        return call

    def _registers(first: int, count: int) -> str:
        return "{" + ",".join(f"${i}" for i in range(first, first + count)) + "}"

    def _elements(builder: Any, aggregate: Any, count: int) -> list[Any]:
        return [builder.extract_value(aggregate, i) for i in range(count)]

    def _load_vectors(
        context: Any, builder: Any, array_type: Any, array: Any, index: Any, kind: Any, count: int
    ) -> Any:
        """`count` elements of 32 bits, by loads of 128."""
        found = []
        for first in range(0, count, 4):
            at = builder.add(index, ir.Constant(index.type, first))
            vector = builder.load(_pointer(context, builder, array_type, array, at, ir.VectorType(kind, 4)), align=16)
            found += [builder.extract_element(vector, I32(i)) for i in range(4)]
        return found

    def _store_vectors(context: Any, builder: Any, array_type: Any, array: Any, index: Any, values: Any) -> None:
        kind = ir.VectorType(values[0].type, 4)
        for first in range(0, len(values), 4):
            at = builder.add(index, ir.Constant(index.type, first))
            vector = ir.Constant(kind, ir.Undefined)
            for i in range(4):
                vector = builder.insert_element(vector, values[first + i], I32(i))
            builder.store(vector, _pointer(context, builder, array_type, array, at, kind), align=16)

    def _packed(builder: Any, kind: int, values: list[Any]) -> list[Any]:
        """Words of float32 values, rounded to nearest."""
        if kind == TF32:
            return [_assembly(builder, I32, [v], "cvt.rna.tf32.f32 $0,$1;", "=r,f", False) for v in values]
        text = f"cvt.rn.{FORMATS[kind]}x2.f32 $0,$1,$2;"
        pairs = zip(values[1::2], values[::2], strict=True)
        return [_assembly(builder, I32, list(pair), text, "=r,f,f", False) for pair in pairs]

    def _unpacked(builder: Any, kind: int, words: list[Any]) -> list[Any]:
        """The float32 values of words."""
        found = []
        for word in words:
            if kind == TF32:
                found.append(builder.bitcast(word, FLOAT))
            elif FORMATS[kind] == "bf16":  # the upper half of a float32
                found += [
                    builder.bitcast(half, FLOAT)
                    for half in (builder.shl(word, I32(16)), builder.and_(word, I32(0xFFFF0000)))
                ]
            else:
                for half in (builder.trunc(word, I16), builder.trunc(builder.lshr(word, I32(16)), I16)):
                    found.append(_assembly(builder, FLOAT, [half], "cvt.f32.f16 $0,$1;", "=f,h", False))
        return found

    def _leaky(builder: Any, value: Any, slope: Any) -> Any:
        scaled = builder.fmul(value, slope)
        return builder.select(builder.fcmp_ordered(">", value, scaled), value, scaled)

    # -- copies to shared memory that go on while others are computed with ------------------------------------

    @intrinsic
    def copy_async(typing, shared, to, array, at, is_there):
        """Begin to copy a chunk from array[at] to shared[to]; zeros unless `is_there`. Both at multiples of a chunk."""

        def generate(context, builder, signature, arguments):
            shared, to, array, at, is_there = arguments
            target = _shared_address(context, builder, signature.args[0], shared, to)
            source = _pointer(context, builder, signature.args[2], array, at)
            source = builder.addrspacecast(source, ir.PointerType(source.type.pointee, 1))
            size = builder.select(is_there, I32(16), I32(0))
            text = "cp.async.cg.shared.global [$0],[$1],16,$2;"
            _assembly(builder, VOID, [target, source, size], text, "r,l,r,~{memory}")
            return context.get_dummy_value()

        return types.void(shared, types.int32, array, types.int64, types.boolean), generate

    @intrinsic
    def commit_copies(typing):
        """Make one group of the copies that this thread has begun since the last group."""

        def generate(context, builder, signature, arguments):
            _assembly(builder, VOID, [], "cp.async.commit_group;", "~{memory}")
            return context.get_dummy_value()

        return types.void(), generate

    @intrinsic
    def wait_for_copies(typing, groups):
        """Wait until no more than the latest `groups` (a constant) of this thread's are under way."""
        if (constants := _literals(groups)) is None:
            return None

        def generate(context, builder, signature, arguments):
            _assembly(builder, VOID, [], f"cp.async.wait_group {constants[0]};", "~{memory}")
            return context.get_dummy_value()

        return types.void(groups), generate

    # -- the product ------------------------------------------------------------------------------------------

    @intrinsic
    def load_matrices(typing, shared, at, fragments, to):
        """fragments[to : to + 4] = this lane's words of four matrices of 8 chunks, whose places all lanes give.

        Lane l's `at` is where row l % 8 of matrix l // 8 begins. It gets word l % 4 of row l // 4 of each.
        """

        def generate(context, builder, signature, arguments):
            shared, at, fragments, to = arguments
            address = _shared_address(context, builder, signature.args[0], shared, at)
            text = f"ldmatrix.sync.aligned.m8n8.x4.shared.b16 {_registers(0, 4)},[$4];"
            found = _of_a_warp(builder, ir.LiteralStructType([I32] * 4), [address], text, "=r,=r,=r,=r,r,~{memory}")
            for i, word in enumerate(_elements(builder, found, 4)):
                index = builder.add(to, ir.Constant(to.type, i))
                builder.store(word, _pointer(context, builder, signature.args[2], fragments, index))
            return context.get_dummy_value()

        return types.void(shared, types.int32, fragments, types.int64), generate

    @intrinsic
    def multiply_fragments(typing, acc, a, b, mf, nf, kind):
        """acc += a @ b for a warp's 16 * mf rows and 8 * nf columns, over two chunks of each row.

        a (mf * 4) and b (nf * 2) are words as :func:`load_matrices` leaves them, acc (mf * nf * 4) float32: element e
        of fragment (i, j) is row 16 * i + 8 * (e // 2) + lane // 4, column 8 * j + 2 * (lane % 4) + e % 2, at
        :func:`place`. Sizes and kind are compile-time constants, and products are written out in full, so that all
        three arrays stay in registers whatever the compiler thinks of unrolling.
        """
        if (constants := _literals(mf, nf, kind)) is None:
            return None
        rows, columns, form = constants[0], constants[1], FORMATS[constants[2]]
        depth = 8 if form == "tf32" else 16
        text = (
            f"mma.sync.aligned.m16n8k{depth}.row.col.f32.{form}.{form}.f32 "
            f"{_registers(0, 4)},{_registers(4, 4)},{_registers(8, 2)},{_registers(10, 4)};"
        )
        constraints = ",".join(["=f"] * 4 + ["r"] * 6 + ["f"] * 4)

        def generate(context, builder, signature, arguments):
            def words(which, count):
                pointers = (
                    _pointer(context, builder, signature.args[which], arguments[which], ir.IntType(64)(i))
                    for i in range(count)
                )
                return [builder.load(pointer) for pointer in pointers]

            left, right = words(1, 4 * rows), words(2, 2 * columns)
            for i in range(rows):
                for j in range(columns):
                    places = [ir.IntType(64)(place(rows, columns, i, j, element)) for element in range(4)]
                    pointers = [_pointer(context, builder, signature.args[0], arguments[0], at) for at in places]
                    sums = [builder.load(pointer) for pointer in pointers]
                    operands = [*left[4 * i : 4 * i + 4], *right[2 * j : 2 * j + 2], *sums]
                    found = _of_a_warp(builder, ir.LiteralStructType([FLOAT] * 4), operands, text, constraints, False)
                    for value, pointer in zip(_elements(builder, found, 4), pointers, strict=True):
                        builder.store(value, pointer)
            return context.get_dummy_value()

        return types.void(acc, a, b, mf, nf, kind), generate

    @intrinsic
    def take8(typing, acc, run, runs):
        """acc[8 * run : 8 * run + 8] where `run` is not known when compiling: registers have no index, so a jump.

        `runs`, a constant, is how many there are.
        """
        if (constants := _literals(runs)) is None:
            return None

        def generate(context, builder, signature, arguments):
            acc, run, _ = arguments
            end = builder.append_basic_block("taken")
            start = builder.append_basic_block("run0")
            switch = builder.switch(run, start)
            values = []
            for index in range(constants[0]):
                block = start if index == 0 else builder.append_basic_block(f"run{index}")
                if index:
                    switch.add_case(ir.Constant(run.type, index), block)
                builder.position_at_end(block)
                places = [ir.IntType(64)(RUN * index + i) for i in range(RUN)]
                pointers = [_pointer(context, builder, signature.args[0], acc, at) for at in places]
                values.append((block, [builder.load(pointer) for pointer in pointers]))
                builder.branch(end)
            builder.position_at_end(end)
            found = []
            for i in range(RUN):
                merged = builder.phi(FLOAT)
                for block, elements in values:
                    merged.add_incoming(elements[i], block)
                found.append(merged)
            return context.make_tuple(builder, RUN_TYPE, found)

        return RUN_TYPE(acc, types.int32, runs), generate

    # -- runs -------------------------------------------------------------------------------------------------

    @intrinsic
    def fill8(typing, value):
        """A run of one value."""

        def generate(context, builder, signature, arguments):
            return context.make_tuple(builder, RUN_TYPE, [arguments[0]] * RUN)

        return RUN_TYPE(types.float32), generate

    @intrinsic
    def load8(typing, array, at):
        """The run of float32 array[at : at + 8], which lies at a multiple of 16 bytes."""

        def generate(context, builder, signature, arguments):
            found = _load_vectors(context, builder, signature.args[0], *arguments, FLOAT, RUN)
            return context.make_tuple(builder, RUN_TYPE, found)

        return RUN_TYPE(array, types.int64), generate

    @intrinsic
    def store8(typing, array, at, run):
        """array[at : at + 8] = a run, as float32, at a multiple of 16 bytes."""

        def generate(context, builder, signature, arguments):
            array, at, run = arguments
            _store_vectors(context, builder, signature.args[0], array, at, _elements(builder, run, RUN))
            return context.get_dummy_value()

        return types.void(array, types.int64, RUN_TYPE), generate

    @intrinsic
    def unpack8(typing, array, at, kind):
        """The run whose words begin at array[at], at a multiple of 16 bytes."""
        if (constants := _literals(kind)) is None:
            return None

        def generate(context, builder, signature, arguments):
            array, at, _ = arguments
            count = RUN_WORDS[constants[0]]
            words = _load_vectors(context, builder, signature.args[0], array, at, I32, count)
            return context.make_tuple(builder, RUN_TYPE, _unpacked(builder, constants[0], words))

        return RUN_TYPE(array, types.int64, kind), generate

    @intrinsic
    def round8(typing, run, kind):
        """A run as its words have it."""
        if (constants := _literals(kind)) is None:
            return None

        def generate(context, builder, signature, arguments):
            words = _packed(builder, constants[0], _elements(builder, arguments[0], RUN))
            return context.make_tuple(builder, RUN_TYPE, _unpacked(builder, constants[0], words))

        return RUN_TYPE(RUN_TYPE, kind), generate

    @intrinsic
    def put8(typing, array, at, run, kind):
        """The words of a run, from array[at] on, at a multiple of 16 bytes; rounded to nearest."""
        if (constants := _literals(kind)) is None:
            return None

        def generate(context, builder, signature, arguments):
            array, at, run, _ = arguments
            words = _packed(builder, constants[0], _elements(builder, run, RUN))
            _store_vectors(context, builder, signature.args[0], array, at, words)
            return context.get_dummy_value()

        return types.void(array, types.int64, RUN_TYPE, kind), generate

    def _elementwise(operation: Any, name: str, meaning: str) -> Any:
        def function(typing, a, b):
            def generate(context, builder, signature, arguments):
                pairs = zip(*(_elements(builder, run, RUN) for run in arguments), strict=True)
                return context.make_tuple(builder, RUN_TYPE, [operation(builder)(*pair) for pair in pairs])

            return RUN_TYPE(RUN_TYPE, RUN_TYPE), generate

        function.__name__ = function.__qualname__ = name
        function.__doc__ = meaning
        return intrinsic(function)

    add8 = _elementwise(operator.attrgetter("fadd"), "add8", "a + b of two runs.")
    subtract8 = _elementwise(operator.attrgetter("fsub"), "subtract8", "a - b of two runs.")
    multiply8 = _elementwise(operator.attrgetter("fmul"), "multiply8", "a * b of two runs.")

    @intrinsic
    def leaky8(typing, run, slope):
        """The leaky ReLU max(v, v * slope) of a run, for slopes from 0 to 1."""

        def generate(context, builder, signature, arguments):
            run, slope = arguments
            found = [_leaky(builder, value, slope) for value in _elements(builder, run, RUN)]
            return context.make_tuple(builder, RUN_TYPE, found)

        return RUN_TYPE(RUN_TYPE, types.float32), generate

    # -- single words -----------------------------------------------------------------------------------------

    @intrinsic
    def pack(typing, low, high, kind):
        """The word of two float32, the first in its lower half; of the first alone for tf32. Rounded to nearest."""
        if (constants := _literals(kind)) is None:
            return None

        def generate(context, builder, signature, arguments):
            return _packed(builder, constants[0], list(arguments[: ELEMENTS[constants[0]]]))[0]

        return types.uint32(types.float32, types.float32, kind), generate

    @intrinsic
    def unpack(typing, word, kind):
        """The two float32 of a word; twice the one for tf32."""
        if (constants := _literals(kind)) is None:
            return None
        pair = types.UniTuple(types.float32, 2)

        def generate(context, builder, signature, arguments):
            found = _unpacked(builder, constants[0], [arguments[0]])
            return context.make_tuple(builder, pair, [found[0], found[-1]])

        return pair(types.uint32, kind), generate

    @intrinsic
    def load_word(typing, array, at):
        """The word array[at]."""

        def generate(context, builder, signature, arguments):
            return builder.load(_pointer(context, builder, signature.args[0], *arguments, I32))

        return types.uint32(array, types.int64), generate

    @intrinsic
    def store_word(typing, array, at, word):
        """array[at] = a word."""

        def generate(context, builder, signature, arguments):
            array, at, word = arguments
            builder.store(word, _pointer(context, builder, signature.args[0], array, at, I32))
            return context.get_dummy_value()

        return types.void(array, types.int64, types.uint32), generate
