"""Basic blocks to Python: each becomes a function over arrays of lanes, compiled once.

A function has two forms: for all lanes of the machine, and for the n lanes whose numbers are in ``I``. ``R`` holds
registers: arrays of one element for each lane, in their declared type. Special registers, parameters and addresses of
shared variables are registers that are set at the launch. ``W`` sets a register in some lanes. ``K`` holds constants.
What is more than arithmetic is a method of the machine ``m``. Each line belongs to an instruction
(:attr:`.blocks.Block.owners`), which errors name.

Source: PTX ISA 8.7, "Instruction Set".
"""

from __future__ import annotations

import re
from typing import Any

import numpy as np

from .blocks import Block
from .emit_warps import WarpInstructions
from .faults import PtxError
from .parse import Instruction, Kernel, split_operands

TYPES = {"pred": "b1", "f16": "f2", "f32": "f4", "f64": "f8"} | {
    f"{sign}{bits}": f"{'i' if sign == 's' else 'u'}{bits // 8}" for sign in "bus" for bits in (8, 16, 32, 64)
}
SPECIAL = [f"%{name}.{axis}" for name in ("tid", "ntid", "ctaid", "nctaid") for axis in "xyz"]
SPECIAL += ["%laneid", "%warpid", "%dynamic_smem_size"]
COMPARISONS = {"eq": "==", "ne": "!=", "lt": "<", "le": "<=", "gt": ">", "ge": ">="}
COMPARISONS |= {"lo": "<", "ls": "<=", "hi": ">", "hs": ">="}
BINARY = {"add": "+", "sub": "-", "and": "&", "or": "|", "xor": "^"}
UNARY = {"not": "~{}", "neg": "-{}", "abs": "np.abs({})", "rcp": "RCP({})", "sqrt": "SQRT({})", "ex2": "EX2({})"}
ROUNDINGS = {"rn", "rz", "rm", "rp", "rni", "rzi", "rmi", "rpi", "rna", "ftz", "sat", "approx", "lo", "uni"}


def dtype(kind: str) -> np.dtype:
    """NumPy's type for one of PTX."""
    return np.dtype("?" if kind == "pred" else TYPES[kind])


