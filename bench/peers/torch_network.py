"""A Generator as a PyTorch module: float32 (N,C,H,W) in [-1,1] -> the same, with each image's own statistics."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import nn
from torch.nn import functional

from pix2pix.model.generator import INPUT, Generator, Layer, Weights

from .onnx_network import common_slope, torch_weight


def moments_norm(x: torch.Tensor, channels: int, gamma: torch.Tensor, beta: torch.Tensor, eps: float) -> torch.Tensor:
    """Instance normalisation of (N,C,H,W), written out; the arguments are those of ``torch.group_norm``."""
    variance, mean = torch.var_mean(x, (2, 3), correction=0, keepdim=True)
    return (x - mean) * torch.rsqrt(variance + eps) * gamma.view(channels, 1, 1) + beta.view(channels, 1, 1)


def write(path: Path, generator: Generator, weights: Weights) -> None:
    """Write the generator's description and its tensors, as :func:`read` takes them."""
    tensors = {}
    for layer in generator.layers:
        tensors[f"{layer.name}_kernel"] = torch.from_numpy(torch_weight(layer, weights))
        for part in ("bias", "gamma", "beta"):
            if f"{layer.name}.{part}" in weights:
                tensors[f"{layer.name}_{part}"] = torch.from_numpy(weights[f"{layer.name}.{part}"])
    torch.save({"generator": json.dumps(generator.to_dict()), "tensors": tensors}, path)


def read(path: Path, group_norm: bool) -> TorchNetwork:
    """The module of a file that :func:`write` has written."""
    content = torch.load(path, weights_only=True, mmap=True)
    return TorchNetwork(Generator.from_dict(json.loads(content["generator"])), content["tensors"], group_norm)


class TorchNetwork(nn.Module):
    """The generator in evaluation mode, channels last in memory.

    With ``group_norm``, norms are ``torch.group_norm`` with one group per channel, which is instance normalisation,
    else :func:`moments_norm`. PyTorch's own instance_norm copies to channels first, and is slower than both.
    """

    def __init__(self, generator: Generator, tensors: Mapping[str, torch.Tensor], group_norm: bool) -> None:
        super().__init__()
        self.layers = generator.layers
        self.normalise = torch.group_norm if group_norm else moments_norm
        self.parts = nn.ParameterDict({name: nn.Parameter(tensor) for name, tensor in tensors.items()})
        self.eval().to(memory_format=torch.channels_last)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Run the network."""
        values = {INPUT: x}
        for layer in self.layers:
            values[layer.name] = self._compute(layer, values)
        return values[self.layers[-1].name]

    def _part(self, layer: Layer, name: str) -> torch.Tensor | None:
        key = f"{layer.name}_{name}"
        return self.parts[key] if key in self.parts else None

    def _compute(self, layer: Layer, values: dict[str, torch.Tensor]) -> torch.Tensor:
        read = [values[source.layer] for source in layer.inputs]
        x = read[0] if len(read) == 1 else torch.cat(read, dim=1)
        slope = common_slope(layer)
        if slope != 1:
            x = functional.leaky_relu(x, slope) if slope else functional.relu(x)
        convolve = functional.conv_transpose2d if layer.transposed else functional.conv2d
        x = convolve(x, self._part(layer, "kernel"), self._part(layer, "bias"), layer.stride, layer.padding)
        if layer.norm:
            affine = self._part(layer, "gamma"), self._part(layer, "beta")
            x = self.normalise(x, layer.filters, *affine, layer.norm.eps)
        return torch.tanh(x) if layer.activation == "tanh" else x
