"""Small networks of layers that U-Nets don't have: other kernels, padding, upsampling, residuals, fixed filters."""

from __future__ import annotations

import dataclasses

import numpy as np

from pix2pix.model.generator import INPUT, Generator, Layer, Norm, Source, Statistics
from pix2pix.model.weights import random_weights

CHANNELS, FILTERS = 3, 4
FIRST = Layer("first", (Source(INPUT),), CHANNELS, FILTERS, kernel=7, stride=1, padding=3, padding_mode="reflect")
LAST = Layer("last", (Source("body", 0.0),), FILTERS, 2, kernel=3, stride=1, activation="tanh")


def body(**fields: object) -> Layer:
    """The layer between the first and the last."""
    given = {"inputs": (Source("first", 0.0),), "in_channels": FILTERS, "filters": FILTERS, "kernel": 3, "stride": 1}
    return Layer("body", **given | fields)


def network(*layers: Layer, size: int = 8) -> Generator:
    return Generator((FIRST, *layers, LAST), size=size)


BLOCK = dataclasses.replace(body(padding_mode="reflect", norm=Norm()), name="block", inputs=(Source("first", 0.0),))
NETWORKS = {
    "reflect": network(body(kernel=5, padding=2, padding_mode="reflect")),
    "replicate": network(body(kernel=5, padding=2, padding_mode="replicate")),
    "asymmetric": network(body(stride=2, padding=(0, 0, 1, 1))),
    "output padding": network(body(stride=2, transposed=True, output_padding=1)),
    "nearest": network(body(upsample=2, padding_mode="reflect")),
    "nearest, zeros": network(body(upsample=2, kernel=4, padding=(1, 1, 2, 2))),
    "bilinear": network(body(upsample=2, upsample_mode="bilinear", padding_mode="reflect")),
    "bilinear-corners": network(body(upsample=2, upsample_mode="bilinear-corners")),
    "blur": network(body(stride=2, padding_mode="reflect", depthwise=(0.25, 0.5, 0.25), bias=False)),
    "average": network(body(stride=2, padding_mode="uncounted", depthwise=(1 / 3, 1 / 3, 1 / 3), bias=False)),
    "inner slope": network(body(inner_slope=0.2, norm=Norm())),
    "residual": network(
        BLOCK, body(inputs=(Source("block", 0.0),), padding_mode="reflect", norm=Norm(), residual=Source("first", 0.0))
    ),
    "add": network(BLOCK, body(inputs=(Source("block"), Source("first", 0.2)), join="add")),
    "group norm": network(
        dataclasses.replace(BLOCK, norm=Norm(groups=1)),
        body(inputs=(Source("block", 0.0),), inner_slope=0.2, norm=Norm(1e-3, groups=2), residual=Source("first", 0.0)),
    ),
}


def weights_of(name: str, statistics: Statistics = "image") -> dict[str, np.ndarray]:
    """Random weights of a network, large enough that outputs vary."""
    weights = random_weights(NETWORKS[name].with_statistics(statistics), seed=len(name))
    return {key: 15 * w if key.endswith("kernel") else w for key, w in weights.items()}
