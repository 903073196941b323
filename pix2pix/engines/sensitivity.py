"""Which layers would lose too much in 8-bit integers: their errors are followed from the weights to the output.

What rounding does to a layer's sums depends on the image, and so does what becomes of it; but a network that loses much
does so whatever it is shown. So images are made here, of squares of all sizes on top of each other, and go forward
through the network in floating point. The sums of each layer that a plan computes in integers are also computed in
integers, from the same inputs: the difference is the error e (H,W,C) of that layer by itself.

To first order, the output differs by J e then, J being the derivative of the output with respect to the sums. Random
signs v go back from the output through the adjoints of all operations, to the gradient J^T v. As the products of
different signs are 0 on average, the square of the inner product of J^T v and e is, on average, the squared length of
J e. One such square says little. So it is taken for each filter by itself and added up, which is a mean of many, but
leaves out that filters, reading the same rounded inputs, err together: predictions are a few dB off for single layers,
and 1 or 2 dB too good altogether (bench/README.md). Pixels are not taken by themselves, for where a map is constant,
all of them err alike.
"""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Callable, Iterator, Mapping, Sequence

import numpy as np

from ..model.generator import INPUT, Generator, Weights
from ..model.lowering import Op, Program, lower
from ..model.quantisation import Range, quantise, ranges
from ..model.sampling import Sampling
from ..model.weights import fold_parts, folded
from ..plans.algorithms import Algorithm
from ..plans.heuristics import choose
from ..plans.plan import Plan
from .reference import (
    conv2d,
    conv2d_transpose,
    convolve,
    convolve_integers,
    gather,
    leaky_relu,
    normalise,
    upsample,
)

LEAST_PSNR = 43.0  # dB, as predicted, so that 40 are left of a real image
IMAGES = 4  # the first is enough if all layers in integers leave it so much
SIGNS = 2  # vectors for each image
LEAST_SIDE, LEAST_SQUARE = 64, 2  # pixels of an image and of what is on it
COVERED = 0.25  # of the image by squares of one size

Adjoint = Callable[[np.ndarray], np.ndarray]
Parts = Callable[[str], Mapping[str, np.ndarray]]


def plan_for_weights(generator: Generator, weights: Weights, tune: str, processor: str | None) -> Plan:
    """The default plan for int8 on a CPU (:func:`.choose`), with its sensitive layers in floating point."""
    plan = choose(generator, tune, precision="int8", processor=processor)
    kept = sensitive_layers(generator, weights, plan.layers)
    return choose(generator, tune, precision="int8", processor=processor, kept=kept)


@np.errstate(all="ignore")  # of damaged weights
def sensitive_layers(generator: Generator, weights: Weights, layers: Mapping[str, Algorithm]) -> frozenset[str]:
    """Those of a plan's ``layers`` to keep in floating point, so that the others leave ``LEAST_PSNR`` of the output.

    Layers go into integers in order of what they lose for each multiplication of direct convolution, each if so much is
    left then; the first always. None is kept where losses are not finite: the weights are damaged, and the output will
    show it.
    """

    def parts(name: str) -> dict[str, np.ndarray]:  # folded when needed: all at once would double the memory
        layer = generator[name]
        tensors = layer.tensors(generator.statistics)
        return fold_parts(generator, layer, {key.rpartition(".")[2]: weights[key] for key in tensors})

    known, program = ranges(generator, weights), lower(folded(generator))
    tile_sizes = {name: algorithm.m for name, algorithm in layers.items() if algorithm.integers}
    allowed, losses = 4 / 10 ** (LEAST_PSNR / 10), dict.fromkeys(tile_sizes, 0.0)  # outputs go from -1 to 1
    for image in range(IMAGES):
        x, seeds = probe_image(generator, image), range(image * SIGNS, (image + 1) * SIGNS)
        for name, loss in output_losses(program, parts, known, tile_sizes, x, seeds).items():
            losses[name] += loss
        total = _rounded(sum(losses.values()))
        if not np.isfinite(total) or (image == 0 and total <= allowed):
            return frozenset()
    work, left = generator.macs(generator.size, generator.size), dict[str, float]()
    for name in sorted(losses, key=lambda name: _rounded(losses[name] / work[name])):
        if not left or _rounded(sum(left.values()) + losses[name]) <= allowed * IMAGES:
            left[name] = losses[name]
    return frozenset(losses).difference(left)


