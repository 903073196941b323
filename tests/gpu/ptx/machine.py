"""The machine: runs blocks of threads of a launch, as arrays of lanes that go their own ways at branches.

In the order "lowest", all lanes of the blocks that run together go on where the program is least far. In the order
"random", one warp at a time goes on, chosen by chance. What a warp or a warpgroup executes together waits until all of
its lanes have come. A barrier ends when all threads of a block have come. Getting stuck is an error.
"""

from __future__ import annotations

import traceback
from collections import Counter
from dataclasses import dataclass
from typing import Any

import numpy as np

from .blocks import Block, basic_blocks
from .emit import SPECIAL, Emitter, dtype
from .faults import Fault
from .global_memory import GlobalMemory
from .mbarriers import Mbarriers
from .parse import Kernel
from .scalar import SCOPE
from .shared_memory import SharedMemory
from .tensor_cores import TensorCores
from .tma import LANDS_NOW, Tma
from .wgmma import Wgmma

RUNS, AT_BARRIER, WAITS, HELD, DONE = range(5)
STATES = {AT_BARRIER: "at a barrier", WAITS: "waiting for an mbarrier", HELD: "held until their warp comes"}
SHARED_LIMITS = {"sm_80": 163 << 10, "sm_90a": 227 << 10, "sm_100": 227 << 10}  # bytes of a block, if asked for
STATIC_LIMIT = 48 << 10
SHARED_BASE = 1024  # where shared memory begins on Hopper: the first KB is the system's


@dataclass(frozen=True, slots=True)
class Options:
    """What documentation leaves open, and the machine decides.

    ``order``: "lowest" or "random" (above). ``late``: copies land as late as possible, not at once. ``spurious``:
    mbarrier.try_wait gives up once before it waits.
    """

    order: str = "lowest"
    late: bool = True
    spurious: bool = False
    seed: int = 0


@dataclass(frozen=True, slots=True)
class Chosen:
    """The blocks of a launch that run together: grid, threads and dynamic shared memory of each, their numbers."""

    grid: tuple[int, int, int]
    threads: int
    dynamic: int
    numbers: np.ndarray


class Program:
    """A kernel, ready to run. Its functions are compiled when they are first reached."""

    def __init__(self, kernel: Kernel) -> None:
        self.kernel, self.emitter = kernel, Emitter(kernel)
        self.blocks, self.labels = basic_blocks(kernel)

    def function(self, block: Block, masked: bool) -> Any:
        """The function of a basic block."""
        if masked not in block.functions:
            block.functions[masked] = self.emitter.function(block, masked, SCOPE)
        return block.functions[masked]

    def forget_visits(self) -> None:
        """Count from now on what is executed."""
        for block in self.blocks:
            block.visits = 0

    def executed(self) -> set[str]:
        """Opcodes of the instructions that have been executed."""
        return {i.opcode for block in self.blocks for i in block.instructions if block.visits}


