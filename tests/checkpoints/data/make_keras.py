"""Make the Keras files of this folder, and what Keras computes with them: ``python make_keras.py``.

Run it once with TensorFlow 2.13 for the files keras_2_*, once with Keras 3 (3.15, TensorFlow 2.21) for keras_3_*.
keras_<version>.npz holds, for every case, float32 outputs as make_pytorch.py describes them, for the inputs there.
"""

from __future__ import annotations

import os
from pathlib import Path

os.environ["TF_CPP_MIN_LOG_LEVEL"] = "3"

import h5py  # noqa: E402 - TensorFlow's log is to have nothing but errors
import keras  # noqa: E402
import numpy as np  # noqa: E402
from keras import layers  # noqa: E402

HERE = Path(__file__).parent
MAJOR = int(keras.__version__.split(".")[0])
SAME = {"kernel_size": 4, "strides": 2, "padding": "same"}


def tutorial(widths: list[int], side: int | None, channels: int = 3) -> keras.Model:
    """The generator of TensorFlow's tutorial on pix2pix, for images of ``side`` pixels (None: of any size)."""

    def block(kind: type, width: int, norm: bool, dropout: bool, activation: object) -> keras.Model:
        steps = [kind(width, **SAME, use_bias=False)]
        steps += [layers.BatchNormalization()] if norm else []
        steps += [layers.Dropout(0.5)] if dropout else []
        return keras.Sequential([*steps, activation])

    inputs = x = layers.Input(shape=[side, side, channels])
    skips = []
    for level, width in enumerate(widths):
        x = block(layers.Conv2D, width, level > 0, False, layers.LeakyReLU())(x)
        skips.append(x)
    for number, width in enumerate(reversed(widths[:-1])):
        x = block(layers.Conv2DTranspose, width, True, number < 2, layers.ReLU())(x)
        x = layers.Concatenate()([x, skips[-2 - number]])
    x = layers.Conv2DTranspose(3, **SAME, activation="tanh")(x)
    return keras.Model(inputs, x)


def flat(widths: list[int], side: int | None, channels: int = 3) -> keras.Model:
    """A common variation: no nested models, biases everywhere, statistics of the image, no norm on the inside."""
    inputs = x = layers.Input(shape=[side, side, channels])
    skips = []
    for level, width in enumerate(widths, 1):
        x = layers.Conv2D(width, **SAME)(x)
        if 1 < level < len(widths):
            x = layers.BatchNormalization(epsilon=1e-4)(x, training=True)
        x = layers.Activation("relu")(x) if level == len(widths) else leaky(0.2)(x)
        skips.append(x)
    for number, width in enumerate(reversed(widths[:-1])):
        x = layers.Conv2DTranspose(width, **SAME)(x)
        x = layers.BatchNormalization(epsilon=1e-4)(x, training=True)
        x = layers.Dropout(0.5)(x)
        x = layers.Concatenate()([x, skips[-2 - number]])
        x = layers.Activation("relu")(x)
    x = layers.Conv2DTranspose(3, **SAME)(x)
    return keras.Model(inputs, layers.Activation("tanh")(x))


def bare(widths: list[int], side: int | None, channels: int = 3) -> keras.Model:
    """The tutorial's network without nested models, with biases, and layers that have names."""
    inputs = x = layers.Input(shape=[side, side, channels])
    skips = []
    for level, width in enumerate(widths, 1):
        x = layers.Conv2D(width, **SAME, name=f"down{level}")(x)
        x = layers.BatchNormalization(name=f"down{level}_norm")(x) if level > 1 else x
        x = layers.LeakyReLU()(x)
        skips.append(x)
    for number, width in enumerate(reversed(widths[:-1])):
        x = layers.Conv2DTranspose(width, **SAME, name=f"up{number}")(x)
        x = layers.ReLU()(layers.BatchNormalization(name=f"up{number}_norm")(x))
        x = layers.Concatenate()([x, skips[-2 - number]])
    return keras.Model(inputs, layers.Conv2DTranspose(3, **SAME, activation="tanh", name="picture")(x))


