"""What each kind of TensorFlow's operations does to a network that is being traced.

Source: https://www.tensorflow.org/api_docs/python/tf/raw_ops.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

from ..network import Convolution, NotExpressible, Value
from ..tensors import MAX_CHANNELS
from ..text import shown
from . import algebra
from .algebra import Factor, Sum
from .functions import Operation, constant
from .geometry import padded, repeated_source, reshaped, resized, unchanged
from .trace import Rule, Trace


def _convolved(trace: Trace, operation: Operation) -> Value:
    """A new layer: Conv2D(map, kernel) or Conv2DBackpropInput(shape, kernel, map)."""
    strides, padding = operation.small_integers("strides"), operation.text("padding")
    stride = strides[1] if len(strides) == 4 else 0
    if not stride or strides != [1, stride, stride, 1] or padding not in ("SAME", "VALID"):
        raise NotExpressible(f"with other strides or another padding ({shown(strides)}, {shown(padding)})")
    if set(operation.small_integers("dilations")) - {1} or operation.text("data_format") not in ("", "NHWC"):
        raise NotExpressible("it is dilated, or has channels first")
    transposed = operation.kind == "Conv2DBackpropInput"
    variable = trace.variable(operation.reads[1])
    shape = trace.variables[variable].shape if variable else ()
    if variable is None or len(shape) != 4 or shape[0] != shape[1] or not all(0 < n <= MAX_CHANNELS for n in shape):
        raise NotExpressible("its kernel is no variable with as many rows as columns")
    way: Literal["same", "valid"] = "same" if padding == "SAME" else "valid"
    filters = shape[2] if transposed else shape[3]
    convolution = Convolution(operation.name, shape[0], stride, filters, False, transposed, way)
    value = trace.network.convolve(trace.map_of(operation.reads[2 if transposed else 0]), convolution)
    if transposed:
        _check_shape(trace, operation.reads[0], value)
    trace.own(value, {"kernel": variable})
    return value


def _check_shape(trace: Trace, name: str, value: Value) -> None:
    """Refuse a transposed convolution that crops its map to a size of its own."""
    numbers = trace.sizes.list_of(name)
    side = 1 / trace.network.pixels[value.parts[0].layer]
    if numbers is None or len(numbers) != 4 or trace.sizes.shares(numbers[1:3]) != [side, side]:
        raise NotExpressible("its map has a size of its own, and not a multiple of what it reads")


def _with_bias(trace: Trace, name: str, variable: str) -> Value:
    value = trace.network.add_bias(trace.map_of(name))
    trace.own(value, {"bias": trace.variable(variable)})
    return value


def _activated(trace: Trace, operation: Operation) -> Value:
    slope = operation.real("alpha", 0.2) if operation.kind == "LeakyRelu" else 0.0
    return trace.network.activate(trace.map_of(operation.reads[0]), slope)


def _tanh(trace: Trace, operation: Operation) -> Value:
    return trace.network.tanh(trace.map_of(operation.reads[0]))


def _joined(trace: Trace, operation: Operation) -> Value:
    axis = constant(trace.function.at(operation.reads[-1]))
    if axis is None or axis[1] not in ([3], [-1]):
        raise NotExpressible("expected a concatenation along the channels")
    return trace.network.concatenate(trace.map_of(name) for name in operation.reads[:-1])


def _biased(trace: Trace, operation: Operation) -> Value:
    if trace.variable(operation.reads[1]) is None:
        raise NotExpressible("the bias is no variable")
    return _with_bias(trace, operation.reads[0], operation.reads[1])


def _added(trace: Trace, operation: Operation) -> Sum | Value:
    first, second = ((name, trace.sums[trace.function.passed(name)]) for name in operation.reads[:2])
    if algebra.holds_map(first[1]) and algebra.holds_map(second[1]):
        return trace.network.add([trace.map_of(first[0]), trace.map_of(second[0])])
    for (name, value), (other, _) in ((first, second), (second, first)):
        factor = algebra.alone(value)
        if factor and factor.kind == "map" and trace.variable(other) is not None:
            return _with_bias(trace, name, other)
    return algebra.plus(first[1], second[1])


def _of_two(rule: Callable[[Sum, Sum], Sum]) -> Callable[[Trace, Operation], Sum]:
    def made(trace: Trace, operation: Operation) -> Sum:
        first, second = (trace.sums[trace.function.passed(name)] for name in operation.reads[:2])
        if algebra.holds_map(first) and algebra.holds_map(second):
            raise NotExpressible("it computes with two maps")
        return rule(first, second)

    return made


def _of_one(rule: Callable[[Sum], Sum]) -> Callable[[Trace, Operation], Sum]:
    def made(trace: Trace, operation: Operation) -> Sum:
        return rule(trace.sums[trace.function.passed(operation.reads[0])])

    return made


def _squared_difference(trace: Trace, operation: Operation) -> Sum:
    """The squares of what a map differs by from its mean."""
    first, second = (trace.factor(name) for name in operation.reads[:2])
    if not first or first.kind != "map" or second != Factor("mean", first.of, groups=first.groups):
        raise NotExpressible("it squares what is no difference between a map and its mean")
    return algebra.single(Factor("squares", first.of, groups=first.groups))


def _over_pixels(trace: Trace, operation: Operation) -> Factor:
    """What a sum or a mean over the pixels of each channel is taken of."""
    factor = trace.factor(operation.reads[0])
    if factor is None or factor.kind not in ("squares", "ones"):
        trace.map_of(operation.reads[0])
        factor = trace.factor(operation.reads[0])
    axes = constant(trace.function.at(operation.reads[1]))
    # A map of five axes has been split into groups, whose channels are the last axis. There is one image.
    whole = ([1, 2, 4],) if factor and factor.groups else ([1, 2], [1, 2, 4], [0, 1, 2])
    known = axes is not None and axes[1] in whole
    if factor is None or not known or not operation.flag("keep_dims"):
        raise NotExpressible("expected the mean over height and width, which norms take of an image")
    return factor


def _mean(trace: Trace, operation: Operation) -> Sum:
    factor = _over_pixels(trace, operation)
    if factor.kind == "ones":
        raise NotExpressible("it is the mean of what is no map")
    kind: Literal["variance", "mean"] = "variance" if factor.kind == "squares" else "mean"
    return algebra.single(Factor(kind, factor.of, groups=factor.groups))


def _summed(trace: Trace, operation: Operation) -> Sum:
    factor = _over_pixels(trace, operation)
    if factor.kind == "ones":
        return algebra.single(Factor("count", factor.of, groups=factor.groups))
    kind: Literal["sum of squares", "sum"] = "sum of squares" if factor.kind == "squares" else "sum"
    return algebra.single(Factor(kind, factor.of, groups=factor.groups))


def _ones(trace: Trace, operation: Operation) -> Sum:
    trace.map_of(operation.reads[0])
    factor = trace.factor(operation.reads[0])
    return algebra.single(Factor("ones", factor.of, groups=factor.groups)) if factor else {}


def _zeros(trace: Trace, operation: Operation) -> Sum:
    return {}


def _fused_norm(trace: Trace, operation: Operation) -> Value:
    by_image = operation.flag("is_training", True)
    trace.map_of(operation.reads[0])
    factor = trace.factor(operation.reads[0])
    variables = [trace.variable(name) for name in operation.reads[1 : 3 if by_image else 5]]
    if factor is None or None in variables:
        raise NotExpressible("its gamma, beta, mean and variance are no variables")
    gamma, beta, mean, variance = [*variables, None, None] if by_image else variables
    eps = operation.real("epsilon", 1e-4)
    return trace.normalised(algebra.WrittenNorm(factor.of, eps, gamma, beta, mean, variance))


def _kept(trace: Trace, operation: Operation) -> str | None:
    """The input of a dropout, SelectV2(random >= rate, x * 1/(1 - rate), 0)."""
    chosen, kept = (trace.function.at(name) for name in operation.reads[:2])
    is_dropout = chosen and chosen.kind == "GreaterEqual" and kept and kept.kind == "Mul" and kept.reads
    return kept.reads[0] if kept and is_dropout else None


def _undropped(trace: Trace, operation: Operation) -> Value:
    """Dropout is off."""
    kept = _kept(trace, operation)
    if kept is None:
        raise NotExpressible("that is no dropout")
    return trace.map_of(kept)


def _constant(trace: Trace, operation: Operation) -> Sum:
    found = constant(operation)
    if found is None or len(found[1]) != 1:
        raise NotExpressible("it is no single number")
    return {(): float(found[1][0])}


# -- which operands have to be known before -------------------------------------------------------------------


def _all(trace: Trace, operation: Operation) -> tuple[str, ...]:
    return operation.reads


def _first(trace: Trace, operation: Operation) -> tuple[str, ...]:
    return operation.reads[:1]


def _none(trace: Trace, operation: Operation) -> tuple[str, ...]:
    return ()


def _but_the_shape(trace: Trace, operation: Operation) -> tuple[str, ...]:
    return operation.reads[1:]


def _but_the_axis(trace: Trace, operation: Operation) -> tuple[str, ...]:
    return operation.reads[:-1]


def _of_fused_norm(trace: Trace, operation: Operation) -> tuple[str, ...]:
    return operation.reads[: 3 if operation.flag("is_training", True) else 5]


def _of_reshape(trace: Trace, operation: Operation) -> tuple[str, ...]:
    return (repeated_source(trace, operation) or operation.reads[0],)


def _of_dropout(trace: Trace, operation: Operation) -> tuple[str, ...]:
    kept = _kept(trace, operation)
    return () if kept is None else (kept,)


RULES = {
    "Conv2D": Rule(_convolved, _all, 2),
    "Conv2DBackpropInput": Rule(_convolved, _but_the_shape, 3),
    "BiasAdd": Rule(_biased, _all, 2),
    "LeakyRelu": Rule(_activated, _first),
    "Relu": Rule(_activated, _first),
    "Tanh": Rule(_tanh, _first),
    "ConcatV2": Rule(_joined, _but_the_axis, 3),
    "FusedBatchNormV3": Rule(_fused_norm, _of_fused_norm, 5),
    "MirrorPad": Rule(padded, _first, 2),
    "Pad": Rule(padded, _first, 2),
    "PadV2": Rule(padded, _first, 3),
    "ResizeNearestNeighbor": Rule(resized, _first, 2),
    "ResizeBilinear": Rule(resized, _first, 2),
    "SelectV2": Rule(_undropped, _of_dropout, 3),
    "ReadVariableOp": Rule(unchanged, _first),
    "Reshape": Rule(reshaped, _of_reshape, 2),
    "Squeeze": Rule(unchanged, _first),
    "ExpandDims": Rule(unchanged, _first),
    "Const": Rule(_constant, _none, 0),
    "AddV2": Rule(_added, _all, 2),
    "Add": Rule(_added, _all, 2),
    "Sub": Rule(_of_two(lambda first, second: algebra.plus(first, second, -1.0)), _all, 2),
    "Mul": Rule(_of_two(algebra.times), _all, 2),
    "RealDiv": Rule(_of_two(algebra.over), _all, 2),
    "Neg": Rule(_of_one(lambda value: algebra.plus({}, value, -1.0)), _first),
    "Rsqrt": Rule(_of_one(lambda value: algebra.root(value, "rsqrt")), _first),
    "Sqrt": Rule(_of_one(lambda value: algebra.root(value, "sqrt")), _first),
    "SquaredDifference": Rule(_squared_difference, _all, 2),
    "Mean": Rule(_mean, _first, 2),
    "Sum": Rule(_summed, _first, 2),
    "OnesLike": Rule(_ones, _first),
    "ZerosLike": Rule(_zeros, _none),
    "DivNoNan": Rule(_of_two(algebra.over), _all, 2),
}
