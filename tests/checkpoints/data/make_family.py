"""Make the tests' files of ResNet generators and upsampling U-Nets, with Keras 2 or 3, and what Keras makes of images.

    python make_family.py                          family_keras3.tar.xz and .npz (tensorflow-cpu 2.21, Keras 3.15)
    TF_USE_LEGACY_KERAS=1 python make_family.py    family_keras2.tar.xz and .npz (tf_keras 2.21)

The networks restate what the public programs' documentation says of them, in a few filters: Keras' example of CycleGAN,
programs of TensorFlow 2 that pad and add with functions, the U-Net of Keras-GAN, and two of uncommon parts. Every case
is in the archive as .keras, .h5, SavedModel and TensorFlow.js folder. The last is written here as the converter writes
it, which needs another version of TensorFlow. The .npz files have 8-bit images, whose sides are odd multiples of the
least size, and Keras' float32 outputs for them, scaled to [-1, 1], with training=False.
"""

from __future__ import annotations

import json
import os
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path

os.environ["TF_CPP_MIN_LOG_LEVEL"] = "3"

import numpy as np  # noqa: E402 - TensorFlow's log is to have nothing but errors
import tensorflow as tf  # noqa: E402

HERE = Path(__file__).parent
KERAS_2 = os.environ.get("TF_USE_LEGACY_KERAS") == "1"
keras = tf.keras
L = keras.layers
register = keras.utils.register_keras_serializable


@register("Paddings")
class ReflectionPadding2D(L.Layer):
    """As in Keras' example, width first."""

    def __init__(self, padding: tuple[int, int] = (1, 1), **options: object) -> None:
        super().__init__(**options)
        self.padding = tuple(padding)

    def call(self, x):
        width, height = self.padding
        return tf.pad(x, [[0, 0], [height, height], [width, width], [0, 0]], mode="REFLECT")

    def get_config(self) -> dict[str, object]:
        return {**super().get_config(), "padding": self.padding}


@register("Addons")
class InstanceNormalization(L.Layer):
    """What the add-ons of TensorFlow 2 call so, with the entries of its config."""

    def __init__(self, groups: int = -1, axis: int = -1, epsilon: float = 1e-3, **options: object) -> None:
        super().__init__(**options)
        self.entries = {"groups": groups, "axis": axis, "epsilon": epsilon}

    def build(self, shape: tuple[int | None, ...]) -> None:
        self.gamma = self.add_weight(name="gamma", shape=shape[-1:])
        self.beta = self.add_weight(name="beta", shape=shape[-1:])

    def call(self, x):
        mean, variance = tf.nn.moments(x, axes=[1, 2], keepdims=True)
        return tf.nn.batch_normalization(x, mean, variance, self.beta, self.gamma, self.entries["epsilon"])

    def get_config(self) -> dict[str, object]:
        return {**super().get_config(), **self.entries, "center": True, "scale": True, "gamma_initializer": None}


@register("Mine")
class InstanceNorm(L.Layer):
    """A program's own, as in TensorFlow's tutorial on CycleGAN; its epsilon is nowhere in its config."""

    def build(self, shape: tuple[int | None, ...]) -> None:
        self.scale = self.add_weight(name="scale", shape=shape[-1:])
        self.offset = self.add_weight(name="offset", shape=shape[-1:])

    def call(self, x):
        mean, variance = tf.nn.moments(x, axes=[1, 2], keepdims=True)
        return self.scale * (x - mean) * tf.math.rsqrt(variance + 1e-5) + self.offset


def instance_norm() -> L.Layer:
    return InstanceNormalization() if KERAS_2 else L.GroupNormalization(groups=-1)


def leaky(slope: float) -> L.Layer:
    return L.LeakyReLU(**{"alpha" if KERAS_2 else "negative_slope": slope})


def resnet(side: int | None) -> keras.Model:
    """Keras' example of CycleGAN: classes that pad by reflection, transposed convolutions, sums by a layer."""

    def normed(x, activation: str | None = "relu"):
        x = instance_norm()(x)
        return L.Activation(activation)(x) if activation else x

    x = inputs = L.Input([side, side, 3])
    x = normed(L.Conv2D(3, 7, use_bias=False)(ReflectionPadding2D((3, 3))(x)))
    for width in (4, 6):
        x = normed(L.Conv2D(width, 3, strides=2, padding="same", use_bias=False)(x))
    for _ in range(2):
        block = normed(L.Conv2D(6, 3, use_bias=False)(ReflectionPadding2D()(x)))
        block = normed(L.Conv2D(6, 3, use_bias=False)(ReflectionPadding2D()(block)), None)
        x = L.Add()([x, block])
    for width in (4, 3):
        x = normed(L.Conv2DTranspose(width, 3, strides=2, padding="same", use_bias=False)(x))
    x = L.Conv2D(3, 7, padding="valid")(ReflectionPadding2D((3, 3))(x))
    return keras.Model(inputs, L.Activation("tanh")(x))


