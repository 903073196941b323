"""Basic blocks: runs of instructions that lanes execute together, and how each run ends."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from .parse import Instruction, Kernel

WARPGROUP, WARP = 128, 32
WARP_OPCODES = ("mma.", "wgmma", "ldmatrix", "shfl", "vote", "elect", "bar.warp")
ENDS = (
    ("bra", "branch"),
    ("ret", "return"),
    ("exit", "return"),
    ("bar.sync", "barrier"),
    ("mbarrier.try_wait", "waits"),
)


@dataclass(slots=True)
class Block:
    """A basic block from instruction number `first` on."""

    first: int
    instructions: list[Instruction] = field(default_factory=list)
    ends: str = "falls"  # or one of ENDS
    group: int = 1  # lanes that must execute it together
    functions: dict[bool, Any] = field(default_factory=dict)  # for some lanes, and for all
    owners: list[int] = field(default_factory=list)  # number of the instruction of each line of a function
    visits: int = 0


def lanes_together(opcode: str) -> int:
    """How many lanes execute an instruction together."""
    if opcode.startswith("wgmma.mma_async"):
        return WARPGROUP
    return WARP if opcode.startswith(WARP_OPCODES) else 1


def basic_blocks(kernel: Kernel) -> tuple[list[Block], dict[str, int]]:
    """A kernel's blocks, and the number of the block at which each label is."""
    leaders = {0, *kernel.labels.values()}
    for i, instruction in enumerate(kernel.code):
        if instruction.opcode.startswith(("bra", "ret", "exit", "bar.sync", "mbarrier.try_wait")):
            leaders.add(i + 1)
        if instruction.opcode.startswith(("bar.sync", "mbarrier.try_wait", "wgmma.wait_group")):
            leaders.add(i)  # at wgmma.wait_group the warps of a warpgroup part
    found: list[Block] = []
    places: dict[int, int] = {}
    for i, instruction in enumerate(kernel.code):
        if i in leaders:
            places[i] = len(found)
            found.append(Block(i))
        block = found[-1]
        block.instructions.append(instruction)
        block.group = max(block.group, lanes_together(instruction.opcode))
        for start, end in ENDS:
            if instruction.parts[0] == start or "." in start and instruction.opcode.startswith(start):
                block.ends = end
    places[len(kernel.code)] = len(found)
    return found, {name: places[at] for name, at in kernel.labels.items()}
