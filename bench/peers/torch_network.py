"""A Generator as a PyTorch module: float32 (N,C,H,W) in [-1,1] -> the same, with each image's own statistics."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import nn
from torch.nn import functional

from pix2pix.model.generator import INPUT, Generator, Weights
from pix2pix.model.lowering import Op, lower

from .onnx_network import common_slope, torch_weight


def moments_norm(x: torch.Tensor, channels: int, gamma: torch.Tensor, beta: torch.Tensor, eps: float) -> torch.Tensor:
    """Instance normalisation of (N,C,H,W), written out; the arguments are those of ``torch.group_norm``."""
    variance, mean = torch.var_mean(x, (2, 3), correction=0, keepdim=True)
    return (x - mean) * torch.rsqrt(variance + eps) * gamma.view(channels, 1, 1) + beta.view(channels, 1, 1)


def write(path: Path, generator: Generator, weights: Weights) -> None:
    """Write the generator's description and its tensors, as :func:`read` takes them."""
    tensors = {}
    for op in lower(generator).ops:
        tensors[f"{op.name}_kernel"] = torch.from_numpy(torch_weight(op, weights))
        for part in ("bias", "gamma", "beta"):
            if f"{op.name}.{part}" in weights:
                tensors[f"{op.name}_{part}"] = torch.from_numpy(weights[f"{op.name}.{part}"])
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
        program = lower(generator)
        self.ops, self.output = program.ops, program.output.name
        self.normalise = torch.group_norm if group_norm else moments_norm
        self.parts = nn.ParameterDict({name: nn.Parameter(tensor) for name, tensor in tensors.items()})
        self.eval().to(memory_format=torch.channels_last)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Run the network."""
        values = {INPUT: x}
        for op in self.ops:
            values[op.name] = self._compute(op, values)
        return values[self.output]

    def _part(self, op: Op, name: str) -> torch.Tensor | None:
        key = f"{op.name}_{name}"
        return self.parts[key] if key in self.parts else None

    def _compute(self, op: Op, values: dict[str, torch.Tensor]) -> torch.Tensor:
        read = [values[source.layer] for source in op.sources]
        x = read[0] if len(read) == 1 else torch.cat(read, dim=1)
        slope, sampling = common_slope(op), op.sampling
        if slope != 1:
            x = functional.leaky_relu(x, slope) if slope else functional.relu(x)
        convolve = functional.conv_transpose2d if sampling.transposed else functional.conv2d
        x = convolve(x, self._part(op, "kernel"), self._part(op, "bias"), sampling.stride, sampling.padding[0])
        if norm := op.epilogue.norm:
            x = self.normalise(x, op.filters, self._part(op, "gamma"), self._part(op, "beta"), norm.eps)
        return torch.tanh(x) if op.epilogue.activation == "tanh" else x
