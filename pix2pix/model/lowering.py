"""Lowering: a generator's layers as explicit operations, which is all that engines and plans read.

An :class:`Op` says where its operands come from and how they join (``sources``, ``join``), which pixels are summed
(``sampling``: taps and phases), and what happens to the sum before it is stored (``epilogue``). Nothing about an
operation has to be guessed from a layer's name, its place in the network or its activation.
"""

from __future__ import annotations

import bisect
import functools
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple

import numpy as np

from .generator import INPUT, Generator, Layer, Norm, Source
from .sampling import Sampling

ORDERS = 4  # in which results and scratch are placed in memory, at most


@dataclass(frozen=True, slots=True)
class Epilogue:
    """What follows the sum of products: ``activation(norm(inner_act(sum + bias))) + act(residual)``.

    ``inner_slope`` is the slope of inner_act, a leaky ReLU; 1 is the identity. ``output_scale`` is set where the result
    is the network's output: the rule for 8-bit images, see :class:`pix2pix.Generator`.
    """

    bias: bool
    norm: Norm | None
    activation: Literal["none", "tanh"]
    residual: Source | None
    output_scale: float | None
    inner_slope: float = 1.0


@dataclass(frozen=True, slots=True)
class Op:
    """One convolution with everything around it. Names are those of layers; ``reads`` has those of all operands."""

    name: str
    sources: tuple[Source, ...]
    join: Literal["concat", "add"]
    in_channels: int
    filters: int
    sampling: Sampling
    depthwise: tuple[float, ...]
    epilogue: Epilogue
    reads: tuple[str, ...]

    @property
    def reads_image(self) -> bool:
        """Whether the network's input is read."""
        return INPUT in self.reads

    @property
    def makes_image(self) -> bool:
        """Whether the result is the network's output."""
        return self.epilogue.output_scale is not None


class Places(NamedTuple):
    """Where the results of operations are in memory, and their scratch; the end of all."""

    results: dict[str, slice]
    scratch: dict[str, slice]
    end: int


class _Piece(NamedTuple):
    """A result or scratch (True), its size, and the operations (by number) that need it first and last."""

    key: tuple[str, bool]
    size: int
    first: int
    last: int


