"""What intrinsics are written with: LLVM types, addresses, vector loads and inline assembly, through llvmlite.

Not imported in the simulator. Intrinsics return (signature, code generator); one whose sizes must be compile-time
constants returns None until Numba has found them to be literals.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from llvmlite import ir
from numba.cuda import types

I16, I32, I64 = ir.IntType(16), ir.IntType(32), ir.IntType(64)
FLOAT, VOID = ir.FloatType(), ir.VoidType()
SHARED_SPACE, GLOBAL_SPACE = 3, 1  # LLVM's address spaces for NVPTX
FORMATS = ("f16", "bf16", "tf32")  # PTX's names, by kind of packed word


def literals(*values: Any) -> tuple[int, ...] | None:
    """Compile-time constants, once Numba has found them to be constant."""
    if all(isinstance(value, types.IntegerLiteral) for value in values):
        return tuple(value.literal_value for value in values)
    return None


def pointer(context: Any, builder: Any, array_type: Any, array: Any, index: Any, element: Any = None) -> Any:
    """A pointer to array[index], cast to one to another type of `element` if given."""
    data = context.make_array(array_type)(context, builder, array).data
    result = builder.gep(data, [I64(index) if isinstance(index, int) else index])
    return builder.bitcast(result, element.as_pointer(result.type.addrspace)) if element else result


def shared_address(context: Any, builder: Any, array_type: Any, array: Any, index: Any) -> Any:
    """The 32-bit address in shared memory of array[index], an element of 4 bytes; `index` has 32 bits too."""
    data = context.make_array(array_type)(context, builder, array).data
    base = builder.ptrtoint(builder.addrspacecast(data, ir.PointerType(data.type.pointee, SHARED_SPACE)), I32)
    return builder.add(base, builder.shl(index, I32(2)))


def assembly(
    builder: Any, result: Any, operands: Sequence[Any], text: str, constraints: str, effect: bool = True
) -> Any:
    """A call of inline assembly; `effect` says that it must neither be dropped nor be moved."""
    function = ir.FunctionType(result, [operand.type for operand in operands])
    return builder.call(ir.InlineAsm(function, text, constraints, side_effect=effect), operands)


def warp_assembly(
    builder: Any, result: Any, operands: Sequence[Any], text: str, constraints: str, effect: bool = True
) -> Any:
    """The same for an instruction of a whole warp: convergent, so it is not moved to where some lanes are missing."""
    call = assembly(builder, result, operands, text, constraints, effect)
    call.attributes.add("convergent")
    return call


def registers(first: int, count: int) -> str:
    """``{$first,...}``: a list of operands in assembly."""
    return "{" + ",".join(f"${i}" for i in range(first, first + count)) + "}"


def elements(builder: Any, aggregate: Any, count: int) -> list[Any]:
    """The first `count` elements of a struct or tuple."""
    return [builder.extract_value(aggregate, i) for i in range(count)]


def load_vectors(context: Any, builder: Any, array_type: Any, array: Any, index: Any, kind: Any, count: int) -> Any:
    """`count` elements of 32 bits, of LLVM type `kind`, by loads of 128 bits."""
    found = []
    for first in range(0, count, 4):
        at = builder.add(index, ir.Constant(index.type, first))
        vector = builder.load(pointer(context, builder, array_type, array, at, ir.VectorType(kind, 4)), align=16)
        found += [builder.extract_element(vector, I32(i)) for i in range(4)]
    return found


def store_vectors(context: Any, builder: Any, array_type: Any, array: Any, index: Any, values: Sequence[Any]) -> None:
    """Store elements of 32 bits, a multiple of 4 of them, by stores of 128 bits."""
    kind = ir.VectorType(values[0].type, 4)
    for first in range(0, len(values), 4):
        at = builder.add(index, ir.Constant(index.type, first))
        vector = ir.Constant(kind, ir.Undefined)
        for i in range(4):
            vector = builder.insert_element(vector, values[first + i], I32(i))
        builder.store(vector, pointer(context, builder, array_type, array, at, kind), align=16)


Code = Callable[[Any, Any, Any, Sequence[Any]], Any]


def statement(text: str, constraints: str = "~{memory}") -> Code:
    """The code of an instruction without operands."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Sequence[Any]) -> Any:
        assembly(builder, VOID, [], text, constraints)
        return context.get_dummy_value()

    return generate
