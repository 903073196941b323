"""Make the TensorFlow.js folders and the course file of this folder, and what they compute, with torch 2.13.

TensorFlow's operations are restated with PyTorch's, after the Keras tutorial on pix2pix and after
affinelayer/pix2pix-tensorflow, so that the expected images do not come from this project's own oracle.
tensorflow.npz holds float32 NHWC outputs, every 3rd row and column, or every 9th of the course model's, for the inputs
that make_pytorch.py describes.
"""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from make_pytorch import input_image

HERE = Path(__file__).parent
RNG = np.random.default_rng(7)


def convolution(name: str, read: int, width: int, transposed: bool, bias: bool) -> dict[str, np.ndarray]:
    """Random weights of a 4x4 convolution in TensorFlow's layout."""
    shape = (4, 4, width, read) if transposed else (4, 4, read, width)
    kernel = RNG.normal(0, 1.4 / (4 * read**0.5) * (2 if transposed else 1), shape)
    return {f"{name}/kernel": kernel} | ({f"{name}/bias": RNG.normal(0, 0.2, width)} if bias else {})


def norm(name: str, width: int) -> dict[str, np.ndarray]:
    """Random weights of a batch norm."""
    return {
        f"{name}/gamma": RNG.normal(1, 0.2, width),
        f"{name}/beta": RNG.normal(0, 0.2, width),
        f"{name}/moving_mean": RNG.normal(0, 0.2, width),
        f"{name}/moving_variance": RNG.uniform(0.5, 2, width),
    }


def convolved(x: torch.Tensor, w: dict[str, np.ndarray], name: str, transposed: bool) -> torch.Tensor:
    """TensorFlow's convolution with padding SAME, kernel 4, stride 2, on NCHW."""
    kernel = torch.from_numpy(w[f"{name}/kernel"].astype(np.float32)).permute(3, 2, 0, 1).contiguous()
    bias = torch.from_numpy(w[f"{name}/bias"].astype(np.float32)) if f"{name}/bias" in w else None
    operation = F.conv_transpose2d if transposed else F.conv2d
    return operation(x, kernel, bias, stride=2, padding=1)


def normed(x: torch.Tensor, w: dict[str, np.ndarray], name: str, eps: float, training: bool) -> torch.Tensor:
    """Batch norm over a batch of one, written out because PyTorch's refuses a 1x1 map in training."""
    part = {k.split("/")[-1]: torch.from_numpy(v.astype(np.float32)) for k, v in w.items() if k.startswith(name + "/")}
    if training:
        mean, variance = x.mean((0, 2, 3)), x.var((0, 2, 3), unbiased=False)
    else:
        mean, variance = part["moving_mean"], part["moving_variance"]
    shape = (1, -1, 1, 1)
    y = (x - mean.view(shape)) / torch.sqrt(variance.view(shape) + eps)
    return y * part["gamma"].view(shape) + part["beta"].view(shape)


def to_nchw(b: np.ndarray) -> torch.Tensor:
    return torch.from_numpy(b.astype(np.float32) / 255 * 2 - 1).permute(2, 0, 1)[None]


# -- the Keras tutorial: leaky ReLU of 0.3 before the skip, no bias, blocks that are Sequential models ---------


def tutorial_weights(widths: list[int]) -> dict[str, np.ndarray]:
    """Weights by the names that the TensorFlow.js converter gives them."""
    weights, depth, read = {}, len(widths), 3
    for i, width in enumerate(widths):
        weights |= convolution(f"sequential_{i}/down_{i}", read, width, False, False)
        weights |= norm(f"sequential_{i}/down_norm_{i}", width) if i else {}
        read = width
    for i in range(depth - 1, 0, -1):
        weights |= convolution(f"sequential_{depth + i}/up_{i}", read, widths[i - 1], True, False)
        weights |= norm(f"sequential_{depth + i}/up_norm_{i}", widths[i - 1])
        read = 2 * widths[i - 1]
    return weights | convolution("last", read, 3, True, True)


