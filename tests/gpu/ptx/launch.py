"""Launches: arguments as Numba passes them, and the blocks of a grid, some at a time."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from .faults import Fault
from .global_memory import Allocation, GlobalMemory
from .machine import Chosen, Machine, Options, Program

LANES_TOGETHER = 2048
MOST_BLOCKS = 2**31 - 1, 65535, 65535  # of a grid


@dataclass(frozen=True, slots=True)
class ArrayArgument:
    """An argument: `items` elements of `itemsize` bytes from byte `offset` of an allocation on."""

    allocation: Allocation
    offset: int
    items: int
    itemsize: int


@dataclass(frozen=True, slots=True)
class Configuration:
    """What stands between a kernel's brackets: the grid, threads of a block, bytes of dynamic shared memory."""

    grid: tuple[int, int, int]
    threads: int
    dynamic: int = 0


def launch(
    program: Program,
    configuration: Configuration,
    arguments: Sequence[Any],
    options: Options,
    only: Callable[[tuple[int, int, int]], Sequence[int]] | None = None,
) -> None:
    """Run a kernel, or the blocks of it that `only` chooses of a grid. Raises Fault.

    Numba passes an array as (meminfo, parent, items, itemsize, data, shape, stride), a tuple by its fields, and numbers
    as they are.
    """
    memory, values = GlobalMemory(), []
    for number, argument in enumerate(_flat(arguments)):
        if isinstance(argument, ArrayArgument):
            size = argument.items * argument.itemsize
            address = memory.add(argument.allocation, argument.offset, size, f"argument {number}")
            values += [0, 0, argument.items, argument.itemsize, address, argument.items, argument.itemsize]
        else:
            values.append(argument)
    params = program.kernel.params
    if len(params) != len(values):
        raise Fault(f"{len(values)} parameters for {len(params)}")
    for (name, kind), value in zip(params, values, strict=True):
        if (kind == "f32") != isinstance(value, np.floating):
            raise Fault(f"parameter {name[-12:]} of {kind} is given {value!r}")
    named = dict(zip((name for name, _ in params), values, strict=True))
    grid = configuration.grid
    if any(not 1 <= blocks <= most for blocks, most in zip(grid, MOST_BLOCKS, strict=True)):
        raise Fault(f"a grid of {grid}")
    order = np.array(only(grid)) if only else np.arange(np.prod(grid))
    if options.order == "random":
        order = np.random.default_rng(options.seed).permutation(order)
    together = max(1, LANES_TOGETHER // configuration.threads)
    for begin in range(0, len(order), together):
        chosen = Chosen(grid, configuration.threads, configuration.dynamic, order[begin : begin + together])
        Machine(program, memory, named, chosen, options).run()


def _flat(arguments: Sequence[Any]) -> list[Any]:
    """Fields of (nested) tuples in order."""
    return [x for a in arguments for x in (_flat(a) if isinstance(a, tuple) else [a])]
