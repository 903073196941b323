"""Weights of a generator: running statistics folded into convolutions, and random weights for tests and benchmarks."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping

import numpy as np

from .generator import Generator, Layer, Weights


def fold(generator: Generator, weights: Weights) -> tuple[Generator, dict[str, np.ndarray]]:
    """Fold running statistics into kernels and biases: (a generator without norms, its weights).

    Under image statistics nothing can be folded, and both come back as they are.
    """
    if generator.statistics == "image":
        return generator, dict(weights)
    folded: dict[str, np.ndarray] = {}
    for layer in generator.layers:
        parts = {name.rpartition(".")[2]: weights[name] for name in layer.tensors("running")}
        folded |= {f"{layer.name}.{part}": array for part, array in fold_parts(layer, parts).items()}
    return without_stored_statistics(generator), folded


def without_stored_statistics(generator: Generator) -> Generator:
    """The generator that computes the same with weights that are folded: itself, or one without norms."""
    if generator.statistics == "image":
        return generator
    layers = (dataclasses.replace(y, norm=None, bias=True) if y.norm else y for y in generator.layers)
    return dataclasses.replace(generator, layers=tuple(layers), statistics="image")


def fold_parts(layer: Layer, parts: Mapping[str, np.ndarray]) -> Mapping[str, np.ndarray]:
    """One layer's tensors by part, with its running statistics (if it has a norm) folded into kernel and bias.

    norm(conv(x, k) + b) = conv(x, k * r) + ((b - mean) * r + beta) with r = gamma / sqrt(variance + eps), computed in
    float64.
    """
    if layer.norm is None:
        return parts
    ratio = parts.get("gamma", 1.0) / np.sqrt(parts["variance"].astype(np.float64) + layer.norm.eps)
    bias = (parts.get("bias", 0.0) - parts["mean"].astype(np.float64)) * ratio + parts.get("beta", 0.0)
    along_filters = ratio[:, None] if layer.transposed else ratio
    return {"kernel": (parts["kernel"] * along_filters).astype(np.float32), "bias": bias.astype(np.float32)}


def random_weights(generator: Generator, seed: int = 0) -> dict[str, np.ndarray]:
    """Weights as at the start of training, from N(0, 0.02) kernels and N(1, 0.02) gammas: for tests and benchmarks."""
    rng = np.random.default_rng(seed)
    mean_and_deviation = {"kernel": (0, 0.02), "gamma": (1, 0.02), "variance": (1, 0.1)}
    weights = {}
    for name, shape in generator.tensors().items():
        mean, deviation = mean_and_deviation.get(name.rpartition(".")[2], (0, 0.1))
        values = rng.standard_normal(shape, dtype=np.float32)
        values *= np.float32(deviation)
        values += np.float32(mean)
        weights[name] = values
    return weights
