"""Small generators and pictures that many tests share, and the table of tolerances."""

from __future__ import annotations

import functools

import numpy as np

from pix2pix.engines.reference import to_uint8
from pix2pix.model.generator import Generator, Norm
from pix2pix.model.unet import UnetVariant, unet
from pix2pix.model.weights import random_weights

# Against the float64 oracle: max abs error after tanh for float32 (random ngf=64 weights, real weights); PSNR in dB on
# 8-bit pictures for the lower precisions. From the design; engines' tests take them from here.
TOLERANCE = {"float32": (5e-5, 2e-4)}
PSNR = {"bfloat16": 38.0, "int8": 30.0, "float16": 45.0, "tf32": 45.0}
# Root mean square error of an inner layer, of its standard deviation: twice what the variants below show at most.
LAYER_NOISE = {"bfloat16": 0.027, "int8": 0.25, "float16": 0.0055, "tf32": 0.0055}

VARIANTS: dict[str, Generator] = {
    "tensorflow": unet(ngf=4, depth=5),
    "pytorch": unet(ngf=6, depth=6, variant=UnetVariant(bias="last", innermost_norm=False, skip_first=True)),
    "instance": unet(
        ngf=5, depth=5, variant=UnetVariant(norm=Norm(affine=False), innermost_norm=False, skip_first=True)
    ),
    "no-norm": unet(ngf=3, depth=5, variant=UnetVariant(norm=None, bias="last", innermost_norm=False, skip_first=True)),
    "keras": unet(ngf=4, depth=7, variant=UnetVariant(norm=Norm(eps=1e-3), bias="last", slope=0.3, skip_slope=0.3)),
    "running": unet(ngf=4, depth=5, statistics="running", variant=UnetVariant(bias="last", skip_first=True)),
    "grey-to-two": unet(ngf=9, depth=5, in_channels=1, out_channels=2),
    "five-to-rgba": unet(ngf=17, depth=5, in_channels=5, out_channels=4, filters=(17, 40, 33, 64, 31)),
}


@functools.cache
def weights_of(variant: str) -> dict[str, np.ndarray]:
    """Random weights of a variant, large enough that no map is near zero variance."""
    weights = random_weights(VARIANTS[variant], seed=len(variant))
    return {name: w * 5 if name.endswith("kernel") else w for name, w in weights.items()}


def pictures(n: int, h: int, w: int, channels: int = 3, seed: int = 0) -> np.ndarray:
    """n different uint8 pictures (n,h,w,channels): gradients, edges and noise."""
    rng = np.random.default_rng([seed, n, h, w])
    y, x = np.mgrid[:h, :w]
    waves = [np.sin(x / rng.uniform(3, 40) + y / rng.uniform(3, 40)) for _ in range(n * channels)]
    smooth = np.stack(waves).reshape(n, channels, h, w).transpose(0, 2, 3, 1)
    noise = rng.normal(0, 0.2, smooth.shape)
    return np.clip((smooth * 0.6 + noise) * 127.5 + 127.5, 0, 255).astype(np.uint8)


def with_cancelling_layer() -> tuple[Generator, dict[str, np.ndarray]]:
    """encoder_2 subtracts channels that are nearly the same, which its norm enlarges."""
    generator = unet(ngf=8, depth=5)
    weights, rng = random_weights(generator), np.random.default_rng(0)
    first, bias, second = (weights[f"encoder_{part}"] for part in ("1.kernel", "1.bias", "2.kernel"))
    first[..., 1::2] = first[..., ::2] + rng.normal(0, 0.0007, first[..., ::2].shape)
    bias[1::2] = bias[::2]
    second[:, :, 1::2] = -second[:, :, ::2]
    return generator, weights


def check_output(got: np.ndarray, expected: np.ndarray, precision: str) -> None:
    """Assert that a picture in [-1,1], computed with random weights, is as near to the oracle's as it must be."""
    if precision == "float32":
        assert np.abs(got - expected).max() < TOLERANCE["float32"][0]
    else:
        difference = to_uint8(got, 255.0).astype(float) - to_uint8(expected, 255.0)
        assert (difference**2).mean() < 255**2 / 10 ** (PSNR[precision] / 10)


def check_layer(got: np.ndarray, expected: np.ndarray, precision: str, name: str) -> None:
    """Assert the same of the value of an inner layer."""
    if precision == "float32":
        scale = max(1.0, np.abs(expected).max())
        np.testing.assert_allclose(got, expected, rtol=0, atol=5e-5 * scale, err_msg=name)
    else:
        error = np.sqrt(((got - expected) ** 2).mean()) / expected.std()
        assert error < LAYER_NOISE[precision], name