def functions(side: int | None) -> keras.Model:
    """A program of TensorFlow 2: functions that pad and add, a norm of its own, resize-convolutions, biases."""

    def pad(x, n: int):
        widths = [[0, 0], [n, n], [n, n], [0, 0]]
        return tf.pad(x, widths, mode="REFLECT") if KERAS_2 else keras.ops.pad(x, widths, mode="reflect")

    x = inputs = L.Input([side, side, 1])
    x = L.ReLU()(InstanceNorm()(L.Conv2D(3, 7)(pad(x, 3))))
    x = L.ReLU()(InstanceNorm()(L.Conv2D(4, 3, strides=2)(L.ZeroPadding2D(((1, 0), (1, 0)))(x))))
    x = L.ReLU()(InstanceNorm()(L.Conv2D(5, 3, strides=2, padding="same")(x)))
    block = leaky(0.2)(InstanceNorm()(L.Conv2D(5, 3, padding="same")(x)))
    block = L.Dropout(0.5)(block)
    x = InstanceNorm()(L.Conv2D(5, 3)(pad(block, 1))) + x
    x = L.UpSampling2D(2, interpolation="bilinear")(x)
    x = L.ReLU()(InstanceNorm()(L.Conv2D(4, 3)(pad(x, 1))))
    x = L.UpSampling2D(2)(x)
    x = L.ReLU()(InstanceNorm()(L.Conv2D(3, 3, padding="same")(x)))
    return keras.Model(inputs, L.Activation("tanh")(L.Conv2D(2, 7)(pad(x, 3))))


def upsampling(side: int | None) -> keras.Model:
    """The U-Net of Keras-GAN: a leaky ReLU before the norm, nearest upsampling before 4x4 convolutions of stride 1."""
    x = inputs = L.Input([side, side, 3])
    skips = []
    for level, width in enumerate((3, 4, 5)):
        x = leaky(0.2)(L.Conv2D(width, 4, strides=2, padding="same")(x))
        x = L.BatchNormalization(momentum=0.8)(x) if level else x
        skips.append(x)
    for number, width in enumerate((4, 3)):
        x = L.Conv2D(width, 4, padding="same", activation="relu")(L.UpSampling2D(2)(x))
        x = L.Dropout(0.5)(x) if not number else x
        x = L.BatchNormalization(momentum=0.8)(x)
        x = L.Concatenate()([x, skips[1 - number]])
    return keras.Model(inputs, L.Conv2D(3, 4, padding="same", activation="tanh")(L.UpSampling2D(2)(x)))


def sequential(side: int | None) -> keras.Model:
    """Blocks that are Sequential models, Keras' own group norms, a ReLU after the sum."""

    def block(*steps: L.Layer) -> keras.Model:
        return keras.Sequential(steps)

    def norm() -> L.Layer:
        return L.GroupNormalization(groups=-1, epsilon=1e-4)

    x = inputs = L.Input([side, side, 3])
    x = block(L.Conv2D(4, 4, strides=2, padding="same"), norm(), leaky(0.3))(x)
    first = block(L.Conv2D(4, 3, padding="same", use_bias=False), norm(), L.ReLU(), L.SpatialDropout2D(0.3))
    x = L.ReLU()(L.add([block(L.Conv2D(4, 3, padding="same"), norm())(first(x)), x]))
    return keras.Model(inputs, L.Conv2DTranspose(3, 4, strides=2, padding="same", activation="tanh")(x))


def odd_kernels(side: int | None) -> keras.Model:
    """Kernels and strides at which TensorFlow's SAME pads and crops in ways of its own."""
    x = inputs = L.Input([side, side, 2])
    x = first = leaky(0.1)(L.Conv2D(3, 4, padding="same")(x))
    x = leaky(0.1)(L.Conv2D(4, 5, strides=2)(L.ZeroPadding2D(((0, 3), (2, 1)))(x)))
    x = leaky(0.1)(L.Conv2D(5, 2, strides=2, padding="same")(x))
    x = leaky(0.1)(L.Conv2D(5, 1, strides=3, padding="same")(x))
    x = leaky(0.1)(L.Conv2DTranspose(4, 1, strides=3, padding="same")(x))
    x = leaky(0.1)(L.Conv2DTranspose(4, 5, strides=2, padding="same", output_padding=1)(x))
    x = leaky(0.1)(L.Conv2DTranspose(3, 2, strides=2)(x))
    x = leaky(0.1)(L.Conv2DTranspose(3, 4, padding="same")(L.Concatenate()([first, x])))
    return keras.Model(inputs, L.Conv2D(3, 6, padding="same", activation="tanh")(x))