class Emitter(WarpInstructions):
    """Python for a kernel's instructions."""

    def __init__(self, kernel: Kernel) -> None:
        self.kernel = kernel
        self.types = dict(kernel.registers)
        self.types |= dict.fromkeys(SPECIAL, "b32") | {variable.name: "b64" for variable in kernel.shared}
        self.types |= dict(kernel.params)
        self.slots = {name: i for i, name in enumerate(self.types)}
        self.constants: list[Any] = []
        products = (i for i in kernel.code if i.opcode.startswith("wgmma.mma_async"))
        self.accumulators = {name for i in products for name in self.list_of(i.operands[0])}

    def function(self, block: Block, masked: bool, scope: dict[str, Any]) -> Any:
        """The function of a block, in one of its forms."""
        lines, owners = ["def run(m, R, K, W, I, n):"], [-1]
        for at, instruction in enumerate(block.instructions):
            code = self._lines(instruction, masked)
            if instruction.guard and not instruction.opcode.startswith("bra"):
                raise PtxError(f"line {instruction.line}: a guard on what is no branch")
            names = [name for operand in instruction.operands for name in self.list_of(operand.strip("[] "))]
            touched = [self.slots[name] for name in names if name in self.accumulators]
            if touched and not instruction.opcode.startswith("wgmma.mma_async"):
                code.insert(0, f"m.check_accumulators(I, {self.constant(touched)})")
            lines += [f" {line}" for line in code]
            owners += [block.first + at] * len(code)
        block.owners = owners
        local: dict[str, Any] = {}
        exec(compile("\n".join([*lines, " return None"]), f"block at {block.first}", "exec"), scope, local)
        return local["run"]

    # -- operands ---------------------------------------------------------------------------------------------

    @staticmethod
    def list_of(operand: str) -> list[str]:
        """The operands in braces."""
        return split_operands(operand.strip("{} \n"))

    def constant(self, value: Any) -> str:
        """An expression for a value."""
        self.constants.append(value)
        return f"K[{len(self.constants) - 1}]"

    def read(self, operand: str, kind: str, masked: bool) -> str:
        """An expression for a register or an immediate as a type."""
        if operand not in self.slots:
            return self._immediate(operand, kind)
        own, want = dtype(self.types[operand]), dtype(kind)
        text = f"R[{self.slots[operand]}]" + "[I]" * masked
        if own == want:
            return text
        if own.itemsize == want.itemsize:
            return f"{text}.view('{want.str}')"
        if own.itemsize > want.itemsize and own.kind == "u":  # the lower part
            return f"{text}.astype('u{want.itemsize}').view('{want.str}')"
        raise PtxError(f"{operand} of {own} read as {want}")

    def write(self, operand: str, kind: str, expression: str, masked: bool, fresh: bool = True) -> str:
        """A line that sets a register; `fresh` says that the expression is an array of its own."""
        if operand == "_":
            return expression
        own, given = dtype(self.types[operand]), dtype(kind)
        if own.itemsize > given.itemsize:
            expression = f"({expression}).astype('{own.kind}{own.itemsize}')"
        elif own != given:
            expression = f"({expression}).view('{own.str}')"
        slot = self.slots[operand]
        if masked:
            return f"W({slot}, I, {expression})"
        return f"R[{slot}] = {expression if fresh else f'C({expression}, n)'}"

    def address(self, operand: str, masked: bool) -> str:
        """An expression for [register + offset]."""
        match = re.fullmatch(r"\[([^\]+]+)(?:\+(-?\w+))?\]", operand.replace(" ", ""))
        if not match:
            raise PtxError(f"address {operand}")
        kind = f"u{dtype(self.types[match[1]]).itemsize * 8}"
        text = self.read(match[1], kind, masked)
        return f"({text} + {self._immediate(match[2], kind)})" if match[2] else text

    def _immediate(self, text: str, kind: str) -> str:
        if kind == "pred":
            return self.constant(np.bool_(int(text)))
        if match := re.fullmatch(r"0[fF]([0-9A-Fa-f]{8})", text):
            bits = np.uint32(int(match[1], 16))
            return self.constant(bits.view(np.float32).astype(dtype(kind)) if kind[0] == "f" else bits)
        if not re.fullmatch(r"-?(0[xX][0-9a-fA-F]+|\d+)U?", text):
            raise PtxError(f"immediate {text}")
        value, of = int(text.rstrip("U"), 0), dtype(kind)
        if kind[0] == "f":
            return self.constant(of.type(value))
        return self.constant(np.array(value & (1 << 8 * of.itemsize) - 1, f"u{of.itemsize}").view(of)[()])

    # -- instructions of single lanes ----------------------------------------------------------------------------

    def _lines(self, i: Instruction, masked: bool) -> list[str]:
        """What an instruction does: by the method of its name, or arithmetic."""
        method = getattr(self, f"_{i.parts[0]}", None)
        if method:
            return method(i, i.parts, i.operands, masked)
        kind = i.parts[-1]
        if set(i.parts[1:-1]) - ROUNDINGS or kind not in TYPES:
            raise PtxError(f"{i.opcode}: not known")
        return [self.write(i.operands[0], kind, self._arithmetic(i, kind, masked), masked)]

    def _arithmetic(self, i: Instruction, kind: str, masked: bool) -> str:
        name = i.parts[0]

        def read(at: int, of: str = kind) -> str:
            return self.read(i.operands[at], of, masked)

        if name in BINARY:
            return f"{read(1)} {BINARY[name]} {read(2)}"
        if name in UNARY:
            return UNARY[name].format(read(1))
        if name in ("min", "max"):
            return f"np.{'f' if kind[0] == 'f' else ''}{name}{'' if kind[0] == 'f' else 'imum'}({read(1)}, {read(2)})"
        if name == "copysign":  # the sign of the first, the rest of the second
            return f"np.copysign({read(2)}, {read(1)})"
        if name == "fma":
            return f"FMA({read(1)}, {read(2)}, {read(3)})"
        if name == "selp":
            return f"np.where({read(3, 'pred')}, {read(1)}, {read(2)})"
        if name in ("shl", "shr"):
            return f"{name.upper()}({read(1)}, {read(2, 'u32')})"
        if name in ("div", "rem") and kind[0] in "us":
            return f"{name.upper()}({read(1)}, {read(2)})"
        if name == "div":
            return f"{read(1)} / {read(2)}"
        if name == "bfi":
            return f"BFI({read(1)}, {read(2)}, {read(3, 'u32')}, {read(4, 'u32')})"
        raise PtxError(f"{i.opcode}: not known")

    def _mov(self, i: Instruction, parts: list[str], ops: list[str], masked: bool) -> list[str]:
        return [self.write(ops[0], parts[-1], self.read(ops[1], parts[-1], masked), masked, fresh=False)]

    def _cvta(self, i: Instruction, parts: list[str], ops: list[str], masked: bool) -> list[str]:
        if parts[1:] != ["to", "global", "u64"]:  # generic and global addresses are the same numbers
            raise PtxError(f"{i.opcode}: not known")
        return [self.write(ops[0], "u64", self.read(ops[1], "u64", masked), masked, fresh=False)]

    def _mul(self, i: Instruction, parts: list[str], ops: list[str], masked: bool) -> list[str]:
        kind = parts[-1]
        a, b = (self.read(op, kind, masked) for op in ops[1:3])
        if parts[1] == "wide":
            wide = f"{kind[0]}{2 * int(kind[1:])}"
            product = f"{a}.astype('{dtype(wide).str}') * {b}.astype('{dtype(wide).str}')"
            return [self.write(ops[0], wide, product, masked)]
        if set(parts[1:-1]) - ROUNDINGS:
            raise PtxError(f"{i.opcode}: not known")
        return [self.write(ops[0], kind, f"{a} * {b}", masked)]

    def _mad(self, i: Instruction, parts: list[str], ops: list[str], masked: bool) -> list[str]:
        if parts[1] != "lo":
            raise PtxError(f"{i.opcode}: not known")
        a, b, c = (self.read(op, parts[-1], masked) for op in ops[1:4])
        return [self.write(ops[0], parts[-1], f"{a} * {b} + {c}", masked)]

    def _setp(self, i: Instruction, parts: list[str], ops: list[str], masked: bool) -> list[str]:
        if len(parts) != 3 or "|" in ops[0]:
            raise PtxError(f"{i.opcode}: not known")
        a, b = (self.read(op, parts[2], masked) for op in ops[1:3])
        return [self.write(ops[0], "pred", f"B({a} {COMPARISONS[parts[1]]} {b}, n)", masked)]

    def _cvt(self, i: Instruction, parts: list[str], ops: list[str], masked: bool) -> list[str]:
        to, of = (part for part in parts[1:] if part in TYPES or part in ("f16x2", "bf16x2", "tf32"))
        how = set(parts[1:]) - {to, of}
        values = [self.read(op, of, masked) for op in ops[1:]]
        if to in ("f16x2", "bf16x2") and of == "f32" and how == {"rn"}:  # the first operand is the upper half
            return [self.write(ops[0], "b32", f"PACK_{to.upper()}({values[0]}, {values[1]})", masked)]
        if to == "tf32" and how == {"rna"}:
            return [self.write(ops[0], "b32", f"m.to_tf32({values[0]})", masked)]
        if of[0] == "f" and to[0] in "us" and how == {"rzi"}:
            text = f"TO_INTEGER({values[0]}, '{dtype(to).str}')"
        elif of[0] in "us" and to[0] == "f" and how == {"rn"} or (of, to) == ("f16", "f32") and not how:
            text = f"{values[0]}.astype('{dtype(to).str}')"
        elif of[0] in "us" and to[0] in "us" and not how:
            text = f"{values[0]}.astype('{dtype(to).str}')"
        else:
            raise PtxError(f"{i.opcode}: not known")
        return [self.write(ops[0], to, text, masked)]

    def _ld(self, i: Instruction, parts: list[str], ops: list[str], masked: bool) -> list[str]:
        space, kind = parts[1], parts[-1]
        if space == "param":
            return [self.write(ops[0], kind, self.read(ops[1].strip("[] "), kind, masked), masked, fresh=False)]
        self._check_space(i)
        to, width = self.list_of(ops[0]), dtype(kind).itemsize
        lines = [f"V = m.load_{space}(I, {self.address(ops[1], masked)}, {width * len(to)})"]
        lines += ["V = V.view('u8')"] * (width == 8)
        for at, name in enumerate(to):
            value = f"np.ascontiguousarray(V[:, {at}]).view('{dtype(kind).str}')"
            lines.append(self.write(name, kind, value, masked))
        return lines

    def _st(self, i: Instruction, parts: list[str], ops: list[str], masked: bool) -> list[str]:
        self._check_space(i)
        unsigned = f"u{dtype(parts[-1]).itemsize}"
        reads = (self.read(op, parts[-1], masked) for op in self.list_of(ops[1]))
        values = ", ".join(f"F({value}, n).view('{unsigned}')" for value in reads)
        return [f"m.store_{parts[1]}(I, {self.address(ops[0], masked)}, [{values}])"]

    @staticmethod
    def _check_space(i: Instruction) -> None:
        if set(i.parts[2:-1]) - {"v2", "v4"} or i.parts[1] not in ("global", "shared"):
            raise PtxError(f"{i.opcode}: not known")

    def _bar(self, i: Instruction, parts: list[str], ops: list[str], masked: bool) -> list[str]:
        if i.opcode != "bar.sync" or ops != ["0"]:
            raise PtxError(f"{i.opcode}: not known")
        return ["pass"]

    def _bra(self, i: Instruction, parts: list[str], ops: list[str], masked: bool) -> list[str]:
        return [f"return {self.read(i.guard, 'pred', masked)}" if i.guard else "return True"]

    def _ret(self, i: Instruction, parts: list[str], ops: list[str], masked: bool) -> list[str]:
        return ["pass"]
