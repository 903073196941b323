"""A Generator as an ONNX model.

Images are float32 (N,C,H,W) in [-1,1]. Norms use each image's own statistics, whatever N is.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from pix2pix.model.generator import INPUT, Generator, Source, Weights
from pix2pix.model.lowering import Op, lower

from .operands import common_slope, is_average, norm_of, torch_weight

OPSET = 17
PAD_MODES = {"zeros": "constant", "reflect": "reflect", "replicate": "edge"}
RESIZE = {  # attributes that make Resize what PyTorch's interpolate is
    "nearest": {"mode": "nearest", "coordinate_transformation_mode": "asymmetric", "nearest_mode": "floor"},
    "bilinear": {"mode": "linear", "coordinate_transformation_mode": "half_pixel"},
    "bilinear-corners": {"mode": "linear", "coordinate_transformation_mode": "align_corners"},
}


def onnx_model(generator: Generator, weights: Weights, n: int, h: int, w: int) -> Any:
    """The generator as an ONNX model for (n,Cin,h,w) images, input ``input`` and output ``y``."""
    from onnx import TensorProto, helper

    program = lower(generator)
    graph = _Graph(weights)
    for op in program.ops:
        graph.append(op)
    graph.node("Identity", [program.output.name], "y")
    out_h, out_w, out_channels = program.shapes(h, w)[program.output.name]
    proto = helper.make_graph(
        graph.nodes,
        "generator",
        [helper.make_tensor_value_info(INPUT, TensorProto.FLOAT, [n, generator.in_channels, h, w])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [n, out_channels, out_h, out_w])],
        graph.constants,
    )
    return helper.make_model(proto, opset_imports=[helper.make_opsetid("", OPSET)], ir_version=10)


class _Graph:
    """Nodes and constants of the operations that were appended. An operation's value has its name."""

    def __init__(self, weights: Weights) -> None:
        self.nodes: list[Any] = []
        self.constants: list[Any] = []
        self._weights = weights
        self._activated: dict[Source, str] = {}

    def node(self, operator: str, inputs: list[str], output: str, **attributes: Any) -> str:
        """Add a node; the name of its value, which is ``output``."""
        from onnx import helper

        self.nodes.append(helper.make_node(operator, inputs, [output], name=output, **attributes))
        return output

    def constant(self, name: str, value: np.ndarray) -> str:
        """Add a constant; its name."""
        from onnx import numpy_helper

        self.constants.append(numpy_helper.from_array(value, name))
        return name

    def append(self, op: Op) -> None:
        """Add an operation."""
        value = self._leaky_relu(self._convolution(op, self._joined(op)), op.epilogue.inner_slope, f"{op.name}.inner")
        if norm := norm_of(op):
            parts = [self._part(op, "gamma", np.ones), self._part(op, "beta", np.zeros)]
            value = self.node("InstanceNormalization", [value, *parts], f"{op.name}.norm", epsilon=norm.eps)
        if op.epilogue.activation == "tanh":
            value = self.node("Tanh", [value], f"{op.name}.tanh")
        if residual := op.epilogue.residual:
            value = self.node("Add", [value, self._read(residual)], f"{op.name}.sum")
        self.nodes[-1].output[0] = op.name

    def _part(self, op: Op, part: str, default: Any) -> str:
        """The constant with a part of the operation's tensors."""
        name = f"{op.name}.{part}"
        return self.constant(name, self._weights.get(name, default(op.filters, np.float32)))

    def _leaky_relu(self, value: str, slope: float, output: str) -> str:
        if slope == 1:
            return value
        return self.node("LeakyRelu", [value], output, alpha=slope) if slope else self.node("Relu", [value], output)

    def _read(self, source: Source) -> str:
        """The value of a source through its leaky ReLU, which is computed once for all that read it so."""
        if source not in self._activated:
            output = f"{source.layer}.slope_{source.slope:g}"
            self._activated[source] = self._leaky_relu(source.layer, source.slope, output)
        return self._activated[source]

    def _joined(self, op: Op) -> str:
        """The inputs of an operation, joined."""
        slope = common_slope(op)
        if slope is not None and len(op.sources) > 1:
            value = self.node("Concat", [source.layer for source in op.sources], f"{op.name}.concat", axis=1)
            return self._leaky_relu(value, slope, f"{op.name}.input")
        read = [self._read(source) for source in op.sources]
        if len(read) == 1:
            return read[0]
        if op.join == "concat":
            return self.node("Concat", read, f"{op.name}.concat", axis=1)
        return self.node("Sum", read, f"{op.name}.sum_of_inputs")

    def _convolution(self, op: Op, value: str) -> str:
        s = op.sampling
        top, left, bottom, right = s.padding
        window: dict[str, Any] = {"kernel_shape": [s.kernel] * 2, "strides": [s.stride] * 2, "pads": list(s.padding)}
        if s.upsample > 1:
            scales = self.constant(f"{op.name}.scales", np.array([1, 1, s.upsample, s.upsample], np.float32))
            value = self.node("Resize", [value, "", scales], f"{op.name}.resize", **RESIZE[s.upsample_mode])
        if is_average(op):
            return self.node("AveragePool", [value], f"{op.name}.average", count_include_pad=0, **window)
        if s.padding_mode != "zeros" and any(s.padding):
            pads = self.constant(f"{op.name}.pads", np.array([0, 0, top, left, 0, 0, bottom, right], np.int64))
            value = self.node("Pad", [value, pads], f"{op.name}.pad", mode=PAD_MODES[s.padding_mode])
            window["pads"] = [0] * 4
        read = [value, self.constant(f"{op.name}.kernel", torch_weight(op, self._weights))]
        if op.epilogue.bias:
            read.append(self._part(op, "bias", np.zeros))
        if s.transposed:
            window["output_padding"] = [s.output_padding] * 2
            return self.node("ConvTranspose", read, f"{op.name}.convolution", **window)
        groups = op.filters if op.depthwise else 1
        return self.node("Conv", read, f"{op.name}.convolution", group=groups, **window)