def grouped(side: int | None) -> keras.Model:
    """Norms of all channels together, as in Keras' example of CycleGAN since 2024, and of several groups."""

    def norm(groups: int, **options: object) -> L.Layer:
        return L.GroupNormalization(groups=groups, **options)

    x = inputs = L.Input([side, side, 3])
    x = norm(3, epsilon=1e-5)(leaky(0.2)(L.Conv2D(6, 4, strides=2, padding="same")(x)))
    block = L.ReLU()(norm(1)(L.Conv2D(6, 3, use_bias=False)(ReflectionPadding2D()(x))))
    x = L.Add()([x, norm(1)(L.Conv2D(6, 3)(ReflectionPadding2D()(block)))])
    x = L.ReLU()(norm(2, center=False, scale=False)(L.Conv2DTranspose(4, 3, strides=2, padding="same")(x)))
    return keras.Model(inputs, L.Conv2D(3, 7, padding="same", activation="tanh")(x))


# case -> the network, the sizes (height, width) to compare, the side in the graph
CASES: dict[str, tuple[Callable[[int | None], keras.Model], list[tuple[int, int]], int | None]] = {
    "resnet": (resnet, [(20, 28), (36, 20)], 20),
    "functions": (functions, [(20, 28), (12, 20)], 20),
    "upsampling": (upsampling, [(24, 40), (8, 24)], 40),
    "sequential": (sequential, [(20, 12)], None),
    "odd_kernels": (odd_kernels, [(12, 36)], None),
    "grouped": (grouped, [(20, 12)], None),
}


def fill(model: keras.Model, seed: int) -> keras.Model:
    """The model with weights that make every part of it matter, as large as after a training."""
    rng = np.random.default_rng(seed)
    values = []
    for variable in model.weights:
        shape, part = tuple(variable.shape), variable.name.partition(":")[0].rpartition("/")[2]
        if part == "kernel":
            values.append(rng.normal(0, 1.2 / (shape[0] * min(shape[2:]) ** 0.5), shape))
        elif part == "moving_variance":
            values.append(rng.uniform(0.5, 2, shape))
        elif part == "seed_generator_state":
            values.append(np.asarray(variable))
        else:
            values.append(rng.normal(part in ("gamma", "scale"), 0.3, shape))
    model.set_weights(values)
    return model


def save_js(model: keras.Model, folder: Path) -> None:
    """A TensorFlow.js folder: the graph, and each weight under its own name as Keras 2 and the converter spell it."""
    folder.mkdir()
    entries, data = [], b""
    inner = [step for layer in model.layers for step in getattr(layer, "layers", [layer])]
    for layer in inner:
        for variable in layer.weights:
            part = variable.name.partition(":")[0].rpartition("/")[2]
            if part != "seed_generator_state":
                entries.append({"name": f"{layer.name}/{part}", "shape": list(variable.shape), "dtype": "float32"})
                data += np.asarray(variable, "<f4").tobytes()
    (folder / "group1-shard1of1.bin").write_bytes(data)
    described = {
        "format": "layers-model",
        "modelTopology": {"model_config": json.loads(model.to_json())},
        "weightsManifest": [{"paths": ["group1-shard1of1.bin"], "weights": entries}],
    }
    (folder / "model.json").write_text(json.dumps(described))


def main() -> None:
    results = {}
    with tempfile.TemporaryDirectory() as place:
        for seed, (name, (make, sizes, side)) in enumerate(CASES.items()):
            path = Path(place, name)
            model = fill(make(side), seed)
            model.save(f"{path}.keras")
            model.save(f"{path}.h5")
            save_js(model, Path(f"{path}_js"))
            if KERAS_2:
                model.save(path, save_format="tf")
            else:
                model.export(path, verbose=False)
            any_size = make(None)
            any_size.set_weights(model.get_weights())
            for h, w in sizes:
                image = np.random.default_rng(h * w).integers(0, 256, (h, w, model.input_shape[3]), np.uint8)
                x = image.astype(np.float32) / 255 * 2 - 1
                results[f"{name}/{h}x{w}/x"] = image
                results[f"{name}/{h}x{w}/y"] = np.asarray(any_size(x[None], training=False))[0]
        for path in Path(place).rglob("fingerprint.pb"):
            path.unlink()
        shutil.make_archive(str(HERE / f"family_keras{2 if KERAS_2 else 3}"), "xztar", place)
    np.savez_compressed(HERE / f"family_keras{2 if KERAS_2 else 3}.npz", **results)


if __name__ == "__main__":
    main()
