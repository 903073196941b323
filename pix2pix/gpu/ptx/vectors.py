"""Vectors of 8 channels in float32, their conversion from and to packed words, and single words.

A vector is a tuple of 8 float32 in registers. Each intrinsic has a counterpart of the same name in
:mod:`pix2pix.gpu.simulator.vectors`. Addresses of vectors are multiples of 16 bytes. Conversions round to nearest, as
:func:`.packed_words.words_of` does on the host.
"""

from __future__ import annotations

from typing import Any

from ..jit import SIMULATED
from .fragments import VECTOR
from .packed_words import ELEMENTS, FLOAT32, TF32, TF32_BITS, VECTOR_WORDS

if SIMULATED:
    from ..simulator.vectors import (  # noqa: F401
        add8,
        fill8,
        leaky_relu8,
        load8,
        load_word,
        multiply8,
        pack,
        pack8,
        round8,
        store8,
        store_word,
        subtract8,
        unpack,
        unpack8,
    )
else:
    import operator

    from numba.cuda import types
    from numba.cuda.extending import intrinsic

    from .codegen import FLOAT, FORMATS, I16, I32, assembly, elements, literals, load_vectors, pointer, store_vectors

    VECTOR_TYPE = types.UniTuple(types.float32, VECTOR)

    def _packed(builder: Any, kind: int, values: list[Any]) -> list[Any]:
        """Words of float32 values, rounded to nearest."""
        if kind == FLOAT32:
            return [builder.bitcast(v, I32) for v in values]
        if kind == TF32:
            # PTX leaves the last 13 bits of the result undefined, and does not say that tensor cores ignore them.
            found = [assembly(builder, I32, [v], "cvt.rna.tf32.f32 $0,$1;", "=r,f", False) for v in values]
            return [builder.and_(word, I32(TF32_BITS)) for word in found]
        text = f"cvt.rn.{FORMATS[kind]}x2.f32 $0,$1,$2;"
        pairs = zip(values[1::2], values[::2], strict=True)
        return [assembly(builder, I32, list(pair), text, "=r,f,f", False) for pair in pairs]

    def _unpacked(builder: Any, kind: int, words: list[Any]) -> list[Any]:
        """The float32 values of words."""
        found = []
        for word in words:
            if kind in (TF32, FLOAT32):
                found.append(builder.bitcast(word, FLOAT))
            elif FORMATS[kind] == "bf16":  # the upper half of a float32
                found += [
                    builder.bitcast(half, FLOAT)
                    for half in (builder.shl(word, I32(16)), builder.and_(word, I32(0xFFFF0000)))
                ]
            else:
                for half in (builder.trunc(word, I16), builder.trunc(builder.lshr(word, I32(16)), I16)):
                    found.append(assembly(builder, FLOAT, [half], "cvt.f32.f16 $0,$1;", "=f,h", False))
        return found

    def _leaky_relu(builder: Any, value: Any, slope: Any) -> Any:
        scaled = builder.fmul(value, slope)
        return builder.select(builder.fcmp_ordered(">", value, scaled), value, scaled)

    # -- loads and stores -------------------------------------------------------------------------------------

    @intrinsic
    def fill8(typing, value):
        """A vector of one value."""

        def generate(context, builder, signature, arguments):
            return context.make_tuple(builder, VECTOR_TYPE, [arguments[0]] * VECTOR)

        return VECTOR_TYPE(types.float32), generate

    @intrinsic
    def load8(typing, array, at):
        """The vector of float32 array[at : at + 8]."""

        def generate(context, builder, signature, arguments):
            array, at = arguments
            found = load_vectors(context, builder, signature.args[0], array, at, FLOAT, VECTOR)
            return context.make_tuple(builder, VECTOR_TYPE, found)

        return VECTOR_TYPE(array, types.int64), generate

    @intrinsic
    def store8(typing, array, at, vector):
        """array[at : at + 8] = a vector, as float32."""

        def generate(context, builder, signature, arguments):
            array, at, vector = arguments
            store_vectors(context, builder, signature.args[0], array, at, elements(builder, vector, VECTOR))
            return context.get_dummy_value()

        return types.void(array, types.int64, VECTOR_TYPE), generate

    @intrinsic
    def unpack8(typing, array, at, kind):
        """The vector whose packed words begin at array[at]."""
        if (constants := literals(kind)) is None:
            return None

        def generate(context, builder, signature, arguments):
            array, at, _ = arguments
            count = VECTOR_WORDS[constants[0]]
            words = load_vectors(context, builder, signature.args[0], array, at, I32, count)
            return context.make_tuple(builder, VECTOR_TYPE, _unpacked(builder, constants[0], words))

        return VECTOR_TYPE(array, types.int64, kind), generate

    @intrinsic
    def pack8(typing, array, at, vector, kind):
        """Store the packed words of a vector from array[at] on."""
        if (constants := literals(kind)) is None:
            return None

        def generate(context, builder, signature, arguments):
            array, at, vector, _ = arguments
            words = _packed(builder, constants[0], elements(builder, vector, VECTOR))
            store_vectors(context, builder, signature.args[0], array, at, words)
            return context.get_dummy_value()

        return types.void(array, types.int64, VECTOR_TYPE, kind), generate

    # -- arithmetic -------------------------------------------------------------------------------------------

    @intrinsic
    def round8(typing, vector, kind):
        """A vector rounded to the precision of its packed words."""
        if (constants := literals(kind)) is None:
            return None

        def generate(context, builder, signature, arguments):
            words = _packed(builder, constants[0], elements(builder, arguments[0], VECTOR))
            return context.make_tuple(builder, VECTOR_TYPE, _unpacked(builder, constants[0], words))

        return VECTOR_TYPE(VECTOR_TYPE, kind), generate

    def _elementwise(operation: Any, name: str, meaning: str) -> Any:
        def function(typing, a, b):
            def generate(context, builder, signature, arguments):
                pairs = zip(*(elements(builder, vector, VECTOR) for vector in arguments), strict=True)
                return context.make_tuple(builder, VECTOR_TYPE, [operation(builder)(*pair) for pair in pairs])

            return VECTOR_TYPE(VECTOR_TYPE, VECTOR_TYPE), generate

        function.__name__ = function.__qualname__ = name
        function.__doc__ = meaning
        return intrinsic(function)

    add8 = _elementwise(operator.attrgetter("fadd"), "add8", "a + b of two vectors.")
    subtract8 = _elementwise(operator.attrgetter("fsub"), "subtract8", "a - b of two vectors.")
    multiply8 = _elementwise(operator.attrgetter("fmul"), "multiply8", "a * b of two vectors.")

    @intrinsic
    def leaky_relu8(typing, vector, slope):
        """max(v, v * slope) of a vector, for slopes from 0 to 1."""

        def generate(context, builder, signature, arguments):
            vector, slope = arguments
            found = [_leaky_relu(builder, value, slope) for value in elements(builder, vector, VECTOR)]
            return context.make_tuple(builder, VECTOR_TYPE, found)

        return VECTOR_TYPE(VECTOR_TYPE, types.float32), generate

    # -- single words -----------------------------------------------------------------------------------------

    @intrinsic
    def pack(typing, low, high, kind):
        """The packed word of two float32, the first in its lower half; of the first alone if a word has one element."""
        if (constants := literals(kind)) is None:
            return None

        def generate(context, builder, signature, arguments):
            return _packed(builder, constants[0], list(arguments[: ELEMENTS[constants[0]]]))[0]

        return types.uint32(types.float32, types.float32, kind), generate

    @intrinsic
    def unpack(typing, word, kind):
        """The two float32 of a packed word; twice the one if it has one element."""
        if (constants := literals(kind)) is None:
            return None
        pair = types.UniTuple(types.float32, 2)

        def generate(context, builder, signature, arguments):
            found = _unpacked(builder, constants[0], [arguments[0]])
            return context.make_tuple(builder, pair, [found[0], found[-1]])

        return pair(types.uint32, kind), generate

    @intrinsic
    def load_word(typing, array, at):
        """The word array[at], as uint32."""

        def generate(context, builder, signature, arguments):
            array, at = arguments
            return builder.load(pointer(context, builder, signature.args[0], array, at, I32))

        return types.uint32(array, types.int64), generate

    @intrinsic
    def store_word(typing, array, at, word):
        """array[at] = a word, given as uint32."""

        def generate(context, builder, signature, arguments):
            array, at, word = arguments
            builder.store(word, pointer(context, builder, signature.args[0], array, at, I32))
            return context.get_dummy_value()

        return types.void(array, types.int64, types.uint32), generate
