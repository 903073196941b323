"""What TensorFlow's operations do that pad, enlarge or reshape a map of a network that is being traced.

Source: https://www.tensorflow.org/api_docs/python/tf/raw_ops.
"""

from __future__ import annotations

from fractions import Fraction

from ..network import NotExpressible, Sides, Value
from ..text import shown
from . import algebra
from .algebra import Factor, Sum
from .functions import Operation, constant
from .sizes import Length
from .trace import Trace

_ONE = Length(Fraction(0), 1)
_MAX_FACTOR = 65


def padded(trace: Trace, operation: Operation) -> Value:
    """A map with more pixels on its sides: MirrorPad, Pad or PadV2."""
    found, mode = constant(trace.function.at(operation.reads[1])), operation.text("mode")
    if operation.kind == "PadV2":
        filled = constant(trace.function.at(operation.reads[2]))
        mode = "" if filled and filled[1] == [0] else "numbers other than zero"
    if found is None or found[0] != (4, 2) or mode not in ("", "REFLECT"):
        raise NotExpressible(f"it pads by what is no constant, or with {shown(mode)}")
    sides = [n for n in found[1] if isinstance(n, int) and n >= 0]
    if len(sides) < 8 or any(sides[:2]) or any(sides[6:]):
        raise NotExpressible("it pads more than height and width")
    top, bottom, left, right = sides[2:6]
    padding: Sides = (top, left, bottom, right)
    return trace.network.pad(trace.map_of(operation.reads[0]), padding, "reflect" if mode else "zeros")


def resized(trace: Trace, operation: Operation) -> Value:
    """A map enlarged by a whole number."""
    value = trace.map_of(operation.reads[0])
    numbers, pixels = trace.sizes.list_of(operation.reads[1]), trace.network.pixels[value.parts[0].layer]
    sides = trace.sizes.shares(numbers) if numbers and len(numbers) == 2 else [None]
    factor = sides[0] * pixels / value.upsample if sides[0] else Fraction(0)
    if len(set(sides)) > 1 or factor not in range(1, _MAX_FACTOR) or value.padding != (0, 0, 0, 0):
        raise NotExpressible("it scales to a size that is not known to be a multiple of the map's")
    centres, corners = operation.flag("half_pixel_centers"), operation.flag("align_corners")
    if operation.kind == "ResizeNearestNeighbor" and not corners:
        return trace.network.upsample(value, int(factor), "nearest")
    if operation.kind == "ResizeBilinear" and centres is not corners:
        return trace.network.upsample(value, int(factor), "bilinear" if centres else "bilinear-corners")
    raise NotExpressible("it aligns pixels in a way that no layer does")


def reshaped(trace: Trace, operation: Operation) -> Sum | Value:
    """A variable or a map that gets or loses axes of one, a map that is split into groups of channels, or the end of a
    repetition."""
    inner = trace.function.at(operation.reads[0])
    if inner is not None and inner.kind == "Tile":
        return _repeated(trace, operation, inner)
    value = trace.sums[trace.function.passed(operation.reads[0])]
    if _is_vector(value):
        return value
    shape = trace.sizes.list_of(operation.reads[1])
    maps = {factor.of for product in value for factor in product if factor.kind in ("map", "ones")}
    expected = trace.shape_of(next(iter(maps))) if len(maps) == 1 else None
    if not expected or not shape or not expected[3]:
        raise NotExpressible("it changes the shape of what is no map")
    if shape[3:] in ([expected[3]], [expected[3], _ONE]):
        return value
    sizes = [length.pixels for length in shape[3:] if length and not length.share]
    if alone := algebra.alone(value):
        if len(shape) == 5 and len(sizes) == 2 and sizes[0] > 0 and sizes[0] * sizes[1] == expected[3].pixels:
            return algebra.single(alone._replace(groups=sizes[0]))
    raise NotExpressible("it changes the channels of a map otherwise than by splitting them into groups")


def _is_vector(value: Sum) -> bool:
    """Whether there is one number for each channel."""
    return not any(factor.kind in ("map", "rows", "squares", "ones") for product in value for factor in product)


def unchanged(trace: Trace, operation: Operation) -> Sum:
    """Numbers of channels that get or lose axes of one."""
    value = trace.sums[trace.function.passed(operation.reads[0])]
    if not _is_vector(value):
        raise NotExpressible("it changes the axes of a map")
    return value


def repeated_source(trace: Trace, operation: Operation) -> str | None:
    """What is repeated, if ``operation`` is the end of a repetition."""
    tile = trace.function.at(operation.reads[0])
    expanded = trace.function.at(tile.reads[0]) if tile and tile.kind == "Tile" and len(tile.reads) == 2 else None
    return expanded.reads[0] if expanded and expanded.kind == "ExpandDims" and len(expanded.reads) == 2 else None


def _repeated(trace: Trace, operation: Operation, tile: Operation) -> Sum | Value:
    """tf.repeat, of rows and then of columns: Reshape(Tile(ExpandDims(x, axis + 1), counts), shape)."""
    source = repeated_source(trace, operation)
    if source and trace.factor(source) is None:
        trace.map_of(source)  # whose shape is asked for from here on
    expanded = trace.function.at(tile.reads[0])
    place = constant(trace.function.at(expanded.reads[1])) if source and expanded else None
    counts, shape = trace.sizes.list_of(tile.reads[1]), trace.sizes.list_of(operation.reads[1])
    before, factor = (trace.shape_of(source), trace.factor(source)) if source else (None, None)
    at = place[1][0] if place and place[1] else 0
    if (
        not isinstance(at, int)
        or at not in (2, 3)
        or not counts
        or len(counts) != 5
        or not shape
        or len(shape) != 4
        or not before
        or not factor
    ):
        raise NotExpressible("it is no repetition of rows or columns")
    count = counts.pop(at)
    side = before[at - 1]
    if not count or count.share or count.pixels not in range(1, _MAX_FACTOR) or counts != [_ONE] * 4 or not side:
        raise NotExpressible("it is no repetition of rows or columns")
    before[at - 1] = Length(side.share * count.pixels)
    if [*trace.sizes.shares(shape[1:3]), shape[3]] != [*trace.sizes.shares(before[1:3]), before[3]]:
        raise NotExpressible("it is no repetition of rows or columns")
    if at == 2 and factor.kind == "map":
        return algebra.single(Factor("rows", factor.of, number=count.pixels))
    if at == 3 and factor.kind == "rows" and factor.number == count.pixels:
        return trace.network.upsample(trace.maps[factor.of], count.pixels, "nearest")
    raise NotExpressible("it repeats columns otherwise than rows")