def instance(widths: list[int], side: int | None, channels: int = 3) -> keras.Model:
    """The tutorial's network with instance norms."""
    inputs = x = layers.Input(shape=[side, side, channels])
    skips = []
    for level, width in enumerate(widths):
        x = layers.Conv2D(width, **SAME, use_bias=False)(x)
        x = layers.GroupNormalization(groups=-1)(x) if level else x
        x = layers.LeakyReLU(name=f"leaky_{level}")(x)
        skips.append(x)
    for number, width in enumerate(reversed(widths[:-1])):
        x = layers.Conv2DTranspose(width, **SAME, use_bias=False)(x)
        x = layers.ReLU()(layers.GroupNormalization(groups=-1, epsilon=1e-5)(x))
        x = layers.Concatenate()([x, skips[-2 - number]])
    return keras.Model(inputs, layers.Conv2DTranspose(3, **SAME, activation="tanh")(x))


class InstanceNormalization(layers.Layer):
    """The norm of TensorFlow's tutorial on CycleGAN."""

    def __init__(self, epsilon: float = 1e-5, **options: object) -> None:
        super().__init__(**options)
        self.epsilon = epsilon

    def build(self, shape: tuple[int | None, ...]) -> None:
        self.scale = self.add_weight(name="scale", shape=shape[-1:])
        self.offset = self.add_weight(name="offset", shape=shape[-1:])

    def call(self, x):
        mean, variance = keras.ops.moments(x, axes=[1, 2], keepdims=True)
        return self.scale * (x - mean) * keras.ops.rsqrt(variance + self.epsilon) + self.offset


def cyclegan(widths: list[int], side: int | None, channels: int = 3) -> keras.Model:
    """The U-Net of TensorFlow's tutorial on CycleGAN: that on pix2pix with another norm, for images of any size."""
    inputs = x = layers.Input(shape=[None, None, channels])
    skips = []
    for level, width in enumerate(widths):
        down = [layers.Conv2D(width, **SAME, use_bias=False)]
        x = keras.Sequential([*down, *([InstanceNormalization()] if level else []), layers.LeakyReLU()])(x)
        skips.append(x)
    for number, width in enumerate(reversed(widths[:-1])):
        up = layers.Conv2DTranspose(width, **SAME, use_bias=False)
        x = keras.Sequential([up, InstanceNormalization(), layers.ReLU()])(x)
        x = layers.Concatenate()([x, skips[-2 - number]])
    return keras.Model(inputs, layers.Conv2DTranspose(3, **SAME, activation="tanh")(x))


def discriminator() -> keras.Model:
    """The tutorial's PatchGAN, with few filters."""
    images = [layers.Input(shape=[32, 32, 3]), layers.Input(shape=[32, 32, 3])]
    x = layers.Concatenate()(images)
    for width in (1, 2):
        x = layers.LeakyReLU()(layers.Conv2D(width, **SAME, use_bias=False)(x))
    return keras.Model(images, layers.Conv2D(1, 4)(x))


def leaky(slope: float) -> layers.Layer:
    return layers.LeakyReLU(**{"alpha" if MAJOR == 2 else "negative_slope": slope})


def trained(model: keras.Model, seed: int) -> keras.Model:
    """``model`` with weights that make every part of it matter."""
    rng = np.random.default_rng(seed)
    values = []
    for variable in model.weights:
        part = (variable.name if MAJOR == 2 else variable.path).split("/")[-1].split(":")[0]
        shape = tuple(variable.shape)
        if part == "kernel":
            values.append(rng.normal(0, 1.4 / (4 * min(shape[2:]) ** 0.5), shape))
        elif part == "moving_variance":
            values.append(rng.uniform(0.5, 2, shape))
        else:
            values.append(rng.normal(part in ("gamma", "scale"), 0.2, shape))
    model.set_weights(values)
    return model


