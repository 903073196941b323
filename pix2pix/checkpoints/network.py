"""From the operations of a framework's graph, one after the other, to the layers of a Generator.

A reader of graphs visits the operations in the order of their dependencies and calls the method of :class:`Network`
that does what the operation does. Every tensor of the graph is a :class:`Value`: the layers that it joins, the slope of
the leaky ReLU applied to each since, and the upsampling and padding that the next convolution will take over. Only
convolutions make layers. Norms, the addition of a residual and the final tanh become part of the layer that they
follow, so nothing may have read the layer before. What a Generator cannot express raises :class:`NotExpressible`; the
reader adds the name of the operation.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from fractions import Fraction
from typing import Literal

from ..errors import CheckpointError
from ..model.generator import INPUT, Generator, Layer, Norm, Source
from ..model.lowering import lower
from ..model.sampling import PaddingMode, Upsampling
from .names import canonical_names, renamed
from .text import shown

_MAX_JOINED = 64  # bounds graphs that double a value with each operation
_DEFAULT_SIZE = 256  # pixels: what the programs of the family train at
_MAX_MULTIPLE = 1 << 16  # pixels
Sides = tuple[int, int, int, int]  # top, left, bottom, right
_NONE: Sides = (0, 0, 0, 0)


class NotExpressible(Exception):
    """An operation that no layer of a Generator can do. The message says why, in words that follow a colon."""


@dataclass(frozen=True, slots=True)
class Value:
    """A tensor of a graph: the maps that it joins, enlarged by ``upsample`` and then padded.

    ``version`` is that of its layer when the value was made: a layer that has changed since has another value.
    """

    parts: tuple[Source, ...]
    version: int = 0
    upsample: int = 1
    upsample_mode: Upsampling = "nearest"
    padding: Sides = _NONE
    padding_mode: PaddingMode = "zeros"

    @property
    def waits(self) -> bool:
        """Whether an upsampling or padding waits for its convolution."""
        return self.upsample > 1 or self.padding != _NONE


@dataclass(frozen=True, slots=True)
class Convolution:
    """A convolution of a framework: ``same`` pads as TensorFlow does, by the smaller half before and the rest after."""

    name: str
    kernel: int
    stride: int
    filters: int
    bias: bool
    transposed: bool = False
    padding: Literal["same", "valid"] = "same"


@dataclass(slots=True)
class Network:
    """The layers found so far, by the names that the graph gives them.

    ``pixels`` is, for each, how many pixels of the input lie between two pixels of its map. ``sealed`` has those that
    something reads. ``statistics`` has, for every norm, whether it uses the statistics of the image.
    """

    layers: dict[str, Layer] = field(default_factory=dict)
    channels: dict[str, int] = field(default_factory=dict)
    pixels: dict[str, Fraction] = field(default_factory=dict)
    versions: dict[str, int] = field(default_factory=dict)
    sealed: set[str] = field(default_factory=set)
    statistics: set[bool] = field(default_factory=set)

    def input(self, channels: int) -> Value:
        """The image."""
        self.channels[INPUT], self.pixels[INPUT], self.versions[INPUT] = channels, Fraction(1), 0
        return Value((Source(INPUT),))

    def convolve(self, value: Value, convolution: Convolution) -> Value:
        """``value``, with the padding and upsampling that wait for it, through a convolution: a new layer."""
        self._read(value)
        name, kernel, stride = convolution.name, convolution.kernel, convolution.stride
        layer = Layer(
            name,
            value.parts,
            sum(self.channels[source.layer] for source in value.parts),
            convolution.filters,
            convolution.transposed,
            kernel=kernel,
            stride=stride,
            bias=convolution.bias,
        )
        if convolution.transposed and value.waits:
            raise NotExpressible("a transposed convolution reads a padded or enlarged map")
        if convolution.padding == "same" and value.padding != _NONE:
            raise NotExpressible("it pads what is padded already, so that the map grows")
        # TensorFlow pads by the size of the map, here a multiple of the stride: then by this much at every size.
        sides = _same(max(kernel - stride, 0)) if convolution.padding == "same" else value.padding
        if not convolution.transposed:
            layer = replace(
                layer,
                padding_mode=value.padding_mode if value.padding != _NONE else "zeros",
                upsample=value.upsample,
                upsample_mode=value.upsample_mode,
            )
        top, left, bottom, right = sides
        layer = replace(layer, padding=top if top == left == bottom == right else sides)
        if convolution.transposed:
            layer = replace(layer, output_padding=max(stride - kernel, 0))
        self._check_sizes(layer)
        step = Fraction(1, stride) if convolution.transposed else Fraction(stride, value.upsample)
        self.layers[name], self.channels[name], self.versions[name] = layer, convolution.filters, 0
        self.pixels[name] = self.pixels[value.parts[0].layer] * step
        return Value((Source(name),))

    def pad(self, value: Value, sides: Sides, mode: PaddingMode) -> Value:
        """``value`` with more pixels on its sides."""
        if sides == _NONE:
            return value
        if value.padding != _NONE and value.padding_mode != mode:
            raise NotExpressible("it pads what is padded in another way already")
        if value.padding != _NONE and mode != "zeros":
            raise NotExpressible("it reflects what is padded already")
        top, left, bottom, right = (a + b for a, b in zip(value.padding, sides, strict=True))
        return replace(value, padding=(top, left, bottom, right), padding_mode=mode)

    def upsample(self, value: Value, factor: int, mode: Upsampling) -> Value:
        """``value`` enlarged."""
        if value.padding != _NONE or (value.upsample > 1 and {mode, value.upsample_mode} != {"nearest"}):
            raise NotExpressible("it enlarges what is padded or enlarged already")
        return replace(value, upsample=value.upsample * factor, upsample_mode=mode)

    def activate(self, value: Value, slope: float) -> Value:
        """``value`` through a leaky ReLU of that slope."""
        if not 0 <= slope <= 1:
            raise NotExpressible(f"its slope is {shown(slope)}, expected a number from 0 to 1")
        if value.upsample > 1 and value.upsample_mode != "nearest":
            raise NotExpressible("a ReLU of what is enlarged with weights: they cannot be exchanged")
        return replace(value, parts=tuple(Source(each.layer, each.slope * slope) for each in value.parts))

    def tanh(self, value: Value) -> Value:
        """``value`` through the final tanh."""
        layer = self._open(value)
        if value.parts[0].slope != 1:
            raise NotExpressible("a tanh after another activation")
        return self._changed(replace(layer, activation="tanh"))

    def add_bias(self, value: Value) -> Value:
        """``value`` with a bias added, where a graph does that in an operation of its own."""
        layer = self._open(value)
        if layer.bias or layer.norm or value.parts[0].slope != 1:
            raise NotExpressible("it adds a bias to what is no convolution's own sum")
        return self._changed(replace(layer, bias=True))

    def normalise(self, value: Value, norm: Norm, image_statistics: bool) -> Value:
        """``value`` normalised; what was applied to it since its convolution becomes the layer's inner activation."""
        layer = self._open(value)
        if layer.norm:
            raise NotExpressible("a second norm after one convolution")
        self.statistics.add(image_statistics)
        return self._changed(replace(layer, norm=norm, inner_slope=value.parts[0].slope))

    def add(self, values: Iterable[Value]) -> Value:
        """The sum of two values, one of which is a layer that nothing else has read: the other is its residual."""
        values = list(values)
        if len(values) != 2 or any(len(value.parts) != 1 or value.waits for value in values):
            raise NotExpressible("expected the sum of two maps, a block's and what the block reads")
        order = [INPUT, *self.layers]
        shortcut, branch = sorted(values, key=lambda value: order.index(value.parts[0].layer))
        name, source = branch.parts[0].layer, shortcut.parts[0]
        if self._layer_has_tanh(name):
            raise NotExpressible("it follows the final tanh")
        if branch.parts[0].slope != 1 or name == source.layer or not self._is_open(branch):
            raise NotExpressible("expected the last convolution of a block, or its norm, that nothing else reads")
        self._read(shortcut)
        if self.channels[name] != self.channels[source.layer] or self.pixels[name] != self.pixels[source.layer]:
            raise NotExpressible("it adds maps of different sizes or channels")
        return self._changed(replace(self.layers[name], residual=source))

    def concatenate(self, values: Iterable[Value]) -> Value:
        """The values one after the other along the channels."""
        values = list(values)
        if sum(len(value.parts) for value in values) > _MAX_JOINED:
            raise NotExpressible(f"it joins more than {_MAX_JOINED} maps")
        if any(value.waits for value in values):
            raise NotExpressible("it joins maps that are padded or enlarged without a convolution after that")
        for value in values:
            self._read(value)
        if len({self.pixels[source.layer] for value in values for source in value.parts}) > 1:
            raise NotExpressible("it joins maps of different sizes")
        return Value(tuple(source for value in values for source in value.parts))

    # -- the whole --------------------------------------------------------------------------------------------

    def generator(
        self, output: Value, size: int, origin: str, unsaid: Iterable[str]
    ) -> tuple[Generator, dict[str, str]]:
        """The generator whose output is that value, and the canonical name of every layer.

        ``size`` is the side in pixels that the graph names, or 0. ``unsaid`` is what the file does not say. Raises
        CheckpointError.
        """
        last = next(reversed(self.layers), "")
        if output != Value((Source(last),), self.versions.get(last, 0)):
            raise CheckpointError("the model's output is not its last convolution")
        if self.pixels[last] != 1:
            raise CheckpointError("the model's output has another size than its input: such models are not supported")
        if len(self.statistics) > 1:
            raise CheckpointError("some norms of the model use the image's statistics, others stored ones: unsupported")
        names = {INPUT: INPUT, **canonical_names(list(self.layers.values()))}
        layers = tuple(renamed(layer, names) for layer in self.layers.values())
        stored = self.statistics == {False}
        try:
            generator = Generator(layers, "running" if stored else "image", origin=origin)
        except ValueError as error:
            raise CheckpointError(f"the model is no generator that can be run: {error}") from None
        needed = {op.name for op in lower(generator).needed([generator.layers[-1].name])}
        unused = [name for name in self.layers if names[name] not in needed]
        if unused:
            raise CheckpointError(f"the output does not depend on layer {shown(unused[0])}")
        return self._sized(generator, size, unsaid), names

    def _sized(self, generator: Generator, size: int, unsaid: Iterable[str]) -> Generator:
        """The generator with the graph's size, or else with what its kind is usually trained at."""
        multiple = generator.multiple
        if multiple > _MAX_MULTIPLE:
            raise CheckpointError(f"the model takes multiples of {multiple} pixels: no image has so many")
        known = size > 0 and size % multiple == 0
        if not known:
            size = multiple if generator.layers[0].name == "encoder_1" else -(-_DEFAULT_SIZE // multiple) * multiple
        try:
            generator.check_size(size, size)
        except ValueError as error:
            raise CheckpointError(f"the model does not take images of the size in its graph: {error}") from None
        return replace(generator, size=size, assumed=(*unsaid, *(() if known else ("size",))))

    # -- layers -----------------------------------------------------------------------------------------------

    def _read(self, value: Value) -> None:
        """Note that something reads ``value``, which must be what its layers still make."""
        for source in value.parts:
            if self._layer_has_tanh(source.layer):
                raise NotExpressible("it follows the final tanh")
        if len(value.parts) == 1 and value.version != self.versions[value.parts[0].layer]:
            raise NotExpressible("it reads a convolution's map that a norm or a sum after it reads, too")
        self.sealed.update(source.layer for source in value.parts)

    def _layer_has_tanh(self, name: str) -> bool:
        return name in self.layers and self.layers[name].activation == "tanh"

    def _is_open(self, value: Value) -> bool:
        """Whether ``value`` is that of one layer, which can still be changed."""
        name = value.parts[0].layer
        alone = len(value.parts) == 1 and not value.waits and name in self.layers and name not in self.sealed
        return alone and value.version == self.versions[name] and not self.layers[name].residual

    def _open(self, value: Value) -> Layer:
        """The layer that an operation on ``value`` becomes part of."""
        if any(self._layer_has_tanh(source.layer) for source in value.parts):
            raise NotExpressible("it follows the final tanh")
        if not self._is_open(value):
            raise NotExpressible("it must directly follow a convolution that nothing else reads")
        return self.layers[value.parts[0].layer]

    def _changed(self, layer: Layer) -> Value:
        self.layers[layer.name] = layer
        self.versions[layer.name] += 1
        return Value((Source(layer.name),), self.versions[layer.name])

    def _check_sizes(self, layer: Layer) -> None:
        """Refuse a convolution whose map is not exactly a fraction or a multiple of what it reads, at every size."""
        top, left, bottom, right = layer.sampling.padding
        for sides in (top + bottom, left + right):
            if layer.transposed:
                exact = layer.kernel + layer.output_padding - sides == layer.stride
            else:
                exact = layer.kernel - layer.stride <= sides < layer.kernel
            if not exact:
                raise NotExpressible(
                    f"{layer.kernel}x{layer.kernel} of stride {layer.stride} with {sides} pixels of padding in all "
                    f"does not keep the map's size, halve it or double it"
                )


def _same(total: int) -> Sides:
    """``total`` pixels along each axis, half of them on both sides; an odd one is below and on the right."""
    return total // 2, total // 2, total - total // 2, total - total // 2