def tutorial_output(w: dict[str, np.ndarray], depth: int, b: np.ndarray, training: bool) -> np.ndarray:
    """What the tutorial's Generator computes, dropout off."""
    x, skips = to_nchw(b), []
    for i in range(depth):
        x = convolved(x, w, f"sequential_{i}/down_{i}", False)
        x = normed(x, w, f"sequential_{i}/down_norm_{i}", 1e-3, training) if i else x
        x = F.leaky_relu(x, 0.3)
        skips.append(x)
    for i in range(depth - 1, 0, -1):
        x = convolved(x, w, f"sequential_{depth + i}/up_{i}", True)
        x = torch.relu(normed(x, w, f"sequential_{depth + i}/up_norm_{i}", 1e-3, training))
        x = torch.cat([x, skips[i - 1]], 1)
    return torch.tanh(convolved(x, w, "last", True))[0].permute(1, 2, 0).numpy()


def tutorial_topology(widths: list[int], training: bool, keras_3: bool) -> dict[str, object]:
    """The tutorial's Generator as Keras 2 or 3 describes it in JSON, shortened to what matters."""
    depth, layers = len(widths), []

    def call(reads: list[str], **arguments: object) -> list[object]:
        if keras_3:
            tensors = [{"class_name": "__keras_tensor__", "config": {"keras_history": [r, 0, 0]}} for r in reads]
            return [{"args": [tensors if len(reads) > 1 else tensors[0]], "kwargs": arguments}]
        return [[[read, 0, 0, arguments] for read in reads]]

    def layer(kind: str, name: str, reads: list[str] | None = None, **config: object) -> dict[str, object]:
        described = {"class_name": kind, "config": {"name": name, **config}}
        if reads is not None:
            inside = {"training": True} if training and kind == "Sequential" else {}
            described |= {"name": name, "inbound_nodes": call(reads, **inside) if reads else []}
        return described

    def conv(kind: str, name: str, filters: int, reads: list[str] | None = None, **config: object):
        shared = {"kernel_size": [4, 4], "strides": [2, 2], "padding": "same", "data_format": "channels_last"}
        return layer(
            kind, name, reads, filters=filters, **{**shared, "activation": "linear", "use_bias": False, **config}
        )

    shape = {"batch_shape" if keras_3 else "batch_input_shape": [None, 2**depth, 2**depth, 3]}
    layers.append(layer("InputLayer", "input_1", [], **shape))
    slope = {"negative_slope" if keras_3 else "alpha": 0.30000001192092896}
    read = "input_1"
    for i, width in enumerate(widths):
        steps = [conv("Conv2D", f"down_{i}", width)]
        steps += [layer("BatchNormalization", f"down_norm_{i}", axis=[3] if i % 2 else 3, epsilon=0.001)] if i else []
        steps.append(layer("LeakyReLU", f"leaky_{i}", **slope))
        layers.append(layer("Sequential", f"sequential_{i}", [read], layers=steps))
        read = f"sequential_{i}"
    for i in range(depth - 1, 0, -1):
        steps = [conv("Conv2DTranspose", f"up_{i}", widths[i - 1])]
        steps.append(layer("BatchNormalization", f"up_norm_{i}", axis=-1, epsilon=0.001, center=True, scale=True))
        steps += [layer("Dropout", f"dropout_{i}", rate=0.5)] if i == depth - 1 else []
        steps.append(layer("ReLU", f"relu_{i}", max_value=None, negative_slope=0.0, threshold=0.0))
        layers.append(layer("Sequential", f"sequential_{depth + i}", [read], layers=steps))
        layers.append(layer("Concatenate", f"join_{i}", [f"sequential_{depth + i}", f"sequential_{i - 1}"], axis=-1))
        read = f"join_{i}"
    layers.append(conv("Conv2DTranspose", "last", 3, [read], use_bias=True, activation="tanh"))
    output = ["last", 0, 0] if keras_3 else [["last", 0, 0]]
    config = {"name": "model", "layers": layers, "input_layers": [["input_1", 0, 0]], "output_layers": output}
    return {"model_config": {"class_name": "Functional", "config": config}}