@dataclass(frozen=True, slots=True)
class Program:
    """The operations of a generator, in an order in which each finds its operands."""

    generator: Generator
    ops: tuple[Op, ...]

    def __getitem__(self, name: str) -> Op:
        return next(op for op in self.ops if op.name == name)

    @property
    def output(self) -> Op:
        """The operation whose result is the network's output."""
        return self.ops[-1]

    def shapes(self, h: int, w: int) -> dict[str, tuple[int, int, int]]:
        """(H, W, C) of every operation's result, and of the input, for an h x w image."""
        shapes = {INPUT: (h, w, self.generator.in_channels)}
        for op in self.ops:  # as Generator.shapes, several times as fast
            shapes[op.name] = (*op.sampling.output_size(*shapes[op.sources[0].layer][:2]), op.filters)
        return shapes

    def image_size(self, name: str, h: int, w: int) -> tuple[int, int]:
        """Size of the image for which operation ``name`` has an h x w result. Raises ValueError if there is none."""
        m = self.generator.multiple
        reference_h, _, _ = self.shapes(m, m)[name]
        if m % reference_h or (h * m) % reference_h:
            raise ValueError(f"no image gives {name} a map of {h}x{w}")
        return h * m // reference_h, w * m // reference_h

    def batch_of(self, given: Mapping[str, np.ndarray]) -> tuple[int, int, int]:
        """(N, H, W) of the images that values (N,H,W,C) of some operations, or of the input, belong to."""
        name, value = next(iter(given.items()))
        n, h, w, _ = value.shape
        return n, *((h, w) if name == INPUT else self.image_size(name, h, w))

    def places(self, sizes: Mapping[str, int], scratch: Mapping[str, int] = {}) -> Places:
        """Where in one piece of memory results of these sizes are, and what operations need while they run.

        Two of them share memory unless both are needed at once. A result is needed from the operation that makes it to
        the last that reads it. The largest are placed first. Where that leaves gaps, what ends last is placed before
        all others, a few times.
        """
        made = {op.name: at for at, op in enumerate(self.ops)}
        read = dict(made)
        for at, op in enumerate(self.ops):
            read.update(dict.fromkeys(op.reads, at))
        pieces = [_Piece((name, False), size, made[name], read[name]) for name, size in sizes.items()]
        pieces += [_Piece((name, True), size, made[name], made[name]) for name, size in scratch.items()]
        pieces.sort(key=lambda piece: -piece.size)
        least = max((sum(p.size for p in pieces if p.first <= at <= p.last) for at in made.values()), default=0)
        found: list[tuple[int, dict[tuple[str, bool], int]]] = []  # the end of all, and where each piece begins
        for _ in range(ORDERS):
            begins = _begins(pieces)
            found.append((max((begins[p.key] + p.size for p in pieces), default=0), begins))
            if found[-1][0] == least:
                break
            pieces.sort(key=lambda p: begins[p.key] + p.size < found[-1][0])
        end, begins = min(found, key=lambda each: each[0])
        return Places(
            {name: slice(begins[name, False], begins[name, False] + size) for name, size in sizes.items()},
            {name: slice(begins[name, True], begins[name, True] + size) for name, size in scratch.items()},
            end,
        )

    def needed(self, outputs: Sequence[str], given: Iterable[str] = (INPUT,)) -> tuple[Op, ...]:
        """The operations to run, in order, for ``outputs`` when the values of ``given`` are known.

        Raises ValueError if they need a value that is neither given nor computed.
        """
        known = set(given)
        wanted = {name for name in outputs if name not in known}
        chosen: list[Op] = []
        for op in reversed(self.ops):
            if op.name in wanted:
                chosen.append(op)
                wanted.remove(op.name)
                wanted.update(name for name in op.reads if name not in known)
        if wanted:
            names = ", ".join(sorted(wanted))
            raise ValueError(f"cannot compute {', '.join(outputs)} without the value of {names}")
        return tuple(reversed(chosen))

    def constants(self, h: int, w: int) -> tuple[str, ...]:
        """Operations whose result is the same for every h x w image.

        A 1x1 map whose channels are normalised by their own statistics is exactly beta, whatever it was; what reads
        only such maps is constant too.
        """
        if self.generator.statistics != "image":
            return ()
        shapes = self.shapes(h, w)
        constant: list[str] = []
        for op in self.ops:
            residual = op.epilogue.residual
            norm = op.epilogue.norm
            is_beta = norm is not None and norm.removes_means and shapes[op.name][:2] == (1, 1)
            if (
                (is_beta and (residual is None or residual.layer in constant))
                or constant
                and all(name in constant for name in op.reads)
            ):
                constant.append(op.name)
        return tuple(constant)

    def unaffected(self, constants: Collection[str], given: Collection[str]) -> set[str]:
        """Those of ``constants`` that stay so when the values of ``given`` are set."""
        changed: set[str] = set()
        for op in self.ops:
            if op.name in given or any(name in changed for name in op.reads):
                changed.update({op.name}.intersection(constants))
        return set(constants) - changed


def _begins(pieces: Iterable[_Piece]) -> dict[tuple[str, bool], int]:
    """Where pieces begin if, one after the other, each is placed as near the beginning as those before it allow."""
    placed: list[tuple[int, int, _Piece]] = []  # begin and end; by begin
    begins: dict[tuple[str, bool], int] = {}
    for piece in pieces:
        at = 0
        for begin, end, other in placed:
            if piece.first <= other.last and other.first <= piece.last and at < end and begin < at + piece.size:
                at = end
        begins[piece.key] = at
        bisect.insort(placed, (at, at + piece.size, piece))
    return begins


@functools.lru_cache(maxsize=64)
def lower(generator: Generator) -> Program:
    """The program of a generator."""
    last = generator.layers[-1]
    ops = tuple(_lower(layer, generator.output_scale if layer is last else None) for layer in generator.layers)
    return Program(generator, ops)


def _lower(layer: Layer, output_scale: float | None) -> Op:
    epilogue = Epilogue(layer.bias, layer.norm, layer.activation, layer.residual, output_scale, layer.inner_slope)
    operands = (*layer.inputs, layer.residual) if layer.residual else layer.inputs
    return Op(
        layer.name,
        layer.inputs,
        layer.join,
        layer.in_channels,
        layer.filters,
        layer.sampling,
        layer.depthwise,
        epilogue,
        tuple(source.layer for source in operands),
    )
