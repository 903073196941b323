"""A Generator as an ONNX model.

Images are float32 (N,C,H,W) in [-1,1]. Norms use each image's own statistics, whatever N is.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from pix2pix.model.generator import INPUT, Generator, Layer, Weights

OPSET = 17


def torch_weight(layer: Layer, weights: Weights) -> np.ndarray:
    """The kernel in PyTorch's and ONNX's layout: (out,in,kh,kw), or (in,out,kh,kw) for a transposed convolution."""
    return np.ascontiguousarray(weights[f"{layer.name}.kernel"].transpose(3, 2, 0, 1))


def common_slope(layer: Layer) -> float:
    """The one slope of all inputs of a layer, so that they can be joined first. ValueError if slopes differ."""
    slopes = {source.slope for source in layer.inputs}
    if len(slopes) != 1 or layer.join != "concat" or layer.padding_mode != "zeros":
        raise ValueError(f"the peers' networks cannot express {layer}")
    return slopes.pop()


def onnx_model(generator: Generator, weights: Weights, n: int, h: int, w: int) -> Any:
    """The generator as an ONNX model for (n,Cin,h,w) images, input ``input`` and output ``y``."""
    from onnx import TensorProto, helper, numpy_helper

    nodes: list[Any] = []
    constants = []
    for layer in generator.layers:
        nodes += _onnx_layer(layer, weights)
        constants.append(numpy_helper.from_array(torch_weight(layer, weights), f"{layer.name}.kernel"))
        for part in ("bias", "gamma", "beta"):
            name = f"{layer.name}.{part}"
            if name in weights:
                constants.append(numpy_helper.from_array(weights[name], name))
    last = generator.layers[-1].name
    nodes.append(helper.make_node("Identity", [last], ["y"]))
    out_h, out_w, out_channels = generator.shapes(h, w)[last]
    graph = helper.make_graph(
        nodes,
        "generator",
        [helper.make_tensor_value_info(INPUT, TensorProto.FLOAT, [n, generator.in_channels, h, w])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [n, out_channels, out_h, out_w])],
        constants,
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", OPSET)], ir_version=10)


def _onnx_layer(layer: Layer, weights: Weights) -> list[Any]:
    """The nodes of one layer; its value has the layer's name."""
    from onnx import helper

    nodes = []
    value = layer.inputs[0].layer

    def append(operator: str, inputs: list[str], **attributes: Any) -> None:
        nonlocal value
        value = f"{layer.name}.{operator}"
        nodes.append(helper.make_node(operator, inputs, [value], name=value, **attributes))

    if len(layer.inputs) > 1:
        append("Concat", [source.layer for source in layer.inputs], axis=1)
    slope = common_slope(layer)
    if slope == 0:
        append("Relu", [value])
    elif slope != 1:
        append("LeakyRelu", [value], alpha=slope)
    bias = [f"{layer.name}.bias"] if f"{layer.name}.bias" in weights else []
    append(
        "ConvTranspose" if layer.transposed else "Conv",
        [value, f"{layer.name}.kernel", *bias],
        kernel_shape=[layer.kernel] * 2,
        strides=[layer.stride] * 2,
        pads=[layer.padding] * 4,
    )
    if layer.norm:
        affine = [f"{layer.name}.gamma", f"{layer.name}.beta"]
        append("InstanceNormalization", [value, *affine], epsilon=layer.norm.eps)
    if layer.activation == "tanh":
        append("Tanh", [value])
    nodes[-1].output[0] = layer.name
    return nodes
