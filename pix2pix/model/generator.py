"""The model as data: what an image-to-image generator computes, apart from how any engine computes it.

A :class:`Generator` is a frozen sequence of :class:`Layer` values. A layer names its inputs and the activation that it
applies to each of them, so every published variant (PyTorch, TensorFlow 1, Keras) is only other data:

    y = norm(inner_act(conv(join(act(x_1), act(x_2), ...)) + bias)) + act(residual)

The value *of* a layer is y: after its norm, before the activations of the layers that read it.

Layouts: feature maps are NHWC; convolution kernels (kh, kw, in, out); transposed ones (kh, kw, out, in), as in
TensorFlow. Weights are a mapping ``"<layer>.<part>"`` -> float32 array, with the parts kernel, bias, gamma, beta,
mean and variance.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from fractions import Fraction
from typing import Any, Literal, get_args

import numpy as np

from .overrides import checked_overrides
from .palette import Palette
from .sampling import PaddingMode, Sampling, Upsampling

Statistics = Literal["image", "running"]
Input = Literal["image", "labels"]
Weights = Mapping[str, np.ndarray]

INPUT = "input"  # the name by which layers refer to the input image
DEFAULT_EPS = 1e-5
DEFAULT_SLOPE = 0.2


@dataclass(frozen=True, slots=True)
class Source:
    """One input of a layer: whose output is read, and the slope of the leaky ReLU applied on reading it.

    Slope 1 is the identity, 0 is ReLU.
    """

    layer: str
    slope: float = 1.0


@dataclass(frozen=True, slots=True)
class Norm:
    """Batch or instance normalisation over the pixels of a map: (x - mean) / sqrt(variance + eps) * gamma + beta.

    ``fixed`` is what folding leaves of running statistics where they can be no part of the kernel: x * gamma + beta.
    ``groups``, if not 0, makes it a group normalisation: the channels are cut into so many groups of neighbours, each
    of which has one mean and one variance, those of the image, and each channel its own gamma and beta.
    """

    eps: float = DEFAULT_EPS
    affine: bool = True
    fixed: bool = False
    groups: int = 0

    @property
    def removes_means(self) -> bool:
        """Whether statistics of the image take away the mean of each channel by itself."""
        return not (self.fixed or self.groups)

    def of_groups(self, x: np.ndarray) -> np.ndarray:
        """For each channel the mean of ``x`` (C,) over its group."""
        return np.repeat(x.reshape(self.groups, -1).mean(1), len(x) // self.groups) if self.groups else x

    def statistics(self, mean: np.ndarray, variance: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """By which mean and variance (C,) each channel is normalised, from those of the channels by themselves."""
        together = self.of_groups(mean)
        return together, self.of_groups(variance + (mean - together) ** 2)


@dataclass(frozen=True, slots=True)
class Layer:
    """A convolution, or a transposed one, with what surrounds it. Sizes in pixels.

    ``padding`` is one number for all sides, or (top, left, bottom, right). ``upsample`` enlarges what is read by that
    factor before it is padded. ``residual`` is added to the result. ``depthwise`` holds the taps of a fixed filter,
    applied to every channel along both axes; such a layer has no kernel among its weights. ``inner_slope`` is that of
    a leaky ReLU between the convolution and the norm.
    """

    name: str
    inputs: tuple[Source, ...]
    in_channels: int
    filters: int
    transposed: bool = False
    join: Literal["concat", "add"] = "concat"
    kernel: int = 4
    stride: int = 2
    padding: int | tuple[int, int, int, int] = 1
    padding_mode: PaddingMode = "zeros"
    bias: bool = True
    norm: Norm | None = None
    activation: Literal["none", "tanh"] = "none"
    output_padding: int = 0
    upsample: int = 1
    upsample_mode: Upsampling = "nearest"
    residual: Source | None = None
    depthwise: tuple[float, ...] = ()
    inner_slope: float = 1.0

    @property
    def sampling(self) -> Sampling:
        """The layer's geometry."""
        p = self.padding
        return Sampling(
            self.kernel,
            self.stride,
            (p, p, p, p) if isinstance(p, int) else p,
            self.padding_mode,
            self.transposed,
            self.output_padding,
            self.upsample,
            self.upsample_mode,
        )

    def tensors(self, statistics: Statistics) -> dict[str, tuple[int, ...]]:
        """Names and shapes of the tensors that this layer needs under the given statistics."""
        io = (self.filters, self.in_channels) if self.transposed else (self.in_channels, self.filters)
        shapes: dict[str, tuple[int, ...]] = {} if self.depthwise else {"kernel": (self.kernel, self.kernel, *io)}
        if self.bias:
            shapes["bias"] = (self.filters,)
        if self.norm and self.norm.affine:
            shapes |= {"gamma": (self.filters,), "beta": (self.filters,)}
        if self.norm and statistics == "running" and not self.norm.fixed:
            shapes |= {"mean": (self.filters,), "variance": (self.filters,)}
        return {f"{self.name}.{part}": shape for part, shape in shapes.items()}


