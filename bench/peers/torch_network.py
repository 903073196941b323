"""A Generator as a PyTorch module: float32 (N,C,H,W) in [-1,1] -> the same, with each image's own statistics."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import torch
from torch import nn
from torch.nn import functional

from pix2pix.model.generator import INPUT, Generator, Source, Weights
from pix2pix.model.lowering import Op, lower

from .operands import common_slope, is_average, last_reads, norm_of, torch_weight

Values = dict[tuple[str, float], torch.Tensor]  # by layer, and by the slope of the leaky ReLU that they went through
PAD_MODES = {"zeros": "constant", "reflect": "reflect", "replicate": "replicate"}


def moments_norm(
    x: torch.Tensor, channels: int, gamma: torch.Tensor | None, beta: torch.Tensor | None, eps: float
) -> torch.Tensor:
    """Instance normalisation of (N,C,H,W), written out; the arguments are those of ``torch.group_norm``."""
    variance, mean = torch.var_mean(x, (2, 3), correction=0, keepdim=True)
    y = (x - mean) * torch.rsqrt(variance + eps)
    if gamma is None or beta is None:
        return y
    return y * gamma.view(channels, 1, 1) + beta.view(channels, 1, 1)


def tensors_of(generator: Generator, weights: Weights) -> dict[str, torch.Tensor]:
    """The weights as :class:`TorchNetwork` takes them."""
    tensors = {}
    for op in lower(generator).ops:
        tensors[f"{op.name}_kernel"] = torch.from_numpy(torch_weight(op, weights))
        for part in ("bias", "gamma", "beta"):
            if f"{op.name}.{part}" in weights:
                tensors[f"{op.name}_{part}"] = torch.from_numpy(weights[f"{op.name}.{part}"])
    return tensors


def write(path: Path, generator: Generator, weights: Weights) -> None:
    """Write the generator's description and its tensors, as :func:`read` takes them."""
    torch.save({"generator": json.dumps(generator.to_dict()), "tensors": tensors_of(generator, weights)}, path)


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
        self.generator = generator
        self.ops, self.output, self.last_reads = program.ops, program.output.name, last_reads(program)
        self.normalise = torch.group_norm if group_norm else moments_norm
        self.parts = nn.ParameterDict({name: nn.Parameter(tensor) for name, tensor in tensors.items()})
        self.eval().to(memory_format=torch.channels_last)

    def weights(self) -> dict[str, np.ndarray]:
        """The weights of the generator as they are now: the inverse of :func:`tensors_of`."""
        weights = {}
        for name in self.generator.tensors():
            tensor = self.parts[name.replace(".", "_")].detach()
            kernel = tensor.permute(2, 3, 1, 0) if name.endswith(".kernel") else tensor
            weights[name] = kernel.numpy().astype(np.float32, order="C")
        return weights

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Run the network. A value is let go of once nothing reads it any more."""
        values: Values = {(INPUT, 1.0): x}
        for op in self.ops:
            values[op.name, 1.0] = self._compute(op, values)
            for name in self.last_reads.get(op.name, ()):
                for key in [key for key in values if key[0] == name]:
                    del values[key]
        return values[self.output, 1.0]

    def _part(self, op: Op, name: str) -> torch.Tensor | None:
        key = f"{op.name}_{name}"
        return self.parts[key] if key in self.parts else None

    def _compute(self, op: Op, values: Values) -> torch.Tensor:
        x = _leaky_relu(self._convolve(op, _joined(op, values)), op.epilogue.inner_slope)
        if norm := norm_of(op):
            x = self.normalise(x, op.filters, self._part(op, "gamma"), self._part(op, "beta"), norm.eps)
        if op.epilogue.activation == "tanh":
            x = torch.tanh(x)
        return x + _activated(op.epilogue.residual, values) if op.epilogue.residual else x

    def _convolve(self, op: Op, x: torch.Tensor) -> torch.Tensor:
        s, kernel, bias = op.sampling, self._part(op, "kernel"), self._part(op, "bias")
        top, left, bottom, right = s.padding
        is_even = (top, left) == (bottom, right)
        if s.upsample > 1:
            mode = "nearest" if s.upsample_mode == "nearest" else "bilinear"
            corners = None if mode == "nearest" else s.upsample_mode == "bilinear-corners"
            x = functional.interpolate(x, scale_factor=float(s.upsample), mode=mode, align_corners=corners)
        if s.transposed:
            cut = (top, left) if is_even else (0, 0)
            y = functional.conv_transpose2d(x, kernel, bias, s.stride, cut, s.output_padding)
            return y if is_even else functional.pad(y, (-left, -right, -top, -bottom))
        if is_average(op):
            return functional.avg_pool2d(x, s.kernel, s.stride, top, count_include_pad=False)
        is_inside = is_even and (s.padding_mode == "zeros" or not any(s.padding))
        if not is_inside:
            x = functional.pad(x, (left, right, top, bottom), PAD_MODES[s.padding_mode])
        groups = op.filters if op.depthwise else 1
        return functional.conv2d(x, kernel, bias, s.stride, (top, left) if is_inside else 0, groups=groups)


def _leaky_relu(x: torch.Tensor, slope: float) -> torch.Tensor:
    if slope == 1:
        return x
    return functional.leaky_relu(x, slope) if slope else functional.relu(x)


def _activated(source: Source, values: Values) -> torch.Tensor:
    """The value of a source through its leaky ReLU, which is computed once for all that read it so."""
    key = (source.layer, source.slope)
    if key not in values:
        values[key] = _leaky_relu(values[source.layer, 1.0], source.slope)
    return values[key]


def _joined(op: Op, values: Values) -> torch.Tensor:
    """The inputs of an operation, joined."""
    slope = common_slope(op)
    if slope is not None and len(op.sources) > 1:
        return _leaky_relu(torch.cat([values[source.layer, 1.0] for source in op.sources], dim=1), slope)
    read = [_activated(source, values) for source in op.sources]
    if op.join == "concat":
        return read[0] if len(read) == 1 else torch.cat(read, dim=1)
    return sum(read[1:], start=read[0])