class Machine(TensorCores, Mbarriers, Tma, Wgmma):
    """Some blocks of a launch."""

    def __init__(
        self, program: Program, memory: GlobalMemory, params: dict[str, Any], chosen: Chosen, options: Options
    ) -> None:
        self.program, self.memory, self.options = program, memory, options
        self.threads, count = chosen.threads, len(chosen.numbers)
        self.lanes = self.threads * count
        self.random = np.random.default_rng(options.seed)
        lane = np.arange(self.lanes)
        self.block_of, self.thread_of = (lane // self.threads).astype(np.int32), (lane % self.threads).astype(np.int32)
        self.number_of = np.asarray(chosen.numbers, np.int32)[self.block_of]
        shift = int(self.random.integers(0, 64)) * 16
        self.shared = SharedMemory(program.kernel.shared, chosen.dynamic, count, SHARED_BASE, shift)
        self._check_launch(program.kernel, chosen)
        self.registers: list[np.ndarray | None] = [None] * len(program.emitter.slots)
        self._set_registers(chosen, params)
        self.at, self.state = np.zeros(self.lanes, np.int32), np.zeros(self.lanes, np.int8)
        self.start_tensor_cores()
        self.start_mbarriers()
        self.start_tma()
        self.start_wgmma()

    def _check_launch(self, kernel: Kernel, chosen: Chosen) -> None:
        if not 1 <= self.threads <= kernel.most_threads:
            raise Fault(f"{self.threads} threads of a block, made for {kernel.most_threads}")
        total = self.shared.static + chosen.dynamic
        if self.shared.static > STATIC_LIMIT or total > SHARED_LIMITS[kernel.target]:
            raise Fault(f"{self.shared.static} + {chosen.dynamic} bytes of shared memory")
        if chosen.dynamic and not any(variable.size is None for variable in kernel.shared):
            raise Fault("shared memory is given that nothing uses")

    def _set_registers(self, chosen: Chosen, params: dict[str, Any]) -> None:
        """Special registers, addresses of shared variables, parameters."""
        places = np.unravel_index(self.number_of, chosen.grid[::-1])[::-1]
        values = {"%laneid": self.thread_of % 32, "%warpid": self.thread_of // 32, "%dynamic_smem_size": chosen.dynamic}
        for axis, name in enumerate("xyz"):
            values |= {f"%ctaid.{name}": places[axis], f"%nctaid.{name}": chosen.grid[axis]}
            values |= {f"%tid.{name}": self.thread_of * (axis == 0), f"%ntid.{name}": self.threads if axis == 0 else 1}
        values = {name: values[name] for name in SPECIAL} | self.shared.address | params
        emitter = self.program.emitter
        for name, value in values.items():
            typed = np.asarray(value).astype(dtype(emitter.types[name]))
            self.registers[emitter.slots[name]] = np.broadcast_to(typed, self.lanes).copy()

    # -- running ----------------------------------------------------------------------------------------------

    def run(self) -> None:
        """Run until all lanes have returned. Raises Fault."""
        with np.errstate(all="ignore"):
            while True:
                lanes = self._choose()
                if lanes is not None:
                    self._step(int(self.at[lanes[0]]), lanes)
                elif np.all(self.state == DONE):
                    break
                elif not self.land_a_box():
                    self._stuck()
        if self.in_flight or self.boxes or self.copies:
            raise Fault("products or copies were still in flight when the block ended")

    def _choose(self) -> np.ndarray | None:
        """Lanes to go on, all at one place; None if there are none."""
        running = self.state == RUNS
        if self.options.order == "random":
            ready = np.flatnonzero(running)
            if not len(ready):
                return None
            if self.boxes and self.random.random() < LANDS_NOW:
                self.land_a_box()
            self.chosen = ready[ready // 32 == self.random.choice(np.unique(ready // 32))]
            running &= np.arange(self.lanes) // 32 == self.chosen[0] // 32
        ready = np.flatnonzero(running)
        if not len(ready):
            return None
        place = self.at[ready].min()
        return np.flatnonzero((self.at == place) & ((self.state == RUNS) | (self.state == HELD)))

    def _step(self, place: int, lanes: np.ndarray) -> None:
        """Run the basic block at a place for these lanes."""
        block = self.program.blocks[place]
        if self.options.order == "random":  # one warp, or one group of warps, of those that are here
            group = self.block_of * 4096 + self.thread_of // max(32, block.group)
            lanes = lanes[group[lanes] == group[self.chosen[0]]]
        if block.group > 1:
            lanes = self._complete_groups(lanes, block.group)
            if not len(lanes):
                return
        block.visits += 1
        if block.ends == "barrier":
            self._barrier(place, lanes)
            return
        is_everybody, self.waiting = len(lanes) == self.lanes, None
        try:
            function = self.program.function(block, masked=not is_everybody)
            some = None if is_everybody else lanes
            taken = function(self, self.registers, self.program.emitter.constants, self._write, some, len(lanes))
        except Exception as error:
            raise self._located(error, block, lanes) from error
        self._go_on(place, block, lanes, taken)

    def _go_on(self, place: int, block: Block, lanes: np.ndarray, taken: Any) -> None:
        """Where lanes are after a basic block; `taken` says which took the branch at its end."""
        self.at[lanes] = place + 1
        if block.ends == "return":
            self.state[lanes] = DONE
        elif block.ends == "branch":
            last = block.instructions[-1]
            target = self.program.labels[last.operands[0]]
            self.at[lanes] = target if taken is True else np.where(taken ^ last.negated, target, place + 1)
        elif block.ends == "waits":
            self.at[lanes[self.waiting]] = place
            self.state[lanes[self.waiting]] = WAITS

    def _complete_groups(self, lanes: np.ndarray, group: int) -> np.ndarray:
        """Lanes whose warp or warpgroup has come as a whole; the others are held."""
        group = min(group, self.threads)
        per_block = -(-self.threads // group)
        groups = self.block_of[lanes] * per_block + self.thread_of[lanes] // group
        counts = np.bincount(groups, minlength=int(self.block_of[-1] + 1) * per_block)
        is_whole = counts[groups] == group
        self.state[lanes] = np.where(is_whole, RUNS, HELD)
        return lanes[is_whole]

    def _barrier(self, place: int, lanes: np.ndarray) -> None:
        self.state[lanes] = AT_BARRIER
        for block in np.unique(self.block_of[lanes]):
            threads = slice(block * self.threads, (block + 1) * self.threads)
            if np.all(self.state[threads] == AT_BARRIER):
                if np.any(self.at[threads] != place):
                    lines = sorted({self.program.blocks[p].instructions[0].line for p in self.at[threads]})
                    raise Fault(f"threads of a block are at different barriers: lines {lines}")
                self.state[threads] = RUNS
                self.at[threads] = place + 1
                self.shared.interval[block] += 1

    def wake(self, lane: int) -> None:
        """Have a lane that waits for an mbarrier look again."""
        self.state[lane] = RUNS

    def _write(self, slot: int, lanes: np.ndarray, values: Any) -> None:
        """Set a register in some lanes."""
        if self.registers[slot] is None:
            kind = np.asarray(values).dtype
            self.registers[slot] = np.full(self.lanes * kind.itemsize, 0xCD, np.uint8).view(kind).copy()
        self.registers[slot][lanes] = values

    # -- memory -----------------------------------------------------------------------------------------------

    def _of(self, lanes: np.ndarray | None, what: np.ndarray) -> np.ndarray:
        return what if lanes is None else what[lanes]

    def load_global(self, lanes: np.ndarray | None, addresses: np.ndarray, width: int) -> np.ndarray:
        """ld.global: `width` bytes for each lane."""
        return self.memory.load(addresses, width, self._of(lanes, self.number_of))

    def store_global(self, lanes: np.ndarray | None, addresses: np.ndarray, values: list[np.ndarray]) -> None:
        """st.global."""
        self.memory.store(addresses, np.stack(values, axis=1), self._of(lanes, self.number_of))

    def load_shared(self, lanes: np.ndarray | None, addresses: np.ndarray, width: int) -> np.ndarray:
        """ld.shared: `width` bytes for each lane."""
        if width < 4:
            raise Fault("ld.shared of less than a word: not known")
        return self.shared.load(self._of(lanes, self.block_of), addresses, width, self._of(lanes, self.thread_of))

    def store_shared(self, lanes: np.ndarray | None, addresses: np.ndarray, values: list[np.ndarray]) -> None:
        """st.shared."""
        if values[0].itemsize != 4:
            raise Fault("st.shared of what are no words: not known")
        rows, threads = self._of(lanes, self.block_of), self._of(lanes, self.thread_of)
        self.shared.store(rows, addresses, np.stack(values, axis=1), threads)

    # -- what went wrong --------------------------------------------------------------------------------------

    def _located(self, error: Exception, block: Block, lanes: np.ndarray) -> Fault:
        """An error with its instruction, block and threads."""
        frames = [f for f in traceback.extract_tb(error.__traceback__) if f.filename.startswith("block at")]
        line = frames[0].lineno - 1 if frames else len(block.owners)
        instruction = self.program.kernel.code[max(block.owners[line] if line < len(block.owners) else 0, block.first)]
        is_own = isinstance(error, Fault)
        text = str(error) if is_own else f"{type(error).__name__}: {error} (a register that was never set?)"
        who = f"block {self.number_of[lanes[0]]}, threads {self.thread_of[lanes[0]]} to {self.thread_of[lanes[-1]]}"
        return Fault(f"line {instruction.line}: {instruction.text[:160]}\n    {text}\n    {who} ({len(lanes)} lanes)")

    def _stuck(self) -> None:
        found = []
        for (state, place), count in Counter(zip(self.state.tolist(), self.at.tolist(), strict=True)).items():
            if state != DONE:
                instruction = self.program.blocks[place].instructions[0]
                found.append(f"{count} lanes {STATES[state]} at line {instruction.line}: {instruction.text[:80]}")
        ended = int(np.sum(self.state == DONE))
        raise Fault(f"stuck: nothing can go on; {ended} lanes have ended\n    " + "\n    ".join(found))
