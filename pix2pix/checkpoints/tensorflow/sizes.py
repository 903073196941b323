"""Integers of a graph that say how large its maps are: traced as far as needed to prove what an operation does."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from fractions import Fraction
from typing import NamedTuple

from .functions import Function, Operation, constant

_MAX_DEPTH = 20
_MAX_LENGTH = 1 << 32


class Length(NamedTuple):
    """``share`` of the image's height or width, and so many pixels more; a plain number has no share."""

    share: Fraction
    pixels: int = 0


Lengths = list[Length | None]  # None for what is not known


@dataclass(frozen=True, slots=True)
class Sizes:
    """``shape_of`` is the shape (images, height, width, channels) of the map that an operation makes.

    ``image`` has the image's height and width in pixels, 0 where it can have any.
    """

    function: Function
    shape_of: Callable[[str], Lengths | None]
    image: tuple[int, int]

    def shares(self, lengths: Lengths) -> list[Fraction | None]:
        """A height and a width as shares of the image's; None for what is not known to be one at every size."""
        return [self._share(length, of) for length, of in zip(lengths, self.image, strict=True)]

    def _share(self, length: Length | None, of: int) -> Fraction | None:
        if length is None or (length.pixels and not of):
            return None
        return length.share + Fraction(length.pixels, of) if length.pixels else length.share

    def list_of(self, name: str, depth: int = 0) -> Lengths | None:
        """The numbers of a list, or of a single number; None if they are not known."""
        operation = self.function.at(name)
        if operation is None or depth > _MAX_DEPTH:
            return None
        operation.node.budget.spend()
        found = constant(operation)
        if found is not None:
            return [Length(Fraction(0), n) if isinstance(n, int) else None for n in found[1]]
        rule = _RULES.get(operation.kind)
        return rule(self, operation, depth + 1) if rule else None

    def _shape(self, operation: Operation, depth: int) -> Lengths | None:
        shape = self.shape_of(operation.reads[0]) if operation.reads else None
        return list(shape) if shape else None

    def _packed(self, operation: Operation, depth: int) -> Lengths | None:
        lists = [self.list_of(name, depth) for name in operation.reads]
        return [each[0] if each and len(each) == 1 else None for each in lists]

    def _joined(self, operation: Operation, depth: int) -> Lengths | None:
        lists = [self.list_of(name, depth) for name in operation.reads[:-1]]
        return None if any(each is None for each in lists) else [n for each in lists if each for n in each]

    def _passed(self, operation: Operation, depth: int) -> Lengths | None:
        return self.list_of(operation.reads[0], depth) if operation.reads else None

    def _sliced(self, operation: Operation, depth: int) -> Lengths | None:
        if not operation.reads:
            return None
        source, *bounds = (self.list_of(name, depth) for name in operation.reads)
        if source is None or len(bounds) != 3 or any(each is None or len(each) != 1 for each in bounds):
            return None
        first, end, step = (each[0] for each in bounds if each)
        if step != Length(Fraction(0), 1) or not first or not end or first.share or end.share:
            return None
        if operation.number("shrink_axis_mask") & 1:
            return [source[first.pixels]] if -len(source) <= first.pixels < len(source) else None
        begin = None if operation.number("begin_mask") & 1 else first.pixels
        return source[begin : None if operation.number("end_mask") & 1 else end.pixels]

    def _computed(self, operation: Operation, depth: int) -> Lengths | None:
        operands = [self.list_of(name, depth) for name in operation.reads]
        if len(operands) != 2 or operands[0] is None or operands[1] is None:
            return None
        count = max(len(operands[0]), len(operands[1]))
        first, second = (each * count if len(each) == 1 else each for each in (operands[0], operands[1]))
        if len(first) != len(second):
            return None
        return [a and b and _result(operation.kind, a, b) for a, b in zip(first, second, strict=True)]


def _result(kind: str, a: Length, b: Length) -> Length | None:
    """a + b, a - b, a * b or a // b; None for what is no length."""
    if kind == "FloorDiv":
        return Length(Fraction(0), a.pixels // b.pixels) if b.pixels and not (a.share or b.share) else None
    if kind == "Mul":
        if a.share and b.share:
            return None
        result = Length(a.share * b.pixels + b.share * a.pixels, a.pixels * b.pixels)
    else:
        sign = -1 if kind == "Sub" else 1
        result = Length(a.share + sign * b.share, a.pixels + sign * b.pixels)
    return result if abs(result.pixels) < _MAX_LENGTH and abs(result.share) < _MAX_LENGTH else None


_RULES: dict[str, Callable[[Sizes, Operation, int], Lengths | None]] = {
    "Shape": Sizes._shape,
    "Pack": Sizes._packed,
    "ConcatV2": Sizes._joined,
    "Reshape": Sizes._passed,
    "Squeeze": Sizes._passed,
    "ExpandDims": Sizes._passed,
    "StridedSlice": Sizes._sliced,
    "Mul": Sizes._computed,
    "AddV2": Sizes._computed,
    "Sub": Sizes._computed,
    "FloorDiv": Sizes._computed,
}