def quantised(array: np.ndarray, dtype: str) -> tuple[bytes, np.ndarray, dict[str, object]]:
    """(bytes, the values that they stand for, entry of the manifest) of an array in one of TensorFlow.js' ways."""
    array = array.astype(np.float32)
    entry: dict[str, object] = {"dtype": "float32"}
    if dtype == "float32":
        return array.tobytes(), array, entry
    if dtype == "float16":
        small = array.astype(np.float16)
        return small.tobytes(), small.astype(np.float32), entry | {"quantization": {"dtype": dtype}}
    low, scale = float(array.min()), float(np.ptp(array) / np.iinfo(dtype).max)
    numbers = np.round((array - low) / scale).astype(dtype)
    described = {"dtype": dtype, "min": low, "scale": scale, "original_dtype": "float32"}
    return numbers.tobytes(), (numbers * np.float32(scale) + np.float32(low)), entry | {"quantization": described}


def save_tutorial(name: str, widths: list[int], training: bool, keras_3: bool, kernels: str) -> dict[str, np.ndarray]:
    """Write one folder: everything in one group of two shards. Its outputs."""
    (HERE / name).mkdir(exist_ok=True)
    data, entries, stored = b"", [], {}
    for key, array in tutorial_weights(widths).items():
        raw, stored[key], entry = quantised(array, kernels if key.endswith("kernel") else "float32")
        data += raw
        entries.append({"name": key, "shape": list(array.shape), **entry})
    half = len(data) // 2 + 3  # in the middle of a number
    (HERE / name / "group1-shard1of2.bin").write_bytes(data[:half])
    (HERE / name / "group1-shard2of2.bin").write_bytes(data[half:])
    model = {
        "format": "layers-model",
        "modelTopology": tutorial_topology(widths, training, keras_3),
        "weightsManifest": [{"paths": ["group1-shard1of2.bin", "group1-shard2of2.bin"], "weights": entries}],
    }
    (HERE / name / "model.json").write_text(json.dumps(model, separators=(",", ":")))
    side = 2 ** len(widths)
    return {
        f"{name}/{side}x{w}": tutorial_output(stored, len(widths), input_image(side, w, 3), training)[::3, ::3]
        for w in (side, 2 * side)
    }


# -- affinelayer's program, as the course took it -------------------------------------------------------------


def save_course(ngf: int) -> dict[str, np.ndarray]:
    """Write course.bin; its output."""
    widths = [ngf * min(2**i, 8) for i in range(8)]
    w, read = {}, 3
    for i, width in enumerate(widths, 1):
        w |= convolution(f"generator/encoder_{i}/conv2d", read, width, False, True)
        w |= norm(f"generator/encoder_{i}/batch_normalization", width) if i > 1 else {}
        read = width
    for i in range(8, 0, -1):
        out = widths[i - 2] if i > 1 else 3
        w |= convolution(f"generator/decoder_{i}/conv2d_transpose", read, out, True, True)
        w |= norm(f"generator/decoder_{i}/batch_normalization", out) if i > 1 else {}
        read = 2 * out
    (HERE / "course.bin").write_bytes(b"".join(w[name].astype("<f4").tobytes() for name in sorted(w)))
    x, skips = to_nchw(input_image(256, 256, 3)), []
    for i in range(1, 9):
        x = convolved(F.leaky_relu(x, 0.2) if i > 1 else x, w, f"generator/encoder_{i}/conv2d", False)
        x = normed(x, w, f"generator/encoder_{i}/batch_normalization", 1e-5, True) if i > 1 else x
        skips.append(x)
    for i in range(8, 0, -1):
        x = torch.relu(x if i == 8 else torch.cat([x, skips[i - 1]], 1))
        x = convolved(x, w, f"generator/decoder_{i}/conv2d_transpose", True)
        x = normed(x, w, f"generator/decoder_{i}/batch_normalization", 1e-5, True) if i > 1 else torch.tanh(x)
    return {"course/256x256": x[0].permute(1, 2, 0).numpy()[::9, ::9]}


if __name__ == "__main__":
    torch.set_num_threads(1)
    results = save_tutorial("tfjs_image", [2, 4, 8, 8, 8], training=True, keras_3=False, kernels="float32")
    results |= save_tutorial("tfjs_running", [1, 2, 4, 8, 8], training=False, keras_3=True, kernels="float16")
    results |= save_tutorial("tfjs_uint8", [1, 2, 4, 4, 4], training=True, keras_3=False, kernels="uint8")
    results |= save_tutorial("tfjs_uint16", [1, 2, 4, 4, 4], training=True, keras_3=True, kernels="uint16")
    results |= save_course(1)
    np.savez_compressed(HERE / "tensorflow.npz", **results)
