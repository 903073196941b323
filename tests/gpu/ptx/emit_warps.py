"""Python for the instructions of warps, and for those that go on by themselves: calls of methods of the machine."""

from __future__ import annotations

import re
from typing import Any

from .faults import PtxError
from .parse import Instruction, split_operands

BOX_COPY = r"cp\.async\.bulk\.tensor\.(\d)d\.shared::cluster\.global(?:\.tile)?\.mbarrier::complete_tx::bytes"


class WarpInstructions:
    """Part of :class:`.emit.Emitter`, whose operands it takes."""

    slots: dict[str, int]
    read: Any
    write: Any
    address: Any
    constant: Any
    list_of: Any

    def _ldmatrix(self, i: Instruction, parts: list[str], ops: list[str], masked: bool) -> list[str]:
        if parts[1:4] != ["sync", "aligned", "m8n8"] or parts[-1] != "b16" or not parts[-2].startswith("shared"):
            raise PtxError(f"{i.opcode}: not known")
        to = self.list_of(ops[0])
        if parts[4] != f"x{len(to)}":
            raise PtxError(f"{i.text}: {len(to)} registers")
        call = f"V = m.ldmatrix(I, {self.address(ops[1], masked)}, {len(to)}, {'trans' in parts})"
        return [call, *(self.write(name, "b32", f"V[{at}]", masked) for at, name in enumerate(to))]

    def _mma(self, i: Instruction, parts: list[str], ops: list[str], masked: bool) -> list[str]:
        shape, kinds = parts[3], parts[6:]
        if parts[1:3] != ["sync", "aligned"] or parts[4:6] != ["row", "col"] or kinds[0] != "f32" or kinds[3] != "f32":
            raise PtxError(f"{i.opcode}: not known")
        if kinds[1] != kinds[2]:
            raise PtxError(f"{i.opcode}: not known")
        lists = []
        for at, kind in ((1, "b32"), (2, "b32"), (3, "f32")):
            reads = (self.read(op, kind, masked) for op in self.list_of(ops[at]))
            lists.append("[" + ", ".join(f"F({text}, n)" for text in reads) + "]")
        call = f"V = m.mma(I, '{shape}', '{kinds[1]}', {', '.join(lists)})"
        results = enumerate(self.list_of(ops[0]))
        return [call, *(self.write(name, "f32", f"V[{at}]", masked) for at, name in results)]

    def _cp(self, i: Instruction, parts: list[str], ops: list[str], masked: bool) -> list[str]:
        if i.opcode == "cp.async.commit_group":
            return ["m.commit_copies(I)"]
        if i.opcode == "cp.async.wait_group":
            return [f"m.wait_copies(I, {int(ops[0])})"]
        if i.opcode == "cp.async.cg.shared.global":
            places = f"{self.address(ops[0], masked)}, {self.address(ops[1], masked)}"
            size = f"F({self.read(ops[3], 'u32', masked)}, n)" if len(ops) > 3 else "None"
            return [f"m.copy_async(I, {places}, {int(ops[2])}, {size})"]
        match = re.fullmatch(BOX_COPY, i.opcode)
        if not match:
            raise PtxError(f"{i.opcode}: not known")
        described, *place = split_operands(ops[1].strip("[] "))
        coordinates = [self.read(op, "s32", masked) for op in self.list_of(place[0])]
        if len(coordinates) != int(match[1]):
            raise PtxError(f"{i.text}: {match[1]} coordinates expected")
        start = "[" + ", ".join(f"F({c}, n)" for c in coordinates) + "]"
        barrier = self.address(ops[2], masked)
        places = f"{self.address(ops[0], masked)}, {self.read(described, 'u64', masked)}"
        return [f"m.copy_box(I, {places}, {start}, {barrier})"]

    def _mbarrier(self, i: Instruction, parts: list[str], ops: list[str], masked: bool) -> list[str]:
        what = ".".join(p for p in parts[1:] if p not in ("b64", "shared", "shared::cta"))
        if "shared::cta" not in parts and "shared" not in parts:
            raise PtxError(f"{i.opcode}: not known")
        if what == "try_wait.parity":
            call = f"V = m.try_wait(I, {self.address(ops[1], masked)}, F({self.read(ops[2], 'u32', masked)}, n))"
            return [call, self.write(ops[0], "pred", "V", masked)]
        if what == "init":
            return [f"m.init_barrier(I, {self.address(ops[0], masked)}, F({self.read(ops[1], 'u32', masked)}, n))"]
        if what in ("arrive", "arrive.expect_tx") and ops[0] == "_":
            count = f"F({self.read(ops[2], 'u32', masked)}, n)" if what == "arrive.expect_tx" else "None"
            return [f"m.arrive(I, {self.address(ops[1], masked)}, {count})"]
        raise PtxError(f"{i.opcode}: not known")

    def _fence(self, i: Instruction, parts: list[str], ops: list[str], masked: bool) -> list[str]:
        if i.opcode == "fence.proxy.tensormap::generic.acquire.sys":
            return [f"m.acquire_map(I, {self.address(ops[0], masked)}, {int(ops[1])})"]
        if i.opcode == "fence.mbarrier_init.release.cluster":
            return ["m.fence_mbarrier_init(I)"]
        if i.opcode in ("fence.proxy.async.shared::cta", "fence.proxy.async"):
            return ["m.fence_proxy_async(I)"]
        raise PtxError(f"{i.opcode}: not known")

    def _wgmma(self, i: Instruction, parts: list[str], ops: list[str], masked: bool) -> list[str]:
        if parts[1] == "mma_async":
            return self._wgmma_product(i, parts, ops, masked)
        if parts[1:] == ["fence", "sync", "aligned"] or parts[1:] == ["commit_group", "sync", "aligned"]:
            return [f"m.wgmma_{parts[1]}(I)"]
        if parts[1:] == ["wait_group", "sync", "aligned"]:
            return [f"m.wgmma_wait(I, {int(ops[0])})"]
        raise PtxError(f"{i.opcode}: not known")

    def _wgmma_product(self, i: Instruction, parts: list[str], ops: list[str], masked: bool) -> list[str]:
        shape, kinds = parts[4], parts[5:]
        if parts[2:4] != ["sync", "aligned"] or kinds[0] != "f32" or kinds[1] != kinds[2]:
            raise PtxError(f"{i.opcode}: not known")
        if len(ops) != (6 if kinds[1] == "tf32" else 8):  # tf32 has no transposition
            raise PtxError(f"{i.text}: {len(ops)} operands")
        slots = self.constant([self.slots[name] for name in self.list_of(ops[0])])
        operands = ", ".join(self.read(op, "u64", masked) for op in ops[1:3])
        scale, immediates = self.read(ops[3], "pred", masked), [int(op) for op in ops[4:]]
        return [f"m.wgmma(I, '{shape}', '{kinds[1]}', {slots}, {operands}, F({scale}, n), {immediates})"]
