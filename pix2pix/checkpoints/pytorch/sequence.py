"""Where a Sequential of modules keeps the tensors of a ResNet generator, told by the numbers in their names.

Modules without tensors (padding, ReLU, dropout, upsampling) count as well, so the numbers show which there are:

    1       first convolution, behind its padding
    4, 7    strided convolutions; 4, 8 where a blur follows each (numbers 7, 11)
    10 ...  blocks, or 12 ... after blurs; in each 1 and 5, or 6 behind a dropout, or 0 and 3 or 4 without padding
    +0, +3  transposed convolutions, counted from the end of the blocks,
    +1, +5  or convolutions behind an upsampling,
    +2, +7  or behind an upsampling and a padding
    last    one number behind the last of the above with its norm and ReLU

A norm follows each convolution but the last.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Literal

from ..tensors import Stored
from .layout import Place

INNER = re.compile(r"(?:^|\.)(?P<block>(?P<number>\d{1,3})\.(?P<container>conv_block|block)\.\d\.[a-z_]+)$")
_MAX_BLOCKS = 64
_MAX_LEVELS = 6
_FIRST, _DOWN = 1, 4  # numbers of the first convolution and of the first one of stride 2

Up = Literal["transposed", "upsampled", "padded"]
_UPS: dict[Up, int] = {"transposed": 0, "upsampled": 1, "padded": 2}  # modules before each convolution


@dataclass(frozen=True, slots=True)
class BlockForm:
    """What a residual block consists of. ``padded``: a module pads before each convolution, which pads no zeros."""

    container: str = "conv_block"
    padded: bool = True
    dropout: bool = False

    def places(self, prefix: str) -> tuple[Place, Place]:
        """Where the tensors of both convolutions are, in the block of the name ``prefix``."""
        first = int(self.padded)
        second = first + 3 + self.dropout + self.padded
        inside = f"{prefix}.{self.container}."
        return _numbered(first, inside), _numbered(second, inside)


@dataclass(frozen=True, slots=True)
class Sequence:
    """The modules of a network with ``blocks`` blocks that halves the image ``levels`` times."""

    levels: int
    blocks: int
    form: BlockForm
    up: Up = "transposed"
    blurred: bool = False

    @property
    def first_block(self) -> int:
        """The number of the first block."""
        return _DOWN + self._down_period * self.levels

    @property
    def _down_period(self) -> int:
        return 4 if self.blurred else 3

    def places(self) -> dict[str, Place]:
        """Where the tensors of each layer are, without prefix."""
        return dict(self._places())

    def blurs(self) -> dict[str, str]:
        """The names of the filters that halve a map, by the layer before them."""
        downs = range(1, self.levels + 1) if self.blurred else ()
        return {f"down_{level}": f"{_DOWN + 4 * level - 1}.filt" for level in downs}

    def enlargers(self) -> dict[str, str]:
        """The names that filters which double a map have, if there are any, by the layer behind them."""
        end, steps = self.first_block + self.blocks, range(self.levels) if self.up == "upsampled" else ()
        return {f"up_{step + 1}": f"{end + 4 * step}.filt" for step in steps}

    def _places(self) -> Iterator[tuple[str, Place]]:
        yield "first", _numbered(_FIRST)
        for level in range(self.levels):
            yield f"down_{level + 1}", _numbered(_DOWN + self._down_period * level)
        for block in range(self.blocks):
            for half, place in enumerate(self.form.places(str(self.first_block + block)), 1):
                yield f"block_{block + 1}_{half}", place
        end, before = self.first_block + self.blocks, _UPS[self.up]
        for step in range(self.levels):
            yield f"up_{step + 1}", _numbered(end + before + (3 + before) * step)
        yield "last", Place(f"{end + (3 + before) * self.levels + 1}.")


def find_sequence(tensors: Stored) -> Sequence | None:
    """The modules that these tensors, which have no prefix, belong to; None if they are no such generator's."""
    found = [match for name in tensors if (match := INNER.match(name))]
    numbers = {int(match["number"]) for match in found}
    if not numbers or f"{_FIRST}.weight" not in tensors:
        return None
    start, blocks = min(numbers), max(numbers) - min(numbers) + 1
    blurred = any(f"{number}.filt" in tensors for number in range(start))
    levels, rest = divmod(start - _DOWN, 4 if blurred else 3)
    if rest or not 1 <= levels <= _MAX_LEVELS or blocks > _MAX_BLOCKS:
        return None
    form = find_form(tensors, found[0]["container"], [str(number) for number in sorted(numbers)])
    best = max(
        (Sequence(levels, blocks, form, up, blurred) for up in _UPS),
        key=lambda each: _kernels(tensors, each.places().values()),
    )
    way_up = [place for layer, place in best.places().items() if layer.startswith("up_") or layer == "last"]
    return best if _kernels(tensors, way_up) > 1 else None  # discriminators have blocks, too, but no way up


def find_form(tensors: Stored, container: str, prefixes: list[str]) -> BlockForm:
    """The form of the blocks with these prefixes: the one that explains the names of most kernels."""
    forms = [BlockForm(container, padded, dropout) for padded in (True, False) for dropout in (False, True)]
    return max(forms, key=lambda form: sum(_kernels(tensors, form.places(prefix)) for prefix in prefixes))


def _kernels(tensors: Stored, places: Iterable[Place]) -> int:
    """How many of these convolutions are there."""
    names = (f"{place.convolution}weight" for place in places)
    return sum(name in tensors and len(tensors[name].shape) == 4 for name in names)


def _numbered(number: int, prefix: str = "") -> Place:
    return Place(f"{prefix}{number}.", f"{prefix}{number + 1}.")
