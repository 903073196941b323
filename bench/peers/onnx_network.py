"""A Generator as an ONNX model.

Images are float32 (N,C,H,W) in [-1,1]. Norms use each image's own statistics, whatever N is.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from pix2pix.model.generator import INPUT, Generator, Weights
from pix2pix.model.lowering import Op, lower

OPSET = 17


def torch_weight(op: Op, weights: Weights) -> np.ndarray:
    """The kernel in PyTorch's and ONNX's layout: (out,in,kh,kw), or (in,out,kh,kw) for a transposed convolution."""
    return np.ascontiguousarray(weights[f"{op.name}.kernel"].transpose(3, 2, 0, 1))


def common_slope(op: Op) -> float:
    """The one slope of all inputs, so that they can be joined first.

    ValueError if slopes differ, or for an operation that the peers' networks do not express.
    """
    slopes, s = {source.slope for source in op.sources}, op.sampling
    plain = s.padding_mode == "zeros" and len(set(s.padding)) == 1 and s.output_padding == 0 and s.upsample == 1
    if not plain or len(slopes) != 1 or op.join != "concat" or op.depthwise or op.epilogue.residual:
        raise ValueError(f"the peers' networks cannot express {op}")
    return slopes.pop()


def onnx_model(generator: Generator, weights: Weights, n: int, h: int, w: int) -> Any:
    """The generator as an ONNX model for (n,Cin,h,w) images, input ``input`` and output ``y``."""
    from onnx import TensorProto, helper, numpy_helper

    program = lower(generator)
    nodes: list[Any] = []
    constants = []
    for op in program.ops:
        nodes += _onnx_nodes(op, weights)
        constants.append(numpy_helper.from_array(torch_weight(op, weights), f"{op.name}.kernel"))
        for part in ("bias", "gamma", "beta"):
            name = f"{op.name}.{part}"
            if name in weights:
                constants.append(numpy_helper.from_array(weights[name], name))
    nodes.append(helper.make_node("Identity", [program.output.name], ["y"]))
    out_h, out_w, out_channels = program.shapes(h, w)[program.output.name]
    graph = helper.make_graph(
        nodes,
        "generator",
        [helper.make_tensor_value_info(INPUT, TensorProto.FLOAT, [n, generator.in_channels, h, w])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [n, out_channels, out_h, out_w])],
        constants,
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", OPSET)], ir_version=10)


def _onnx_nodes(op: Op, weights: Weights) -> list[Any]:
    """The nodes of one operation; its value has the operation's name."""
    from onnx import helper

    nodes = []
    value = op.sources[0].layer

    def append(operator: str, inputs: list[str], **attributes: Any) -> None:
        nonlocal value
        value = f"{op.name}.{operator}"
        nodes.append(helper.make_node(operator, inputs, [value], name=value, **attributes))

    if len(op.sources) > 1:
        append("Concat", [source.layer for source in op.sources], axis=1)
    slope = common_slope(op)
    if slope == 0:
        append("Relu", [value])
    elif slope != 1:
        append("LeakyRelu", [value], alpha=slope)
    append(
        "ConvTranspose" if op.sampling.transposed else "Conv",
        [value, f"{op.name}.kernel", *([f"{op.name}.bias"] if op.epilogue.bias else [])],
        kernel_shape=[op.sampling.kernel] * 2,
        strides=[op.sampling.stride] * 2,
        pads=op.sampling.padding,
    )
    if norm := op.epilogue.norm:
        append("InstanceNormalization", [value, f"{op.name}.gamma", f"{op.name}.beta"], epsilon=norm.eps)
    if op.epilogue.activation == "tanh":
        append("Tanh", [value])
    nodes[-1].output[0] = op.name
    return nodes
