"""Layers on GPUs, one at a time: a network whose kernels a precision represents exactly, and its check. Whole networks
of other layers than U-Nets have."""

from __future__ import annotations

import functools
from typing import Any

import numpy as np

from pix2pix.engines.reference import ReferenceEngine, to_float, to_uint8
from pix2pix.gpu.ptx.packed_words import KINDS, floats_of, words_of
from pix2pix.model.generator import INPUT, Generator, Layer, Norm, Source
from pix2pix.model.pix2pixhd import Coarse, local_enhancer
from pix2pix.model.resnet import ResnetVariant, resnet
from pix2pix.model.unet import UnetVariant, unet
from pix2pix.model.weights import random_weights
from tests.engines.layers import NETWORKS, weights_of
from tests.models import VARIANTS, check_layer, check_output, pictures

PRECISIONS = ["float16", "bfloat16", "tf32"]  # of tensor cores
EPS = {"float16": 2.0**-11, "bfloat16": 2.0**-8, "tf32": 2.0**-11}  # of rounding to nearest, relative
OF_SUMS = 5e-5  # of sums in float32, relative to the largest value; as in tests.models.check_layer


def rounded(x: np.ndarray, precision: str) -> np.ndarray:
    """x rounded to packed words of the precision, as float64. The last axis may be odd."""
    flat = np.zeros(-(-x.size // 2) * 2, np.float32)
    flat[: x.size] = x.ravel()
    return floats_of(words_of(flat, KINDS[precision]), KINDS[precision])[: x.size].reshape(x.shape).astype(np.float64)


@functools.cache
def network(
    precision: str, norm: bool, ngf: int | tuple[int, ...], depth: int
) -> tuple[Generator, dict[str, np.ndarray]]:
    """A generator whose slopes and kernels the precision represents exactly; ngf may be the filters of each encoder."""
    filters = ngf if isinstance(ngf, tuple) else None
    g = unet(
        ngf=filters[0] if filters else ngf,
        depth=depth,
        filters=filters,
        variant=UnetVariant(slope=0.25, skip_slope=0.5, norm=VARIANTS["tensorflow"].layers[1].norm if norm else None),
    )
    weights = {name: w * 5 if name.endswith("kernel") else w for name, w in random_weights(g, seed=5).items()}
    return g, {n: rounded(w, precision).astype(np.float32) if n.endswith("kernel") else w for n, w in weights.items()}


def check_layers(
    precision: str, algorithm: str, n: int, h: int, w: int, norm: bool, ngf: int | tuple[int, ...] = 4, depth: int = 5
) -> None:
    """Compare each layer with the oracle's, computed from the oracle's values of its inputs.

    Maps and kernels are exact in the precision, and sums are float32. What is left is one rounding of the result, one
    more of a map before its norm, and none of the image.
    """
    from pix2pix.gpu.engine import GpuEngine

    g, weights = network(precision, norm, ngf, depth)
    x = rounded(to_float(pictures(n, h, w)), precision).astype(np.float32)
    oracle = ReferenceEngine(g, weights)
    known = oracle.run(x, outputs=[layer.name for layer in g.layers])
    known = {name: rounded(value, precision).astype(np.float32) for name, value in known.items()} | {"input": x}
    with GpuEngine(g, weights, precision=precision, plan=algorithm) as engine:
        for layer in g.layers:
            given = {source.layer: known[source.layer] for source in layer.inputs}
            expected = oracle.run(inputs=given, outputs=[layer.name])[layer.name]
            got = engine.run(inputs=given, outputs=[layer.name])[layer.name]
            is_last = layer.activation == "tanh"
            error = OF_SUMS if precision == "float32" else 3 * EPS[precision]
            tolerance = 2e-5 if is_last else error * max(1, np.abs(expected).max())
            np.testing.assert_allclose(got, expected, rtol=0, atol=tolerance, err_msg=layer.name)


RESNETS = {
    "resnet": resnet(8, 1, size=16),
    "wide resnet": resnet(16, 1, size=16),  # whose blocks fill the rows of Hopper's tiles
    "small resnet": resnet(3, 2, size=16),
    "running resnet": resnet(3, 1, size=16, statistics="running", variant=ResnetVariant(norm=Norm(), pads_after=True)),
    "blurred resnet": resnet(3, 1, size=16, variant=ResnetVariant(down="blurred", up="bilinear", activation="none")),
    "grouped resnet": resnet(9, 1, size=16, variant=ResnetVariant(norm=Norm(groups=3), bias="all")),
    "local enhancer": local_enhancer(3, 1, size=16, coarse=Coarse(1, 1)),
    "two enhancers of labels": local_enhancer(2, 1, 10, size=16, coarse=Coarse(1, 1), enhancers=2),
}


def _layer(name: str, *inputs: Source, **fields: object) -> Layer:
    """A 3x3 layer of 4 channels to 4, or of what `fields` say."""
    return Layer(name, inputs, **{"in_channels": 4, "filters": 4, "kernel": 3, "stride": 1} | fields)


def _average_of(*taps: float) -> dict[str, Any]:
    """Fields of a layer that averages pixels by taps along both axes, and leaves the padding out."""
    return {"padding_mode": "uncounted", "bias": False, "depthwise": taps}


_IMAGE, _FIRST = Source(INPUT), _layer("first", Source(INPUT), in_channels=3)
_LAST = _layer("last", Source("body", 0.0), filters=3, activation="tanh")
UNUSUAL = {
    "one layer": Generator((_layer("last", _IMAGE, in_channels=3, filters=3, activation="tanh"),), size=8),
    "single taps": Generator(
        (_FIRST, _layer("last", Source("first", 0.0), filters=3, kernel=1, padding=0, activation="tanh")), size=8
    ),
    "pairs, reflect": Generator(
        (
            _layer("first", _IMAGE, in_channels=3, kernel=4, stride=2, padding_mode="reflect"),
            _layer("last", Source("first", 0.5), filters=3, kernel=4, stride=2, transposed=True, activation="tanh"),
        ),
        size=8,
    ),
    "nearest at the end": Generator(
        (
            _layer("first", _IMAGE, in_channels=3, stride=2, norm=Norm()),
            _layer(
                "last",
                *(Source("first", 0.0), Source("first", 1.0)),
                in_channels=8,
                filters=3,
                kernel=4,
                upsample=2,
                padding=(2, 2, 1, 1),
                activation="tanh",
            ),
        ),
        size=8,
    ),
    "enlarged image": Generator(
        (
            _layer("first", _IMAGE, in_channels=3, upsample=2, upsample_mode="bilinear", padding_mode="reflect"),
            _layer("body", Source("first", 0.0), stride=2, padding=(2, 0, 0, 1), padding_mode="replicate"),
            _LAST,
        ),
        size=8,
    ),
    "image beside a map": Generator(
        (
            _FIRST,
            _layer("body", _IMAGE, Source("first", 0.2), in_channels=7, norm=Norm(), padding_mode="reflect"),
            _LAST,
        ),
        size=8,
    ),
    "many readers": Generator(
        (
            _layer("first", _IMAGE, in_channels=3, norm=Norm()),
            _layer("a", Source("first", 0.0), upsample=2, upsample_mode="bilinear", norm=Norm()),
            _layer("b", Source("a"), stride=2, norm=Norm(), inner_slope=0.25, residual=Source("first", 0.5)),
            _layer("c", Source("first", 0.5), Source("b", 0.0), in_channels=8, norm=Norm(), residual=Source("b", 0.25)),
            _layer("body", Source("first"), Source("c"), in_channels=8, kernel=5, padding=2, residual=Source("c")),
            _LAST,
        ),
        size=8,
    ),
    "averages": Generator(
        (
            _layer("first", _IMAGE, in_channels=3, filters=3, kernel=4, stride=2, **_average_of(*[0.25] * 4)),
            _layer("odd", Source("first", 0.5), in_channels=3, kernel=2, padding=0),
            _layer("body", Source("odd"), stride=2, norm=Norm(), **_average_of(0.25, 0.5, 0.5)),
            _layer("last", Source("body", 0.2), activation="tanh", **_average_of(0.5, 0.5, 0.5)),
        ),
        size=8,
    ),
    "running, inner slope": Generator(
        (_FIRST, _layer("body", Source("first", 0.0), norm=Norm(), inner_slope=0.2), _LAST),
        size=8,
        statistics="running",
    ),
}


@functools.cache
def sample(name: str) -> tuple[Generator, dict[str, np.ndarray]]:
    """One of RESNETS, UNUSUAL or NETWORKS, with weights that make its outputs vary."""
    if name in NETWORKS:
        return NETWORKS[name], weights_of(name)
    g, factor = (RESNETS[name], 3) if name in RESNETS else (UNUSUAL[name], 15)
    weights = random_weights(g, seed=len(name))
    return g, {key: factor * w if key.endswith("kernel") else w for key, w in weights.items()}


def check_network(name: str, precision: str, algorithm: str | None, n: int, h: int, w: int) -> None:
    """Compare all layers' values with the oracle's, and the values that the next layers read with those asked for."""
    from pix2pix.gpu.engine import GpuEngine

    g, weights = sample(name)
    names = [layer.name for layer in g.layers]
    b = pictures(n, h, w, g.in_channels)
    expected = ReferenceEngine(g, weights).run(to_float(b), outputs=names)
    with GpuEngine(g, weights, precision=precision, plan=algorithm) as engine:
        got = engine.run(to_float(b), outputs=names)
        for inner in names[:-1]:
            assert got[inner].std() > 0.01
            check_layer(got[inner], expected[inner], precision, inner)
        if g.layers[-1].activation == "tanh":
            check_output(got[names[-1]], expected[names[-1]], precision)
        else:
            check_layer(got[names[-1]], expected[names[-1]], precision, names[-1])
        if got[names[-1]].shape == b.shape:
            np.testing.assert_array_equal(engine.translate(b), to_uint8(got[names[-1]], g.output_scale))
        if got[names[-1]].shape != b.shape or n > 1:
            np.testing.assert_array_equal(engine.run(to_float(b[-1:]))[0], got[names[-1]][-1])