def outputs(make, model: keras.Model, widths: list[int], images: list[np.ndarray]) -> dict[str, np.ndarray]:
    """float32 images of ``model``, which ``make(widths, side)`` made, by size and statistics; dropout is off."""
    any_size = make(widths, None, images[0].shape[-1])
    any_size.set_weights(model.get_weights())
    for layer in any_size._flatten_layers():
        if isinstance(layer, layers.Dropout):
            layer.rate = 0.0
    results = {}
    for statistics in ("running", "image"):  # in this order, because training changes the moving averages
        for b in images:
            x = b[None].astype(np.float32) / 255 * 2 - 1
            y = np.asarray(any_size(x, training=statistics == "image"))[0]
            results[f"{b.shape[0]}x{b.shape[1]}/{statistics}"] = y
            any_size.set_weights(model.get_weights())
    return results


def save_all() -> dict[str, np.ndarray]:
    """Write the files; their outputs by "<file>/<size>/<statistics>"."""
    inputs, results = np.load(HERE / "pytorch.npz"), {}
    images = [inputs["input/32x32x3"], inputs["input/32x64x3"]]

    def case(names: list[str], make, widths: list[int]) -> None:
        model = trained(make(widths, 32), len(results))
        for name in names:
            path = HERE / f"keras_{MAJOR}_{name}"
            weights_alone = "weights" in name
            model.save_weights(path) if weights_alone else model.save(path)
            for key, y in outputs(make, model, widths, images).items():
                results[f"{path.name}/{key}"] = y[::3, ::3]

    if MAJOR == 2:
        case(["tutorial.keras", "tutorial.h5", "tutorial_weights.h5"], tutorial, [1, 2, 4, 4, 4])
        case(["bare.weights.h5", "bare_weights.h5"], bare, [1, 2, 4])
    else:
        case(["tutorial.keras", "tutorial.weights.h5"], tutorial, [2, 3, 4, 4, 4])
        case(["flat.h5"], flat, [1, 2, 4, 4, 4])
        case(["bare.weights.h5"], bare, [1, 2, 4])
        case(["instance.keras"], instance, [1, 2, 4])
        case(["cyclegan.keras", "cyclegan.weights.h5"], cyclegan, [1, 2, 4])
        discriminator().save(HERE / "keras_3_discriminator.keras")
    return results


def save_hdf5() -> None:
    """Write HDF5 files with all that a reader has to take, and with what it has to refuse: hdf5_*.h5."""
    with h5py.File(HERE / "hdf5_types.h5", "w") as file:
        for dtype in (np.float16, np.float32, np.float64):
            file[f"arrays/{np.dtype(dtype)}"] = np.array([[1.5, -2.25, 0.0]], dtype)
        for number in range(100):  # so many that the group's tree has two levels
            file[f"many/{number}"] = np.float32(number)
    numbers = np.zeros((4, 4, 3, 1), np.float32)

    def case(name: str, put, **options: object) -> None:
        with h5py.File(HERE / f"hdf5_{name}.h5", "w", **options) as file:
            file.attrs["layer_names"] = np.array([b"down"])
            layer = file.create_group("down")
            layer.attrs["weight_names"] = np.array([b"down/kernel:0"])
            put(layer.create_group("down"))

    def linked(link: object):
        return lambda group: group.__setitem__("kernel:0", link)

    case("soft_link", linked(h5py.SoftLink("/down")))
    case("external_link", linked(h5py.ExternalLink("keras_3_flat.h5", "/")))
    case("latest", linked(numbers), libver="latest")
    case("compressed", lambda group: group.create_dataset("kernel:0", data=numbers, compression="gzip"))
    case("never_written", lambda group: group.create_dataset("kernel:0", numbers.shape, np.float32))
    outside = [("keras_3.npz", 0, h5py.h5f.UNLIMITED)]
    case("outside", lambda group: group.create_dataset("kernel:0", numbers.shape, np.float32, external=outside))


if __name__ == "__main__":
    np.savez_compressed(HERE / f"keras_{MAJOR}.npz", **save_all())
    if MAJOR == 3:
        save_hdf5()