def _rounded(loss: float) -> float:
    """To 3 significant digits, so that the order of BLAS's sums, by its threads and kernels, does not decide."""
    return float(f"{loss:.3g}")


def probe_image(generator: Generator, seed: int) -> np.ndarray:
    """An image (H,W,C) in [-1,1] of squares of all sizes, the small ones in front; of labels, one at each place."""
    multiple = generator.multiple
    sides = itertools.count(-(-LEAST_SIDE // multiple) * multiple, multiple)
    side = next(side for side in sides if _takes(generator, side))
    rng = np.random.default_rng(seed)
    square = side
    x = np.zeros((side, side, generator.in_channels))
    while square >= LEAST_SQUARE:
        cells = -(-side // square)
        colours = rng.uniform(-1, 1, (cells, cells, generator.in_channels))
        there = rng.uniform(size=(cells, cells, 1)) < (COVERED if square < side else 1)
        x = np.where(_enlarged(there, square)[:side, :side], _enlarged(colours, square)[:side, :side], x)
        square //= 2
    if generator.takes == "labels":
        x = np.where(x == x.max(2, keepdims=True), 1, -1)
    return x.astype(np.float32)


def _enlarged(x: np.ndarray, factor: int) -> np.ndarray:
    return x.repeat(factor, 0).repeat(factor, 1)


def _takes(generator: Generator, side: int) -> bool:
    shapes = generator.shapes(side, side)
    return all(layer.sampling.fits(*shapes[layer.inputs[0].layer][:2]) for layer in generator.layers)


def output_losses(
    program: Program,
    parts: Parts,
    known: Mapping[str, Range],
    tile_sizes: Mapping[str, int],
    x: np.ndarray,
    seeds: Sequence[int],
) -> dict[str, float]:
    """The mean square error of the output that each layer in integers causes by itself, for the image ``x`` (H,W,C).

    ``parts`` gives the tensors of a layer of the folded generator, ``known`` the :func:`.ranges` of all, ``tile_sizes``
    the m of each that is in integers (0: direct convolution). The mean of what signs from each of ``seeds`` find.
    """
    values, errors, adjoints = {INPUT: x}, dict[str, np.ndarray](), dict[str, Adjoint]()
    for op in program.ops:
        part = parts(op.name)
        inputs = [leaky_relu(values[source.layer], source.slope) for source in op.sources]
        sums = convolve(op, gather(op, inputs).astype(np.float64), part.get("kernel"))
        if op.name in tile_sizes:
            quantised = quantise(op, part["kernel"], known, tile_sizes[op.name])
            errors[op.name] = (convolve_integers(op, inputs, quantised) - sums).astype(np.float32)
        values[op.name], adjoints[op.name] = _epilogue(op, sums.astype(np.float32), part)
        if residual := op.epilogue.residual:
            values[op.name] = values[op.name] + leaky_relu(values[residual.layer], residual.slope)
    output, losses = values[program.output.name], dict.fromkeys(errors, 0.0)
    for seed in seeds:
        signs = np.random.default_rng(seed).choice([-1, 1], output.shape) / np.sqrt(output.size)
        gradients = {program.output.name: signs.astype(np.float32)}
        for op in reversed(program.ops):
            if op.name not in gradients:  # nothing reads it
                continue
            gradient = gradients.pop(op.name)
            of_sums = adjoints[op.name](gradient)
            if op.name in errors:
                losses[op.name] += float(np.square((of_sums * errors[op.name]).sum((0, 1))).sum()) / len(seeds)
            for source, each in _input_gradients(op, gradient, of_sums, parts(op.name).get("kernel"), values):
                gradients[source] = gradients[source] + each if source in gradients else each
    return losses


def _input_gradients(
    op: Op, gradient: np.ndarray, of_sums: np.ndarray, kernel: np.ndarray | None, values: Mapping[str, np.ndarray]
) -> Iterator[tuple[str, np.ndarray]]:
    """From the gradients with respect to an operation's value and to its sums to those of each layer that it reads."""
    residual = op.epilogue.residual
    if residual and residual.layer != INPUT:
        yield residual.layer, gradient * _slopes(values[residual.layer], residual.slope)
    if all(source.layer == INPUT for source in op.sources):
        return
    back = _convolve_back(op, of_sums, kernel, values[op.sources[0].layer].shape)
    ends = np.cumsum([values[source.layer].shape[2] for source in op.sources])[:-1]
    parts = np.split(back, ends, 2) if op.join == "concat" else [back] * len(op.sources)
    for source, part in zip(op.sources, parts, strict=True):
        if source.layer != INPUT:
            yield source.layer, part * _slopes(values[source.layer], source.slope)


def _slopes(x: np.ndarray, slope: float) -> np.ndarray:
    """The derivative of a leaky ReLU."""
    return np.where(x > 0, np.float32(1), np.float32(slope))


def _epilogue(op: Op, y: np.ndarray, part: Mapping[str, np.ndarray]) -> tuple[np.ndarray, Adjoint]:
    """What an operation makes of its sums (H,W,C), without the residual; and its adjoint, for the gradient."""
    epilogue, norm = op.epilogue, op.epilogue.norm
    if epilogue.bias:
        y = y + part["bias"]
    factor, gamma = np.ones((), y.dtype), np.ones((), y.dtype)
    if epilogue.inner_slope != 1:
        factor = _slopes(y, epilogue.inner_slope)
        y = y * factor
    normalised = None
    if norm and not norm.fixed:
        mean, variance = norm.statistics(y.mean((0, 1)), y.var((0, 1)))
        y = normalised = normalise(y, mean, variance, norm.eps)
        factor = factor / np.sqrt(variance + np.float32(norm.eps))
    if norm and norm.affine:
        gamma = part["gamma"]
        y = y * gamma + part["beta"]
    value = np.tanh(y) if epilogue.activation == "tanh" else y

    def adjoint(gradient: np.ndarray) -> np.ndarray:
        if epilogue.activation == "tanh":
            gradient = gradient * (1 - np.square(value))
        gradient = gradient * gamma
        if norm and normalised is not None:
            shifts, scales = (norm.of_groups(each.mean((0, 1))) for each in (gradient, gradient * normalised))
            gradient = gradient - shifts - normalised * scales
        return np.asarray(gradient * factor)

    return value, adjoint


def _convolve_back(op: Op, gradient: np.ndarray, kernel: np.ndarray | None, shape: tuple[int, ...]) -> np.ndarray:
    """From the gradient with respect to an operation's sums to that of what it reads, of ``shape`` (H,W,C).

    What reflected and repeated padding reads once more is left out; averages count their padding.
    """
    s = op.sampling
    if kernel is None:
        kernel = np.outer(op.depthwise, op.depthwise)[..., None, None] * np.eye(op.filters)
        kernel = kernel.astype(np.float32)
    if s.transposed:
        h, w = ((size - 1) * s.stride + s.kernel + s.output_padding for size in shape[:2])
        (top, left), whole = s.padding[:2], np.zeros((h, w, gradient.shape[2]), gradient.dtype)
        whole[top : top + gradient.shape[0], left : left + gradient.shape[1]] = gradient
        return conv2d(whole, kernel, s.stride)
    factor, back = s.upsample, Sampling(s.kernel, s.stride, s.padding, transposed=True)
    surplus = shape[0] * factor - back.output_size(*gradient.shape[:2])[0]
    x = conv2d_transpose(gradient, kernel, dataclasses.replace(back, output_padding=surplus))
    for axis, size in enumerate(shape[:2] if factor > 1 else ()):
        weights = upsample(np.eye(size, dtype=x.dtype)[:, None], factor, s.upsample_mode)[:, 0]
        x = np.moveaxis(np.tensordot(weights, x, (0, axis)), 0, axis)
    return x