@dataclass(frozen=True, slots=True)
class Generator:
    """A whole generator. The last layer's value is the output image.

    ``size`` is the height and width in pixels that the model was trained at. ``output_scale`` is the rule for 8-bit
    images: trunc(clip((y + 1) / 2 * output_scale, 0, 255)); 255 in the PyTorch program, 255.5 in TensorFlow's
    ``convert_image_dtype``. ``takes`` says what the input is: an image, or ``labels``, of which each channel says where
    one label is, or where the edges of instances are, by 1 and -1 (255 and 0 in 8 bits).

    The other fields are for people only; generators that differ in them alone are equal. ``origin`` names the kind of
    file that the model came from. ``assumed`` names what that file doesn't say, so that its framework's default was
    taken: some of eps, slope, statistics, size, align_corners and padding_mode. ``remarks`` are sentences about what
    the reader found. ``palette`` has the labels that the input image is painted with, if the file names them.
    """

    layers: tuple[Layer, ...]
    statistics: Statistics = "image"
    size: int = 256
    output_scale: float = 255.0
    origin: str = ""
    assumed: tuple[str, ...] = dataclasses.field(default=(), compare=False)
    remarks: tuple[str, ...] = dataclasses.field(default=(), compare=False)
    takes: Input = "image"
    palette: Palette = dataclasses.field(default=(), compare=False)

    def __post_init__(self) -> None:
        if not self.layers:
            raise ValueError("a generator needs at least one layer, got none")
        if self.statistics not in ("image", "running"):
            raise ValueError(f"statistics must be 'image' or 'running', got {self.statistics!r}")
        if self.takes not in get_args(Input):
            raise ValueError(f"a generator takes an 'image' or 'labels', got {self.takes!r}")
        channels: dict[str, int] = {}
        for layer in self.layers:
            if layer.name == INPUT or layer.name in channels:
                raise ValueError(f"layer name {layer.name!r} is used twice or reserved")
            read = []
            for source in layer.inputs:
                if source.layer == INPUT:
                    read.append(channels.setdefault(INPUT, layer.in_channels))
                elif source.layer in channels:
                    read.append(channels[source.layer])
                else:
                    raise ValueError(f"{layer.name} reads {source.layer!r}, which no earlier layer computes")
            joined = sum(read) if layer.join == "concat" else max(read, default=0)
            if joined != layer.in_channels or (layer.join == "add" and len(set(read)) > 1):
                raise ValueError(f"{layer.name} takes {layer.in_channels} channels, its inputs have {read}")
            if layer.residual and channels.get(layer.residual.layer) != layer.filters:
                raise ValueError(f"{layer.name} adds {layer.residual.layer!r}, which no earlier layer computes so wide")
            channels[layer.name] = layer.filters
        self._check_residuals()

    def _check_residuals(self) -> None:
        if not any(layer.residual for layer in self.layers):
            return
        side = 64 * self.multiple
        shapes = self.shapes(side, side)
        for layer in self.layers:
            if layer.residual and shapes[layer.residual.layer][:2] != shapes[layer.name][:2]:
                raise ValueError(f"{layer.name} adds {layer.residual.layer!r}, whose map has another size")

    # -- what people ask of a model ---------------------------------------------------------------------------

    @property
    def in_channels(self) -> int:
        """Channels of the input image."""
        return next(y.in_channels for y in self.layers if y.inputs[0].layer == INPUT)

    @property
    def out_channels(self) -> int:
        """Channels of the output image."""
        return self.layers[-1].filters

    @property
    def channels(self) -> tuple[int, int]:
        """(input channels, output channels)."""
        return self.in_channels, self.out_channels

    @property
    def ngf(self) -> int:
        """Filters of the first layer."""
        return self.layers[0].filters

    @property
    def depth(self) -> int:
        """Number of levels: how often the image is halved."""
        return math.floor(math.log2(max(self._pixels())))

    @property
    def eps(self) -> float | None:
        """The epsilon of the norms, or None where there are none."""
        return next((layer.norm.eps for layer in self.layers if layer.norm), None)

    @property
    def slope(self) -> float | None:
        """The slope of the leaky ReLUs, or None where there are none."""
        return next((s.slope for layer in self.layers for s in layer.inputs if 0 < s.slope < 1), None)

    @property
    def align_corners(self) -> bool | None:
        """Whether bilinear upsampling aligns the maps' corner pixels, or None where there is none."""
        modes = [layer.upsample_mode for layer in self.layers if layer.upsample > 1]
        return next((mode == "bilinear-corners" for mode in modes if mode != "nearest"), None)

    @property
    def padding_mode(self) -> PaddingMode | None:
        """How residual blocks pad, by reflection or by repeating the border; None where there are none that do."""
        blocks = self._padded_blocks()
        return next((layer.padding_mode for layer in self.layers if layer.name in blocks), None)

    def _padded_blocks(self) -> set[str]:
        """The layers of residual blocks that pad by reflection or by repeating the border."""
        outer = [layer for layer in self.layers if layer.residual]
        names = {layer.name for layer in outer} | {layer.inputs[0].layer for layer in outer}
        return {y.name for y in self.layers if y.name in names and y.padding_mode in ("reflect", "replicate")}

    @property
    def multiple(self) -> int:
        """Height and width of an input must be multiples of this many pixels."""
        return math.lcm(*(each.numerator for each in self._pixels()))

    def _pixels(self) -> list[Fraction]:
        """For each map, pixels of the input from one pixel of the map to the next."""
        pixels = {INPUT: Fraction(1)}
        for layer in self.layers:
            up = layer.stride if layer.transposed else layer.upsample
            down = 1 if layer.transposed else layer.stride
            pixels[layer.name] = pixels[layer.inputs[0].layer] * Fraction(down, up)
        return list(pixels.values())

    def __getitem__(self, name: str) -> Layer:
        for layer in self.layers:
            if layer.name == name:
                return layer
        raise KeyError(f"no layer {name!r}: this generator has {', '.join(y.name for y in self.layers)}")

    def check_size(self, h: int, w: int) -> None:
        """Raise ValueError unless the network can take an h x w image (pixels)."""
        m = self.multiple
        if h < m or w < m or h % m or w % m:
            below, above = ((max(m, (w + r) // m * m), max(m, (h + r) // m * m)) for r in (0, m - 1))
            sizes = " or ".join(f"{w}x{h}" for w, h in sorted({below, above}))
            raise ValueError(
                f"got {w}x{h} pixels (width x height), this generator takes multiples of {m} pixels, e.g. {sizes}"
            )
        if any(layer.padding_mode == "reflect" for layer in self.layers):
            shapes = self.shapes(h, w)
            for layer in self.layers:
                at_h, at_w, _ = shapes[layer.inputs[0].layer]
                if not layer.sampling.fits(at_h, at_w):
                    raise ValueError(
                        f"got {w}x{h} pixels (width x height), too few: "
                        f"{layer.name} reflects {layer.padding} pixels of a map of {at_w}x{at_h}"
                    )

    def shapes(self, h: int, w: int) -> dict[str, tuple[int, int, int]]:
        """(H, W, C) of every layer's output, and of the input, for an h x w image."""
        shapes = {INPUT: (h, w, self.in_channels)}
        for layer in self.layers:
            source_h, source_w, _ = shapes[layer.inputs[0].layer]
            shapes[layer.name] = (*layer.sampling.output_size(source_h, source_w), layer.filters)
        return shapes

    def macs(self, h: int, w: int) -> dict[str, int]:
        """Multiplications of each layer for one h x w image (transposed ones counted at input resolution)."""
        shapes = self.shapes(h, w)
        count = {}
        for layer in self.layers:
            at_h, at_w = layer.sampling.base_grid(*shapes[layer.inputs[0].layer][:2])
            count[layer.name] = (
                at_h * at_w * layer.kernel**2 * (1 if layer.depthwise else layer.in_channels) * layer.filters
            )
        return count

    def flops(self, h: int | None = None, w: int | None = None) -> int:
        """Floating-point operations (2 per multiply-add) of the convolutions for one h x w image."""
        return 2 * sum(self.macs(h or self.size, w or self.size).values())

    # -- what engines ask -------------------------------------------------------------------------------------

    def tensors(self) -> dict[str, tuple[int, ...]]:
        """Names and shapes of all tensors that the generator needs."""
        return {name: shape for layer in self.layers for name, shape in layer.tensors(self.statistics).items()}

    def problems(self, weights: Weights) -> list[str]:
        """Everything missing, surplus or misshapen in ``weights``, one line each."""
        needed = self.tensors()
        optional = {name: shape for layer in self.layers for name, shape in layer.tensors("running").items()}
        found = [f"missing {name} {shape}" for name, shape in needed.items() if name not in weights]
        for name, array in weights.items():
            expected = needed.get(name, optional.get(name))
            if expected is None:
                found.append(f"surplus {name} {tuple(array.shape)}")
            elif tuple(array.shape) != expected:
                found.append(f"{name} has shape {tuple(array.shape)}, expected {expected}")
            elif array.dtype != np.float32:
                found.append(f"{name} has dtype {array.dtype}, expected float32")
        return found

    def check_weights(self, weights: Weights) -> None:
        """Raise ValueError that lists all problems of ``weights`` at once, if it has any."""
        found = self.problems(weights)
        if found:
            raise ValueError(f"the weights don't fit the generator ({len(found)} problems):\n  " + "\n  ".join(found))

    # -- other generators from this one -----------------------------------------------------------------------

    def with_statistics(self, statistics: Statistics) -> Generator:
        """The same network under another statistics policy."""
        return dataclasses.replace(self, statistics=statistics, assumed=self._assumed_but({"statistics"}))

    def _assumed_but(self, known: Collection[str]) -> tuple[str, ...]:
        return tuple(name for name in self.assumed if name not in known)

    def with_overrides(self, overrides: Mapping[str, Any]) -> Generator:
        """The same network with corrections of what a file does not say.

        ``eps`` (of every norm), ``slope`` (of every leaky ReLU), ``size`` (pixels), ``output_scale``,
        ``align_corners`` (of every bilinear upsampling), ``padding_mode`` (of the convolutions in residual blocks that
        pad by reflection or by repeating the border: "reflect" or "replicate"). Raises ValueError for other names, for
        values that make no sense, and for the last two if there are no such layers.
        """
        values = checked_overrides(overrides)
        for name, what in (("align_corners", "bilinear upsampling"), ("padding_mode", "blocks that pad by reflection")):
            if name in values and getattr(self, name) is None:
                raise ValueError(f"cannot override {name}: the generator has no {what}")
        blocks = self._padded_blocks()
        layers = tuple(_overridden(layer, values, layer.name in blocks) for layer in self.layers)
        changed = {name: values[name] for name in ("size", "output_scale") if name in values}
        if "size" in changed:
            self.check_size(changed["size"], changed["size"])
        return dataclasses.replace(self, layers=layers, assumed=self._assumed_but(values), **changed)

    def to_dict(self) -> dict[str, Any]:
        """A description that JSON can hold; :meth:`from_dict` is its inverse.

        ``assumed`` and ``remarks`` are left out: they are about the file that was read, not about what is described;
        and ``palette``, for which the format has a place of its own.
        """
        description = dataclasses.asdict(self)
        del description["assumed"], description["remarks"], description["palette"]
        if self.takes == "image":
            del description["takes"]
        for entry in description["layers"]:  # files of U-Nets stay as version 0.1.0 reads them
            for name, default in _LATER_FIELDS.items():
                if entry[name] == default:
                    del entry[name]
            for name, default in _LATER_NORM_FIELDS.items() if entry["norm"] else ():
                if entry["norm"][name] == default:
                    del entry["norm"][name]
        return description

    @classmethod
    def from_dict(cls, description: Mapping[str, Any]) -> Generator:
        """The generator that :meth:`to_dict` described. Raises ValueError for anything else."""
        try:
            layers = []
            for entry in description["layers"]:
                fields = dict(entry)
                fields["inputs"] = tuple(Source(**source) for source in fields["inputs"])
                fields["norm"] = Norm(**fields["norm"]) if fields["norm"] else None
                if fields.get("residual"):
                    fields["residual"] = Source(**fields["residual"])
                for name in ("padding", "depthwise"):
                    if isinstance(fields.get(name), list):
                        fields[name] = tuple(fields[name])
                layers.append(_checked(Layer(**fields)))
            return cls(**{**description, "layers": tuple(layers)})
        except (AttributeError, KeyError, TypeError) as error:
            raise ValueError(f"not the description of a generator: {error!r}") from None


def _overridden(layer: Layer, values: Mapping[str, Any], in_block: bool) -> Layer:
    """A layer with the values of :meth:`Generator.with_overrides`."""
    if "eps" in values and layer.norm:
        layer = dataclasses.replace(layer, norm=dataclasses.replace(layer.norm, eps=values["eps"]))
    if "slope" in values:
        sources = (Source(s.layer, values["slope"]) if 0 < s.slope < 1 else s for s in layer.inputs)
        layer = dataclasses.replace(layer, inputs=tuple(sources))
    if "align_corners" in values and layer.upsample > 1 and layer.upsample_mode != "nearest":
        mode: Upsampling = "bilinear-corners" if values["align_corners"] else "bilinear"
        layer = dataclasses.replace(layer, upsample_mode=mode)
    if "padding_mode" in values and in_block:
        layer = dataclasses.replace(layer, padding_mode=values["padding_mode"])
    return layer


# Since version 0.1.0:
_LATER_FIELDS = {f.name: f.default for f in dataclasses.fields(Layer)[-6:]}
_LATER_NORM_FIELDS = {f.name: f.default for f in dataclasses.fields(Norm)[-2:]}


def _checked(layer: Layer) -> Layer:
    """``layer`` itself, or ValueError where a field has a value that no engine could make sense of."""
    sizes = (layer.in_channels, layer.filters, layer.kernel, layer.stride, layer.upsample)
    sides = layer.padding if isinstance(layer.padding, tuple) else (layer.padding,)
    read = (*layer.inputs, *((layer.residual,) if layer.residual else ()))
    sane = (
        isinstance(layer.name, str)
        and layer.inputs
        and all(isinstance(n, int) and 1 <= n <= 65536 for n in sizes)
        and len(sides) in (1, 4)
        and all(isinstance(side, int) and 0 <= side < layer.kernel for side in sides)
        and isinstance(layer.output_padding, int)
        and 0 <= layer.output_padding < layer.stride
        and layer.join in ("concat", "add")
        and layer.padding_mode in ("zeros", "reflect", "replicate", "uncounted")
        and (layer.padding_mode != "uncounted" or layer.depthwise)
        and layer.upsample_mode in ("nearest", "bilinear", "bilinear-corners")
        and layer.activation in ("none", "tanh")
        and all(isinstance(s.layer, str) and 0 <= s.slope <= 1 for s in read)
        and isinstance(layer.inner_slope, float | int)
        and 0 <= layer.inner_slope <= 1
        and (layer.norm is None or _is_sane(layer.norm, layer.filters))
        and all(isinstance(flag, bool) for flag in (layer.transposed, layer.bias))
        and not (layer.transposed and (layer.upsample > 1 or layer.padding_mode != "zeros"))
        and not (layer.output_padding and not layer.transposed)
        and (not layer.depthwise or (len(layer.depthwise) == layer.kernel and layer.in_channels == layer.filters))
        and all(isinstance(tap, float) and math.isfinite(tap) for tap in layer.depthwise)
    )
    if not sane:
        raise ValueError(f"not a layer that any engine could run: {layer}")
    return layer


def _is_sane(norm: Norm, filters: int) -> bool:
    groups = norm.groups
    can_group = type(groups) is int and 0 <= groups <= filters and not (groups and (norm.fixed or filters % groups))
    return 0 < norm.eps < math.inf and can_group and type(norm.fixed) is bool
