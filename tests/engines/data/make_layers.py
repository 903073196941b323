"""Makes layers.npz: outputs of tests/engines/layers.py's networks, computed by PyTorch in float64.

Run from the repository's root where PyTorch is installed: ``python -m tests.engines.data.make_layers``.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from torch.nn import functional

from pix2pix.model.generator import INPUT, Generator, Layer
from tests.engines.layers import NETWORKS, weights_of

SIZES = ((8, 8), (12, 16))


def convolved(layer: Layer, x: torch.Tensor, weights: dict[str, torch.Tensor]) -> torch.Tensor:
    """A layer's input (1,C,H,W) through its padding, upsampling and convolution."""
    bias = weights.get("bias")
    if layer.transposed:
        kernel = weights["kernel"].permute(3, 2, 0, 1)
        return functional.conv_transpose2d(x, kernel, bias, layer.stride, layer.padding, layer.output_padding)
    if layer.upsample > 1:
        mode = layer.upsample_mode.partition("-")[0]
        corners = None if mode == "nearest" else layer.upsample_mode == "bilinear-corners"
        x = functional.interpolate(x, scale_factor=layer.upsample, mode=mode, align_corners=corners)
    top, left, bottom, right = layer.padding if isinstance(layer.padding, tuple) else (layer.padding,) * 4
    if layer.padding_mode == "uncounted":  # of the layers here, averages alone
        return functional.avg_pool2d(x, layer.kernel, layer.stride, layer.padding, count_include_pad=False)
    mode = {"zeros": "constant"}.get(layer.padding_mode, layer.padding_mode)
    x = functional.pad(x, (left, right, top, bottom), mode)
    if layer.depthwise:
        taps = torch.tensor(layer.depthwise, dtype=torch.float64)
        kernel = torch.outer(taps, taps).expand(layer.filters, 1, -1, -1)
        return functional.conv2d(x, kernel, None, layer.stride, groups=layer.filters)
    return functional.conv2d(x, weights["kernel"].permute(3, 2, 0, 1), bias, layer.stride)


def output(generator: Generator, weights: dict[str, np.ndarray], x: np.ndarray) -> np.ndarray:
    """x (H,W,C) through a network."""
    values = {INPUT: torch.from_numpy(x.astype(np.float64)).permute(2, 0, 1)[None]}
    for layer in generator.layers:
        own = {
            name.partition(".")[2]: torch.from_numpy(w.astype(np.float64))
            for name, w in weights.items()
            if name.startswith(layer.name + ".")
        }
        read = [functional.leaky_relu(values[s.layer], s.slope) for s in layer.inputs]
        y = convolved(layer, torch.cat(read, 1) if layer.join == "concat" else sum(read), own)
        y = functional.leaky_relu(y, layer.inner_slope)
        if layer.norm:
            groups = layer.norm.groups or layer.filters
            y = functional.group_norm(y, groups, own["gamma"], own["beta"], layer.norm.eps)
        if layer.activation == "tanh":
            y = torch.tanh(y)
        if layer.residual:
            y = y + functional.leaky_relu(values[layer.residual.layer], layer.residual.slope)
        values[layer.name] = y
    return y[0].permute(1, 2, 0).numpy()


def main() -> None:
    rng = np.random.default_rng(0)
    arrays = {}
    for name, generator in NETWORKS.items():
        weights = weights_of(name)
        for h, w in SIZES:
            x = rng.uniform(-1, 1, (h, w, generator.in_channels)).astype(np.float32)
            arrays[f"{name}/{h}x{w}/x"], arrays[f"{name}/{h}x{w}/y"] = x, output(generator, weights, x)
    np.savez_compressed(Path(__file__).with_name("layers.npz"), **arrays)


if __name__ == "__main__":
    main()
