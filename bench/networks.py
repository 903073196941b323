"""A Generator as a PyTorch module and as an ONNX model: the same network and weights, for the peers to run.

Both take and return float32 (N,C,H,W) in [-1,1]. Norms use each image's own statistics, whatever N is.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from pix2pix.generator import INPUT, Generator, Layer, Weights

OPSET = 17


def torch_weight(layer: Layer, weights: Weights) -> np.ndarray:
    """The kernel as PyTorch and ONNX have it: (out,in,kh,kw), or (in,out,kh,kw) for a transposed convolution."""
    return np.ascontiguousarray(weights[f"{layer.name}.kernel"].transpose(3, 2, 0, 1))


def torch_module(generator: Generator, weights: Weights, group_norm: bool) -> Any:
    """The generator as a ``torch.nn.Module`` in evaluation mode, channels last in memory.

    ``group_norm`` says how norms are written: one group per channel is instance normalisation. PyTorch's own
    instance_norm copies to channels first, which is slower than either form.
    """
    import torch
    from torch import nn
    from torch.nn import functional

    def moments_norm(
        x: torch.Tensor, channels: int, gamma: torch.Tensor, beta: torch.Tensor, eps: float
    ) -> torch.Tensor:
        variance, mean = torch.var_mean(x, (2, 3), correction=0, keepdim=True)
        return (x - mean) * torch.rsqrt(variance + eps) * gamma.view(channels, 1, 1) + beta.view(channels, 1, 1)

    class TorchGenerator(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.kernels, self.rest = nn.ParameterDict(), nn.ParameterDict()
            for layer in generator.layers:
                self.kernels[layer.name] = nn.Parameter(torch.from_numpy(torch_weight(layer, weights)))
                for part in ("bias", "gamma", "beta"):
                    if f"{layer.name}.{part}" in weights:
                        values = torch.from_numpy(weights[f"{layer.name}.{part}"])
                        self.rest[f"{layer.name}_{part}"] = nn.Parameter(values)

        def part(self, layer: Layer, name: str) -> torch.Tensor | None:
            key = f"{layer.name}_{name}"
            return self.rest[key] if key in self.rest else None

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            values = {INPUT: x}
            for layer in generator.layers:
                values[layer.name] = self.compute(layer, values)
            return values[generator.layers[-1].name]

        def compute(self, layer: Layer, values: dict[str, torch.Tensor]) -> torch.Tensor:
            read = [values[source.layer] for source in layer.inputs]
            x = read[0] if len(read) == 1 else torch.cat(read, dim=1)
            slope = common_slope(layer)
            if slope != 1:
                x = functional.leaky_relu(x, slope) if slope else functional.relu(x)
            convolve = functional.conv_transpose2d if layer.transposed else functional.conv2d
            x = convolve(x, self.kernels[layer.name], self.part(layer, "bias"), layer.stride, layer.padding)
            if layer.norm:
                affine = self.part(layer, "gamma"), self.part(layer, "beta")
                normalise = torch.group_norm if group_norm else moments_norm
                x = normalise(x, layer.filters, *affine, layer.norm.eps)
            return torch.tanh(x) if layer.activation == "tanh" else x

    return TorchGenerator().eval().to(memory_format=torch.channels_last)


def common_slope(layer: Layer) -> float:
    """The slope with which a layer reads all its inputs, so that joining comes first. ValueError if they differ."""
    slopes = {source.slope for source in layer.inputs}
    if len(slopes) != 1 or layer.join != "concat" or layer.padding_mode != "zeros":
        raise ValueError(f"the peers' networks cannot express {layer}")
    return slopes.pop()


def onnx_model(generator: Generator, weights: Weights, n: int, h: int, w: int) -> bytes:
    """The generator as a serialised ONNX model for (n,Cin,h,w) pictures, input ``x`` and output ``y``."""
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
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", OPSET)], ir_version=10)
    return model.SerializeToString()


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
