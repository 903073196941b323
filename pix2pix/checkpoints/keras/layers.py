"""What the config of one Keras layer says, checked. All functions raise NotExpressible for what a Generator lacks.

Padding by reflection and instance norms are no layers of Keras; programs define classes for them. Such a class is known
by its name, and only if all that its config holds is understood: any other entry may change what the class computes.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from ...model.generator import DEFAULT_EPS, Norm
from ...model.sampling import PaddingMode, Upsampling
from ..network import Convolution, NotExpressible, Sides
from ..tensors import MAX_CHANNELS
from ..text import shown
from .config import Node

ADDONS_GROUP_NORM = "Addons>GroupNormalization"
_ADDONS_INSTANCE_NORM = "Addons>InstanceNormalization"
_DEFAULT_LEAKY_SLOPE = 0.3
_DEFAULT_EPS = 1e-3
_MAX_KERNEL = 64
_MAX_FACTOR = 64
_REFLECTION = re.compile(r"reflect(ion)?_?pad(ding)?_?(2d)?", re.IGNORECASE)
_INSTANCE_NORM = re.compile(r"instance_?norm(ali[sz]ation)?_?(2d)?", re.IGNORECASE)
# Entries of any layer's config, which change nothing in what it computes when a trained model runs.
_COMMON = {"name", "trainable", "dtype", "batch_input_shape", "batch_shape", "autocast", "activity_regularizer"}
_OF_NORMS = re.compile(r"(gamma|beta|scale|offset)_(initializer|regularizer|constraint)")


def is_padding(node: Node) -> bool:
    """Whether the class pads, by its name."""
    return _REFLECTION.fullmatch(node.bare_kind) is not None or node.bare_kind == "Pad"


def is_instance_norm(node: Node) -> bool:
    """Whether the class is an instance norm, by its name."""
    return _INSTANCE_NORM.fullmatch(node.bare_kind) is not None


def is_own_norm(node: Node) -> bool:
    """Whether the class is an instance norm that a program defines itself."""
    return is_instance_norm(node) and node.kind != _ADDONS_INSTANCE_NORM


def input_shape(node: Node) -> tuple[int, int]:
    """(channels, side in pixels, or 0 if any or not square) of an input."""
    shape = node.config.get("batch_input_shape", node.config.get("batch_shape"))
    if not isinstance(shape, list) or len(shape) != 4 or not _is_count(shape[3]):
        raise NotExpressible("expected one input of shape (None, height, width, channels)")
    return shape[3], shape[1] if shape[1] == shape[2] and _is_count(shape[1]) else 0


def convolution(node: Node) -> Convolution:
    """A Conv2D or Conv2DTranspose."""
    config = node.config
    kernel, stride = (_square(config.get(name, default)) for name, default in (("kernel_size", None), ("strides", 1)))
    if not kernel or kernel > _MAX_KERNEL or not stride or stride > _MAX_KERNEL:
        raise NotExpressible(
            f"kernel_size is {shown(config.get('kernel_size'))}, strides {shown(config.get('strides'))}: expected as "
            f"many rows as columns, and at most {_MAX_KERNEL}"
        )
    filters: Any = config.get("filters")
    bias, padding = config.get("use_bias", True), config.get("padding", "valid")
    if not _is_count(filters) or not isinstance(bias, bool):
        raise NotExpressible(f"filters is {shown(filters)}, use_bias {shown(bias)}")
    if padding not in ("same", "valid"):
        raise NotExpressible(f"padding is {shown(padding)}, expected 'same' or 'valid'")
    expected: dict[str, tuple[Any, ...]] = {
        "data_format": ("channels_last", None),
        "dilation_rate": ([1, 1], 1, None),
        "groups": (1, None),
        # TensorFlow crops to the size that this asks for. A multiple of the input's is what it makes without it, too.
        "output_padding": (None, stride - kernel % 2, [stride - kernel % 2] * 2) if padding == "same" else (None,),
    }
    for name, allowed in expected.items():
        if config.get(name) not in allowed:
            raise NotExpressible(f"{name} is {shown(config.get(name))}, expected {shown(allowed[0])}")
    return Convolution(node.name, kernel, stride, filters, bias, node.kind == "Conv2DTranspose", padding)


def upsampling(node: Node) -> tuple[int, Upsampling]:
    """(factor, way) of an UpSampling2D."""
    factor, mode = _square(node.config.get("size", 2)), node.config.get("interpolation", "nearest")
    if not factor or factor > _MAX_FACTOR or node.config.get("data_format", "channels_last") != "channels_last":
        raise NotExpressible(f"size is {shown(node.config.get('size'))}, expected as many rows as columns")
    if mode == "nearest":
        return factor, "nearest"
    if mode == "bilinear":
        return factor, "bilinear"
    raise NotExpressible(f"interpolation is {shown(mode)}, expected 'nearest' or 'bilinear'")


def slope(node: Node) -> float:
    """The slope of a LeakyReLU or ReLU."""
    if node.kind == "LeakyReLU":
        value = node.config.get("alpha", node.config.get("negative_slope", _DEFAULT_LEAKY_SLOPE))
    else:
        if node.config.get("max_value") is not None or node.config.get("threshold", 0) not in (0, None):
            raise NotExpressible("expected a ReLU without maximum and threshold")
        value = node.config.get("negative_slope") or 0.0
    if type(value) not in (int, float) or not 0 <= value <= 1:
        raise NotExpressible(f"its slope is {shown(value)}, expected a number from 0 to 1")
    # Keras saves slopes as float32, 0.2 as 0.20000000298023224: seven digits are exact.
    return float(f"{value:.7g}")


# -- padding --------------------------------------------------------------------------------------------------


def padding(node: Node) -> tuple[Sides, PaddingMode]:
    """What a ZeroPadding2D, a padding by axes or a class for padding by reflection adds to a map."""
    if node.config.get("data_format", "channels_last") not in ("channels_last", None):
        raise NotExpressible("its data_format is not channels_last")
    if node.kind == "ZeroPadding2D":
        return _sides(node.config.get("padding", 1)), "zeros"
    if not _REFLECTION.fullmatch(node.bare_kind):
        if "mode" not in node.config:
            raise NotExpressible("by its name it pads, but in which mode is not in the file")
        return padding_by_axes({**node.config, **node.arguments})
    _check_entries(node, {"padding", "data_format"})
    if "padding" not in node.config:
        raise NotExpressible("by its name it pads by reflection, but by how many pixels is not in the file")
    sides = _sides(node.config["padding"])
    if len(set(sides)) > 1:
        raise NotExpressible(
            f"by its name it pads by reflection, but which of its numbers {shown(node.config['padding'])} is for which "
            f"side is not in the file: expected the same for all"
        )
    return sides, "reflect"


def padding_by_axes(entries: Mapping[str, Any]) -> tuple[Sides, PaddingMode]:
    """What tf.pad or keras.ops.pad, called with these arguments, adds to a map."""
    known = {"paddings", "pad_width", "mode", "constant_values"}
    unknown = sorted(name for name, value in entries.items() if value is not None and name not in known | _COMMON)
    if unknown:
        raise NotExpressible(f"its entry {shown(unknown[0])} is not known, so that what it computes is not")
    pairs, mode = entries.get("paddings", entries.get("pad_width")), entries.get("mode", "CONSTANT")
    if not isinstance(pairs, list) or len(pairs) != 4 or pairs[0] != [0, 0] or pairs[3] != [0, 0]:
        raise NotExpressible("expected a padding of height and width by pairs of numbers")
    sides = _sides(pairs[1:3])
    modes: dict[Any, PaddingMode] = {"reflect": "reflect", "constant": "zeros"}
    name = mode.lower() if isinstance(mode, str) else None
    if name not in modes or (name == "constant" and entries.get("constant_values") not in (0, None)):
        raise NotExpressible(f"it pads in the mode {shown(mode)}, expected reflection or zeros")
    return sides, modes[name]


def _sides(value: Any) -> Sides:
    """(top, left, bottom, right) of n, [rows, columns] or [[top, bottom], [left, right]]."""
    pairs = value if isinstance(value, list) and len(value) == 2 else [value, value]
    sides = [number for pair in pairs for number in (pair if isinstance(pair, list) else [pair, pair])]
    if len(sides) != 4 or any(isinstance(pair, list) and len(pair) != 2 for pair in pairs):
        sides = [None]
    if not all(type(n) is int and 0 <= n <= _MAX_KERNEL for n in sides):
        raise NotExpressible(f"its padding is {shown(value)}, expected pixels, at most {_MAX_KERNEL} on a side")
    top, bottom, left, right = sides
    return top, left, bottom, right


# -- norms ----------------------------------------------------------------------------------------------------


def norm(node: Node, channels: int) -> tuple[Norm, bool, bool]:
    """(norm, whether it uses the image's statistics, whether its epsilon is assumed) of a map of ``channels``."""
    config = node.config
    image_statistics = node.kind != "BatchNormalization" or node.arguments.get("training") in (1, True)
    eps: Any = config.get("epsilon", _DEFAULT_EPS)
    assumed = False
    if is_own_norm(node):
        eps, assumed = _eps_of_instance_norm(node)
    groups: Any = config.get("groups", -1 if is_instance_norm(node) else None)
    if node.kind == "BatchNormalization" or groups in (-1, channels):
        groups = 0
    elif is_instance_norm(node):
        raise NotExpressible(f"groups is {shown(groups)}, which no instance norm has: expected -1 or {channels}")
    elif not _is_count(groups) or channels % groups:
        raise NotExpressible(f"groups is {shown(groups)}, expected a divisor of its {channels} channels")
    center, scale, axis = config.get("center", True), config.get("scale", True), config.get("axis", -1)
    if axis not in (3, -1, [3], [-1]) or type(center) is not bool or center is not scale:
        raise NotExpressible("expected one norm over the channels, with both gamma and beta or neither")
    if type(eps) not in (int, float) or not 0 < eps <= 1:
        raise NotExpressible(f"epsilon is {shown(eps)}, expected a small positive number")
    return Norm(float(eps), affine=scale, groups=groups), image_statistics, assumed


def _eps_of_instance_norm(node: Node) -> tuple[Any, bool]:
    """(epsilon, whether it is assumed) of a class of a program's own."""
    if "axis" in node.config and "groups" not in node.config:
        raise NotExpressible(
            "its axis shows keras_contrib's InstanceNormalization or a copy, which adds epsilon to the deviation and "
            "not to the variance: no layer of a generator does"
        )
    _check_entries(node, {"epsilon", "eps", "center", "scale", "axis", "groups"})
    given = node.config.get("epsilon", node.config.get("eps"))
    return (DEFAULT_EPS, True) if given is None else (given, False)


def _check_entries(node: Node, known: set[str]) -> None:
    """Refuse the config of a program's own class if it has an entry whose meaning is not known."""
    unknown = sorted(n for n in node.config if n not in known | _COMMON and not _OF_NORMS.fullmatch(n))
    if unknown:
        raise NotExpressible(
            f"its class is known by its name, but the entry {shown(unknown[0])} of its config is not, so that what it "
            f"computes is not"
        )


def _square(value: Any) -> int:
    """The one number of n or [n, n]; 0 for anything else."""
    if isinstance(value, list) and len(value) == 2 and value[0] == value[1]:
        value = value[0]
    return value if _is_count(value) else 0


def _is_count(value: Any) -> bool:
    return type(value) is int and 1 <= value <= MAX_CHANNELS
